"""Runs packages' scripts in a chroot, as root, where there is no KVM for a guest.

For tests alone: what voidbox itself takes is voidbox.setup.guest_runner.
"""

from __future__ import annotations

import os
import shlex
import subprocess

from voidbox.images.tree import Directory, Symlink, Tree, encode
from voidbox.setup.host_copy import write_node

_MOUNTS = """
mount --make-rprivate /
mount --rbind /dev {root}/target/dev
mount -t proc proc {root}/target/proc
mount -t sysfs sysfs {root}/target/sys
mount --bind {root}/repo {root}/target/.repo
mkdir {root}/target/.bare
mount --bind {root}/target {root}/target/.bare
exec chroot {root}/target /bin/sh /.repo/debian_inner.sh /.repo/output
"""


def run_in_chroot(tree: Tree, work: str, output: str, on_line) -> None:  # type: ignore[no-untyped-def]
    """See debian_root.Runner."""
    root = f"{work}/root"
    write_node(tree.root, root)
    for path, node in tree.walk():
        full = encode(f"{root}/{path}")
        if isinstance(node, Symlink) or not os.path.lexists(full):
            continue
        os.chown(full, node.uid, node.gid)
        if isinstance(node, Directory) or node.mode & 0o7000:
            os.chmod(full, node.mode)
    script = _MOUNTS.format(root=shlex.quote(root))
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "--kill-child",
        "sh",
        "-ec",
        script,
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line.rstrip("\n"))
    assert process.returncode == 0, "the installation of packages failed"
    os.replace(f"{root}/repo/output", output)
