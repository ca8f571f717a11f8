"""Images for the tests of roots on disks, made once and kept in the cache.

    python -m tests.e2e.disk_images

prepares what the tests cannot get where there is no network: a Debian with Python and git, what
`voidbox setup` takes, and the source of a real project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chroot_runner import run_in_chroot
from voidbox.defaults import cache_folder
from voidbox.images.pack import write_tree
from voidbox.images.tree import Directory, Symlink, Tree
from voidbox.setup.archive import open_archive
from voidbox.setup.debian_root import build_debian
from voidbox.setup.default_image import PACKAGES as DEFAULT_PACKAGES
from voidbox.setup.guest_image import BASE, DISK_TOOLS
from voidbox.setup.guest_runner import run_in_guest
from voidbox.setup.host_copy import publish
from voidbox.setup.new_user import add_user
from voidbox.setup.sources import DEFAULT_SUITE

ROOT = Path(__file__).parents[2]
PACKAGES = ("python3", "python3-pytest", "git", "ca-certificates")
INITS = {
    "systemd": ("systemd-sysv", "dbus", "procps", "kmod", "udev"),
    "openrc": ("openrc", "sysvinit-core", "procps", "kmod"),
    "s6": ("s6", "procps"),
}
# As s6-overlay has it: an /init that prepares the services' folder, and becomes their supervisor.
S6_INIT = """#!/bin/sh -e
mkdir -p /run/service/job
printf '#!/bin/sh\\nexec sleep 1000\\n' >/run/service/job/run
chmod +x /run/service/job/run
exec s6-svscan /run/service
"""
CONTAINERS = (
    *("docker.io", "podman", "crun", "netavark", "fuse-overlayfs", "slirp4netns", "uidmap"),
    *("catatonit", "iptables", "nftables", "iproute2", "procps", "kmod", "ca-certificates", "wget"),
)
# What docs/serve.md builds; the template's user is called so by E2B.
INTERPRETER = (
    *("bash", "ca-certificates", "curl", "git", "ncurses-bin", "procps", "sudo"),
    *("python3", "python-is-python3", "python3-ipykernel", "python3-matplotlib", "python3-pandas"),
)
INTERPRETER_USER = "user"
PROJECT = "h11==0.14.0"
APPLETS = "sh cat id pwd ls echo env hostname stat mount df dd rm mkdir sleep touch wc"
_MIB = 1 << 20
# What nobody looks at in a test; the image is 200 MB without it.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_BALLAST_MIB = 320  # to have an image that no memory of the tests' holds


def debian_image() -> Path:
    """Return a Debian 12 with Python, pytest and git, of more than 500 MB."""
    return _debian("debian", PACKAGES, _BALLAST_MIB)


def init_image(name: str) -> Path:
    """Return a Debian 12 with an init: "systemd", "openrc" on sysvinit, or "s6"."""
    return _debian(name, INITS[name], 0, init=S6_INIT if name == "s6" else None)


def containers_image() -> Path:
    """Return a Debian 12 with Docker, Podman, and the tools of networks."""
    return _debian("containers", CONTAINERS, 0)


def interpreter_image(is_made: bool = True) -> Path:
    """Return a Debian 12 with ipykernel and a user of its own.

    Args:
        is_made: whether it is made if it is not there.
    """
    return _debian("interpreter", INTERPRETER, 0, INTERPRETER_USER, is_made)


def _debian(
    name: str,
    packages: tuple[str, ...],
    ballast_mib: int,
    new_user: str | None = None,
    is_made: bool = True,
    init: str | None = None,
) -> Path:
    what = (packages, _LEFT_OUT, ballast_mib, *(text for text in (new_user, init) if text))
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    path = Path(cache_folder(), "images", f"test-{name}-{key}.erofs")
    if path.exists() or not is_made:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # A guest would do it as well, but this machine may have none, and a lab takes long.
    run = run_in_chroot if os.getuid() == 0 else run_in_guest
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        open_archive() as archive,
        Tree(folder) as tree,
    ):
        build_debian(tree, archive, packages, run, work=folder)
        for left_out in _LEFT_OUT:
            parent = tree.find(left_out.removesuffix("/*"))
            assert isinstance(parent, Directory)
            parent.children.clear()
        if new_user:
            add_user(tree, new_user)
        if init:
            tree.put("/init", tree.add_bytes(init.encode(), mode=0o755))
        if ballast_mib:
            tree.put("/srv/ballast", tree.add_bytes(os.urandom(_MIB) * ballast_mib))
        write_tree(tree, str(path))
    return path


def saved_archive() -> Path:
    """Return a folder for `voidbox setup --offline`."""
    named = repr((DEFAULT_PACKAGES, BASE, DISK_TOOLS))
    key = hashlib.sha256(named.encode()).hexdigest()[:12]
    path = Path(cache_folder(), "archive", f"saved-{DEFAULT_SUITE}-{key}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = ["scripts/with-apt", sys.executable, "-m", "voidbox", "setup", "--quiet"]
            command += ["--save", f"{folder}/saved"]
            environment = {**os.environ, "VOIDBOX_CACHE": f"{folder}/cache"}
            subprocess.run(
                command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
            )
            publish(f"{folder}/saved", str(path))  # somebody else may have made it meanwhile
    return path


def ready_home() -> Path:
    """Return the home of somebody who has set up voidbox; it takes a lab minutes, but not twice."""
    home = Path(cache_folder(), "archive", "home")
    (home / "bin").mkdir(parents=True, exist_ok=True)
    done = in_home(home, "setup", "--offline", str(saved_archive()))
    assert done.returncode == 0, done.stderr
    return home


def in_home(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run voidbox with nothing of Debian's in the PATH, and without the runtime's wheel."""
    environment = {
        "HOME": str(home), "PATH": str(home / "bin"), "PYTHONPATH": str(ROOT),
        "VOIDBOX_RUNTIME": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "voidbox", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=home
    )


def project() -> Path:
    """Return the source distribution of a real project with its tests."""
    name, _, version = PROJECT.partition("==")
    path = Path(cache_folder(), "sources", f"{name}-{version}.tar.gz")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(path.parent), PROJECT]
        subprocess.run(command, check=True)
    return path


def busybox_tree(folder: str) -> Tree:
    """Return a root as small distributions have it: busybox, links to it, a few tables."""
    tree = Tree(folder)
    busybox = Path("/bin/busybox").read_bytes()
    tree.put("/bin/busybox", tree.add_bytes(busybox, mode=0o755))
    for applet in APPLETS.split():
        tree.put(f"/bin/{applet}", Symlink(target="busybox"))
    passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101:an app:/home/app:/bin/sh\n"
    tree.put("/etc/passwd", tree.add_bytes(passwd.encode()))
    group = "root:x:0:\napp:x:101:\nstaff:x:50:app\n"
    tree.put("/etc/group", tree.add_bytes(group.encode()))
    for name in ("root", "tmp", "home/app"):
        tree.make_folder(name.split("/"))
    tree.make_folder(["tmp"]).mode = 0o1777
    return tree


def main() -> int:
    """Prepare all; returns the exit status."""
    for path in (
        debian_image(), *map(init_image, INITS), containers_image(), ready_home(), project(),
    ):  # fmt: skip
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
