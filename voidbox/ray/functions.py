"""Functions on their way to where they run: pickled once here, and read once there."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle

_WITH_EACH_CALL_BYTES_MAX = 64 << 10
_KEPT = 256

_pickled: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()


def send(function: Callable[..., Any]) -> Any:
    """Return what a call of an actor takes in a function's place.

    As with Ray's own remote functions, it is what it was when it was sent first: variables of its
    module that change later are not seen there.
    """
    try:
        known = _pickled.get(function)
    except TypeError:  # a bound method of what has no hash, say
        return cloudpickle.dumps(function)
    if known is None:
        data = cloudpickle.dumps(function)
        known = data if len(data) <= _WITH_EACH_CALL_BYTES_MAX else ray.put(data)
        try:
            _pickled[function] = known
        except TypeError:  # nobody can tell when it is gone
            return known
    return known


@functools.lru_cache(_KEPT)
def receive(data: bytes) -> Callable[..., Any]:
    """Return the function that was sent."""
    function: Callable[..., Any] = cloudpickle.loads(data)
    return function
