"""NamedTuple: typing's, as type checkers see it, made in a tenth of the time.

typing's compiles each annotation that is text, to see whether it is a type, and a constructor for
each class: a fifth of all that importing a sandbox's processes took. Here the classes of as many
fields share the code of one constructor, under the names of their own fields.
"""

from __future__ import annotations

import sys
from collections import _tuplegetter  # type: ignore[attr-defined]  # as namedtuple() has it
from types import CodeType, FunctionType

TYPE_CHECKING = False  # as type checkers know it; typing itself is a slow import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any
    from typing import NamedTuple as NamedTuple

_GLOBALS = {"new": tuple.__new__, "__builtins__": {}, "__name__": __name__}
_constructors: dict[int, CodeType] = {}  # by the number of fields


class _NamedTupleType(type):
    """Makes of `class Point(NamedTuple): …` a class that has tuple alone as its base."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        annotations: dict[str, object] = namespace.get("__annotations__", {})
        fields = tuple(annotations)
        defaults = {field: namespace[field] for field in fields if field in namespace}
        _check(name, bases, fields, defaults)
        getters = {
            field: _tuplegetter(index, sys.intern(f"Alias for field number {index}"))
            for index, field in enumerate(fields)
        }
        constructor = _constructor(name, fields, tuple(defaults.values()))
        constructor.__annotations__ = annotations
        return type(
            name,
            (tuple,),
            {
                **_METHODS,
                **namespace,
                **getters,
                "__slots__": (),
                "__new__": constructor,
                "__match_args__": fields,
                "_fields": fields,
                "_field_defaults": defaults,
            },
        )


def _check(
    name: str, bases: tuple[type, ...], fields: tuple[str, ...], defaults: dict[str, object]
) -> None:
    if len(bases) != 1:
        raise TypeError(f"{name}: a NamedTuple has no other base")
    for field in fields:
        if field.startswith("_"):
            raise ValueError(f"{name}.{field}: a field's name does not begin with _")
    if fields[len(fields) - len(defaults) :] != tuple(defaults):
        raise TypeError(f"{name}: a field without a default follows one with a default")


def _constructor(name: str, fields: tuple[str, ...], defaults: tuple[object, ...]) -> FunctionType:
    code = _constructors.get(len(fields))
    if code is None:
        names = "".join(f"_{index}, " for index in range(len(fields)))
        code = eval(f"lambda _cls, {names}: new(_cls, ({names}))").__code__
        _constructors[len(fields)] = code
    code = code.replace(
        co_varnames=("_cls", *fields), co_name="__new__", co_qualname=f"{name}.__new__"
    )
    return FunctionType(code, _GLOBALS, "__new__", defaults)


@classmethod  # type: ignore[misc]
def _make(cls: Any, iterable: Iterable[Any]) -> Any:
    """Make one of a sequence of all its fields."""
    made = tuple.__new__(cls, iterable)
    if len(made) != len(cls._fields):
        raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
    return made


def _replace(self: Any, /, **changes: Any) -> Any:
    """Return one with other values in some fields."""
    made = self._make(map(changes.pop, self._fields, self))
    if changes:
        raise TypeError(f"Got unexpected field names: {[*changes]!r}")
    return made


def _asdict(self: Any) -> dict[str, Any]:
    """Return the fields by their names."""
    return dict(zip(self._fields, self, strict=True))


def _getnewargs(self: Any) -> tuple[Any, ...]:
    """Return what copies and pickles of it are made of."""
    return tuple(self)


def _repr(self: Any) -> str:
    fields = (f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
    return f"{type(self).__name__}({', '.join(fields)})"


_METHODS = {
    "_make": _make,
    "_replace": _replace,
    "_asdict": _asdict,
    "__getnewargs__": _getnewargs,
    "__repr__": _repr,
}

if not TYPE_CHECKING:
    NamedTuple = type.__new__(_NamedTupleType, "NamedTuple", (), {"__doc__": __doc__})
