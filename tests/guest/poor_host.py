"""A host that refuses some system calls, as a container's filter does."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from voidbox.jail import bpf, numbers, privileges, seccomp


def refuse(calls: Sequence[str]) -> None:
    """Have them fail in this process from now on."""
    rules = [bpf.Rule(numbers.NR[name], bpf.RET_ERRNO | errno.EPERM) for name in calls]
    privileges.set_no_new_privs()
    seccomp.install(bpf.assemble(rules, bpf.RET_ALLOW, bpf.RET_ALLOW))
