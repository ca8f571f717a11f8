"""The vhost backend: its ABI against the C headers, and the kernel's vhost-vsock itself.

The kernel needs no virtual machine to serve rings, only memory: a driver of Python plays the guest.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.virtio.driver import DriverQueue, IrqLine, MmioDriver
from tests.unit.vsock.guest import GUEST_CID, Guest
from tests.unit.vsock.loop import EpollLoop
from voidbox.errors import HostError
from voidbox.memory import GuestMemory, MemoryRegion
from voidbox.virtio.mmio import MmioTransport
from voidbox.virtio.vsock import EVENT_QUEUE, RX_QUEUE, TX_QUEUE, VirtioVsock
from voidbox.vsock import vhost
from voidbox.vsock.vhost import VhostVsock

HEADER = Path("/usr/include/linux/vhost.h")

needs_headers = pytest.mark.skipif(
    shutil.which("cc") is None or not HEADER.exists(),
    reason="needs a C compiler and <linux/vhost.h>: apt-get install gcc linux-libc-dev",
)
needs_vhost = pytest.mark.skipif(
    not os.access(vhost.VHOST_DEVICE, os.R_OK | os.W_OK),
    reason="needs /dev/vhost-vsock: modprobe vhost_vsock, or run it in the KVM lab",
)


@needs_headers
def test_the_abi_is_the_headers(tmp_path: Path) -> None:
    numbers = {
        name: value
        for name, value in vars(vhost).items()
        if name.startswith("VHOST_") and isinstance(value, int)
    }
    structs = {
        "vhost_vring_state": vhost.VHOST_VRING_STATE,
        "vhost_vring_file": vhost.VHOST_VRING_FILE,
        "vhost_vring_addr": vhost.VHOST_VRING_ADDR,
        "vhost_memory": vhost.VHOST_MEMORY,
        "vhost_memory_region": vhost.VHOST_MEMORY_REGION,
    }
    offsets = {
        "struct vhost_vring_addr, desc_user_addr": 8,
        "struct vhost_vring_addr, used_user_addr": 16,
        "struct vhost_vring_addr, avail_user_addr": 24,
        "struct vhost_memory_region, memory_size": 8,
        "struct vhost_memory_region, userspace_addr": 16,
        "struct vhost_memory, regions": 8,
    }
    expected = {name: value & 0xFFFFFFFF for name, value in numbers.items()}
    expected |= {f"sizeof(struct {name})": layout.size for name, layout in structs.items()}
    expected |= {f"offsetof({field})": offset for field, offset in offsets.items()}
    assert len(expected) >= 25
    source = tmp_path / "abi.c"
    lines = "\n".join(f'printf("%u\\n", (unsigned) {expression});' for expression in expected)
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vhost.h>\n"
        f"int main(void) {{\n{lines}\nreturn 0;\n}}\n"
    )
    subprocess.run(["cc", "-w", "-o", tmp_path / "abi", source], check=True)
    output = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True)
    values = [int(line) for line in output.stdout.split()]
    assert dict(zip(expected, values, strict=True)) == expected


def host_address(region: MemoryRegion) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(region.map))


@pytest.mark.skipif(Path(vhost.VHOST_DEVICE).exists(), reason="/dev/vhost-vsock is there")
def test_no_vhost_is_said_clearly() -> None:
    with GuestMemory(1 << 20) as memory, pytest.raises(HostError, match="use the unix backend"):
        VhostVsock(42, memory, lambda _region: 0)


class VhostMachine:
    """Rings that the kernel serves, an interrupt line, and the guest's end on this thread."""

    def __init__(self, cid: int) -> None:
        self.memory = GuestMemory(16 << 20)
        self.loop = EpollLoop()
        # The address is taken once: the exporter of a held buffer could not be closed.
        addresses = {region.gpa: host_address(region) for region in self.memory}
        self.plane = VhostVsock(cid, self.memory, lambda region: addresses[region.gpa])
        self.line = IrqLine()
        self.device = VirtioVsock(cid, self.plane)
        self.transport = MmioTransport(
            self.device, self.memory, self.line.pulse, self.loop.call_soon
        )
        self.driver = MmioDriver(self.transport, self.memory, self.line)
        self.guest = Guest(self.transmit)

    @property
    def rx(self) -> DriverQueue:
        return self.driver.queues[RX_QUEUE]

    @property
    def tx(self) -> DriverQueue:
        return self.driver.queues[TX_QUEUE]

    def boot(self) -> None:
        self.driver.probe()
        self.refill()
        self.driver.queues[EVENT_QUEUE].add(writable=[4])
        self.loop.turn()

    def refill(self) -> None:
        while len(self.rx.free_descs) >= 2:
            self.rx.add(writable=[44, 4096])
        self.driver.kick(RX_QUEUE)

    def transmit(self, data: bytes) -> None:
        self.tx.completed()
        self.tx.add(readable=[data[:44], data[44:]] if len(data) > 44 else [data])
        self.driver.kick(TX_QUEUE)

    def until(self, condition: Callable[[], object]) -> None:
        """Serve the guest's end; between interrupts there is nothing for it to do."""
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, f"it never came; {self.transport.statistics()}"
            self.loop.turn()
            done = self.rx.completed()
            for packet in done:
                self.guest.deliver(packet.data)
            if done:
                self.refill()
            else:
                time.sleep(0.001)

    def close(self) -> None:
        self.plane.close()
        self.plane.close()
        self.transport.close()
        self.loop.close()
        self.memory.close()


@pytest.fixture
def vhost_machine() -> Iterator[VhostMachine]:
    machine = VhostMachine(GUEST_CID)
    machine.boot()
    yield machine
    machine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vsock-irq"]


def connect(machine: VhostMachine, port: int) -> socket.socket:
    machine.guest.listening.add(port)
    program = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    program.setblocking(False)
    error = program.connect_ex((GUEST_CID, port))
    assert error in (0, 115), os.strerror(error)
    machine.until(lambda: select.select([], [program], [], 0)[1])
    assert program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    program.settimeout(60)
    return program


@needs_vhost
def test_a_host_program_reaches_the_guest_through_the_kernel(vhost_machine: VhostMachine) -> None:
    machine = vhost_machine
    with connect(machine, 22) as program:
        sock = machine.guest.accepted[-1]
        program.sendall(bytes(100_000))
        machine.until(lambda: len(sock.data) == 100_000)
        sock.send(b"world")
        machine.until(lambda: select.select([program], [], [], 0)[0])
        assert program.recv(5) == b"world"
    machine.until(lambda: sock.gone)
    # Each interrupt found its cause in INTERRUPT_STATUS.
    assert machine.driver.vring_interrupts > 0
    assert machine.driver.spurious_interrupts == 0


@needs_vhost
def test_reset_and_again(vhost_machine: VhostMachine) -> None:
    machine = vhost_machine
    for _ in range(3):
        connect(machine, 22).close()
        machine.guest.accepted.clear()
        machine.guest.sockets.clear()
        machine.loop.call_soon(machine.driver.reset)
        machine.loop.turn()
        machine.boot()
    connect(machine, 22).close()


@needs_vhost
def test_pause_says_how_far_the_rings_are(vhost_machine: VhostMachine) -> None:
    machine = vhost_machine
    with connect(machine, 22):
        machine.plane.pause()
        machine.plane.pause()
        rx, tx = (ring.state() for ring in machine.plane._rings)  # type: ignore[attr-defined]
        assert rx.next_avail_idx == rx.next_used_idx == machine.rx.used_idx
        assert tx.next_avail_idx == tx.published_idx == machine.tx.used_idx == 1
        machine.plane.resume()
        sock = machine.guest.accepted[-1]
        machine.plane.kick(RX_QUEUE)
        sock.close()
        machine.plane.kick(TX_QUEUE)
        machine.until(lambda: sock.gone)


@needs_vhost
def test_nothing_is_sent_until_a_transport_reset_is_taken(vhost_machine: VhostMachine) -> None:
    """Or the driver would drop what was opened after a restore as well."""
    machine = vhost_machine
    machine.device.transport_reset()
    machine.loop.turn()
    event = machine.driver.queues[EVENT_QUEUE]
    assert [chain.data for chain in event.completed()] == [bytes(4)]
    machine.guest.listening.add(22)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as program:
        program.setblocking(False)
        program.connect_ex((GUEST_CID, 22))
        machine.plane.resume()  # a pause in between changes nothing
        time.sleep(0.2)
        assert machine.rx.used_idx == 0
        event.add(writable=[4])
        machine.driver.kick(EVENT_QUEUE)
        machine.until(lambda: select.select([], [program], [], 0)[1])
        assert program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert len(machine.guest.accepted) == 1


@needs_vhost
def test_a_cid_in_use_is_said_clearly(vhost_machine: VhostMachine) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(HostError, match="CID 42 is another machine's"):
        VhostVsock(GUEST_CID, vhost_machine.memory, lambda _region: 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@needs_vhost
def test_a_broken_ring_needs_a_reset(vhost_machine: VhostMachine) -> None:
    machine = vhost_machine
    machine.tx.set_desc(0, 1 << 40, 44)
    machine.tx.offer(0)
    machine.driver.kick(TX_QUEUE)
    machine.until(lambda: machine.transport.statistics().reset_reason)
    assert "broken ring" in machine.transport.statistics().reset_reason
