"""A guest that wants out, a host that changes under it, and messages that are none."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ninep.client import MSIZE, ROOT, Client, Memory, text
from voidbox.ninep import fids, numbers
from voidbox.ninep.server import REQUEST_BYTES_MAX, Server
from voidbox.ninep.wire import HEADER

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
    with swapping(*steps):
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                client.version()
                client.attach()
            try:
                fid = client.open(client.walk(ROOT, b"d", b"inner", b"secret"))
                assert client.read(fid) == b"mine"
                found["read"] += 1
            except OSError:
                found["refused"] += 1
            for make in (
                lambda: client.create(client.path("d"), b"new"),
                lambda: client.mkdir(client.path("d"), b"newd"),
                lambda: client.symlink(client.path("d"), b"news", b"x"),
                lambda: client.unlinkat(client.path("d"), b"secret"),
                lambda: client.setattr(client.path("d"), 1, mode=0o700),
            ):
                with contextlib.suppress(OSError):
                    make()
    assert sorted(os.listdir(outside)) == ["inner", "secret"]
    assert os.listdir(outside / "inner") == ["secret"]
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
            with contextlib.suppress(OSError):
                client.version()
                client.attach()
            for flags in (os.O_RDONLY, os.O_RDWR):
                with contextlib.suppress(OSError):
                    fid = client.open(client.path("f"), flags)
                    assert client.read(fid) == b"mine"
                    count += 1
            with contextlib.suppress(OSError):
                fid = client.create(ROOT, b"f", flags=os.O_RDWR | os.O_CREAT)
                assert client.read(fid) == b"mine"
            with contextlib.suppress(OSError):
                client.setattr(client.path("f"), numbers.P9_SETATTR_MODE, mode=0o666)
            with contextlib.suppress(OSError):
                client.link(ROOT, client.path("f"), b"linked")
                assert not os.path.samestat(os.lstat(folder / "linked"), os.stat(secret))
            with contextlib.suppress(OSError):
                client.unlinkat(ROOT, b"linked")
    assert count
    assert secret.read_text() == "the secret"
    assert secret.stat().st_nlink == 1
    assert secret.stat().st_mode & 0o777 != 0o666


def test_a_folder_that_is_moved_while_it_is_open(client: Client, folder: Path) -> None:
    (folder / "d/e").mkdir(parents=True)
    fid = client.path("d/e")
    os.rename(folder / "d/e", folder.parent / "outside/e")
    # It stays with the folder that the host moved, and finds no way up from there.
    for names in ((b"..",), (b"..", b"secret"), (b"../secret",)):
        with pytest.raises(OSError) as caught:
            client.walk(fid, *names)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError):
        client.renameat(fid, b"../secret", ROOT, b"x")
    os.rmdir(folder.parent / "outside/e")
    with pytest.raises(FileNotFoundError):
        client.create(fid, b"f")
    opened = client.open(fid)
    with pytest.raises(FileNotFoundError):
        client.readdir(opened)


def test_fids_are_bounded(client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fids, "FIDS_MAX", 3000)
    (folder / "f").write_text("")
    with pytest.raises(OSError) as caught:
        for number in range(1, 5000):
            client.walk(ROOT, to=number)
    assert caught.value.errno == errno.EMFILE
    assert client.server.fids == 3000
    assert client.server.descriptors == 1  # they are one file
    client.version()
    client.attach()
    client.server._session.folder.descriptors.limit = 200
    with pytest.raises(OSError) as caught:
        for number in range(1, 5000):
            client.walk(ROOT, b"f", to=number)
    assert caught.value.errno == errno.EMFILE
    assert client.server.descriptors == 200
    client._next_fid = 10_000
    for call in (lambda: client.open(1), lambda: client.create(ROOT, b"new")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EMFILE
    client.version()
    assert client.server.descriptors == 1


def test_no_descriptor_is_lost(client: Client, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "f").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with contextlib.suppress(OSError):
            client.walk(ROOT, b"d", b"x", b"y")
        with contextlib.suppress(OSError):
            client.create(ROOT, b"f", flags=os.O_CREAT | os.O_EXCL)
        with contextlib.suppress(OSError):
            client.open(client.path("d"), os.O_RDWR)
        client.clunk(client.create(ROOT, b"f"))
        client.version()
        client.attach()
    assert len(os.listdir("/proc/self/fd")) == before
    assert client.server.descriptors == 1


# Messages.


@pytest.mark.parametrize("kind", range(256))
def test_short_and_long_messages(client: Client, kind: int) -> None:
    for body in (b"", b"\0", bytes(3), bytes(200), b"\xff" * 40):
        with contextlib.suppress(OSError):
            client.send(kind, body)


KINDS = sorted(
    value for name, value in vars(numbers).items() if name.startswith("P9_T") and value < 256
)
NAMES = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"/", b"a/b", b"x" * 300, b"a\0"])
SMALL = st.integers(0, 6)
NUMBER = st.one_of(SMALL, st.sampled_from([0xFFFF, 1 << 31, (1 << 32) - 1]))
LONG = st.one_of(SMALL, st.sampled_from([1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]))
FIELD = st.one_of(
    st.builds(lambda n: struct.pack("<I", n), NUMBER),
    st.builds(lambda n: struct.pack("<Q", n), LONG),
    st.builds(text, NAMES),
    st.builds(lambda n: struct.pack("<H", n), st.integers(0, 20)),
    st.binary(max_size=8),
)
BODY = st.lists(FIELD, max_size=8).map(b"".join)


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(KINDS), BODY), min_size=1, max_size=12))
def test_messages_of_all_kinds(folder: Path, messages: list[tuple[int, bytes]]) -> None:
    outside = folder.parent / "outside"
    server = Server(str(folder))
    client = Client(server)
    for number, name in ((1, b"a"), (2, b"b")):
        with contextlib.suppress(OSError):
            client.walk(client.create(ROOT, name), to=number)
    with contextlib.suppress(OSError):
        client.mkdir(ROOT, b"c")
        client.walk(ROOT, b"c", to=3)
    for kind, body in messages:
        with contextlib.suppress(OSError):
            client.send(kind, body)
    server.reset()
    assert server.descriptors == 1
    server.close()
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "the secret"
    assert sorted(os.listdir(folder.parent)) == ["outside", "shared"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=REQUEST_BYTES_MAX))
def test_noise(data: bytes) -> None:
    server = Server("/proc/self/fdinfo", is_read_only=True)  # nothing there can be changed
    message = data if len(data) >= HEADER.size else data.ljust(HEADER.size, b"\0")
    answer = server.handle(message, Memory(room_bytes=MSIZE))
    assert HEADER.unpack_from(answer.message)[0] == len(answer.message) + answer.data_bytes
    server.close()
