"""NamedTuple beside typing's: whoever has one cannot tell which it is."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox import named_tuple


class Ours(named_tuple.NamedTuple):
    """A record."""

    first: int
    second: str = "b"
    third: tuple[int, ...] | None = None

    KIND = "kind"

    @property
    def size(self) -> int:
        """Of all."""
        return len(self)

    @classmethod
    def of(cls, first: int) -> Ours:
        return cls(first)

    def __str__(self) -> str:
        return f"<{len(self)}>"


class Theirs(typing.NamedTuple):
    """A record."""

    first: int
    second: str = "b"
    third: tuple[int, ...] | None = None

    KIND = "kind"

    @property
    def size(self) -> int:
        """Of all."""
        return len(self)

    @classmethod
    def of(cls, first: int) -> Theirs:
        return cls(first)

    def __str__(self) -> str:
        return f"<{len(self)}>"


class Empty(named_tuple.NamedTuple):
    """Has no fields."""


class Child(Ours):
    """One more class."""

    def double(self) -> int:
        return 2 * self.first


VALUES = st.one_of(st.none(), st.integers(), st.text(max_size=3))


def outcome(call: Callable[[], object]) -> str:
    """What a call gives, or raises, without the names of the two classes."""
    try:
        found = repr(call())
    except (TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
    # Of unexpected fields, _replace says so by a TypeError since Python 3.13.
    return found.replace("Theirs", "Ours").replace("ValueError: Got", "TypeError: Got")


@given(
    st.lists(VALUES, max_size=4),
    st.dictionaries(st.sampled_from(["first", "second", "third", "fourth", "_cls"]), VALUES),
)
def test_it_is_made_and_changed_as_typings_is(values: list[Any], named: dict[str, Any]) -> None:
    assert outcome(lambda: Ours(*values, **named)) == outcome(lambda: Theirs(*values, **named))
    assert outcome(lambda: Ours._make(values)) == outcome(lambda: Theirs._make(values))
    ours, theirs = Ours(1), Theirs(1)
    assert outcome(lambda: ours._replace(**named)) == outcome(lambda: theirs._replace(**named))


def test_what_it_is_and_has() -> None:
    for kind in (Ours, Theirs):
        one = kind(7, third=(1, 2))
        assert one == (7, "b", (1, 2)) and hash(one) == hash((7, "b", (1, 2)))
        assert isinstance(one, tuple) and kind.__mro__ == (kind, tuple, object)
        assert (one.first, one.size, kind.of(3).first, str(one), kind.KIND) == (
            7,
            3,
            3,
            "<3>",
            "kind",
        )
        assert one._asdict() == {"first": 7, "second": "b", "third": (1, 2)}
        assert kind._field_defaults == {"second": "b", "third": None}
        assert kind._fields == ("first", "second", "third") == kind.__match_args__
        assert (kind.__doc__, kind.__module__) == ("A record.", __name__)
        assert typing.get_type_hints(kind)["third"] == tuple[int, ...] | None
        assert kind.first.__doc__ == "Alias for field number 0"  # type: ignore[attr-defined]
        assert not hasattr(one, "__dict__")
        with pytest.raises(AttributeError):
            one.first = 8  # type: ignore[misc]
        with pytest.raises(AttributeError):
            one.other = 8  # type: ignore[attr-defined]
        match one:
            case kind(first, second):
                assert (first, second) == (7, "b")
        assert copy.deepcopy(one) == copy.copy(one) == one
        assert type(pickle.loads(pickle.dumps(one))) is kind
    ours, theirs = (inspect.signature(kind).parameters for kind in (Ours, Theirs))
    assert [(one.name, one.kind, one.default) for one in ours.values()] == [
        (one.name, one.kind, one.default) for one in theirs.values()
    ]


def test_a_class_below_it() -> None:
    child = Child(4)
    assert child.double() == 8 and repr(child) == "Child(first=4, second='b', third=None)"
    assert type(child._replace(first=5)) is Child and pickle.loads(pickle.dumps(child)) == child


def test_none_of_a_field() -> None:
    assert Empty() == () == Empty._make([]) and repr(Empty()) == "Empty()"
    assert outcome(lambda: Empty(1)).startswith("TypeError")  # type: ignore[call-arg]


def test_what_is_no_such_class_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Two\.b|without a default"):

        class Two(named_tuple.NamedTuple):
            a: int = 1
            b: int  # type: ignore[misc]

    with pytest.raises(ValueError, match="begin with _"):

        class Hidden(named_tuple.NamedTuple):
            _a: int  # type: ignore[misc]

    with pytest.raises(TypeError, match="no other base"):

        class Both(named_tuple.NamedTuple, dict):  # type: ignore[misc, type-arg]
            a: int


def test_typing_is_not_imported_for_it() -> None:
    script = "import sys, voidbox.named_tuple; print('typing' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout == b"False\n"
