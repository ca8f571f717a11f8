"""How the blocking API is made of the asynchronous one: each method runs a coroutine to its end.

What a method takes stands once, where the coroutine does: a ParamSpec carries its parameters, their
types and defaults over to the blocking form, for type checkers; `inspect.signature` and help() find
them by __wrapped__.

    blocking      the same result
    blocking_as   an object's blocking form: for watch_dir(), say
    making        a class method that makes the facade's object: create(), connect()
    constructing  __init__, of what its core's takes
    telling       calls the caller's `progress` on the caller's thread
    documented_by for what remains: methods with overloads, of which a ParamSpec carries but one. Of
                  those the options stand once, in a TypedDict that all overloads unpack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from voidbox.sdk.loop_thread import run, run_telling

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
Made = TypeVar("Made", bound="Facade[Any]")


class Facade(Generic[C]):
    """The blocking form of an asynchronous object. Thread: any, but the event loop's."""

    def __init__(self, core: C) -> None:
        self._core = core


def constructing(
    core: Callable[P, C],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Facade[C], P], None]]:
    """Return a decorator: an __init__, whose body does not count, takes what `core` does."""

    def decorate(_: Callable[..., None]) -> Callable[Concatenate[Facade[C], P], None]:
        @functools.wraps(core.__init__)
        def make(self: Facade[C], /, *arguments: P.args, **options: P.kwargs) -> None:
            Facade.__init__(self, core(*arguments, **options))

        return make

    return decorate


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


def blocking_as(
    form: Callable[[T], R],
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Facade[Any], P], R]:
    """Return the method of a Facade that runs its core's `method`, and gives its result a form."""
    call_core = blocking(method)

    @functools.wraps(method)
    def call(self: Facade[Any], /, *arguments: P.args, **options: P.kwargs) -> R:
        return form(call_core(self, *arguments, **options))

    return call


def telling(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Facade[Any], P], T]:
    """Return the method of a Facade whose `progress` is called on the thread that waits."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: Facade[Any], /, *arguments: P.args, **options: P.kwargs) -> T:
        start: Callable[..., Coroutine[Any, Any, T]] = getattr(self._core, name)
        others: dict[str, Any] = {**options}
        progress = others.pop("progress", None)
        if progress is None:
            return run(start(*arguments, **others))
        return run_telling(lambda tell: start(*arguments, progress=tell, **others), progress)

    return call


class making(Generic[P]):
    """A class method of a Facade: makes one of what its core's class method makes."""

    def __init__(self, method: Callable[P, Coroutine[Any, Any, Any]]) -> None:
        self._method = method

    def __get__(self, instance: object, owner: type[Made]) -> Callable[P, Made]:
        """Return it, bound to the class that it was asked of."""
        method = self._method

        @functools.wraps(method)
        def make(*arguments: P.args, **options: P.kwargs) -> Made:
            return owner(run(method(*arguments, **options)))

        return make


def documented_by(method: Callable[..., Any]) -> Callable[[F], F]:
    """Return a decorator that gives a blocking method its coroutine's parameters and words."""

    def decorate(call: F) -> F:
        call.__doc__ = method.__doc__
        call.__wrapped__ = method  # type: ignore[attr-defined]
        return call

    return decorate
