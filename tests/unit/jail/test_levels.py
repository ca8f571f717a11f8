"""Which level is in force."""

from __future__ import annotations

import pytest

from voidbox.errors import ConfigError
from voidbox.sandbox.jail_level import check_level


def test_the_argument_wins_over_the_variable_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOIDBOX_JAIL", "strict")
    assert check_level(None) == "strict"
    assert check_level("off") == "off"
    monkeypatch.setenv("VOIDBOX_JAIL", "")
    assert check_level(None) == "default"
    monkeypatch.delenv("VOIDBOX_JAIL")
    assert check_level(None) == "default"


def test_what_is_no_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^jail='': choose default, strict, off$"):
        check_level("")
    monkeypatch.setenv("VOIDBOX_JAIL", "loose")
    with pytest.raises(ConfigError, match=r"^VOIDBOX_JAIL is no level: choose"):
        check_level(None)
