"""A sandbox's process on a host that has no namespaces."""

from __future__ import annotations

import sys

from tests.guest.poor_host import refuse
from voidbox.sandbox.process import owner

if __name__ == "__main__":
    refuse(("unshare", "mount"))
    sys.exit(owner.main(sys.argv[1:]))
