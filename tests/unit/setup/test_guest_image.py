"""The guest image's build: what it refuses, what is in it, and the same bytes always."""

from __future__ import annotations

import marshal
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.images.erofs_reader import Image
from tests.unit.setup.kernel_folder import Kernel
from voidbox.defaults import cache_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "scripts" / "build_guest_image.sh"
NOWHERE = {"VOIDBOX_MIRROR": "http://127.0.0.1:1/debian"}  # nobody answers there


# --- what the script refuses -------------------------------------------------------------------


def build(cache: Path, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run the script; returns its status, stdout, and stderr without the progress."""
    result = subprocess.run(
        ["sh", BUILD, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **NOWHERE, "VOIDBOX_CACHE": str(cache), **environment},
        umask=int(environment.get("UMASK", "022"), 8),
    )
    lines = result.stderr.splitlines(keepends=True)
    errors = "".join(line for line in lines if not line.startswith("building"))
    return result.returncode, result.stdout, errors


def leftovers(cache: Path) -> list[str]:
    """Everything in a cache but packages, lists, whole images and the links to them."""
    paths = [*cache.glob("*"), *cache.glob("images/*"), *cache.glob("*/partial/*")]
    kept = ("debs", "lists", "images", "guest-", "current-")
    return [path.name for path in paths if not path.name.startswith(kept)]


REFUSED = {
    "no kernel": (["--kernel", "/nonexistent"], "no kernel /nonexistent"),
    "a package's name": (["--with=-x"], "'-x' is no name of a Debian package"),
    "no guest path": (["--add", "{file}"], "give HOSTPATH:GUESTPATH"),
    "a relative guest path": (["--add", "{file}:srv/x"], "give HOSTPATH:GUESTPATH"),
    "no host path": (["--add", "/nonexistent:/x"], "there is no /nonexistent"),
    "out of the image": (["--add", "{file}:/srv/../../../x"], "without . and .."),
    "the root": (["--add", "{file}:/"], "must name a file"),
    "a FIFO": (["--add", "{fifo}:/srv/x"], "fifo is no file, folder or link"),
    "a folder as output": (["--output", "{folder}"], "this is a folder"),
    "no output folder": (["--output", "/nonexistent/x"], "there is no folder /nonexistent"),
}


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "kernel")


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_told_in_one_line(tmp_path: Path, case: str) -> None:
    arguments, expected = REFUSED[case]
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    paths = {"file": tmp_path / "file", "fifo": tmp_path / "fifo", "folder": tmp_path}
    cache = tmp_path / "cache"
    status, output, errors = build(cache, *(word.format(**paths) for word in arguments))
    assert (status, output) == (1, "")
    assert errors.count("\n") == 1
    assert errors.startswith("image: ")
    assert expected in errors
    assert not leftovers(cache)


def test_a_kernel_without_its_config_or_modules_is_refused(tmp_path: Path, kernel: Kernel) -> None:
    cache, file = tmp_path / "cache", kernel.folder / "vmlinuz"
    assert "no config beside" in build(cache, "--kernel", file)[2]
    kernel.configure(VIRTIO_MMIO="m")
    kernel.modules.rmdir()
    assert "no lib/modules beside" in build(cache, "--kernel", file)[2]


def test_nobody_there_is_told_in_one_line(tmp_path: Path) -> None:
    status, output, errors = build(tmp_path / "cache")
    assert (status, output) == (1, "")
    assert errors.startswith("image: cannot connect to 127.0.0.1 port 1")
    assert errors.count("\n") == 1
    assert not leftovers(tmp_path / "cache")


# --- a whole image, from the packages of the cache ---------------------------------------------


def copy_packages(cache: Path) -> None:
    """Give a cache of its own the packages of the user's, and what is known of them."""
    source = Path(cache_folder())
    (cache / "debs").mkdir(parents=True)
    for path in source.glob("debs/*.deb"):
        (cache / "debs" / path.name).symlink_to(path)
    releases = list(source.glob("lists/bookworm*/InRelease"))
    for path in (*releases, *source.glob("lists/found-*.json")):
        copy = cache / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # as if of today
    if not releases:
        pytest.skip(f"no lists of packages in {source}; to run this: make image")


class Built:
    """An image built without a network, and its cache."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        copy_packages(self.cache)
        status, output, errors = build(self.cache)
        assert (status, errors) == (0, "")
        self.image = Path(output.strip())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"))


def contents(image: Path) -> dict[str, tuple[int, bytes]]:
    """Read an archive: mode and data of each path."""
    archive, found, offset = image.read_bytes(), {}, 0
    while True:
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name = archive[offset + 110 : offset + 109 + fields[11]].decode()
        data_at = offset + 110 + fields[11] + 3 & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[data_at : data_at + fields[6]])
        offset = data_at + fields[6] + 3 & ~3


def test_the_image_has_what_a_guest_needs(built: Built) -> None:
    found = contents(built.image)
    assert built.image.stat().st_size < 47_500_000
    assert found["init"][1].startswith(b"#!/usr/bin/python3.11 -ISB\n")
    assert found["usr/bin/python3"] == (stat.S_IFLNK | 0o777, b"python3.11")
    assert found["usr/bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert found["usr/sbin/modprobe"] == (stat.S_IFLNK | 0o777, b"../bin/busybox")
    assert found["root"][0] == stat.S_IFDIR | 0o700
    assert found["tmp"][0] == stat.S_IFDIR | 0o1777
    assert found["dev/console"][0] == stat.S_IFCHR | 0o600
    assert b"sandbox:x:1000:1000:" in found["etc/passwd"][1]
    relay = found["usr/bin/voidbox-relay"]  # for everybody
    assert relay[0] == stat.S_IFREG | 0o755
    assert relay[1].startswith(b"#!/usr/bin/python3.11 -ISB\n")
    for shared in ("protocol", "packing", "serial_link", "relay_protocol"):  # links here
        source = (ROOT / f"guest_agent/{shared}.py").read_bytes()
        assert found[f"usr/lib/voidbox/guest_agent/{shared}.py"] == (stat.S_IFREG | 0o644, source)
    assert not [name for name in found if name.startswith(("usr/share/doc", "usr/share/man"))]


def test_what_boots_from_disks_stands_beside_it(built: Built) -> None:
    boot, runtime = built.image.parent / "boot.cpio", built.image.parent / "runtime.erofs"
    assert boot.stat().st_size < 3_000_000
    found = contents(boot)
    init = ROOT / "voidbox/setup/guest/boot_init.sh"
    assert found["init"] == (stat.S_IFREG | 0o755, init.read_bytes())
    assert found["usr/lib/voidbox/modules"][1] == b""
    assert set(found) > {"bin/sh", "bin/poweroff", "bin/switch_root", "dev/console", "etc/voidbox"}
    for folder in ("image", "root", "runtime", "upper"):
        assert stat.S_ISDIR(found[folder][0])
    assert runtime.stat().st_size < 49_000_000
    tree = Image(runtime.read_bytes()).files()
    tools = "usr/lib/voidbox/e2fs"
    assert {f"{tools}/mke2fs", f"{tools}/libext2fs.so.2", "init", "etc/voidbox"} <= set(tree)
    assert stat.S_IMODE(tree["tmp"].mode) == 0o1777 and stat.S_IMODE(tree["root"].mode) == 0o700
    assert {(file.uid, file.gid, file.mtime_ns) for file in tree.values()} == {(0, 0, 0)}
    # They are the runtime's alone: the initramfs is memory.
    assert not [name for name in contents(built.image) if "voidbox/e2fs" in name]


def test_everything_is_compiled_for_good(built: Built) -> None:
    """PEP 552: flags 1 say that the hash is not checked, so the sources are not even looked at."""
    found = contents(built.image)
    folders = ("usr/lib/python3.11/", "usr/lib/voidbox/")
    sources = [name for name in found if name.startswith(folders) and name.endswith(".py")]
    assert len(sources) > 500
    for source in sources:
        folder, name = source.rsplit("/", 1)
        compiled = found[f"{folder}/__pycache__/{name[:-3]}.cpython-311.pyc"][1]
        assert compiled[4:8] == b"\x01\0\0\0"


def unpack(found: dict[str, tuple[int, bytes]], folder: Path) -> None:
    for name, (mode, data) in found.items():
        path = folder / name
        if stat.S_ISDIR(mode):
            path.mkdir(parents=True, exist_ok=True)
        elif stat.S_ISLNK(mode):
            path.symlink_to(os.fsdecode(data))
        elif stat.S_ISREG(mode):
            path.write_bytes(data)
            path.chmod(mode & 0o777)


def test_the_agent_comes_out_of_one_file(built: Built, tmp_path: Path) -> None:
    """What PID 1 imports is a hundred reads of a disk, if each module is read by itself."""
    unpack(contents(built.image), tmp_path)
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    begun = subprocess.run(
        [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries,
         tmp_path / "usr/bin/python3.11", "-ISBv", tmp_path / "init"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "Start the agent: as PID 1 of a guest" in begun.stderr  # as a program it wants arguments
    imported = re.findall(r"^import '(.+)' # <(.+) object at", begun.stderr, re.MULTILINE)
    readers = {name: loader.rpartition(".")[2] for name, loader in imported}
    assert readers["guest_agent.server"] == readers["socket"] == "Bundle"
    from_files = [name for name, reader in readers.items() if reader == "SourceFileLoader"]
    # What Python reads before it runs anything.
    assert sorted(from_files) == ["encodings", "encodings.aliases", "encodings.utf_8"]
    modules = marshal.loads((tmp_path / "usr/lib/voidbox/boot.bundle").read_bytes())
    assert {"guest_agent.boot", "guest_agent.cgroups", "guest_agent.network"} <= modules.keys()
    for path, _, code in modules.values():
        folder, _, name = path.rpartition("/")
        compiled = tmp_path / folder / "__pycache__" / f"{name[:-3]}.cpython-311.pyc"
        assert compiled.read_bytes()[16:] == code


@pytest.mark.slow
def test_the_bytes_depend_on_the_inputs_alone(built: Built, tmp_path: Path) -> None:
    """Another folder, time and umask; Python's hashes differ from run to run anyway."""
    cache = tmp_path / "a longer name" / "cache"
    copy_packages(cache)
    status, output, errors = build(cache, UMASK="077")
    assert (status, errors) == (0, "")
    again = Path(output.strip())
    assert again.parent.name == built.image.parent.name
    for name in ("initramfs.cpio", "boot.cpio", "runtime.erofs"):
        first, second = built.image.parent / name, again.parent / name
        assert first.read_bytes() == second.read_bytes(), name


def test_a_built_image_needs_neither_network_nor_time(built: Built) -> None:
    before = built.image.stat()
    assert build(built.cache) == (0, f"{built.image}\n", "")
    for path in built.cache.glob("lists/*/InRelease"):
        os.utime(path, (0, 0))  # so that the mirror is asked
    status, output, errors = build(built.cache)
    assert (status, output) == (0, f"{built.image}\n")
    assert "cannot connect to 127.0.0.1 port 1: is there a network? Using the list of" in errors
    for path in built.cache.glob("lists/*/InRelease"):
        os.utime(path)
    assert built.image.stat() == before
    assert not leftovers(built.cache)


def test_a_package_that_cannot_be_looked_up_is_told(built: Built) -> None:
    status, output, errors = build(built.cache, "--with", "no-such-package")
    assert (status, output) == (1, "")
    assert errors.startswith("image: cannot connect to 127.0.0.1")
    assert errors.count("\n") == 1
    assert not leftovers(built.cache)


def test_output_is_a_copy(built: Built, tmp_path: Path) -> None:
    target = tmp_path / "image.cpio"
    assert build(built.cache, "--output", target) == (0, f"{target}\n", "")
    assert target.read_bytes() == built.image.read_bytes()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_added_files_are_there_and_links_to_them_followed(built: Built, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "program").write_text("one")
    (tmp_path / "link").symlink_to("folder/program")
    arguments = ["--add", f"{tmp_path}/folder:/srv/folder", "--add", f"{tmp_path}/link:/bin/one"]
    status, output, _ = build(built.cache, *arguments)
    assert status == 0
    found = contents(Path(output.strip()))
    assert found["srv/folder/program"][1] == b"one"
    assert found["usr/bin/one"] == (stat.S_IFREG | 0o644, b"one")
    # The image that `voidbox run` takes by default is the plain one.
    assert (built.cache / "images/current-builtin").resolve() == built.image.parent
    (tmp_path / "folder" / "program").write_text("two")
    assert build(built.cache, *arguments)[1] not in ("", output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guest", "expected"),
    [
        ("/etc/passwd", "the image has a /etc/passwd already"),
        ("/etc/passwd/x", "/etc/passwd is no folder in the image"),
        ("/usr/bin/sh/x", "/usr/bin/sh is no folder in the image"),
    ],
)
def test_nothing_of_the_image_is_replaced(built: Built, guest: str, expected: str) -> None:
    status, output, errors = build(built.cache, "--add", f"{BUILD}:{guest}")
    assert (status, output) == (1, "")
    assert errors == f"image: --add {BUILD}:{guest}: {expected}\n"
    assert not leftovers(built.cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(built: Built, number: signal.Signals) -> None:
    # A shell cannot trap what it was started with ignored, as a background job is.
    command = ["env", "--default-signal=INT,TERM", "sh", BUILD]
    command += ["--add", f"{BUILD}:/srv/{number.name}"]
    environment = {**os.environ, **NOWHERE, "VOIDBOX_CACHE": str(built.cache)}
    images = set((built.cache / "images").iterdir())
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not leftovers(built.cache):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 130
    assert set((built.cache / "images").iterdir()) == images


@pytest.mark.slow
def test_a_broken_package_is_not_used(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    copy_packages(cache)
    (deb,) = cache.glob("debs/zlib1g_*.deb")
    start = deb.read_bytes()[:5000]
    deb.unlink()
    deb.write_bytes(start)
    status, output, errors = build(cache)
    assert (status, output) == (1, "")
    assert errors.startswith("image: cannot connect to 127.0.0.1")  # it would be fetched again
    assert errors.count("\n") == 1
    assert not leftovers(cache)
