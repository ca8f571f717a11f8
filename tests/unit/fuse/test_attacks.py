"""A guest that wants out, a host that changes under it, and messages that are none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.fuse.client import ROOM, Client, Memory
from voidbox.fuse import nodes, numbers
from voidbox.fuse.numbers import FATTR_MODE
from voidbox.fuse.numbers import FUSE_ROOT_ID as ROOT
from voidbox.fuse.server import REQUEST_BYTES_MAX, Server
from voidbox.fuse.wire import IN_HEADER, OUT_HEADER

RACE_S = 0.7


@contextlib.contextmanager
def swapping(*steps: Callable[[], None]) -> Iterator[None]:
    """Do the steps again and again, as fast as it goes, on a thread."""
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for step in steps:
                with contextlib.suppress(OSError):
                    step()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_folders_that_turn_into_links(client: Client, folder: Path) -> None:
    outside = folder.parent / "outside"
    (outside / "inner").mkdir()
    (outside / "inner/secret").write_text("the secret")
    (folder / "d/inner").mkdir(parents=True)
    (folder / "d/inner/secret").write_text("mine")
    link = folder / "link"
    link.symlink_to(outside)
    found = {"read": 0, "refused": 0}
    deadline = time.monotonic() + RACE_S
    steps = (
        lambda: os.rename(folder / "d", folder / "kept"),
        lambda: os.rename(link, folder / "d"),
        lambda: os.rename(folder / "d", link),
        lambda: os.rename(folder / "kept", folder / "d"),
    )
    known = client.path("d"), client.path("d/inner"), client.path("d/inner/secret")
    with swapping(*steps):
        while time.monotonic() < deadline:
            client.server._session.folder.forget_all()  # each way is gone anew
            try:
                file = client.open(client.path("d/inner/secret"))
                assert client.read(file) == b"mine"
                client.release(file)
                found["read"] += 1
            except OSError:
                found["refused"] += 1
            for make in (
                lambda: client.create(client.path("d"), b"new"),
                lambda: client.mkdir(client.path("d"), b"newd"),
                lambda: client.symlink(client.path("d"), b"news", b"x"),
                lambda: client.remove(client.path("d"), b"secret"),
                lambda: client.setattr(client.path("d"), FATTR_MODE, mode=0o700),
                lambda: client.setattr(known[1], FATTR_MODE, mode=0o711),
                lambda: client.create(known[0], b"other"),
                lambda: client.rename(known[1], b"secret", known[0], b"secret"),
                lambda: client.rename(known[0], b"secret", known[1], b"secret"),
                lambda: client.setattr(known[2], FATTR_MODE, mode=0o666),
            ):
                with contextlib.suppress(OSError):
                    make()
            with contextlib.suppress(OSError):
                client.remove(client.path("d"), b"new")
    assert sorted(os.listdir(outside)) == ["inner", "secret"]
    assert os.listdir(outside / "inner") == ["secret"]
    assert (outside / "inner").stat().st_mode & 0o777 != 0o711
    assert (outside / "inner/secret").stat().st_mode & 0o777 != 0o666
    assert found["read"] and found["refused"], found


def test_files_that_turn_into_links(client: Client, folder: Path) -> None:
    secret = folder.parent / "outside/secret"
    (folder / "f").write_text("mine")
    (folder / "l").symlink_to(secret)
    (folder / "g").write_text("mine")
    deadline = time.monotonic() + RACE_S
    steps = (
        lambda: os.rename(folder / "l", folder / "f"),
        lambda: os.symlink(secret, folder / "l"),
        lambda: os.link(folder / "g", folder / "h"),
        lambda: os.rename(folder / "h", folder / "f"),
    )
    count = 0
    with swapping(*steps):
        while time.monotonic() < deadline:
            for flags in (os.O_RDONLY, os.O_RDWR):
                with contextlib.suppress(OSError):
                    file = client.open(client.path("f"), flags)
                    assert client.read(file) == b"mine"
                    client.release(file)
                    count += 1
            with contextlib.suppress(OSError):
                file = client.create(ROOT, b"f", flags=os.O_RDWR | os.O_CREAT)
                assert client.read(file) == b"mine"
                client.release(file)
            with contextlib.suppress(OSError):
                client.setattr(client.path("f"), FATTR_MODE, mode=0o666)
            with contextlib.suppress(OSError):
                client.link(ROOT, client.path("f"), b"linked")
                assert not os.path.samestat(os.lstat(folder / "linked"), os.stat(secret))
            with contextlib.suppress(OSError):
                client.remove(ROOT, b"linked")
    assert count
    assert secret.read_text() == "the secret"
    assert secret.stat().st_nlink == 1
    assert secret.stat().st_mode & 0o777 != 0o666


def test_a_folder_that_is_moved_while_it_is_known(client: Client, folder: Path) -> None:
    (folder / "d/e").mkdir(parents=True)
    node = client.path("d/e")
    file = client.opendir(node)
    os.rename(folder / "d/e", folder.parent / "outside/e")
    # It stays with the folder that the host moved, and finds no way up from there.
    for name in (b"..", b"../secret"):
        with pytest.raises(OSError) as caught:
            client.lookup(node, name)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError):
        client.rename(node, b"../secret", ROOT, b"x")
    os.rmdir(folder.parent / "outside/e")
    with pytest.raises(FileNotFoundError):
        client.create(node, b"f")
    with pytest.raises(FileNotFoundError):
        client.readdir(file)
    client.release(file)
    client.server._session.folder.forget_all()
    with pytest.raises(OSError) as caught:
        client.create(node, b"f")
    assert caught.value.errno == errno.ESTALE


# What the guest may have us hold.


@pytest.mark.parametrize("opcode", [numbers.FUSE_READDIR, numbers.FUSE_READDIRPLUS])
@pytest.mark.parametrize("room_bytes", [300, 4096, ROOM])
def test_what_waits_of_folders_that_are_half_read_is_bounded(
    client: Client, folder: Path, opcode: int, room_bytes: int
) -> None:
    for number in range(1000):
        (folder / f"{number}").write_text("")
    opened = client.opendir(ROOT)
    body = struct.pack("<QQIIQII", opened.fh, 0, room_bytes, 0, 0, 0, 0)
    answer = client.send(opcode, ROOT, body, room_bytes)
    largest = 128 + 32 if opcode == numbers.FUSE_READDIRPLUS else 32
    # As much as there is room for, or all that there is; and little is kept behind it.
    assert room_bytes - largest < len(answer) <= room_bytes or len(answer) > 1000 * 24
    assert len(client.server._session.handles.get(opened.fh).unread) < 32


def test_a_folder_that_goes_while_it_is_read(client: Client, folder: Path) -> None:
    """What was read before is told; then comes the error."""
    (folder / "d").mkdir()
    for number in range(100):
        (folder / "d" / f"{number}").write_text("")
    opened = client.opendir(client.path("d"))
    body = struct.pack("<QQIIQII", opened.fh, 0, 300, 0, 0, 0, 0)
    answer = client.send(numbers.FUSE_READDIR, opened.node, body, 300)
    assert client.server._session.handles.get(opened.fh).unread
    shutil.rmtree(folder / "d")
    (offset,) = struct.unpack_from("<Q", answer, len(answer) - 32 + 8)
    body = struct.pack("<QQIIQII", opened.fh, offset, ROOM, 0, 0, 0, 0)
    answer = client.send(numbers.FUSE_READDIR, opened.node, body)
    assert len(answer) > 32
    (offset,) = struct.unpack_from("<Q", answer, len(answer) - 32 + 8)
    body = struct.pack("<QQIIQII", opened.fh, offset, ROOM, 0, 0, 0, 0)
    with pytest.raises(FileNotFoundError):
        client.send(numbers.FUSE_READDIR, opened.node, body)


def test_nodes_are_bounded(client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NODES_MAX", 50)
    for number in range(60):
        (folder / f"f{number}").write_text("")
    opened = client.opendir(ROOT)
    told = [found.node for found in client.readdirplus(opened, ROOM).values() if found.node]
    assert (len(told), client.server.nodes) == (49, 50)
    for call in (
        lambda: client.lookup(ROOT, b"f" + str(60 - 1).encode()) and client.path("f0"),
        lambda: client.create(ROOT, b"new"),
        lambda: client.mkdir(ROOT, b"new"),
        lambda: client.mknod(ROOT, b"new", 0o100644),
        lambda: client.symlink(ROOT, b"new", b"x"),
    ):
        with contextlib.suppress(OSError):
            call()
    assert client.server.nodes == 50
    assert not (folder / "new").exists()
    assert not (folder / "new").is_symlink()
    client.forget(told[0], 2)  # it may be the one that was looked up, too
    client.create(ROOT, b"new")


def test_nodes_that_only_hold_others_are_bounded(
    client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten, a folder stays for what is in it: it counts all the same."""
    monkeypatch.setattr(nodes, "NODES_MAX", 50)
    node = ROOT
    with pytest.raises(OSError) as caught:
        for _ in range(60):
            inner = client.mkdir(node, b"d").node
            if node != ROOT:
                client.forget(node)
            node = inner
    assert caught.value.errno == errno.ENFILE
    assert client.server.nodes == 50
    client.forget(node)
    assert client.server.nodes == 1


def test_requests_that_do_not_exist_leave_nothing(client: Client) -> None:
    tracemalloc.start()
    try:
        for opcode in range(1000, 31000):
            client.server.handle(IN_HEADER.pack(40, opcode, 7, ROOT, 0, 0, 0, 0, 0), Memory())
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 100_000


def test_all_folders_share_what_a_guest_may_have_open(folder: Path) -> None:
    """Else four of them have the machine open no file or socket any more."""
    servers = [Server(str(folder), server_count=count) for count in (1, 4)]
    alone, one_of_four = (server._session.folder.descriptors.limit for server in servers)
    for server in servers:
        server.close()
    assert 0 < one_of_four <= alone / 4


def test_descriptors_are_bounded(client: Client, folder: Path) -> None:
    descriptors = client.server._session.folder.descriptors
    descriptors.limit = 40
    (folder / "f").write_text("")
    node = client.path("f")
    files = []
    with pytest.raises(OSError) as caught:
        for _ in range(60):
            files.append(client.open(node))
    assert caught.value.errno == errno.EMFILE
    assert client.server.descriptors <= 40
    for call in (lambda: client.create(ROOT, b"new"), lambda: client.opendir(ROOT)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EMFILE
    for file in files:
        client.release(file)
    assert client.server.descriptors == 0


def test_known_folders_cost_no_descriptors(client: Client, folder: Path) -> None:
    for number in range(600):
        (folder / f"d{number}/e").mkdir(parents=True)
    for number in range(600):
        client.path(f"d{number}/e")
    assert client.server.nodes == 1201
    assert client.server.descriptors <= 256
    for number in range(600):
        client.mkdir(client.path(f"d{number}"), b"new")


def test_a_deep_folder(client: Client, folder: Path) -> None:
    node = ROOT
    for _ in range(300):
        node = client.mkdir(node, b"d").node
    client.server._session.folder.forget_all()
    client.create(node, b"f")
    assert client.server.descriptors <= 257
    client.server._session.folder.descriptors.limit = 100
    client.server._session.folder.forget_all()
    with pytest.raises(OSError) as caught:
        client.create(node, b"g")
    assert caught.value.errno == errno.EMFILE
    assert client.getattr(ROOT)


def test_no_descriptor_is_lost(client: Client, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "f").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with contextlib.suppress(OSError):
            client.path("d/x/y")
        with contextlib.suppress(OSError):
            client.create(ROOT, b"f", flags=os.O_CREAT | os.O_EXCL)
        with contextlib.suppress(OSError):
            client.open(client.path("d"), os.O_RDWR)
        client.release(client.create(ROOT, b"f"))
        client.create(ROOT, b"f")
        client.init()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert client.server.descriptors == 0


# Messages.


@pytest.mark.parametrize("opcode", range(64))
def test_short_and_long_messages(client: Client, opcode: int) -> None:
    for body in (b"", b"\0", bytes(3), bytes(200), b"\xff" * 40, b"\xff" * 200):
        for node in (0, ROOT, 5):
            with contextlib.suppress(OSError):
                client.send(opcode, node, body)


OPCODES = sorted(
    value
    for name, value in vars(numbers).items()
    if name.startswith("FUSE_")
    and value < 64
    and not name.startswith(("FUSE_KERNEL", "FUSE_MINOR"))
)
NAMES = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"/", b"a/b", b"x" * 300, b"user.x"])
SMALL = st.integers(0, 6)
NUMBER = st.one_of(SMALL, st.sampled_from([0xFFFF, 1 << 31, (1 << 32) - 1]))
LONG = st.one_of(SMALL, st.sampled_from([1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]))
FIELD = st.one_of(
    st.builds(lambda n: struct.pack("<I", n), NUMBER),
    st.builds(lambda n: struct.pack("<Q", n), LONG),
    NAMES.map(lambda name: name + b"\0"),
    st.binary(max_size=8),
)
BODY = st.lists(FIELD, max_size=12).map(b"".join)
MESSAGES = st.lists(st.tuples(st.sampled_from(OPCODES), SMALL, BODY), min_size=1, max_size=12)


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(MESSAGES, st.sampled_from(["auto", "always"]))
def test_messages_of_all_kinds(
    folder: Path, messages: list[tuple[int, int, bytes]], cache: str
) -> None:
    outside = folder.parent / "outside"
    server = Server(str(folder), cache=cache)
    client = Client(server)
    for name in (b"a", b"b"):
        with contextlib.suppress(OSError):
            client.create(ROOT, name)
    with contextlib.suppress(OSError):
        client.opendir(client.mkdir(ROOT, b"c").node)
    for opcode, node, body in messages:
        with contextlib.suppress(OSError):
            client.send(opcode, node, body)
    server.reset()
    assert server.descriptors == 0
    server.close()
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "the secret"
    assert sorted(os.listdir(folder.parent)) == ["outside", "shared"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=REQUEST_BYTES_MAX))
def test_noise(data: bytes) -> None:
    server = Server("/proc/self/fdinfo", is_read_only=True)  # nothing there can be changed
    message = data if len(data) >= IN_HEADER.size else data.ljust(IN_HEADER.size, b"\0")
    answer = server.handle(message, Memory(room_bytes=ROOM))
    if answer is not None:
        size = OUT_HEADER.unpack_from(answer.message)[0]
        assert size == len(answer.message) + answer.data_bytes
    server.close()
