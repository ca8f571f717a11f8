"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource


def raise_file_limit() -> None:
    """Allow as many descriptors as we may have: 1,024, the usual limit, is a vsock's connections.

    The usual limit is what it is for programs that use select(2), and we use poll and epoll.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
