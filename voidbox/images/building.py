"""An image of Debian packages."""

from __future__ import annotations
