"""What can be a disk, what cannot, and what is said of it; on real files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from voidbox.block import image
from voidbox.block.backend import Backend
from voidbox.block.open_disk import open_backend
from voidbox.block.overlay_format import BITMAP_OFFSET
from voidbox.errors import ConfigError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nobody_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a disk keeps it: nobody waits."""
    monkeypatch.setattr(image, "_FREED_S", 0.0)


@contextmanager
def opened(path: Path, ro: bool = False, overlay: Path | None = None) -> Iterator[Backend]:
    backend = open_backend(str(path), ro, str(overlay) if overlay is not None else None)
    try:
        yield backend
    finally:
        backend.close()


def read(backend: Backend, offset: int, length: int) -> bytes:
    data = bytearray(length)
    backend.read([memoryview(data)], offset, length)
    return bytes(data)


def refusal(path: Path | str, ro: bool = False, overlay: Path | None = None) -> str:
    """The one line that says why not; no descriptor stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError) as caught:
        open_backend(str(path), ro, str(overlay) if overlay is not None else None)
    assert os.listdir("/proc/self/fd") == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(1, 256)) * 4112 + bytes([7]) * 16)
    return path


def test_a_raw_image(disk: Path) -> None:
    with opened(disk) as backend:
        assert (backend.size_bytes, backend.is_read_only) == (MIB, False)
        backend.write([b"x" * 100, b"y" * 924], 512, 1024)
        assert read(backend, 512, 1024) == b"x" * 100 + b"y" * 924
        backend.zero(4096, 8192, True)
        assert read(backend, 4096, 8192) == bytes(8192)
        backend.zero(16384, 4096, False)
        assert read(backend, 16384, 4096) == bytes(4096)
        blocks = disk.stat().st_blocks
        backend.discard(MIB // 2, MIB // 2)
        assert disk.stat().st_blocks <= blocks - MIB // 2 // 512
        backend.flush()
    assert disk.stat().st_size == MIB
    assert disk.read_bytes()[512:1536] == b"x" * 100 + b"y" * 924


def test_more_buffers_than_one_call_takes(disk: Path) -> None:
    with opened(disk) as backend:
        pieces = [bytes([index % 255 + 1]) * 7 for index in range(2560)]
        backend.write([memoryview(piece) for piece in pieces], 0, 7 * 2560)
        data = [bytearray(7) for _ in range(2560)]
        backend.read([memoryview(piece) for piece in data], 0, 7 * 2560)
        assert data == pieces


def test_transfers_that_are_cut_short(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call may do less than it was asked for."""
    preadv, pwritev = os.preadv, os.pwritev

    def some(buffers: list[memoryview]) -> list[memoryview]:
        return [memoryview(buffers[0])[: max(1, len(buffers[0]) // 2)]]

    monkeypatch.setattr(os, "preadv", lambda fd, b, at, flags=0: preadv(fd, some(b), at))
    monkeypatch.setattr(os, "pwritev", lambda fd, b, at: pwritev(fd, some(b), at))
    with opened(disk) as backend:
        backend.write([b"abcdefg" * 100, b"x" * 324], 512, 1024)
        assert read(backend, 512, 1024) == b"abcdefg" * 100 + b"x" * 324
        with pytest.raises(BlockingIOError):
            backend.read([memoryview(bytearray(512))], 0, 512, nowait=True)


def test_a_file_that_became_shorter(disk: Path) -> None:
    with opened(disk) as backend:
        os.truncate(disk, 4096)
        with pytest.raises(OSError, match="has become shorter"):
            read(backend, 4096 - 512, 1024)


def test_files_that_are_no_disks(tmp_path: Path, disk: Path) -> None:
    assert "there is no such file: truncate -s 8G" in refusal(tmp_path / "none")
    assert "a folder is no disk" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO is no disk" in refusal(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        assert "a socket is no disk" in refusal(tmp_path / "sock", ro=True)
    assert "a character device is no disk" in refusal("/dev/null")
    assert "there is no such file" in refusal("")
    assert "null" in refusal("a\0b")
    assert "Not a directory" in refusal(disk / "x")
    for size, words in ((0, "too few"), (511, "too few"), (513, "no multiple of 512")):
        path = tmp_path / f"d{size}"
        path.write_bytes(bytes(size))
        message = refusal(path)
        assert words in message
        assert "truncate -s" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything: run as another user")
def test_a_file_that_may_not_be_written(disk: Path) -> None:
    disk.chmod(0o444)
    assert "cannot be written (Permission denied): add ,ro" in refusal(disk)
    with opened(disk, ro=True) as backend:
        assert backend.is_read_only


def test_a_file_on_a_read_only_file_system(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refusing_open(path: str, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(30, "Read-only file system", path)
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refusing_open)
    assert "cannot be written (Read-only file system): add ,ro" in refusal(disk)
    with opened(disk, ro=True):
        pass


def test_one_writer_or_many_readers(disk: Path, tmp_path: Path) -> None:
    with opened(disk):
        assert "in use by another machine: end that first" in refusal(disk)
        assert "in use by another machine" in refusal(disk, ro=True)
        assert "in use by another machine" in refusal(disk, overlay=tmp_path / "o")
        assert not (tmp_path / "o").exists()
    with opened(disk, ro=True), opened(disk, overlay=tmp_path / "a"):
        with opened(disk, overlay=tmp_path / "b"):
            assert "in use by another machine" in refusal(disk)
        message = refusal(disk, overlay=tmp_path / "a")
        assert message == (f"overlay {tmp_path}/a: it is in use by another machine: end that first")
    with opened(disk):
        pass


def test_a_machine_that_is_ending_is_waited_for(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose keeper was killed does: its worker notices, and ends a moment later."""
    monkeypatch.setattr(image, "_FREED_S", 60.0)
    ending = open_backend(str(disk), False, None)
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            ending.close()

    monkeypatch.setattr(time, "sleep", look)
    with opened(disk):
        assert len(looks) == 3


def test_a_lock_is_gone_with_its_process(disk: Path) -> None:
    code = (
        "import os, sys; from voidbox.block.open_disk import open_backend;"
        f"open_backend({str(disk)!r}); print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert "in use" in refusal(disk)
        process.kill()
        process.wait()
        with opened(disk):
            pass


# Overlays.


def test_an_overlay_over_a_base(disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    before = disk.read_bytes()
    with opened(disk, overlay=overlay) as backend:
        assert (backend.size_bytes, backend.is_read_only) == (MIB, False)
        assert read(backend, 0, MIB) == before
        backend.write([b"new!" * 128], 8192 + 512, 512)
        backend.zero(16384, 4096, True)
        backend.discard(32768, 8192)
        now = read(backend, 0, MIB)
    expected = bytearray(before)
    expected[8704:9216] = b"new!" * 128
    expected[16384:20480] = bytes(4096)
    expected[32768:40960] = bytes(8192)
    assert now == expected
    assert disk.read_bytes() == before
    assert overlay.stat().st_blocks * 512 < 64 << 10
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with opened(disk, overlay=overlay) as backend:
        assert read(backend, 0, MIB) == expected
    with opened(disk, ro=True, overlay=overlay) as backend:
        assert backend.is_read_only
        assert read(backend, 8192, 1024) == expected[8192:9216]


def test_links_that_lead_nowhere(disk: Path, tmp_path: Path) -> None:
    """No empty disk is what an overlay needs."""
    (tmp_path / "link").symlink_to("none")
    expected = f"{tmp_path}/link: it is a link to a file that is not there"
    assert refusal(disk, overlay=tmp_path / "link").startswith(f"overlay {expected}")
    assert refusal(tmp_path / "link").startswith(f"disk {expected}")


def test_overlays_that_do_not_fit(disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    with opened(disk, overlay=overlay):
        pass
    whole = overlay.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    assert "made over another disk than" in refusal(other, overlay=overlay)
    status = disk.stat()
    os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "or that has changed since" in refusal(disk, overlay=overlay)
    os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns))
    for content, words in (
        (b"", "no overlay of voidbox"),
        (b"x" * 8192, "no overlay of voidbox"),
        (whole[:-1], "cut short"),
        (whole[:BITMAP_OFFSET], "cut short"),
        (whole + b"x", "cut short"),
        (whole[:8] + b"\2" + whole[9:], "newer voidbox"),
        (whole[:20] + b"\xff" + whole[21:], "damaged"),
    ):
        overlay.write_bytes(content)
        message = refusal(disk, overlay=overlay)
        assert words in message
        assert str(overlay) in message
    overlay.write_bytes(whole)
    with opened(disk, overlay=overlay):
        pass
    overlay.unlink()
    overlay.mkdir()
    assert "a folder is no disk" in refusal(disk, overlay=overlay)
    assert "cannot be made: No such file" in refusal(disk, overlay=tmp_path / "no" / "overlay")
    assert "in use" in refusal(disk, overlay=disk)
