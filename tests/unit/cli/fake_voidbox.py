"""`python -m voidbox` whose new sandboxes have fake machines; see tests.unit.sandbox.fake_owner."""

from __future__ import annotations

import sys
from functools import partial

from tests.unit.sandbox.owned import FAKE_OWNER
from voidbox.cli import main
from voidbox.sandbox import launch

launch.launch = partial(launch.launch, owner=FAKE_OWNER)

if __name__ == "__main__":
    sys.exit(main())
