"""`python -m voidbox` whose new sandboxes have fake machines; see tests.unit.sandbox.fake_owner.

Their guest is this machine, where $FAKE_WORKSPACE stands for /workspace.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from tests.unit.sandbox.owned import FAKE_OWNER
from voidbox.cli import main
from voidbox.sandbox import launch

launch.launch = partial(launch.launch, owner=FAKE_OWNER)
launch.wake = partial(launch.wake, owner=FAKE_OWNER)
if "FAKE_WORKSPACE" in os.environ:
    from voidbox.sandbox.workspace import copying

    copying.GUEST_FOLDER = os.environ["FAKE_WORKSPACE"]

if __name__ == "__main__":
    sys.exit(main())
