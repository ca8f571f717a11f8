"""A sandbox's process as a program:

    python -m voidbox.sandbox.process.program FOLDER [--status-fd N] [--parent-fd N]

See owner, which is imported when nothing looks for garbage any more.
"""

from __future__ import annotations

import gc
import sys


def main(argv: list[str]) -> int:
    """Be the process of a sandbox; returns the exit status."""
    gc.disable()  # it would look through all that is imported, again and again, and free nothing
    from voidbox.sandbox.process import owner

    return owner.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
