"""The header before every frame (VirtIO 1.2 §5.1.6), and what the device makes of the guest's.

flags       NEEDS_CSUM: the checksum at csum_start + csum_offset covers only the pseudo-header
            so far; whoever needs the whole sums from csum_start to the end
gso_type    TCPV4: one TCP segment of more than the MTU, to be cut into pieces of gso_size
"""

from __future__ import annotations

import struct
from enum import IntEnum

from voidbox.named_tuple import NamedTuple

# linux/virtio_net.h; features as masks
VIRTIO_NET_F_CSUM = 1 << 0
VIRTIO_NET_F_GUEST_CSUM = 1 << 1
VIRTIO_NET_F_MTU = 1 << 3
VIRTIO_NET_F_MAC = 1 << 5
VIRTIO_NET_F_GUEST_TSO4 = 1 << 7
VIRTIO_NET_F_HOST_TSO4 = 1 << 11
VIRTIO_NET_F_MRG_RXBUF = 1 << 15
VIRTIO_NET_F_STATUS = 1 << 16
VIRTIO_NET_S_LINK_UP = 1
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_UDP = 3
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
VIRTIO_NET_HDR_GSO_ECN = 0x80

# struct virtio_net_hdr_v1 { __u8 flags, gso_type; __virtio16 hdr_len, gso_size, csum_start,
#                            csum_offset, num_buffers; };
HDR = struct.Struct("<BBHHHHH")
assert HDR.size == 12
HDR_BYTES = 12

ETH_HLEN = 14
FRAME_BYTES_MIN = ETH_HLEN
# What fits an MTU of 1,500, the least that an rx buffer must have room for (§5.1.6.3.1).
FRAME_BYTES_ORDINARY = ETH_HLEN + 1500
# The longest IPv4 packet.
FRAME_BYTES_MAX = ETH_HLEN + 65535

_GSO_TYPES_NOT_OFFERED = {
    VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
}


class Drop(IntEnum):
    """Why a frame of the guest went no further; the order is that of TxDrops."""

    TOO_SHORT = 0
    TOO_LONG = 1
    NOT_NEGOTIATED = 2
    BAD_GSO = 3
    PAST_END = 4


class TxDrops(NamedTuple):
    """Frames of the guest that were dropped, by reason."""

    too_short: int = 0  # less than an Ethernet header
    too_long: int = 0
    not_negotiated: int = 0  # an offload that the driver did not accept
    bad_gso: int = 0  # a gso_type that does not exist, no gso_size, or no NEEDS_CSUM with it
    past_end: int = 0  # hdr_len, or the checksum, lies outside the frame


class FrameHeader(NamedTuple):
    """What a frame of the guest asks for. All of it lies within the frame.

    Attributes:
        needs_csum: only the pseudo-header is summed yet.
        gso_size: payload bytes of each segment to make of it; 0: it is one frame.
        csum_start: where summing starts, if needs_csum.
        csum_offset: from there, where the sum goes.
    """

    needs_csum: bool = False
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


class ParsedHeader(NamedTuple):
    """What parse_header() made of twelve bytes.

    Attributes:
        frame: for the backend.
        least_bytes: a shorter frame does not hold what the header points at; of a header that is
            bad whatever the frame, more than any has.
        drop: why it is bad then.
    """

    frame: FrameHeader
    least_bytes: int
    drop: Drop | None


_PLAIN = FrameHeader()


def parse_header(raw: bytes, driver_features: int) -> ParsedHeader:
    """Check a header of the guest.

    Flags that are unknown are ignored, and so is hdr_len without GSO, where it has no meaning
    (§5.1.6.2.2). It is no more than a hint with GSO, and not handed on; but one that lies outside
    the frame comes from no driver that works.

    Args:
        raw: HDR_BYTES, copied out of guest memory.
        driver_features: what the driver accepted.
    """
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = HDR.unpack(raw)
    needs_csum = bool(flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    if needs_csum and not driver_features & VIRTIO_NET_F_CSUM:
        return _bad(Drop.NOT_NEGOTIATED)
    least_bytes = csum_start + csum_offset + 2 if needs_csum else 0
    if gso_type == VIRTIO_NET_HDR_GSO_NONE:
        gso_size = 0
    else:
        drop = _gso_fault(gso_type, gso_size, needs_csum, driver_features)
        if drop is not None:
            return _bad(drop)
        least_bytes = max(least_bytes, hdr_len)
    if not needs_csum:
        return ParsedHeader(_PLAIN, 0, None)
    return ParsedHeader(FrameHeader(True, gso_size, csum_start, csum_offset), least_bytes, None)


def _bad(drop: Drop) -> ParsedHeader:
    return ParsedHeader(_PLAIN, FRAME_BYTES_MAX + 1, drop)


def _gso_fault(gso_type: int, gso_size: int, needs_csum: bool, driver_features: int) -> Drop | None:
    kind = gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    if kind in _GSO_TYPES_NOT_OFFERED:
        return Drop.NOT_NEGOTIATED
    if kind != VIRTIO_NET_HDR_GSO_TCPV4:
        return Drop.BAD_GSO
    # ECN is a feature of its own, which is not offered.
    if kind != gso_type or not driver_features & VIRTIO_NET_F_HOST_TSO4:
        return Drop.NOT_NEGOTIATED
    return None if gso_size and needs_csum else Drop.BAD_GSO
