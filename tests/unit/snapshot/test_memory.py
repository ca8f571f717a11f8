"""Memory files: written is what was there, what is zero is a hole, and no base is needed."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidbox.errors import HostError
from voidbox.kvm.vm import host_address
from voidbox.memory import MMIO_HOLE_END_GPA, GuestMemory
from voidbox.snapshot import memory as memory_file
from voidbox.snapshot import pagemap, working_set
from voidbox.snapshot.helper import Helper
from voidbox.snapshot.memory import Part
from voidbox.snapshot.working_set import Prefetch, WorkingSet
from voidbox.vmm.machine_state import memory_parts

MIB = 1 << 20
PAGE = 4096


def write(path: Path, memory: GuestMemory) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        return memory_file.write(fd, memory_parts(memory))
    finally:
        os.close(fd)


@contextmanager
def mapped(path: Path, size_bytes: int) -> Iterator[GuestMemory]:
    fd = os.open(path, os.O_RDONLY)
    try:
        with GuestMemory(size_bytes, file_fd=fd) as memory:
            yield memory
    finally:
        os.close(fd)


def contents(memory: GuestMemory) -> bytes:
    return b"".join(bytes(region.view) for region in memory)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_only_what_is_not_zero_is_written(tmp_path: Path) -> None:
    with GuestMemory(8 * MIB) as memory:
        memory.write(0, b"start")
        memory.write(3 * MIB - 2, b"over an edge")
        memory.write(8 * MIB - 1, b"e")
        memory.write(5 * MIB, bytes(2 * MIB))  # touched, and zero
        written = write(tmp_path / "memory", memory)
        assert (tmp_path / "memory").read_bytes() == contents(memory)
    assert written <= 4 * memory_file.CHUNK_BYTES
    assert allocated(tmp_path / "memory") <= 4 * memory_file.CHUNK_BYTES


def test_memory_above_the_hole_follows_what_is_below(tmp_path: Path) -> None:
    size = 3 * 1024 * MIB + 16 * MIB
    with GuestMemory(size) as memory:
        memory.write(16 * MIB, b"low")
        memory.write(MMIO_HOLE_END_GPA + MIB, b"high")
        write(tmp_path / "memory", memory)
    with mapped(tmp_path / "memory", size) as memory:
        assert memory.read(16 * MIB, 3) == b"low"
        assert memory.read(MMIO_HOLE_END_GPA + MIB, 4) == b"high"
        memory.write(MMIO_HOLE_END_GPA + 2 * MIB, b"more")
        write(tmp_path / "again", memory)
    fd = os.open(tmp_path / "again", os.O_RDONLY)
    with GuestMemory(size) as memory:
        memory_file.read(fd, memory_parts(memory))
        os.close(fd)
        assert memory.read(16 * MIB, 3) == b"low"
        assert memory.read(MMIO_HOLE_END_GPA + MIB, 4) == b"high"
        assert memory.read(MMIO_HOLE_END_GPA + 2 * MIB, 4) == b"more"


CHANGES = st.lists(
    st.tuples(st.integers(0, 2 * MIB - 1), st.integers(1, 3 * PAGE), st.integers(0, 2)),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, min_size=2, max_size=5), st.booleans())
def test_a_chain_is_flattened_bit_for_bit(
    rounds: list[list[tuple[int, int, int]]], shares_blocks: bool
) -> None:
    """Each file holds all: the one it came of is removed before the next is made.

    Args:
        shares_blocks: as where the file system can: then zeroes must be written over what was.
    """
    share = _copied if shares_blocks else memory_file.share_blocks
    with (
        unittest.mock.patch.object(memory_file, "share_blocks", share),
        tempfile.TemporaryDirectory() as folder,
    ):
        old = Path(folder, "0")
        with GuestMemory(2 * MIB) as memory:
            _change(memory, rounds[0])
            write(old, memory)
        for number, changes in enumerate(rounds[1:]):
            new = Path(folder, str(number + 1))
            with mapped(old, 2 * MIB) as memory:
                old.unlink()
                _change(memory, changes)
                write(new, memory)
                assert new.read_bytes() == contents(memory)
            old = new


def _copied(source: int, target: int) -> bool:
    """Do what FICLONE does, which few machines' file systems can."""
    os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
    return True


def _change(memory: GuestMemory, changes: list[tuple[int, int, int]]) -> None:
    for at, length, value in changes:
        length = min(length, 2 * MIB - at)
        memory.write(at, bytes([value]) * length)


def test_without_a_pagemap_all_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise PermissionError(errno.EACCES, "no")

    with GuestMemory(2 * MIB) as memory:
        memory.write(MIB, b"x")
        write(tmp_path / "base", memory)
    monkeypatch.setattr(pagemap, "open_pagemap", refuse)
    with mapped(tmp_path / "base", 2 * MIB) as memory:
        memory.write(0, b"y")
        write(tmp_path / "memory", memory)
        assert (tmp_path / "memory").read_bytes() == contents(memory)


def test_a_file_that_was_cut_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(bytes(MIB))
    with pytest.raises(HostError, match="cut short"), mapped(tmp_path / "memory", 2 * MIB):
        pass


def test_runs_of_written_pages_are_found(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(os.urandom(MIB))
    with mapped(tmp_path / "base", MIB) as memory:
        region = memory.regions[0]
        assert bytes(region.view[:PAGE])  # read
        for page in (7, 8, 9, 200, 255):
            memory.write(page * PAGE + 5, b"w")
        fd = pagemap.open_pagemap()
        runs = list(pagemap.runs(fd, host_address(region.map), MIB, pagemap.WRITTEN))
        os.close(fd)
        assert runs == [(7 * PAGE, 3 * PAGE), (200 * PAGE, PAGE), (255 * PAGE, PAGE)]


# The helper.


def test_the_helper_writes_what_was_at_the_fork(tmp_path: Path) -> None:
    with GuestMemory(32 * MIB) as memory:
        for at in range(0, 32 * MIB, PAGE):
            memory.write(at, b"before")
        fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
        helper = Helper(fd, memory_parts(memory))
        os.close(fd)
        for at in range(0, 32 * MIB, PAGE):
            memory.write(at, b"after!")
        helper.wait(60)
        saved = (tmp_path / "memory").read_bytes()
        assert all(saved[at : at + 6] == b"before" for at in range(0, 32 * MIB, PAGE))


def test_the_helper_holds_no_descriptor_of_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that the machine's process has is free when that process ends, helper or not."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def wait_for_fifo(*_: object) -> int:
        os.close(os.open(fifo, os.O_RDONLY))
        return 7

    monkeypatch.setattr(memory_file, "write", wait_for_fifo)
    read_fd, write_fd = os.pipe()
    with GuestMemory(MIB) as memory:
        fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
        helper = Helper(fd, memory_parts(memory))
        os.close(write_fd)
        poll = select.poll()
        poll.register(read_fd, select.POLLIN)
        assert poll.poll(60_000), "the helper has the other end too"
        os.close(os.open(fifo, os.O_WRONLY))  # only now it goes on
        assert helper.wait(60) == 7
    os.close(read_fd)
    os.close(fd)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount a small file system: run it as root")
    try:
        with GuestMemory(8 * MIB) as memory:
            memory.write(0, b"x" * 8 * MIB)
            fd = os.open(mount / "memory", os.O_RDWR | os.O_CREAT)
            with pytest.raises(HostError, match="No space left") as caught:
                Helper(fd, memory_parts(memory)).wait(60)
            os.close(fd)
            assert caught.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def children() -> set[int]:
    """Processes of ours, also those that have ended and nobody has waited for."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found


def test_a_helper_that_is_killed_or_late_is_said(tmp_path: Path) -> None:
    before = children()
    with GuestMemory(8 * MIB) as memory:
        memory.write(0, b"x" * 8 * MIB)
        fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
        helper = Helper(fd, memory_parts(memory))
        os.kill(helper._pid, signal.SIGKILL)
        try:
            helper.wait(60)
        except HostError as error:
            assert "was ended" in str(error)  # else it had written everything before
        helper = Helper(fd, memory_parts(memory))
        os.kill(helper._pid, signal.SIGSTOP)
        with pytest.raises(HostError, match=r"within 0\.05 s|ended"):
            helper.wait(0.05)
            raise HostError("ended before it was stopped")
        os.close(fd)
    assert children() <= before


ORPHAN = """
import os, sys, mmap
from voidbox.memory import GuestMemory
from voidbox.snapshot import helper, memory
from voidbox.vmm.machine_state import memory_parts
with GuestMemory(64 << 20) as guest:
    guest.write(0, b"x" * (64 << 20))
    os.mkfifo(sys.argv[1])
    fd = os.open(sys.argv[1] + "-memory", os.O_RDWR | os.O_CREAT)
    end_if_orphaned = helper._end_if_orphaned
    def slowly(alive_fd):  # waits for the parent's end, which it must see
        os.close(os.open(sys.argv[1], os.O_RDONLY))
        end_if_orphaned(alive_fd)
    helper._end_if_orphaned = slowly
    each = helper.Helper(fd, memory_parts(guest))
    print(each._pid, flush=True)
    os._exit(0)
"""


def test_a_helper_ends_with_the_machines_process(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    command = [sys.executable, "-c", ORPHAN, str(fifo)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    pid = int(result.stdout)
    os.close(os.open(fifo, os.O_WRONLY))  # now it looks
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and b" Z " not in _stat(pid):
        assert time.monotonic() < deadline, "it goes on without its machine"
        threading.Event().wait(0.01)
    assert (tmp_path / "fifo-memory").stat().st_blocks * 512 < 64 * MIB


def _stat(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return b" Z "


# Working sets.


def parts_of(memory: GuestMemory) -> list[Part]:
    return memory_parts(memory)


def test_a_working_set_is_what_was_touched(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with open(path, "wb") as file:
        file.truncate(4 * MIB)
        os.pwrite(file.fileno(), os.urandom(MIB), 0)
        os.pwrite(file.fileno(), os.urandom(MIB), 2 * MIB)
    with mapped(path, 4 * MIB) as memory:
        memory.regions[0].map.madvise(mmap.MADV_RANDOM)  # no reading ahead
        memory.write(2 * MIB + 3 * PAGE, b"w")
        memory.write(MIB + 5 * PAGE, b"w")  # a hole of the file
        assert memory.read(40 * PAGE, 1)
        seen = working_set.observe(parts_of(memory))
        assert seen.written[-1] == (2 * MIB + 3 * PAGE, PAGE)
        assert set(seen.written[:-1]) <= {(MIB + 5 * PAGE, PAGE)}  # a tmpfs has filled the hole
        assert any(at <= 40 * PAGE < at + size for at, size in seen.read)
        assert all(at + size <= MIB or at >= 2 * MIB for at, size in seen.read)
    working_set.save(str(tmp_path / working_set.NAME), seen)
    working_set.save(str(tmp_path / working_set.NAME), WorkingSet())  # the first one stays
    assert working_set.load(str(tmp_path)) == seen
    assert sorted(os.listdir(tmp_path)) == ["base", "working-set"]


def test_fetching_makes_no_pages_of_holes() -> None:
    """On a tmpfs, whose holes become pages when they are read."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "memory")
        with open(path, "wb") as file:
            file.truncate(8 * MIB)
            os.pwrite(file.fileno(), os.urandom(MIB), 2 * MIB)
        before = allocated(path)
        with mapped(path, 8 * MIB) as memory:
            region = memory.regions[0]
            known = WorkingSet(read=((0, 8 * MIB),), written=((2 * MIB, 4 * PAGE), (6 * MIB, PAGE)))
            Prefetch(known, [(0, region.fd, region.map)]).run()
            seen = working_set.observe(parts_of(memory))
            assert sum(size for _, size in seen.written) == 4 * PAGE
            assert sum(size for _, size in seen.read) == MIB - 4 * PAGE
        assert allocated(path) == before


def test_a_working_set_of_all_there_is_is_of_no_use(tmp_path: Path) -> None:
    """Whoever wrote it may have been taken over: each later guest would fetch its whole memory."""
    most = working_set.BYTES_MAX // 2
    for name, size in (("usual", most), ("all", most + 1)):
        os.mkdir(tmp_path / name)
        made = WorkingSet(read=((0, most),), written=((most, size),))
        working_set.save(str(tmp_path / name / working_set.NAME), made)
        assert working_set.load(str(tmp_path / name)) == (made if name == "usual" else None)


def test_a_disk_that_is_full_keeps_nothing_of_a_working_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(HostError, match="No space left"):
        working_set.save(str(tmp_path / working_set.NAME), WorkingSet())
    assert os.listdir(tmp_path) == []


def test_a_damaged_working_set_is_no_harm(tmp_path: Path) -> None:
    assert working_set.load(str(tmp_path)) is None
    path = tmp_path / working_set.NAME
    path.write_bytes(b"nothing")
    assert working_set.load(str(tmp_path)) is None
