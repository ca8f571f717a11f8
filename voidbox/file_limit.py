"""How many files a process may have open."""

from __future__ import annotations

import contextlib
import resource

from voidbox.errors import ConfigError


def raise_file_limit(least: int | None = None) -> None:
    """Allow as many descriptors as we may have: 1,024, the usual limit, is a vsock's connections.

    The usual limit is what it is for programs that use select(2), and we use poll and epoll.

    Args:
        least: how many will be needed; the limit stays if it is enough.
    Raises:
        ConfigError: that is more than this process may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if least is not None and soft != resource.RLIM_INFINITY and soft >= least:
        return
    if least is not None and hard != resource.RLIM_INFINITY and hard < least:
        raise ConfigError(
            f"this takes up to {least:,} open files, and this process may have {hard:,}: ask for "
            "fewer sandboxes, or raise the limit (ulimit -n, LimitNOFILE= of systemd)"
        )
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
