"""Images as Linux itself sees them: mounted, and looked at file by file."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from voidbox.images.erofs import write_erofs
from voidbox.images.host_folder import Options, read_folder
from voidbox.images.tree import Directory, Node, Regular, Special, Symlink, Tree, encode, file_type


@pytest.fixture
def mount_point(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; run it in the lab: make test-lab")
    point = tmp_path / "mnt"
    point.mkdir()
    yield point
    subprocess.run(["umount", point], check=False, capture_output=True)


def mount(tree: Tree, point: Path) -> None:
    image = point.parent / "image.erofs"
    with open(image, "wb") as file:
        write_erofs(tree, file)
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-a", "loop", "erofs"], check=False, capture_output=True)
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no erofs; run it in the lab: make test-lab")
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, point], check=True)


def make_tree() -> Tree:
    tree = Tree()
    for size in (0, 1, 4031, 4032, 4033, 4096, 4097, 100_000):
        tree.put(f"sizes/{size}", tree.add_bytes(os.urandom(size), mode=0o640, uid=size))
    for index in range(2000):
        tree.put(f"large/{index:x}{'-' * (index % 200)}", Regular(mtime_ns=index * 10**9 + 5))
    for length in (1, 3000, 4000, 4095):
        tree.put(f"links/{length}", Symlink(target="t" * length, uid=4_000_000_000))
    tree.put("dev/null", Special(kind=stat.S_IFCHR, device=(1, 3), mode=0o666))
    tree.put("dev/big", Special(kind=stat.S_IFBLK, device=(4095, 1_048_575)))
    tree.put("dev/pipe", Special(kind=stat.S_IFIFO))
    tree.put("dev/socket", Special(kind=stat.S_IFSOCK))
    file = tree.add_bytes(b"linked", mode=0o4755)
    file.xattrs = {
        "user.small": b"1",
        "user.large": os.urandom(9000),
        "security.capability": b"\1\0\0\2" + bytes(16),
        "trusted.t": b"t" * 3000,
    }
    tree.put("a", file)
    tree.put("b/c", file)
    tree.put("b/\udcff\n", Directory(mode=0o1777))
    return tree


def compare(node: Node, path: bytes, tree: Tree) -> None:
    status = os.lstat(path)
    assert status.st_mode == file_type(node) | node.mode, path
    assert (status.st_uid, status.st_gid) == (node.uid, node.gid), path
    assert status.st_mtime_ns == node.mtime_ns, path
    if isinstance(node, Regular):
        assert Path(os.fsdecode(path)).read_bytes() == tree.read(node, 1 << 30), path
    elif isinstance(node, Symlink):
        assert os.readlink(path) == encode(node.target), path
    elif isinstance(node, Directory):
        assert sorted(os.listdir(path)) == sorted(map(encode, node.children)), path
    elif isinstance(node, Special) and node.kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == node.device, path
    names = os.listxattr(path, follow_symlinks=False)
    found = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    assert found == node.xattrs, path


def test_linux_reads_what_was_written(mount_point: Path) -> None:
    with make_tree() as tree:
        mount(tree, mount_point)
        for path, node in tree.walk():
            compare(node, os.fsencode(mount_point) + b"/" + encode(path), tree)
    assert (mount_point / "a").stat().st_nlink == 2
    assert (mount_point / "a").samefile(mount_point / "b" / "c")
    assert mount_point.stat().st_nlink == 7
    assert not (mount_point / "large" / "none").exists()


def test_linux_reads_a_folder_of_the_host(mount_point: Path) -> None:
    source = Path(__file__).parents[2] / "voidbox"
    with read_folder(str(source), Options()) as tree:
        mount(tree, mount_point)
        for path, node in tree.walk():
            compare(node, os.fsencode(mount_point) + b"/" + encode(path), tree)
