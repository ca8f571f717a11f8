"""The guest image, with busybox, Python, the agent and the kernel's modules. The same bytes for the
same packages, whoever makes it. Side by side there are

    runtime.erofs   the image, as a disk; also what brings the agent to other images
    boot.cpio       the initramfs that mounts it, see guest/boot_init.sh
    initramfs.cpio  the image once more, as an initramfs: all of it is the guest's memory
    packages.json   what is in it: packages, versions, sources, licences

in images/guest-RELEASE-KEY of the cache, and images/current-RELEASE leads to the last plain one.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from voidbox.boot import newc
from voidbox.defaults import cache_folder
from voidbox.images.pack import write_tree
from voidbox.images.progress import INSTALL, ImageProgress, OnProgress, ignore
from voidbox.images.tree import Regular, Special, Symlink, Tree, encode, file_type
from voidbox.named_tuple import NamedTuple
from voidbox.setup import guest_tree, modules
from voidbox.setup.added import Added
from voidbox.setup.archive import Archive
from voidbox.setup.contents import describe, write_contents
from voidbox.setup.deb import unpack_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.files import failure, make_folder
from voidbox.setup.host_copy import new_folder, point, publish
from voidbox.setup.packages import Package
from voidbox.setup.tree_edit import merged_root, settle

# Its Python's bz2, ctypes, curses, lzma, readline, sqlite3, ssl and uuid need these.
# Words with "|" are what one thing is called in one release or another.
BASE = (
    "busybox-static", "{python}-minimal", "lib{python}-minimal", "lib{python}-stdlib", "libc6",
    "libexpat1", "zlib1g", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0",
    "libssl3t64|libssl3", "libuuid1", "libreadline8t64|libreadline8", "libtinfo6", "libncursesw6",
    "ncurses-base", "ca-certificates",
)  # fmt: skip
# Only their mke2fs, for the guest's disk, and none of it in the initramfs.
DISK_TOOLS = ("e2fsprogs", "libext2fs2t64|libext2fs2", "libblkid1", "libcom-err2")
BUILTIN = "builtin"  # the release of kernels that need no modules
INITRAMFS, BOOT, RUNTIME = "initramfs.cpio", "boot.cpio", "runtime.erofs"
_PYTHON = re.compile(r"python3\.[0-9]+-minimal")
_VIRTIO_MODULE = re.compile(r"^CONFIG_VIRTIO_.*=m", re.MULTILINE)


class Kernel(NamedTuple):
    """A kernel whose modules are packed.

    Attributes:
        release: BUILTIN for one that needs none; then the rest is "".
        config, modules: paths of its .config and its lib/modules/RELEASE.
    """

    release: str = BUILTIN
    config: str = ""
    modules: str = ""


def find_modules(kernel: str | None) -> Kernel:
    """Return what lies beside a kernel, as kernel/fetch_debian.sh leaves it.

    Raises:
        SetupError: it is not there, or its modules are not.
    """
    if kernel is None:
        return Kernel()
    if not os.path.isfile(kernel):
        raise SetupError(f"no kernel {kernel}")
    beside = os.path.dirname(os.path.realpath(kernel))
    config = f"{beside}/config"
    try:
        with open(config) as file:
            needs_modules = _VIRTIO_MODULE.search(file.read()) is not None
    except OSError as error:
        raise SetupError(
            f"no config beside {kernel}: which modules it needs is not known"
        ) from error
    folder = f"{beside}/lib/modules"
    releases = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    if releases:
        return Kernel(releases[-1], config, f"{folder}/{releases[-1]}")
    if needs_modules:
        raise SetupError(f"no lib/modules beside {kernel}, but its config makes virtio modules")
    return Kernel()


def build_guest_image(
    archive: Archive,
    kernel: str | None = None,
    packages: Sequence[str] = (),
    added: Sequence[Added] = (),
    *,
    is_current: bool | None = None,
    report: OnProgress = ignore,
) -> str:
    """Have the cache hold a guest image; return the path of its folder.

    Args:
        kernel: the path of one with `config` and lib/modules beside it; None for those that need
            no modules.
        packages: more of Debian's, with all that they depend on. Their scripts are not run.
        added: files and folders of this machine.
        is_current: whether `run` takes it from now on; if None, where it is the plain one.
    Raises:
        SetupError: something of it cannot be had, or does not go together.
        HostError: the cache cannot be written.
    """
    beside = find_modules(kernel)
    base, tools, more = _packages(archive, packages)
    sources = guest_tree.sources()
    folder = f"{cache_folder()}/images"
    key = _key(sources, beside, base, tools, more, added)
    target = f"{folder}/guest-{beside.release}-{key}"
    if not os.path.isdir(target):
        report(ImageProgress(INSTALL, "building the guest image: some seconds, once", 0, 0))
        make_folder(folder)
        paths = archive.download([*base, *tools, *more])
        with new_folder(folder) as work:
            os.mkdir(f"{work}/image")
            path_of = dict(zip([*base, *tools, *more], paths, strict=True))
            unpacked = _Packages([*base, *more], tools, path_of)
            _build(f"{work}/image", work, unpacked, sources, beside, added)
            publish(f"{work}/image", target)
    # What more packages and files make of it is not for everybody.
    if is_current or (is_current is None and not packages and not added):
        point(f"{folder}/current-{beside.release}", os.path.basename(target))
    return target


def copy_output(folder: str, output: str) -> None:
    """Copy the initramfs of an image under a name of the user's, which it has once it is whole.

    Raises:
        HostError: it cannot be written.
    """
    beside = f"{output}.{os.getpid()}"
    try:
        shutil.copyfile(f"{folder}/{INITRAMFS}", beside)
        os.chmod(beside, 0o644)
        os.rename(beside, output)
    except OSError as error:
        raise failure("write", output, error) from error
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def _packages(
    archive: Archive, more: Sequence[str]
) -> tuple[list[Package], list[Package], list[Package]]:
    """Return what the image is made of: its base, the tools for disks, the user's."""
    python = _python(archive)
    base = archive.exactly([word.replace("{python}", python) for word in BASE])
    tools = archive.exactly(DISK_TOOLS)
    wanted = archive.resolve(more) if more else []
    names = {package.name for package in base}
    return base, tools, [package for package in wanted if package.name not in names]


def _python(archive: Archive) -> str:
    (found,) = archive.exactly(["python3-minimal"])
    for group in found.needs:
        for wanted in group:
            if _PYTHON.fullmatch(wanted.name):
                return wanted.name.removesuffix("-minimal")
    raise SetupError("the archive's python3-minimal stands for no Python")


def _key(
    sources: dict[str, bytes],
    kernel: Kernel,
    base: Sequence[Package],
    tools: Sequence[Package],
    more: Sequence[Package],
    added: Sequence[Added],
) -> str:
    """Return what stands for all that an image is made of, this program too."""
    digest = hashlib.sha256()

    def take(*words: object) -> None:
        digest.update(("\0".join(map(str, words)) + "\n").encode("utf-8", "surrogateescape"))

    for package in ("voidbox.setup", "voidbox.images", "voidbox.boot"):
        for entry in sorted(importlib.resources.files(package).iterdir(), key=lambda one: one.name):
            if entry.name.endswith(".py"):
                take(package, entry.name, hashlib.sha256(entry.read_bytes()).hexdigest())
    for name in sorted(sources):
        take(name, hashlib.sha256(sources[name]).hexdigest())
    for kind, packages in (("base", base), ("tools", tools), ("more", more)):
        take(kind, *(package.digest.sha256 for package in packages))
    take(kernel.release)
    if kernel.modules:
        with open(kernel.config, "rb") as file:
            take(hashlib.file_digest(file, "sha256").hexdigest())
        for line in _listing(kernel.modules):
            take(line)
    for one in added:
        take(*one.fingerprint())
    return digest.hexdigest()[:12]


def _listing(folder: str) -> Iterator[str]:
    """Yield what stands for a kernel's modules: their contents are too much to read each time."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield f"{os.path.relpath(path, folder)}/{name} {os.stat(f'{path}/{name}').st_size}"


class _Packages(NamedTuple):
    """What an image is made of.

    Attributes:
        root, tools: packages of the image, and those of which only the tools for disks are taken.
        paths: of their files.
    """

    root: Sequence[Package]
    tools: Sequence[Package]
    paths: Mapping[Package, str]


def _build(
    target: str,
    work: str,
    packages: _Packages,
    sources: dict[str, bytes],
    kernel: Kernel,
    added: Sequence[Added],
) -> None:
    """Write the files of an image into a folder."""
    needed = {modules.LIST: b""}
    needed_at_boot = dict(needed)
    if kernel.modules:
        needed = modules.guest_files(kernel.config, kernel.modules)
        needed_at_boot = modules.guest_files(kernel.config, kernel.modules, is_boot=True)
    with Tree(work) as tree, Tree(work) as disk_tools, Tree(work) as boot:
        guest_tree.begin(tree)
        for package in packages.root:
            unpack_deb(tree, packages.paths[package])
        contents = describe(tree, packages.root)
        guest_tree.finish(tree, sources, needed)
        for one in added:
            one.put_into(tree)
        python = guest_tree.find_python(tree)
        folders = (f"usr/lib/{python}", guest_tree.AGENT)
        guest_tree.compile_python(tree, work, folders, guest_tree.WHOLE)
        guest_tree.bundle_agent(tree, work)
        settle(tree)
        guest_tree.boot_tree(boot, tree, sources, needed_at_boot)
        _write_cpio(boot, f"{target}/{BOOT}")
        merged_root(disk_tools)
        for package in packages.tools:
            unpack_deb(disk_tools, packages.paths[package])
        names = {package.name for package in packages.root}
        contents += describe(disk_tools, [one for one in packages.tools if one.name not in names])
        write_contents(target, contents)
        _write_initramfs(tree, f"{target}/{INITRAMFS}")
        guest_tree.add_disk_tools(tree, disk_tools)
        write_tree(tree, f"{target}/{RUNTIME}")


def _write_initramfs(tree: Tree, path: str) -> None:
    """Write the image as an initramfs, which needs a few device nodes."""
    devices = tree.make_folder(["dev"])
    guest_tree.add_device_nodes(tree, has_urandom=True)
    _write_cpio(tree, path)
    devices.children.clear()


def _write_cpio(tree: Tree, path: str) -> None:
    with open(path, "xb") as file:
        newc.write(file, _entries(tree))


def _entries(tree: Tree) -> Iterator[newc.Entry]:
    for path, node in tree.walk():
        if not path:
            continue
        data, device = b"", (0, 0)
        if isinstance(node, Regular):
            data = tree.read(node, node.size)
        elif isinstance(node, Symlink):
            data = encode(node.target)
        elif isinstance(node, Special):
            device = node.device
        yield newc.Entry(path, file_type(node) | node.mode, data, device)
