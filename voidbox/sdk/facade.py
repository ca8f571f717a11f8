"""How the blocking API is made of the asynchronous one: each method runs a coroutine to its end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from voidbox.sdk.loop_thread import run

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class Facade(Generic[C]):
    """The blocking form of an asynchronous object. Thread: any, but the event loop's."""

    def __init__(self, core: C) -> None:
        self._core = core


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Facade[Any], P], T]:
    """Return the method of a Facade that runs its core's `method`."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: Facade[Any], /, *arguments: P.args, **options: P.kwargs) -> T:
        coroutine: Coroutine[Any, Any, T] = getattr(self._core, name)(*arguments, **options)
        return run(coroutine)

    return call
