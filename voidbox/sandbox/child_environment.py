"""The variables of the programs that voidbox starts of itself."""

from __future__ import annotations

import os

import voidbox

_VARIABLES = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
_VARIABLES_BEGIN = ("VOIDBOX_", "PYTHON", "LC_", "XDG_")


def environment() -> dict[str, str]:
    """Return what such a program needs of our variables: others may be somebody's keys.

    It finds the same voidbox, wherever it is started.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(voidbox.__file__)))
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _VARIABLES or name.startswith(_VARIABLES_BEGIN)
    }
    return {**kept, "PYTHONPATH": os.pathsep.join((root, *map(os.path.abspath, others)))}
