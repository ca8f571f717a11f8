"""What is in the guest image, and in the initramfs that mounts it."""

from __future__ import annotations

import importlib.resources
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from voidbox.images.tree import Regular, Special, Symlink, Tree
from voidbox.setup.errors import SetupError
from voidbox.setup.host_copy import write_node
from voidbox.setup.tree_edit import merged_root, names, put_bytes, read, remove, remove_all

AGENT = "usr/lib/voidbox"
BUNDLE = f"{AGENT}/boot.bundle"
E2FS = f"{AGENT}/e2fs"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_BINARY_BYTES_MAX = 64 << 20

FOLDERS = (
    "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "dev", "proc", "sys", "run", "root",
    "home/sandbox", "workspace", "etc/voidbox", "tmp", AGENT, "var/tmp", "var/log",
)  # fmt: skip
MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
_LEFT_OUT = (
    *(f"usr/share/{name}" for name in (
        "doc", "man", "info", "locale", "lintian", "bug", "binfmts", "initramfs-tools",
        "ca-certificates",
    )),
    f"{_LIBRARIES}/gconv",  # iconv's tables: Python brings its own
)  # fmt: skip
_PYTHON_LEFT_OUT = (
    "test", "idlelib", "lib2to3", "pydoc_data", "ensurepip", "distutils", "tkinter", "turtledemo",
    "turtle.py",
)  # fmt: skip
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        "sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/sh\n"
    ),
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\nsandbox:x:1000:\n",
    "etc/profile": (
        "PS1='\\u@\\h:\\w\\$ '\n"
        'export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"\n'
    ),
    "etc/hostname": "voidbox\n",
    "etc/hosts": "127.0.0.1 localhost voidbox\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/os-release": 'NAME="voidbox guest"\nID=voidbox\nID_LIKE=debian\n',
}
_RELAY = """\
#!/usr/bin/{python} -ISB
import sys

sys.path.insert(0, __file__.removesuffix("bin/voidbox-relay") + "lib/voidbox")
from guest_agent.relay import main

sys.exit(main(sys.argv[1:]))
"""
# For other images, in which this one is /.voidbox: nothing of theirs is used.
_OTHERS_RELAY = """\
#!/.voidbox/usr/bin/busybox sh
lib=/.voidbox/usr/lib/x86_64-linux-gnu
exec $lib/ld-linux-x86-64.so.2 --inhibit-cache --library-path $lib \\
    /.voidbox/usr/bin/{python} -ISB /.voidbox/usr/bin/voidbox-relay "$@"
"""
_OTHERS_MODPROBE = """\
#!/.voidbox/usr/bin/busybox sh
exec /.voidbox/usr/bin/busybox chroot /.voidbox /usr/sbin/modprobe "$@"
"""
WHOLE = """\
import sys
sys.path.insert(0, sys.argv[1])
import guest_agent.server, guest_agent.boot, guest_agent.relay, hashlib
import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib
"""
# What PID 1 imports until somebody asks for something, as guest/agent_init.py wants it: paths from
# the root, and code as it was compiled. Version 2 of marshal's format tells nothing but the values.
_BUNDLE = """\
import marshal, sys
at_start = set(sys.modules)
root = sys.argv[1]
sys.path.insert(0, f"{root}/usr/lib/voidbox")
import guest_agent.__main__, guest_agent.boot, guest_agent.cgroups
found = {}
for name in sorted(sys.modules.keys() - at_start):
    spec = sys.modules[name].__spec__
    if spec.cached:
        with open(spec.cached, "rb") as file:
            code = file.read()[16:]
        path = spec.origin.removeprefix(f"{root}/")
        found[name] = (path, spec.submodule_search_locations is not None, code)
sys.stdout.buffer.write(marshal.dumps(found, 2))
"""
_BOOT_FOLDERS = (
    "bin", "dev", "etc/voidbox", "image", "proc", "root", "runtime", "sys", "upper", AGENT,
)  # fmt: skip
_BOOT_APPLETS = ("sh", "poweroff", "switch_root")
_E2FS_LIBRARIES = ("libext2fs", "libe2p", "libblkid", "libcom_err")


def sources() -> dict[str, bytes]:
    """Return what of this package goes into an image, by name."""
    folder = importlib.resources.files("voidbox.setup") / "guest"
    found = {name: (folder / name).read_bytes() for name in ("boot_init.sh", "agent_init.py")}
    for entry in _python_files(folder / "guest_agent"):
        found[f"guest_agent/{entry.name}"] = entry.read_bytes()
    if "guest_agent/__main__.py" not in found:
        raise SetupError("the guest's agent is missing: install voidbox again")
    return found


def _python_files(folder: Traversable) -> list[Traversable]:
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".py")]
    return sorted(found, key=lambda entry: entry.name)


def begin(tree: Tree) -> None:
    """Give an empty tree what packages are unpacked over."""
    for folder in FOLDERS:
        tree.make_folder(folder.split("/"))
    merged_root(tree)


def finish(tree: Tree, sources: Mapping[str, bytes], modules: Mapping[str, bytes]) -> None:
    """Make a tree of packages the guest image, but for its compiled files.

    Args:
        sources: what sources() returns.
        modules: files of the kernel's modules, by path.
    Raises:
        SetupError: something of the packages is not as it should be.
    """
    python = find_python(tree)
    add_certificates(tree)
    for path in _LEFT_OUT:
        remove(tree, path)
    for name in names(tree, f"usr/lib/{python}"):
        if name in _PYTHON_LEFT_OUT or name.startswith("config-3"):
            remove(tree, f"usr/lib/{python}/{name}")
    remove_all(tree, "__pycache__")
    add_busybox_links(tree)
    for name in ("python", "python3"):
        tree.put(f"usr/bin/{name}", Symlink(target=python))
    for path, text in _FILES.items():
        put_bytes(tree, path, text)
    for name, content in sources.items():
        if name.startswith("guest_agent/"):
            put_bytes(tree, f"{AGENT}/{name}", content)
    programs = {
        "init": sources["agent_init.py"].decode(), "usr/bin/voidbox-relay": _RELAY,
        f"{AGENT}/bin/voidbox-relay": _OTHERS_RELAY, f"{AGENT}/bin/modprobe": _OTHERS_MODPROBE,
    }  # fmt: skip
    for path, text in programs.items():
        put_bytes(tree, path, text.replace("{python}", python), 0o755)
    for path, content in modules.items():
        put_bytes(tree, path, content)
    set_modes(tree)


def set_modes(tree: Tree) -> None:
    """Give the folders that are not like others their modes."""
    for path, mode in MODES.items():
        node = tree.find(path)
        if node is not None:
            node.mode = mode


def find_python(tree: Tree) -> str:
    """Return the name of the tree's Python, such as "python3.11".

    Raises:
        SetupError: it has none.
    """
    for name in names(tree, "usr/bin"):
        if re.fullmatch(r"python3\.[0-9]+", name):
            return name
    raise SetupError("the packages bring no Python")


def add_certificates(tree: Tree) -> None:
    """Put all certificates of ca-certificates into the file where programs look for them."""
    folder = "usr/share/ca-certificates/mozilla"
    found = [read(tree, f"{folder}/{name}") for name in names(tree, folder)]
    put_bytes(tree, "etc/ssl/certs/ca-certificates.crt", b"".join(filter(None, found)))


def add_busybox_links(tree: Tree) -> None:
    """Make busybox's links where they belong: the kernel calls /sbin/modprobe, scripts /sbin/ip."""
    for applet in _applets(tree):
        folder, _, name = applet.rpartition("/")
        if folder.endswith("sbin"):
            path, target = f"usr/sbin/{name}", "../bin/busybox"
        elif folder.endswith("bin"):
            path, target = f"usr/bin/{name}", "busybox"
        else:
            continue
        if tree.find(f"usr/bin/{name}") is None and tree.find(f"usr/sbin/{name}") is None:
            tree.put(path, Symlink(target=target))


def _applets(tree: Tree) -> list[str]:
    """Ask busybox itself, which is a static program."""
    node = tree.find("usr/bin/busybox")
    if not isinstance(node, Regular):
        raise SetupError("the packages bring no busybox")
    program = os.memfd_create("busybox")
    try:
        os.write(program, tree.read(node, _BINARY_BYTES_MAX))
        path = f"/proc/{os.getpid()}/fd/{program}"
        done = _run(["busybox", "--list-full"], path)
    finally:
        os.close(program)
    return done.stdout.decode().split()


def _run(command: list[str], program: str) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            command, executable=program, env={"LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            capture_output=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise SetupError(f"cannot run the image's {command[0]}: {error.strerror}") from error
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SetupError(f"the image's {command[0]} fails: {' '.join(last) or done.returncode}")
    return done


def compile_python(tree: Tree, work: str, folders: Sequence[str], check: str) -> None:
    """Compile what Python an image has, by its own Python, which shows too that it starts.

    Args:
        work: a folder of the host for the image's files; in it, `root` must be free.
        folders: whose files are compiled.
        check: a program that fails if something is missing.
    Raises:
        SetupError: its Python does not run, or something that it needs is missing.
        OSError: writing failed.
    """
    root = f"{work}/root"
    write_node(tree.root, root)
    # -B: what it imports for that leaves no files of another kind.
    words = ["-B", "-m", "compileall", "-q", "-s", root, "-p", "/"]
    words += ["--invalidation-mode", "unchecked-hash", *(f"{root}/{name}" for name in folders)]
    _run_python(tree, root, words)
    _run_python(tree, root, ["-IB", "-c", check, f"{root}/{AGENT}"])
    for folder in folders:
        _take_compiled(tree, root, folder)


def bundle_agent(tree: Tree, work: str) -> None:
    """Put what the agent imports at its start into one file, after compile_python().

    Raises:
        SetupError: its Python does not run.
    """
    root = f"{work}/root"
    put_bytes(tree, BUNDLE, _run_python(tree, root, ["-ISB", "-c", _BUNDLE, root]))


def _run_python(tree: Tree, root: str, arguments: Sequence[str]) -> bytes:
    """Run an image's own Python on its files in a folder of the host; return what it prints."""
    loader = [f"{root}/{_LOADER}", "--library-path", f"{root}/{_LIBRARIES}"]
    done = subprocess.run(
        [*loader, f"{root}/usr/bin/{find_python(tree)}", *arguments],
        env={"PYTHONHOME": f"{root}/usr", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SetupError(
            f"the image's Python does not do its work: {' '.join(last) or done.returncode}"
        )
    return done.stdout


def _take_compiled(tree: Tree, root: str, folder: str) -> None:
    for path, _, found in os.walk(f"{root}/{folder}"):
        if os.path.basename(path) == "__pycache__":
            for name in found:
                with open(f"{path}/{name}", "rb") as file:
                    put_bytes(tree, f"{os.path.relpath(path, root)}/{name}", file.read())


def add_device_nodes(tree: Tree, *, has_urandom: bool) -> None:
    """Add what the kernel and Python open before /dev is mounted."""
    # urandom: Python reads it at its start where the kernel has no entropy yet.
    devices = {"console": (5, 1), "null": (1, 3), **({"urandom": (1, 9)} if has_urandom else {})}
    for name, device in devices.items():
        tree.put(f"dev/{name}", Special(kind=0o020000, device=device, mode=0o600))


def add_disk_tools(tree: Tree, tools: Tree) -> None:
    """Add mke2fs for the guest's disk, with libraries of its own.

    Raises:
        SetupError: the packages are not as expected.
    """
    wanted = {"mke2fs": "usr/sbin/mke2fs"}
    for library in _E2FS_LIBRARIES:
        pattern = re.compile(rf"{library}\.so\.[0-9]")
        found = [name for name in names(tools, _LIBRARIES) if pattern.fullmatch(name)]
        wanted.update({name: f"{_LIBRARIES}/{name}" for name in found})
    contents = {name: read(tools, path) for name, path in wanted.items()}
    if len(contents) != 1 + len(_E2FS_LIBRARIES) or None in contents.values():
        raise SetupError("the packages of mke2fs are not as expected")
    for name, content in contents.items():
        put_bytes(tree, f"{E2FS}/{name}", content or b"", 0o755 if name == "mke2fs" else 0o644)


def boot_tree(
    boot: Tree, tree: Tree, sources: Mapping[str, bytes], modules: Mapping[str, bytes]
) -> None:
    """Fill an empty tree with the initramfs that mounts the image."""
    for folder in _BOOT_FOLDERS:
        boot.make_folder(folder.split("/"))
    busybox = tree.find("usr/bin/busybox")
    if not isinstance(busybox, Regular):
        raise SetupError("the packages bring no busybox")
    put_bytes(boot, "bin/busybox", tree.read(busybox, _BINARY_BYTES_MAX), 0o755)
    for applet in _BOOT_APPLETS:
        boot.put(f"bin/{applet}", Symlink(target="busybox"))
    put_bytes(boot, "init", sources["boot_init.sh"], 0o755)
    for path, content in modules.items():
        put_bytes(boot, path, content)
    add_device_nodes(boot, has_urandom=False)
