"""The default image: what agents and people expect of a Debian machine that they work on. One
compressed EROFS, the same bytes for the same packages, whoever makes it:

    images/default-KEY/          images/current-default leads to the last one
        default.erofs
        packages.json            what is in it: packages, versions, sources, licences

Packages are unpacked, their scripts are not run: what these would do is done here.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
from collections.abc import Iterator, Sequence

from voidbox.defaults import DEFAULT_IMAGE, cache_folder
from voidbox.images.pack import write_tree
from voidbox.images.progress import INSTALL, ImageProgress, OnProgress, ignore
from voidbox.images.tree import Regular, Symlink, Tree
from voidbox.lz4 import Compressor, Lz4Error
from voidbox.setup import guest_tree
from voidbox.setup.archive import Archive
from voidbox.setup.contents import describe, write_contents
from voidbox.setup.deb import unpack_deb
from voidbox.setup.errors import SetupError
from voidbox.setup.files import make_folder
from voidbox.setup.host_copy import new_folder, point, publish
from voidbox.setup.new_user import make_home
from voidbox.setup.packages import Package
from voidbox.setup.tree_edit import merged_root, names, put_bytes, read, remove, remove_all, settle

PACKAGES = (
    "base-files", "base-passwd", "bash", "busybox-static", "bzip2", "ca-certificates", "coreutils",
    "curl", "dash", "debianutils", "diffutils", "file", "findutils", "git", "grep", "gzip",
    "hostname", "less", "libc-bin", "make", "mawk", "ncurses-base", "netbase", "patch", "procps",
    "python3", "python3-pip", "python3-venv", "sed", "tar", "tzdata", "unzip", "wget", "xz-utils",
    "zip",
)  # fmt: skip
IMAGE = DEFAULT_IMAGE
USER, WORKDIR = "sandbox", "/workspace"
_UID = 1000
# What git is used for goes without them. And what only scripts of packages would need.
_NOT_WANTED = re.compile(
    r"perl|perl-modules-.*|libperl5\..*|lib.*-perl|libgdbm.*|git-man"
    r"|debconf|libdebconfclient0|dpkg|usrmerge|init-system-helpers|python3-lib2to3"
)
_LEFT_OUT = (
    *(f"usr/share/{name}" for name in ("man", "info", "locale", "lintian", "bug", "doc-base")),
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/systemd", "lib/systemd",
)  # fmt: skip
_GIT = "usr/lib/git-core"
_GIT_LEFT_OUT = ("daemon", "http-backend", "http-fetch", "http-push", "imap-send", "shell")
_PYTHON_LEFT_OUT = ("test", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py")
# Debian's pip would install nothing outside a virtual environment.
_MANAGED = "EXTERNALLY-MANAGED"
_LINKS = {  # what alternatives and scripts make
    "usr/bin/sh": "dash",
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "usr/bin/which": "which.debianutils",
    "usr/bin/python": "python3",
    "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt",
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "var/run": "/run",
    "var/lock": "/run/lock",
}
_FOLDERS = (
    "dev", "proc", "sys", "run", "root", "home", "workspace", "tmp", "mnt", "opt", "srv",
    "usr/local/bin", "usr/local/lib", "usr/local/sbin", "var/tmp", "var/log", "var/cache",
)  # fmt: skip
_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
_FILES = {
    "etc/hostname": "voidbox\n",
    "etc/hosts": "127.0.0.1 localhost voidbox\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n",
    "etc/timezone": "Etc/UTC\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
}
_CHECK = """\
import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib, ensurepip, pip, venv
"""


def build_default_image(
    archive: Archive, packages: Sequence[str] = (), *, report: OnProgress = ignore
) -> str:
    """Have the cache hold the default image; return the path of its folder.

    Args:
        packages: more of Debian's, with all that they depend on.
    Raises:
        SetupError: something of it cannot be had, or does not go together.
        HostError: the cache cannot be written.
    """
    found = [
        package
        for package in archive.resolve([*PACKAGES, *packages])
        if package.name in packages or not _NOT_WANTED.fullmatch(package.name)
    ]
    folder = f"{cache_folder()}/images"
    try:
        compressor = Compressor()
    except Lz4Error as error:
        report(ImageProgress(INSTALL, f"{error}: the image stays twice as large", 0, 0))
        compressor = None
    target = f"{folder}/default-{_key(found, compressor is not None)}"
    if not os.path.isdir(target):
        report(ImageProgress(INSTALL, "building the default image: a minute, once", 0, 0))
        make_folder(folder)
        paths = archive.download(found)
        with new_folder(folder) as work:
            os.mkdir(f"{work}/image")
            with Tree(work) as tree:
                _fill(tree, paths, work)
                write_tree(tree, f"{work}/image/{IMAGE}", compressor=compressor)
                write_contents(f"{work}/image", describe(tree, found))
            publish(f"{work}/image", target)
    point(f"{folder}/current-default", os.path.basename(target))
    return target


def _key(packages: Sequence[Package], is_compressed: bool) -> str:
    digest = hashlib.sha256(b"compressed" if is_compressed else b"")
    for name in ("voidbox.setup", "voidbox.images"):
        for entry in sorted(importlib.resources.files(name).iterdir(), key=lambda one: one.name):
            if entry.name.endswith(".py"):
                digest.update(entry.name.encode() + hashlib.sha256(entry.read_bytes()).digest())
    for package in packages:
        digest.update(f"{package.name} {package.digest.sha256}\n".encode())
    return digest.hexdigest()[:12]


def _fill(tree: Tree, debs: Sequence[str], work: str) -> None:
    for folder in _FOLDERS:
        tree.make_folder(folder.split("/"))
    merged_root(tree)
    for path in debs:
        unpack_deb(tree, path)
    python = guest_tree.find_python(tree)
    guest_tree.add_certificates(tree)
    for path in (*_LEFT_OUT, *_documents(tree)):
        remove(tree, path)
    for name in names(tree, f"usr/lib/{python}"):
        if name in (*_PYTHON_LEFT_OUT, _MANAGED) or name.startswith("config-3"):
            remove(tree, f"usr/lib/{python}/{name}")
    remove_all(tree, "__pycache__")
    _tidy_git(tree)
    for path, link in _LINKS.items():
        remove(tree, path)
        tree.put(path, Symlink(target=link))
    for path, text in _FILES.items():
        put_bytes(tree, path, text)
    guest_tree.add_busybox_links(tree)
    folders = (f"usr/lib/{python}", "usr/lib/python3/dist-packages")
    guest_tree.compile_python(tree, work, folders, _CHECK)
    settle(tree)
    _add_users(tree)
    for path, mode in _MODES.items():
        node = tree.find(path)
        if node is not None:
            node.mode = mode


def _documents(tree: Tree) -> Iterator[str]:
    """Yield what of the packages' documents is no licence."""
    for package in names(tree, "usr/share/doc"):
        for name in names(tree, f"usr/share/doc/{package}"):
            if name != "copyright":
                yield f"usr/share/doc/{package}/{name}"


def _tidy_git(tree: Tree) -> None:
    """Leave out git's servers, each with most of git in it, and its program's second copy."""
    for name in _GIT_LEFT_OUT:
        remove(tree, f"{_GIT}/git-{name}")
    for name in ("scalar", "git-shell"):
        remove(tree, f"usr/bin/{name}")
    if isinstance(tree.find(f"{_GIT}/git"), Regular):
        tree.put(f"{_GIT}/git", Symlink(target="../../bin/git"))


def _add_users(tree: Tree) -> None:
    """Add Debian's users, and ours with a home."""
    lines = {
        "passwd": f"{USER}:x:{_UID}:{_UID}:{USER}:/home/{USER}:/bin/bash\n",
        "group": f"{USER}:x:{_UID}:\n",
    }
    for name, line in lines.items():
        masters = read(tree, f"usr/share/base-passwd/{name}.master")
        if masters is None:
            raise SetupError(f"the packages bring no {name}.master")
        # "*": nobody may log in by password; no shadow file is there to say so.
        put_bytes(tree, f"etc/{name}", masters.replace(b":*:", b":x:") + line.encode())
    make_home(tree, "root", 0)
    make_home(tree, f"home/{USER}", _UID)
    workdir = tree.make_folder([WORKDIR.strip("/")])
    workdir.uid = workdir.gid = _UID
