"""How large the stacks of threads are, in processes that are voidbox's own."""

from __future__ import annotations

import mmap
import threading

# glibc's 8 MiB hold whole huge pages, and where Linux gives them "always", as Debian's does, the
# first touch of a stack takes one. These are a page less than one.
_STACK_BYTES = (2 << 20) - mmap.PAGESIZE


def keep_stacks_small() -> None:
    """Have threads that start from here on, here and in what is forked, take no huge page each."""
    threading.stack_size(_STACK_BYTES)
