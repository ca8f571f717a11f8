"""NamedTuple and Protocol without `typing`, whose import takes a quarter of the agent's."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
else:
    from collections import namedtuple

    class _Fields(type):
        """Makes a tuple's class of the fields that a class names, in their order."""

        def __new__(meta, name, bases, namespace):
            if not bases:
                return super().__new__(meta, name, bases, namespace)
            fields = namespace.get("__annotations__", {})
            made = namedtuple(name, fields, module=namespace["__module__"])
            made.__doc__ = namespace.get("__doc__")
            return made

    class NamedTuple(metaclass=_Fields):
        """As typing.NamedTuple, for fields alone: no defaults, no methods."""

    Protocol = object
