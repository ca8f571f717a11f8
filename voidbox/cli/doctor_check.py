"""One finding of `voidbox doctor`."""

from __future__ import annotations

from voidbox.named_tuple import NamedTuple

PASS, WARN, FAIL = "pass", "warn", "fail"


class Check(NamedTuple):
    """One finding.

    Attributes:
        status: PASS; WARN for what is slower or missing but not needed; FAIL for what is.
        todo: what the user can do; empty where nothing is to be done.
    """

    name: str
    status: str
    found: str
    todo: str = ""
