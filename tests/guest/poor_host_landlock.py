"""A sandbox's process on a host that has no Landlock."""

from __future__ import annotations

import sys

from tests.guest.poor_host import refuse
from voidbox.sandbox.process import owner

if __name__ == "__main__":
    refuse(("landlock_create_ruleset",))
    sys.exit(owner.main(sys.argv[1:]))
