"""Many guests restored from one file at the same time: they share it, and outlive its removal."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.test_pause import COUNTER_PORT
from tests.guest.test_snapshot import Register, config_of
from voidbox.snapshot import folder
from voidbox.snapshot import memory as memory_file
from voidbox.vmm.config import MachineConfig
from voidbox.vmm.machine import Machine

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

COUNT = 50
DATA_GPA, DATA_BYTES = 0x400000, 2 << 20
WORDS = range(1, DATA_BYTES // 4096 + 1)  # what the pages hold
PATIENCE_S = 300.0


def reading_guest() -> bytes:
    """Read a word of each page of the data, write one, say what they are together; for ever."""
    # l: xor eax, eax; mov edi, DATA; p: add eax, [rdi]; add edi, 4096; cmp edi, end; jb p
    loop = b"\x31\xc0\xbf" + struct.pack("<I", DATA_GPA) + b"\x03\x07\x81\xc7\x00\x10\x00\x00"
    loop += b"\x81\xff" + struct.pack("<I", DATA_GPA + DATA_BYTES) + b"\x72\xf0"
    # mov edi, DATA - 4096; mov [rdi], eax; mov dx, port; out dx, eax; jmp l
    loop += b"\xbf" + struct.pack("<I", DATA_GPA - 4096) + b"\x89\x07"
    loop += b"\x66\xba" + struct.pack("<H", COUNTER_PORT) + b"\xef"
    return loop + b"\xeb" + struct.pack("<b", -len(loop) - 2)


def sizes_of_maps(path: str) -> tuple[int, int]:
    """Return RSS and PSS of this process's maps of a file, in bytes."""
    rss = pss = 0
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in line.split(" ", 1)[0]:
            is_it = path in line
        elif is_it and name == "Rss":
            rss += int(value.split()[0]) << 10
        elif is_it and name == "Pss":
            pss += int(value.split()[0]) << 10
    return rss, pss


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def let_it_read(machine: Machine, register: Register) -> None:
    """Have a guest look at all data twice, and stand still: the processor is the next one's."""
    register.written.clear()
    if machine.is_paused:
        machine.resume()
    wait_for(lambda: len(register.written) > 1)
    machine.pause()
    assert set(register.written) == {sum(WORDS)}


def restored(own: contextlib.ExitStack, path: Path, config: MachineConfig) -> Callable[[], None]:
    machine = own.enter_context(Machine.from_snapshot(str(path), config))
    register = Register()
    machine._board.ports.attach(COUNTER_PORT, 4, register)
    machine.start()
    let_it_read(machine, register)
    return lambda: let_it_read(machine, register)


def test_fifty_at_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, reading_guest())
    path = tmp_path / "snap"
    with Machine(config) as machine:
        for word in WORDS:
            machine.memory.write(DATA_GPA + 4096 * (word - 1), struct.pack("<I", word) * 1024)
        register = Register()
        machine._board.ports.attach(COUNTER_PORT, 4, register)
        machine.start()
        let_it_read(machine, register)
        machine.snapshot(str(path))
    file = path / memory_file.NAME
    blocks = file.stat().st_blocks
    with contextlib.ExitStack() as own:  # whatever is imported and opened once
        restored(own, path, config)
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with contextlib.ExitStack() as own:
        guests = [restored(own, path, config) for _ in range(COUNT)]
        rss, pss = sizes_of_maps(str(file))
        assert rss > COUNT * DATA_BYTES
        assert pss < rss / 4, f"{rss >> 10} KiB of them, {pss >> 10} KiB proportionally"
        assert file.stat().st_blocks == blocks
        assert folder.is_in_use(str(path))
        shutil.rmtree(path)
        for look_again in guests:
            look_again()
        assert sizes_of_maps(str(file))[0] > 0
    assert sizes_of_maps(str(file)) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) <= fds
    wait_for(lambda: threading.active_count() <= threads)
    assert not any(
        str(file) in os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ), "its space does not come back"
