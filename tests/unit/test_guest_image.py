"""The guest image's build: the modules it takes, what it refuses, and the same bytes always."""

from __future__ import annotations

import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.images.erofs_reader import Image
from voidbox.defaults import cache_folder

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "scripts" / "build_guest_image.sh"
RELEASE = "6.1.0-test"


# --- which modules a kernel needs --------------------------------------------------------------


def module(*modinfo: str) -> bytes:
    """Make an ELF file that has nothing but a .modinfo section."""
    info = b"".join(word.encode() + b"\0" for word in modinfo)
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = names_at + len(names)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    sections = [(0, 0, 0, 0), (1, 1, info_at, len(info)), (10, 3, names_at, len(names))]
    table = [
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)
        for name, kind, at, size in sections
    ]
    return header + info + names + b"".join(table)


class Kernel:
    """A kernel's folder as kernel/fetch_debian.sh leaves it, with modules of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = folder / "lib" / "modules" / RELEASE
        self.modules.mkdir(parents=True)
        (folder / "vmlinuz").write_bytes(b"kernel")

    def configure(self, **symbols: str) -> None:
        lines = [f"CONFIG_{symbol}={value}\n" for symbol, value in symbols.items()]
        (self.folder / "config").write_text("".join(lines))

    def add(self, path: str, *modinfo: str) -> None:
        file = self.modules / "kernel" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        content = module(*modinfo)
        file.write_bytes(lzma.compress(content) if path.endswith(".xz") else content)

    def install(self, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "scripts" / "guest_modules.py"]
        command += [self.folder / "config", self.modules, root, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "kernel")


def listed(root: Path) -> list[str]:
    """What the agent would load."""
    paths = (root / "usr/lib/voidbox/modules").read_text().split()
    for path in paths:
        assert (root / path.lstrip("/")).is_file()
    return [Path(path).name for path in paths]


def packed(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*.ko*")}


def dependencies(root: Path) -> dict[str, list[str]]:
    lines = (root / f"usr/lib/modules/{RELEASE}/modules.dep").read_text().splitlines()
    return {name: needed.split() for name, needed in (line.split(":") for line in lines)}


def test_only_what_is_a_module_is_taken_and_what_it_needs_comes_first(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.configure(VIRTIO_MMIO="m", HW_RANDOM_VIRTIO="m", VIRTIO_NET="y", OVERLAY_FS="m")
    kernel.add("drivers/virtio/virtio.ko", "license=GPL", "depends=virtio_ring")
    kernel.add("drivers/virtio/virtio_ring.ko", "depends=")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=virtio_ring,virtio")
    kernel.add("drivers/char/virtio-rng.ko", "depends=virtio")
    kernel.add("drivers/net/virtio_net.ko", "depends=")
    kernel.add("fs/overlay.ko", "alias=fs-overlay", "depends=")
    assert kernel.install(tmp_path).returncode == 0

    assert listed(tmp_path) == ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio-rng.ko"]
    assert packed(tmp_path / "usr") == {*listed(tmp_path), "overlay.ko"}
    # modprobe loads from the last to the first.
    assert dependencies(tmp_path)["virtio_mmio.ko"] == ["virtio.ko", "virtio_ring.ko"]
    aliases = tmp_path / f"usr/lib/modules/{RELEASE}/modules.alias"
    assert aliases.read_text() == "alias fs-overlay overlay\n"


def test_what_mounts_the_root_is_apart_and_all_loaded_at_once(
    kernel: Kernel, tmp_path: Path
) -> None:
    kernel.configure(VIRTIO_MMIO="m", VIRTIO_BLK="m", EROFS_FS="m", VIRTIO_NET="m", EXT4_FS="y")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=")
    kernel.add("drivers/block/virtio_blk.ko", "depends=")
    kernel.add("fs/erofs.ko", "depends=libcrc32c")
    kernel.add("lib/libcrc32c.ko", "depends=")
    kernel.add("drivers/net/virtio_net.ko", "depends=")
    assert kernel.install(tmp_path, "boot").returncode == 0
    assert listed(tmp_path) == ["virtio_mmio.ko", "virtio_blk.ko", "libcrc32c.ko", "erofs.ko"]
    assert packed(tmp_path / "usr") == set(listed(tmp_path))


def test_a_kernel_with_everything_built_in_gets_none(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(VIRTIO_MMIO="y", OVERLAY_FS="y")
    kernel.add("drivers/virtio/virtio_mmio.ko", "depends=")
    assert kernel.install(tmp_path).returncode == 0
    assert listed(tmp_path) == []
    assert not packed(tmp_path / "usr")


@pytest.mark.parametrize("asked", ["crypto-crc32c", "crc32c_generic"])
def test_a_soft_dependency_is_one(kernel: Kernel, tmp_path: Path, asked: str) -> None:
    """By alias or by name; not the one that loads on some CPUs alone, nor what comes after."""
    kernel.configure(EXT4_FS="m")
    kernel.add("fs/ext4.ko", f"softdep=pre: {asked} post: later", "depends=")
    kernel.add("arch/x86/crc32c-intel.ko", "alias=cpu:type:x86", "alias=crypto-crc32c", "depends=")
    kernel.add("crypto/crc32c_generic.ko", "alias=crypto-crc32c", "depends=")
    kernel.add("crypto/later.ko", "depends=")
    assert kernel.install(tmp_path).returncode == 0
    assert packed(tmp_path / "usr") == {"ext4.ko", "crc32c_generic.ko"}
    assert dependencies(tmp_path)["ext4.ko"] == ["crc32c_generic.ko"]


def test_a_soft_dependency_that_is_built_in_is_met(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(EXT4_FS="m")
    kernel.add("fs/ext4.ko", "softdep=pre: crypto-crc32c", "depends=")
    kernel.add("crypto/other.ko", "alias=crypto-crc32c", "depends=")
    (kernel.modules / "modules.builtin.modinfo").write_text("crc32c_generic.alias=crypto-crc32c\0")
    assert kernel.install(tmp_path).returncode == 0
    assert packed(tmp_path / "usr") == {"ext4.ko"}


def test_compressed_modules_are_unpacked(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(FUSE_FS="m")
    kernel.add("fs/fuse.ko.xz", "depends=")
    assert kernel.install(tmp_path).returncode == 0
    (copy,) = (tmp_path / "usr").rglob("*.ko*")
    assert copy.name == "fuse.ko"
    assert copy.read_bytes() == module("depends=")


def test_what_is_missing_or_broken_is_named(kernel: Kernel, tmp_path: Path) -> None:
    kernel.configure(VIRTIO_MMIO="m")
    result = kernel.install(tmp_path)
    assert result.returncode == 1
    assert result.stderr == "guest_modules.py: the kernel's package has no module virtio_mmio\n"
    whole = module("depends=")
    (kernel.modules / "kernel").mkdir()
    for content in (b"", b"text", whole[:50], whole[:-80], whole.replace(b".modinfo", b".nothing")):
        (kernel.modules / "kernel" / "virtio_mmio.ko").write_bytes(content)
        result = kernel.install(tmp_path)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "virtio_mmio.ko: not a kernel module" in result.stderr


# --- what the script refuses -------------------------------------------------------------------


def build(cache: Path, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run the script; returns its status, stdout, and stderr without the progress."""
    result = subprocess.run(
        ["sh", BUILD, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VOIDBOX_CACHE": str(cache), **environment},
        umask=int(environment.get("UMASK", "022"), 8),
    )
    lines = result.stderr.splitlines(keepends=True)
    errors = "".join(line for line in lines if not line.startswith("building"))
    return result.returncode, result.stdout, errors


def leftovers(cache: Path) -> list[str]:
    """Everything in a cache but packages, whole images and the links to them."""
    paths = [*cache.glob("*"), *cache.glob("images/*"), *cache.glob("debs/*.*")]
    kept = ("debs", "images", "guest-", "current-")
    return [p.name for p in paths if not p.name.startswith(kept) and p.suffix != ".deb"]


REFUSED = {
    "an unknown option": (["--nope", "x"], "usage: "),
    "no value": (["--kernel"], "usage: "),
    "no kernel": (["--kernel", "/nonexistent"], "no kernel /nonexistent"),
    "a package's name": (["--with", "--help"], "--with --help: not a package's name"),
    "no guest path": (["--add", "{file}"], "give HOSTPATH:GUESTPATH"),
    "a relative guest path": (["--add", "{file}:srv/x"], "give HOSTPATH:GUESTPATH"),
    "no host path": (["--add", "/nonexistent:/x"], "there is no /nonexistent"),
    "out of the image": (["--add", "{file}:/srv/../../../x"], "without . and .."),
    "the root": (["--add", "{file}:/"], "must name a file"),
    "a FIFO": (["--add", "{fifo}:/srv/x"], "is no file, folder or link"),
    "a folder as output": (["--output", "{folder}"], "this is a folder"),
    "no output folder": (["--output", "/nonexistent/x"], "there is no folder /nonexistent"),
}


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
    assert errors.startswith("build_guest_image.sh: ")
    assert expected in errors
    assert not leftovers(cache)


def test_a_kernel_without_its_config_or_modules_is_refused(tmp_path: Path, kernel: Kernel) -> None:
    cache, file = tmp_path / "cache", kernel.folder / "vmlinuz"
    assert "no config beside" in build(cache, "--kernel", file)[2]
    kernel.configure(VIRTIO_MMIO="m")
    kernel.modules.rmdir()
    assert "no lib/modules beside" in build(cache, "--kernel", file)[2]


def test_a_machine_without_apt_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "basename", "mkdir", "cat"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    status, output, errors = build(tmp_path / "cache", PATH=str(tmp_path / "bin"))
    assert (status, output) == (1, "")
    assert errors.endswith("apt-get is missing: this works on Debian and its kin\n")


# --- a whole image, from the packages of the cache ---------------------------------------------


def copy_packages(cache: Path) -> Path:
    """Give a cache of its own the packages of the user's; returns its list of them."""
    source = Path(cache_folder()) / "debs"
    (cache / "debs").mkdir(parents=True)
    for path in source.glob("*.deb"):
        (cache / "debs" / path.name).symlink_to(path)
    for path in source.glob("resolved-*"):
        names = path.read_text().split()
        # The list of the base alone: no package beyond it is the shortest. An older base had no
        # tools for disks.
        is_ours = any(name.startswith("e2fsprogs_") for name in names)
        if is_ours and all((source / name).exists() for name in names):
            shutil.copyfile(path, cache / "debs" / path.name)
    lists = list((cache / "debs").glob("resolved-*"))
    if not lists:
        pytest.skip(f"no packages in {source}; to run this: make image")
    return min(lists, key=lambda path: path.stat().st_size)


def without_apt(folder: Path) -> str:
    """Return a PATH on which apt-get fails, as without its lists or a network."""
    folder.mkdir()
    (folder / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    (folder / "apt-get").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


class Built:
    """An image built without apt, and its cache."""

    def __init__(self, folder: Path) -> None:
        self.path = without_apt(folder / "bin")
        self.cache = folder / "cache"
        self.packages = copy_packages(self.cache)
        status, output, errors = build(self.cache, PATH=self.path)
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
    assert built.image.stat().st_size < 47_000_000
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
    init = ROOT / "scripts" / "guest_boot_init.sh"
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


@pytest.mark.slow
def test_the_bytes_depend_on_the_inputs_alone(built: Built, tmp_path: Path) -> None:
    """Another folder, time and umask; Python's hashes differ from run to run anyway."""
    cache = tmp_path / "a longer name" / "cache"
    copy_packages(cache)
    status, output, errors = build(cache, PATH=built.path, UMASK="077")
    assert (status, errors) == (0, "")
    again = Path(output.strip())
    assert again.parent.name == built.image.parent.name
    for name in ("initramfs.cpio", "boot.cpio", "runtime.erofs"):
        first, second = built.image.parent / name, again.parent / name
        assert first.read_bytes() == second.read_bytes(), name


def test_a_built_image_needs_neither_apt_nor_time(built: Built) -> None:
    os.utime(built.packages, (0, 0))  # older than apt's lists, so that apt is asked
    before = built.image.stat()
    status, output, errors = build(built.cache, PATH=built.path)
    assert (status, output) == (0, f"{built.image}\n")
    assert errors == (
        "build_guest_image.sh: apt cannot say what is new (E: no network); "
        "using the cached packages\n"
    )
    os.utime(built.packages)
    assert build(built.cache, PATH=built.path) == (0, f"{built.image}\n", "")
    assert built.image.stat() == before
    assert not leftovers(built.cache)


def test_an_unknown_package_is_told(built: Built) -> None:
    status, output, errors = build(built.cache, "--with", "no-such-package", PATH=built.path)
    assert (status, output) == (1, "")
    assert errors.startswith("build_guest_image.sh: apt cannot provide every package (E: no net")
    assert errors.count("\n") == 1
    assert not leftovers(built.cache)


def test_output_is_a_copy(built: Built, tmp_path: Path) -> None:
    target = tmp_path / "image.cpio"
    assert build(built.cache, "--output", target, PATH=built.path) == (0, f"{target}\n", "")
    assert target.read_bytes() == built.image.read_bytes()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_added_files_are_there_and_links_to_them_followed(built: Built, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "program").write_text("one")
    (tmp_path / "link").symlink_to("folder/program")
    arguments = ["--add", f"{tmp_path}/folder:/srv/folder", "--add", f"{tmp_path}/link:/bin/one"]
    status, output, _ = build(built.cache, *arguments, PATH=built.path)
    assert status == 0
    found = contents(Path(output.strip()))
    assert found["srv/folder/program"][1] == b"one"
    assert found["usr/bin/one"] == (stat.S_IFREG | 0o644, b"one")
    # The image that `voidbox run` takes by default is the plain one.
    assert (built.cache / "images/current-builtin").resolve() == built.image.parent
    (tmp_path / "folder" / "program").write_text("two")
    assert build(built.cache, *arguments, PATH=built.path)[1] not in ("", output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guest", "expected"),
    [
        ("/etc/passwd", "the image has a /etc/passwd already"),
        ("/etc/passwd/x", "/etc/passwd is no folder in the image"),
        ("/usr/lib64/ld-linux-x86-64.so.2/x", "a link of the image is in the way"),
    ],
)
def test_nothing_of_the_image_is_replaced(built: Built, guest: str, expected: str) -> None:
    status, output, errors = build(built.cache, "--add", f"{BUILD}:{guest}", PATH=built.path)
    assert (status, output) == (1, "")
    assert errors == f"build_guest_image.sh: --add {BUILD}:{guest}: {expected}\n"
    assert not leftovers(built.cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(built: Built, number: signal.Signals) -> None:
    # A shell cannot trap what it was started with ignored, as a background job is.
    command = ["env", "--default-signal=INT,TERM", "sh", BUILD]
    command += ["--add", f"{BUILD}:/srv/{number.name}"]
    environment = {**os.environ, "VOIDBOX_CACHE": str(built.cache), "PATH": built.path}
    images = set((built.cache / "images").iterdir())
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not leftovers(built.cache):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.communicate(timeout=30)[0] == b""
    assert process.returncode == 1
    assert set((built.cache / "images").iterdir()) == images


@pytest.mark.slow
def test_a_broken_package_is_named(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    copy_packages(cache)
    (deb,) = cache.glob("debs/zlib1g_*.deb")
    start = deb.read_bytes()[:5000]
    deb.unlink()
    deb.write_bytes(start)
    status, output, errors = build(cache, PATH=built.path)
    assert (status, output) == (1, "")
    assert f"cannot unpack {deb.name} (tar: " in errors
    assert errors.count("\n") == 1
    assert not leftovers(cache)
