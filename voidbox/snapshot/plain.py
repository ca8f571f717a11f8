"""Named tuples as plain values and back: what a snapshot keeps of each part of a machine.

A named tuple becomes a dict of its fields, so that a file says what is what. On the way back each
value must be of the field's type, all the way down: a snapshot is input like any other. Numbers are
unsigned, of 64 bits, or as many as Annotated[int, bits] says.
"""

from __future__ import annotations

import types
import typing
from functools import cache
from typing import Any, TypeVar

from voidbox.errors import ConfigError

_T = TypeVar("_T")

_INT_BITS = 64


def to_plain(value: Any) -> Any:
    """Return dicts, lists and scalars for named tuples, tuples and scalars."""
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {name: to_plain(item) for name, item in zip(value._fields, value, strict=True)}
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[_T], value: Any, name: str = "machine") -> _T:
    """Return a `kind`, a named tuple's class, from what to_plain() made of one.

    Raises:
        ConfigError: a field is missing, unknown, or of another type.
    """
    built: _T = _build(kind, value, name)
    return built


def learn(kind: Any) -> None:
    """Look up what a named tuple's class is made of; who builds many knows it then."""
    if hasattr(kind, "_fields"):
        for each in _hints(kind).values():
            learn(each)
    for each in typing.get_args(kind):
        learn(each)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _build(kind: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _build_tuple(typing.get_args(kind), value, name)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in typing.get_args(kind) if each is not type(None))
        return None if value is None else _build(inner, value, name)
    if hasattr(kind, "_fields"):
        return _build_named(kind, value, name)
    bits = _INT_BITS
    if origin is typing.Annotated:
        kind, bits = typing.get_args(kind)
    if type(value) is not kind or (kind is int and not 0 <= value < 1 << bits):
        raise _wrong(name)
    return value


def _build_tuple(items: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if type(value) is not list:
        raise _wrong(name)
    if items[-1] is Ellipsis:
        return tuple(_build(items[0], item, name) for item in value)
    if len(value) != len(items):
        raise _wrong(name)
    return tuple(_build(kind, item, name) for kind, item in zip(items, value, strict=True))


def _build_named(kind: Any, value: Any, name: str) -> Any:
    if type(value) is not dict or set(value) != set(kind._fields):
        raise _wrong(name)
    hints = _hints(kind)
    return kind(**{field: _build(hints[field], value[field], field) for field in kind._fields})


def _wrong(name: str) -> ConfigError:
    return ConfigError(f"the snapshot's {name} is not what this voidbox knows: make it anew")
