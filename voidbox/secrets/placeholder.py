"""What the guest has in a secret's place: text of the same shape that is worth nothing."""

from __future__ import annotations

import re
import secrets
import string

BYTES_MAX = 512  # a longer value's shape is cut
# Less chance than this, and a guest could meet a placeholder by accident.
_CHOSEN_MIN = 16
# Beginnings that programs look at, and that say nothing: everybody's keys have them.
_PREFIX = re.compile(
    r"sk-ant-[a-z]{3}[0-9]{2}-|sk-(?:proj|svcacct|or-v1)-|sk-|gh[pousr]_|github_pat_|glpat-"
    r"|xox[abeprs]-|xapp-|npm_|pypi-|hf_|AKIA|AIza|[prs]k_(?:live|test)_|dop_v1_"
)
_KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
_KEPT = "-_."  # other signs would be written in several ways, in a URL or in JSON


def make_placeholder(value: str) -> str:
    """Return a placeholder: letters for letters, digits for digits, and a known beginning.

    A value that has too few of both gets one with a shape of its own.
    """
    found = _PREFIX.match(value)
    prefix = found.group() if found else ""
    rest = value[len(prefix) : BYTES_MAX]
    if sum(map(_is_chosen, rest)) < _CHOSEN_MIN:
        return f"voidbox-{secrets.token_hex(_CHOSEN_MIN)}"
    return prefix + "".join(map(_like, rest))


def _is_chosen(letter: str) -> bool:
    return any(letter in kind for kind in _KINDS)


def _like(letter: str) -> str:
    for kind in _KINDS:
        if letter in kind:
            return secrets.choice(kind)
    return letter if letter in _KEPT else "_"
