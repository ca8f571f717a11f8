"""A sandbox's process on a host that has all namespaces but those of pids."""

from __future__ import annotations

import errno
import sys

from voidbox.jail import bpf, namespaces, numbers, privileges, seccomp
from voidbox.sandbox.process import owner

if __name__ == "__main__":
    of_pids = (bpf.Arg(0, namespaces.CLONE_NEWPID, namespaces.CLONE_NEWPID),)
    rule = bpf.Rule(numbers.NR["unshare"], bpf.RET_ERRNO | errno.ENOSPC, (of_pids,), bpf.RET_ALLOW)
    privileges.set_no_new_privs()
    seccomp.install(bpf.assemble([rule], bpf.RET_ALLOW, bpf.RET_ALLOW))
    sys.exit(owner.main(sys.argv[1:]))
