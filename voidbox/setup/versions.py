"""Which of two versions is the newer: Debian Policy, 5.6.12, and deb-version(7)."""

from __future__ import annotations

import re
from functools import cmp_to_key

_PARTS = re.compile(r"([^0-9]*)([0-9]*)")
_EPOCH_DIGITS_MAX = 9


def compare(one: str, other: str) -> int:
    """Return less than 0 if `one` is the older, more than 0 if it is the newer, 0 if neither."""
    for mine, theirs in zip(_split(one), _split(other), strict=True):
        order = _compare_part(mine, theirs)
        if order:
            return order
    return 0


sort_key = cmp_to_key(compare)


def is_satisfied(version: str, relation: str, wanted: str) -> bool:
    """Whether a version is as a dependency's relation wants it: "<<", "<=", "=", ">=", ">>"."""
    order = compare(version, wanted)
    return {
        "<<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">>": order > 0,
        "<": order <= 0, ">": order >= 0,  # as they were meant, when they were allowed
    }[relation]  # fmt: skip


def _split(version: str) -> tuple[str, str, str]:
    """Return epoch, upstream's version and Debian's revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch[:_EPOCH_DIGITS_MAX], upstream, revision


def _compare_part(one: str, other: str) -> int:
    mine, theirs = _PARTS.findall(one), _PARTS.findall(other)
    for idx in range(max(len(mine), len(theirs))):
        my_text, my_digits = mine[idx] if idx < len(mine) else ("", "")
        their_text, their_digits = theirs[idx] if idx < len(theirs) else ("", "")
        my_order, their_order = _order(my_text), _order(their_text)
        if my_order != their_order:
            return -1 if my_order < their_order else 1
        # As numbers, without int(): a stranger's may have any number of digits.
        my_number, their_number = my_digits.lstrip("0"), their_digits.lstrip("0")
        my_key, their_key = (len(my_number), my_number), (len(their_number), their_number)
        if my_key != their_key:
            return -1 if my_key < their_key else 1
    return 0


def _order(text: str) -> list[int]:
    """Return what sorts as the policy has it: "~" before the end, letters before all else."""
    return [_rank(char) for char in text] + [0]


def _rank(char: str) -> int:
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256
