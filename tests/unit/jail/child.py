"""Runs Python in a child, which may shut itself in for good."""

from __future__ import annotations

import subprocess
import sys


def run(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; its output is for who asks."""
    return subprocess.run(
        # From 3.12 on Python warns of a fork beside threads, which some of these do on purpose.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
