"""The vsock data plane in the host's kernel: /dev/vhost-vsock serves the guest's rings itself.

    guest kick ─► ioeventfd ─► vhost worker (kernel) ─► AF_VSOCK sockets of host programs
    vhost worker ─► call eventfd ─► thread vsock-irq ─► INTERRUPT_STATUS, then the IRQ line

The thread is there because an irqfd would raise the line without setting INTERRUPT_STATUS, which is
a register of ours: the guest's handler would find 0 in it and take the interrupt for another's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

from voidbox.errors import GuestError, HostError
from voidbox.memory import GuestMemory, MemoryRegion

VHOST_DEVICE = "/dev/vhost-vsock"
VIRTIO_VSOCK_F_SEQPACKET = 1  # a bit number
QUEUES = 2  # rx and tx; the event queue is not the kernel's business

# linux/vhost_types.h, all in the machine's byte order: "<" and no padding but what is spelt out.
# struct vhost_vring_state { unsigned int index; unsigned int num; };
VHOST_VRING_STATE = struct.Struct("<II")
# struct vhost_vring_file { unsigned int index; int fd; };
VHOST_VRING_FILE = struct.Struct("<Ii")
# struct vhost_vring_addr { unsigned int index; unsigned int flags; __u64 desc_user_addr;
#     __u64 used_user_addr; __u64 avail_user_addr; __u64 log_guest_addr; };
VHOST_VRING_ADDR = struct.Struct("<IIQQQQ")
# struct vhost_memory { __u32 nregions; __u32 padding; struct vhost_memory_region regions[]; };
VHOST_MEMORY = struct.Struct("<II")
# struct vhost_memory_region { __u64 guest_phys_addr; __u64 memory_size; __u64 userspace_addr;
#     __u64 flags_padding; };
VHOST_MEMORY_REGION = struct.Struct("<QQQQ")
_U64 = struct.Struct("<Q")
_INT = struct.Struct("<i")
assert VHOST_VRING_STATE.size == 8
assert VHOST_VRING_FILE.size == 8
assert VHOST_VRING_ADDR.size == 40
assert VHOST_MEMORY.size == 8
assert VHOST_MEMORY_REGION.size == 32

# linux/vhost.h
VHOST_VIRTIO = 0xAF
VHOST_FILE_UNBIND = -1


def _ioctl_number(direction: int, nr: int, size: int) -> int:
    return int(IOC(direction, VHOST_VIRTIO, nr, size))


VHOST_GET_FEATURES = _ioctl_number(IOC_READ, 0x00, _U64.size)
VHOST_SET_FEATURES = _ioctl_number(IOC_WRITE, 0x00, _U64.size)
VHOST_SET_OWNER = _ioctl_number(IOC_NONE, 0x01, 0)
VHOST_SET_MEM_TABLE = _ioctl_number(IOC_WRITE, 0x03, VHOST_MEMORY.size)
VHOST_SET_VRING_NUM = _ioctl_number(IOC_WRITE, 0x10, VHOST_VRING_STATE.size)
VHOST_SET_VRING_ADDR = _ioctl_number(IOC_WRITE, 0x11, VHOST_VRING_ADDR.size)
VHOST_SET_VRING_BASE = _ioctl_number(IOC_WRITE, 0x12, VHOST_VRING_STATE.size)
VHOST_GET_VRING_BASE = _ioctl_number(IOC_READ | IOC_WRITE, 0x12, VHOST_VRING_STATE.size)
VHOST_SET_VRING_KICK = _ioctl_number(IOC_WRITE, 0x20, VHOST_VRING_FILE.size)
VHOST_SET_VRING_CALL = _ioctl_number(IOC_WRITE, 0x21, VHOST_VRING_FILE.size)
VHOST_SET_VRING_ERR = _ioctl_number(IOC_WRITE, 0x22, VHOST_VRING_FILE.size)
VHOST_VSOCK_SET_GUEST_CID = _ioctl_number(IOC_WRITE, 0x60, _U64.size)
VHOST_VSOCK_SET_RUNNING = _ioctl_number(IOC_WRITE, 0x61, _INT.size)
# Those that are made when the guest's driver starts or lets go of the device.
RUNNING_REQUESTS = (
    VHOST_SET_FEATURES,
    VHOST_SET_MEM_TABLE,
    VHOST_SET_VRING_NUM,
    VHOST_SET_VRING_ADDR,
    VHOST_SET_VRING_BASE,
    VHOST_GET_VRING_BASE,
    VHOST_SET_VRING_KICK,
    VHOST_SET_VRING_CALL,
    VHOST_SET_VRING_ERR,
    VHOST_VSOCK_SET_GUEST_CID,
    VHOST_VSOCK_SET_RUNNING,
)


class Transport(Protocol):
    """What the data plane needs of the device's transport. Thread: any."""

    def interrupt_queues(self) -> None: ...
    def needs_reset(self, reason: str) -> None: ...


class Ring(Protocol):
    """Where a virtqueue is."""

    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int

    def state(self) -> RingState: ...
    def seek(self, idx: int) -> None: ...


class RingState(Protocol):
    """How far it has been served."""

    @property
    def next_avail_idx(self) -> int: ...


class VhostVsock:
    """The data plane of one guest in the kernel. Thread: loop; close(): any after the loop.

    Args:
        guest_cid: 3 to 2^32 - 2, and no other machine's on this host.
        memory: the guest's RAM.
        host_address: where a region is mapped in this process.
    Raises:
        HostError: there is no vhost-vsock, it may not be used, or the CID is taken.

    Attributes:
        device_features: what the kernel offers of VIRTIO_VSOCK_F_*.
        kick_fds: an eventfd each for rx and tx, for the ioeventfds of QueueNotify.
    """

    def __init__(
        self, guest_cid: int, memory: GuestMemory, host_address: Callable[[MemoryRegion], int]
    ) -> None:
        self._memory = memory
        self._host_address = host_address
        self._irq_thread: _IrqThread | None = None
        self._transport: Transport | None = None  # while it has the queues
        self._rings: tuple[Ring, ...] = ()
        self._is_held = False
        self._eventfds: list[int] = []
        self._fd = _open_device()
        try:
            self._ioctl("VHOST_SET_OWNER", VHOST_SET_OWNER)
            self._set_guest_cid(guest_cid)
            self._features = _U64.unpack(
                self._ioctl("VHOST_GET_FEATURES", VHOST_GET_FEATURES, bytes(8))
            )[0]
            kick = self._eventfd(), self._eventfd()
            self._call_fds = self._eventfd(), self._eventfd()
            self._error_fds = self._eventfd(), self._eventfd()
        except BaseException:
            self.close()
            raise
        self.kick_fds = kick
        self.device_features = self._features & 1 << VIRTIO_VSOCK_F_SEQPACKET

    def _eventfd(self) -> int:
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise HostError.from_errno("eventfd", error.errno or 0) from error
        self._eventfds.append(fd)
        return fd

    def _set_guest_cid(self, guest_cid: int) -> None:
        try:
            self._ioctl(
                "VHOST_VSOCK_SET_GUEST_CID", VHOST_VSOCK_SET_GUEST_CID, _U64.pack(guest_cid)
            )
        except HostError as error:
            if error.errno == errno.EADDRINUSE:
                raise HostError(
                    f"vsock CID {guest_cid} is another machine's on this host: choose another",
                    error.errno,
                ) from error
            raise

    def _ioctl(self, name: str, request: int, argument: bytes = b"") -> bytes:
        """Call ioctl(2) without the GIL; returns the argument as the kernel left it."""
        buffer = bytearray(argument)
        try:
            fcntl.ioctl(self._fd, request, buffer if buffer else 0)
        except OSError as error:
            raise HostError.from_errno(name, error.errno or 0) from error
        return bytes(buffer)

    # The device's calls.

    def start(self, transport: Transport, driver_features: int, rx: Ring, tx: Ring) -> None:
        """Hand the queues to the kernel.

        Raises:
            HostError: an ioctl failed, or the kernel lacks a feature that the driver accepted.
            GuestError: a ring is outside RAM.
        """
        missing = driver_features & ~self._features
        if missing:
            raise HostError(f"the kernel's vhost-vsock lacks the virtio features {missing:#x}")
        self._ioctl("VHOST_SET_FEATURES", VHOST_SET_FEATURES, _U64.pack(driver_features))
        self._ioctl("VHOST_SET_MEM_TABLE", VHOST_SET_MEM_TABLE, self._memory_table())
        for idx, ring in enumerate((rx, tx)):
            self._set_vring(idx, ring)
        self._transport, self._rings = transport, (rx, tx)
        self.resume()

    def _memory_table(self) -> bytes:
        regions = list(self._memory)
        return VHOST_MEMORY.pack(len(regions), 0) + b"".join(
            VHOST_MEMORY_REGION.pack(r.gpa, r.size_bytes, self._host_address(r), 0) for r in regions
        )

    def _set_vring(self, idx: int, ring: Ring) -> None:
        state = VHOST_VRING_STATE
        self._ioctl("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM, state.pack(idx, ring.size))
        base = ring.state().next_avail_idx
        self._ioctl("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE, state.pack(idx, base))
        addr = VHOST_VRING_ADDR.pack(
            idx,
            0,
            self._user_address(ring.desc_gpa),
            self._user_address(ring.device_gpa),
            self._user_address(ring.driver_gpa),
            0,
        )
        self._ioctl("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR, addr)
        self._set_eventfds(idx, self.kick_fds[idx], self._call_fds[idx], self._error_fds[idx])

    def _set_eventfds(self, idx: int, kick_fd: int, call_fd: int, error_fd: int) -> None:
        file = VHOST_VRING_FILE
        self._ioctl("VHOST_SET_VRING_ERR", VHOST_SET_VRING_ERR, file.pack(idx, error_fd))
        self._ioctl("VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL, file.pack(idx, call_fd))
        self._ioctl("VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK, file.pack(idx, kick_fd))

    def _user_address(self, gpa: int) -> int:
        for region in self._memory:
            if region.gpa <= gpa < region.gpa + region.size_bytes:
                return self._host_address(region) + gpa - region.gpa
        raise GuestError(f"a ring at {gpa:#x}, outside RAM")

    def kick(self, queue_idx: int) -> None:
        """Pass a kick on that came by the register, not by the ioeventfd."""
        os.eventfd_write(self.kick_fds[queue_idx], 1)

    def hold_rx(self, held: bool) -> None:
        """Have the kernel leave the rings alone while held: it keeps what programs send."""
        self._is_held = held
        if held:
            self.pause()
        elif self._transport is not None:
            self.resume()
            for idx in range(QUEUES):  # kicks of meanwhile found nobody
                self.kick(idx)

    def reset_connections(self) -> None:
        """A restored machine has opened the device anew, and it holds no connection yet."""

    def pause(self) -> None:
        """Stop serving the rings, and have them say how far they were served.

        That is one idx for both rings, for vhost-vsock holds back no chain that it took.
        """
        if self._irq_thread is None or self._transport is None:
            return
        self._ioctl("VHOST_VSOCK_SET_RUNNING", VHOST_VSOCK_SET_RUNNING, _INT.pack(0))
        for idx, ring in enumerate(self._rings):
            base = self._ioctl(
                "VHOST_GET_VRING_BASE", VHOST_GET_VRING_BASE, VHOST_VRING_STATE.pack(idx, 0)
            )
            ring.seek(VHOST_VRING_STATE.unpack(base)[1])
        self._irq_thread.close()
        self._irq_thread = None
        # A call of the kernel's that the thread did not get to.
        self._transport.interrupt_queues()

    def resume(self) -> None:
        """Serve the rings (again), unless they are held."""
        if self._irq_thread is None and self._transport is not None and not self._is_held:
            # Before the kernel runs: it may call at once.
            self._irq_thread = _IrqThread(self._transport, self._call_fds, self._error_fds)
            self._ioctl("VHOST_VSOCK_SET_RUNNING", VHOST_VSOCK_SET_RUNNING, _INT.pack(1))

    def stop(self) -> None:
        """Take the queues back from the kernel, and end the thread."""
        if self._transport is None:
            return
        self.pause()
        self._transport, self._rings = None, ()
        unbind = VHOST_FILE_UNBIND
        for idx in range(QUEUES):
            self._set_eventfds(idx, unbind, unbind, unbind)

    def hang_up(self) -> None:
        """Stop, end every connection, and give the CID back. Idempotent."""
        if self._fd < 0:
            return
        try:
            self.stop()
        finally:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Hang up, and close the eventfds. Idempotent."""
        try:
            self.hang_up()
        finally:
            while self._eventfds:
                os.close(self._eventfds.pop())


def _open_device() -> int:
    try:
        return os.open(VHOST_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HostError(
            f"there is no {VHOST_DEVICE}: load the module vhost_vsock, or use the unix backend",
            errno.ENOENT,
        ) from error
    except OSError as error:
        raise HostError.from_errno(f"open {VHOST_DEVICE}", error.errno or 0) from error


class _IrqThread:
    """Turns the kernel's calls into interrupts: one thread, ended through an eventfd of its own.

    Calls that come while an interrupt is being raised are one interrupt together.
    """

    def __init__(
        self, transport: Transport, call_fds: Iterable[int], error_fds: Iterable[int]
    ) -> None:
        self._transport = transport
        self._error_fds = frozenset(error_fds)
        self._epoll = select.epoll()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Edge-triggered: each write to an eventfd is told once, and none need be read back.
        for fd in (*call_fds, *self._error_fds, self._stop_fd):
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._thread = threading.Thread(target=self._run, name="vsock-irq")
        self._thread.start()

    def _run(self) -> None:
        while True:
            fds = {fd for fd, _ in self._epoll.poll()}
            if self._stop_fd in fds:
                return
            if fds & self._error_fds:
                self._transport.needs_reset("vhost-vsock met a broken ring")
            else:
                self._transport.interrupt_queues()

    def close(self) -> None:
        """End the thread and wait for it."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._stop_fd)
