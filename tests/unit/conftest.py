"""The fake machines of these tests are other processes, which no jail lets a sandbox start."""

from __future__ import annotations

import os

os.environ.setdefault("VOIDBOX_JAIL", "off")
