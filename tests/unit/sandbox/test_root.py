"""Roots on disks: what the guest is given, and what is chosen for which words."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from guest_agent.root import Image
from tests.unit.images.made import StoreFolder
from tests.unit.sandbox.states import wanted
from voidbox import defaults
from voidbox.agent import protocol
from voidbox.errors import ConfigError, HostError
from voidbox.images.config import ImageConfig
from voidbox.sandbox.image_choice import Choice, choose
from voidbox.sandbox.process import recipe
from voidbox.sandbox.root import (
    DISK_BYTES_DEFAULT,
    Root,
    TemporaryUpper,
    check_disk_bytes,
    is_file_system,
    make_upper,
)
from voidbox.sdk import draft
from voidbox.vmm.config import DiskConfig, MachineConfig

FILES = defaults.RootFiles("/c/boot.cpio", "/c/runtime.erofs")


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "find_root", lambda kernel: FILES)
    monkeypatch.setattr(defaults, "find_image", lambda kernel: "/c/initramfs.cpio")
    monkeypatch.setattr(defaults, "find_default_image", lambda: "/c/default.erofs")


@pytest.fixture
def stored(tmp_path: Path) -> StoreFolder:
    (tmp_path / "state").mkdir(mode=0o700)
    return StoreFolder(tmp_path / "state")


def erofs(path: Path) -> Path:
    path.write_bytes(bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(3072))
    return path


# --- what is chosen ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", [None, "default"])
def test_our_own_image_has_a_disk_and_a_user(word: str | None) -> None:
    choice = choose(word, "/k")
    root = Root(*FILES, "/c/default.erofs", DISK_BYTES_DEFAULT, "", "sandbox", "/workspace")
    assert choice == Choice("default", root)
    assert (choice.user(None), choice.workdir(None)) == ("sandbox", "/workspace")
    assert choose(word, "/k", disk_bytes=0).root == root._replace(disk_bytes=0)


def test_where_only_the_tiny_image_was_built_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "find_default_image", lambda: None)
    assert choose(None, "/k") == choose("tiny", "/k")


def test_the_tiny_image_writes_to_memory_unless_it_gets_a_disk() -> None:
    assert choose("tiny", "/k") == Choice("tiny", Root(*FILES))
    choice = choose("tiny", "/k", disk_bytes=1 << 30)
    assert choice.root is not None and choice.root.disk_bytes == 1 << 30
    # Nothing of it is the image's: the agent knows.
    assert (choice.user(None), choice.workdir(None), choice.envs({})) == (None, None, {})


def test_what_an_older_build_left_is_an_initramfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "find_root", lambda kernel: None)
    assert choose(None, "/k") == Choice("/c/initramfs.cpio")
    with pytest.raises(ConfigError, match="is an initramfs: it is all memory, and gets no disk"):
        choose(None, "/k", disk_bytes=1 << 30)
    with pytest.raises(ConfigError, match="run voidbox setup again"):
        choose(erofs(tmp_path / "image"), "/k")


def test_a_path_is_what_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = erofs(tmp_path / "image")
    (tmp_path / "guest.cpio").write_bytes(b"070701")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    root = Root(*FILES, str(image), DISK_BYTES_DEFAULT)
    for word in (image, str(image), "./image", "../" + tmp_path.name + "/image", "~/image"):
        assert choose(word, "/k") == Choice(str(image), root), word
    initramfs = Choice(str(tmp_path / "guest.cpio"))
    for word in (tmp_path / "guest.cpio", "guest.cpio", "./guest.cpio"):
        assert choose(word, "/k") == initramfs, word


def test_a_file_that_is_no_image_is_told(tmp_path: Path) -> None:
    for word in (tmp_path / "none", f"{tmp_path}/none", "x.cpio.gz", "./none"):
        with pytest.raises(ConfigError, match="there is no image /.*: give a file, or the name"):
            choose(word, "/k")
    with pytest.raises(ConfigError, match=r"is a folder: voidbox image import NAME /.* makes an"):
        choose(tmp_path, "/k")


def test_a_name_is_an_image_of_the_store(stored: StoreFolder) -> None:
    config = ImageConfig(
        env={"A": "1", "B": "2"}, workdir="/app", user="web:www", volumes=("/data",)
    )
    made = stored.add("web:1", config=config)
    choice = choose("web:1", "/k", disk_bytes=0, state_folder=str(stored.path))
    assert choice.image == "web:1"
    assert choice.root == Root(*FILES, made.path, 0, made.id, "web:www", "/app", ("/data",))
    assert choice.envs({"B": "3"}) == {"A": "1", "B": "3"}
    assert (choice.user(None), choice.user("7")) == ("web:www", "7")
    assert (choice.workdir(None), choice.workdir("/srv")) == ("/app", "/srv")
    with pytest.raises(ConfigError, match="no image nothing: voidbox image pull nothing brings"):
        choose("nothing", "/k", state_folder=str(stored.path))


def test_an_image_that_says_nothing_is_roots_in_workspace(stored: StoreFolder) -> None:
    stored.add("plain", config=ImageConfig())
    choice = choose("plain", "/k", state_folder=str(stored.path))
    assert (choice.user(None), choice.workdir(None)) == ("root", "/workspace")
    assert choice.root is not None and choice.root.workdir == ""


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "words", "own", "expected"),
    [
        ((), (), (), None, ()),
        ((), ("bash",), (), None, ("bash",)),
        (("entry", "-x"), ("cmd",), (), None, ("entry", "-x", "cmd")),
        (("entry",), ("cmd",), ("mine", "own"), None, ("entry", "mine", "own")),
        (("entry",), ("cmd",), ("mine",), "other", ("other", "mine")),
        (("entry",), ("cmd",), (), "other", ("other",)),
        (("entry",), ("cmd",), ("mine",), "", ("mine",)),
        (("entry",), ("cmd",), (), "", ()),
    ],
)
def test_what_run_executes(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    words: tuple[str, ...],
    own: str | None,
    expected: tuple[str, ...],
) -> None:
    choice = Choice("x", Root(*FILES, "/i"), ImageConfig(entrypoint=entrypoint, cmd=cmd))
    assert choice.command(words, own) == expected


@pytest.mark.parametrize("size", [1, 1 << 20, (16 << 40) + 4096])
def test_disks_that_cannot_be_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="choose 16M to 16T, or 0"):
        check_disk_bytes(size)
    assert check_disk_bytes(0) == 0
    assert check_disk_bytes((64 << 20) + 5000) == (64 << 20) + 4096


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("/sbin/init",), "/sbin/init"),
        (("/lib/systemd/systemd", "--unit=x"), "/lib/systemd/systemd"),
        (("/init",), "/init"),
        (("init",), ""),
        (("/usr/sbin/nginx",), ""),
        ((), ""),
    ],
)
def test_an_init_by_what_the_image_runs(
    words: tuple[str, ...], found: str, stored: StoreFolder
) -> None:
    stored.add("machine", config=ImageConfig(entrypoint=words))
    for init, expected in (("auto", found), ("agent", ""), (None, ""), ("/x", "/x")):
        choice = choose("machine", "/k", init=init, state_folder=str(stored.path))
        assert choice.root is not None and choice.root.init == expected, init


def test_an_init_that_cannot_be(stored: StoreFolder, tmp_path: Path) -> None:
    stored.add("machine")
    for init in ("sbin/init", "systemd", "", "/a\nuser root"):
        with pytest.raises(ConfigError, match="give an absolute path in the image, auto or agent"):
            choose("machine", "/k", init=init, state_folder=str(stored.path))
    for image in (None, "tiny", tmp_path / "initramfs.cpio"):
        (tmp_path / "initramfs.cpio").touch()
        assert choose(image, "/k", init="auto") == choose(image, "/k")
        with pytest.raises(ConfigError, match="only an image that brings an init has one"):
            choose(image, "/k", init="/sbin/init")


# --- what the guest is given -------------------------------------------------------------------


def test_a_record_becomes_a_machine_with_disks() -> None:
    volumes = ("/data", "/var/lib/b")
    root = Root(*FILES, "/i/rootfs.erofs", 1 << 30, "sha256:x", "app", "/srv/a b", volumes)
    record = wanted("x", image="python", root=root.to_json())
    config = recipe.machine_config(record, "/v", "/s/disk.img")
    assert config.initramfs == "/c/boot.cpio"
    assert config.disks == (
        DiskConfig("/c/runtime.erofs", is_read_only=True, serial="voidbox-runtime"),
        DiskConfig("/i/rootfs.erofs", is_read_only=True, serial="voidbox-image"),
        DiskConfig("/s/disk.img", serial="voidbox-upper", is_own=True),
    )
    (file,) = config.extra_files
    assert f"/{file.path}" == protocol.IMAGE_PATH
    assert file.data == b"user app\nworkdir /srv/a b\nvolume /data\nvolume /var/lib/b\n"
    assert Root.from_json(record.to_json()["root"]) == root


def test_a_record_without_a_root_is_an_initramfs() -> None:
    config = recipe.machine_config(wanted("x"), "/v", "/s/disk.img")
    assert (config.initramfs, config.disks, config.extra_files) == ("/i/initramfs.cpio", (), ())


def test_own_disks_come_first_and_memory_may_take_what_is_written() -> None:
    own = DiskConfig("/mine")
    config = Root(*FILES).applied_to(MachineConfig("/k", disks=(own,)), None)
    assert [disk.path for disk in config.disks] == ["/mine", "/c/runtime.erofs"]
    assert config.extra_files == ()


def test_the_agent_is_told_of_an_init() -> None:
    root = Root(*FILES, "/i", user="app", init="/sbin/init")
    (file,) = root.files()
    assert file.data == b"user app\nworkdir \ninit /sbin/init\n"
    assert Image(file.data.decode()).init == "/sbin/init"
    assert Root.from_json(root.to_json()) == root


def test_lines_of_an_image_are_its_own_alone() -> None:
    (file,) = Root(
        *FILES, "/i", workdir="/x\nuser root", user="app", volumes=("/y\nuser root",)
    ).files()
    assert file.data == b"user app\n"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"boot": 1, "runtime": "x"},
        {"boot": "b"},
        {"boot": "b", "runtime": "r", "disk_bytes": "1"},
        {"boot": "b", "runtime": "r", "volumes": "/x"},
        {"boot": "b", "runtime": "r", "volumes": [1]},
    ],
)
def test_a_record_that_makes_no_sense(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="no root"):
        Root.from_json(values)
    assert Root.from_json({"boot": "b", "runtime": "r", "later": 1}) == Root("b", "r")


def test_arguments_of_create_make_a_record(stored: StoreFolder) -> None:
    made = stored.add("web", config=ImageConfig(env={"A": "1"}, user="7"))
    values = {
        "memory": None, "cpus": 1, "metadata": None, "timeout": None, "name": None, "net": None,
        "vsock": "unix", "team": None, "cmdline": None, "is_owned": True, "kernel": "/k",
        "state_folder": str(stored.path),
    }  # fmt: skip
    record = draft.make_record(
        **values, image="web", envs={"B": "2"}, workdir=None, user=None, disk_size="2G"
    )  # type: ignore[arg-type]
    assert (record.image, record.user, record.workdir) == ("web", "7", "/workspace")
    assert record.envs == {"A": "1", "B": "2"}
    assert record.root is not None
    assert (record.root["digest"], record.root["disk_bytes"]) == (made.id, 2 << 30)
    for size in (True, -1, 1.5, "much"):
        with pytest.raises(ConfigError):
            draft.disk_bytes(size)  # type: ignore[arg-type]
    assert draft.disk_bytes(64) == 64 << 20


# --- the disk ----------------------------------------------------------------------------------


def test_a_disk_is_blank_private_and_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    make_upper(str(path), 1 << 30)
    status = path.stat()
    assert (status.st_size, status.st_blocks) == (1 << 30, 0)
    assert stat.S_IMODE(status.st_mode) == 0o600
    path.write_bytes(b"mine")
    make_upper(str(path), 1 << 30)  # what is there stays
    assert path.read_bytes() == b"mine"


def test_a_disk_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot make the sandbox's disk in .*No such file"):
        make_upper(str(tmp_path / "no" / "disk.img"), 1 << 30)


def test_a_disk_too_large_for_the_file_system_is_told(tmp_path: Path) -> None:
    with open(tmp_path / "probe", "wb") as file, contextlib.suppress(OSError):
        os.truncate(file.fileno(), 1 << 62)
        pytest.skip("this file system, a tmpfs perhaps, has files of any size")
    (tmp_path / "probe").unlink()
    with pytest.raises(HostError, match="choose a smaller disk"):
        make_upper(str(tmp_path / "disk.img"), 1 << 62)
    assert not (tmp_path / "disk.img").exists()


def test_a_temporary_disk_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for is_possible in (True, False):
        if not is_possible:
            monkeypatch.setattr(os, "O_TMPFILE", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with TemporaryUpper(1 << 30) as upper:
            assert os.path.getsize(upper.path) == 1 << 30
            with open(upper.path, "r+b") as file:
                file.write(b"x")
            assert list(tmp_path.iterdir()) == []
        upper.close()
        assert not os.path.exists(upper.path)


def test_file_systems_are_known_by_their_magic(tmp_path: Path) -> None:
    assert is_file_system(str(erofs(tmp_path / "image")))
    (tmp_path / "cpio").write_bytes(b"070701" * 1000)
    (tmp_path / "short").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    for name in ("cpio", "short", "fifo", "missing", "."):
        assert not is_file_system(str(tmp_path / name))
