"""The packet header of virtio-vsock (VirtIO 1.2 §5.10.6), and iovec arithmetic for its payload."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from voidbox.buffers import clip, first_bytes, skip
from voidbox.errors import GuestError
from voidbox.named_tuple import NamedTuple

# linux/virtio_vsock.h
VIRTIO_VSOCK_TYPE_STREAM = 1
VIRTIO_VSOCK_TYPE_SEQPACKET = 2

VIRTIO_VSOCK_OP_INVALID = 0
VIRTIO_VSOCK_OP_REQUEST = 1
VIRTIO_VSOCK_OP_RESPONSE = 2
VIRTIO_VSOCK_OP_RST = 3
VIRTIO_VSOCK_OP_SHUTDOWN = 4
VIRTIO_VSOCK_OP_RW = 5
VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6
VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7

VIRTIO_VSOCK_SHUTDOWN_RCV = 1
VIRTIO_VSOCK_SHUTDOWN_SEND = 2
SHUTDOWN_MASK = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND

# linux/vm_sockets.h
VMADDR_CID_HOST = 2
VMADDR_PORT_ANY = 0xFFFF_FFFF

# The kernel's bound on one packet's payload (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
VIRTIO_VSOCK_MAX_PKT_BUF_SIZE = 64 << 10

# struct virtio_vsock_hdr {
#     __le64 src_cid;   __le64 dst_cid;
#     __le32 src_port;  __le32 dst_port;
#     __le32 len;
#     __le16 type;      __le16 op;
#     __le32 flags;
#     __le32 buf_alloc; __le32 fwd_cnt;
# } __attribute__((packed));
VIRTIO_VSOCK_HDR = struct.Struct("<QQIIIHHIII")
HDR_BYTES = 44
assert VIRTIO_VSOCK_HDR.size == HDR_BYTES
# The same: CIDs and ports, which tell a connection from all others, as one; type and op as one.
ENDS = struct.Struct("<QQII")
DATA_HDR = struct.Struct("<24sIIIII")
STREAM_DATA = VIRTIO_VSOCK_TYPE_STREAM | VIRTIO_VSOCK_OP_RW << 16
assert ENDS.size == 24
assert DATA_HDR.size == HDR_BYTES


class PacketError(GuestError):
    """A packet that breaks the protocol; it costs the guest at most the connection."""


class Header(NamedTuple):
    """struct virtio_vsock_hdr, a private copy. `length` is the field `len`."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int = 0
    type: int = VIRTIO_VSOCK_TYPE_STREAM
    op: int = VIRTIO_VSOCK_OP_INVALID
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    def pack(self) -> bytes:
        """Return the 44 bytes."""
        return VIRTIO_VSOCK_HDR.pack(*self)


def parse(buffers: Sequence[memoryview], guest_cid: int) -> tuple[Header, list[memoryview]]:
    """Copy the header out of a guest's packet once and check it, whatever the type and op are.

    Returns:
        The header and exactly its `length` bytes of payload, still in guest memory.
    Raises:
        PacketError: nobody can be answered: the packet is cut off, too long, or not from this
            guest to the host.
    """
    if len(buffers) == 0:
        raise PacketError("an empty packet")
    data: memoryview | bytes = buffers[0]
    if len(data) < HDR_BYTES:
        data = first_bytes(buffers, HDR_BYTES)
        if len(data) < HDR_BYTES:
            raise PacketError(f"a packet of {len(data)} bytes, less than a header")
    # What _make() does, without its call: each packet comes here.
    header = tuple.__new__(Header, VIRTIO_VSOCK_HDR.unpack_from(data))
    if header.src_cid != guest_cid or header.dst_cid != VMADDR_CID_HOST:
        raise PacketError(f"a packet from CID {header.src_cid} to CID {header.dst_cid}")
    length = header.length
    if not length:
        return header, []
    if length > VIRTIO_VSOCK_MAX_PKT_BUF_SIZE:
        raise PacketError(f"a packet of {length} bytes")
    if len(buffers) == 2 and len(buffers[0]) == HDR_BYTES:  # Linux up to 6.2
        payload = [buffers[1][:length]]
        payload_bytes = len(payload[0])
    else:
        payload = clip(payload_buffers(buffers), length)
        payload_bytes = sum(map(len, payload))
    if payload_bytes < length:
        raise PacketError(f"a packet of {length} bytes in a smaller buffer")
    return header, payload


def payload_buffers(buffers: Sequence[memoryview]) -> list[memoryview]:
    """Return what follows the header, however the guest laid the two out."""
    # Linux: header and payload apart (up to 6.2), or in one buffer (since).
    first_piece_bytes = len(buffers[0])
    if first_piece_bytes == HDR_BYTES:
        return list(buffers[1:])
    if first_piece_bytes > HDR_BYTES:
        return [buffers[0][HDR_BYTES:], *buffers[1:]]
    return skip(buffers, HDR_BYTES)
