"""What a sandbox may be called."""

from __future__ import annotations

import pytest

from voidbox.errors import ConfigError
from voidbox.sandbox.state import names


@pytest.mark.parametrize("name", ["a", "0", "Web-1", "a_b.c-d", "x" * 63, "beef", "abcdef01234"])
def test_names(name: str) -> None:
    names.check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", "-a", "_a", ".a", "a/b", "/a", "../a", "a:b", "a b", "a\n", "a\0",
     "x" * 64, "ä", "\udcff", "*"],
)  # fmt: skip
def test_no_names(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a sandbox's name") as caught:
        names.check_name(name)
    assert str(caught.value).isprintable()


def test_a_name_is_no_id() -> None:
    with pytest.raises(ConfigError, match="it looks like an ID"):
        names.check_name("0123456789ab")


def test_given_names_are_names_and_new() -> None:
    taken = {names.new_name(()) for _ in range(300)}
    for name in taken:
        names.check_name(name)
    assert len(taken) > 290
    assert names.new_name(taken) not in taken


def test_ids() -> None:
    assert names.is_id(names.new_id())
    assert names.new_id() != names.new_id()
    assert not names.is_id("0123456789AB")
    assert not names.is_id("0123456789ab\n")
    assert names.is_id_prefix("0123")
    assert not names.is_id_prefix("012")
