"""A DHCP server for one guest (RFC 2131, RFC 2132): one address, for ever. No I/O, no clock.

    DISCOVER ──► OFFER       the address that is the guest's anyway
    REQUEST  ──► ACK         of that address; NAK of another
    INFORM   ──► ACK         the options alone
    DECLINE, RELEASE         nothing: the address stays the guest's

There is one lease, so nothing is to be remembered: each reply follows from its request alone. A
reply goes to UDP port 68 of 255.255.255.255, for a guest without an address takes no other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence

from voidbox.errors import ConfigError
from voidbox.net.addresses import MAC_BYTES, NetworkConfig

SERVER_PORT, CLIENT_PORT = 67, 68

# struct {
#     u8 op, htype, hlen, hops;  u32 xid;  u16 secs, flags;
#     u32 ciaddr, yiaddr, siaddr, giaddr;
#     u8 chaddr[16], sname[64], file[128];  u32 magic_cookie;
# }
_HEADER = struct.Struct("!BBBBIHHIIII16s64s128sI")
assert _HEADER.size == 240

BOOTREQUEST, BOOTREPLY = 1, 2
HTYPE_ETHERNET = 1
MAGIC_COOKIE = 0x63825363
# What every client takes (RFC 2131 §2), options only.
_REPLY_BYTES_MAX = 576 - 28 - _HEADER.size
REPLY_BYTES_MIN = 300  # of BOOTP (RFC 1542 §2.1); some clients insist on it

DHCPDISCOVER, DHCPOFFER, DHCPREQUEST, DHCPDECLINE = 1, 2, 3, 4
DHCPACK, DHCPNAK, DHCPRELEASE, DHCPINFORM = 5, 6, 7, 8

# Options (RFC 2132).
PAD, SUBNET_MASK, ROUTER, DOMAIN_NAME_SERVER, HOST_NAME = 0, 1, 3, 6, 12
INTERFACE_MTU, BROADCAST_ADDRESS, REQUESTED_ADDRESS, LEASE_TIME = 26, 28, 50, 51
MESSAGE_TYPE, SERVER_IDENTIFIER, CLIENT_IDENTIFIER, END = 53, 54, 61, 255
DOMAIN_NAME, DOMAIN_SEARCH = 15, 119  # the latter RFC 3397

_U16, _U32 = struct.Struct("!H"), struct.Struct("!I")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MTU_MIN = 576  # what every IPv4 host takes


class _Malformed(Exception):
    """Nothing to answer."""


class Server:
    """Answers the one guest. Thread: loop.

    Args:
        network: the addresses; the gateway is the server as well. Nobody else's MAC is answered.
        search: asked at each reply for the domains in which the guest is to look for names.
    Raises:
        ConfigError: an argument that no reply can carry.
    """

    def __init__(
        self,
        network: NetworkConfig,
        mtu: int = 1500,
        hostname: str = "voidbox",
        lease_s: int = 86400,
        search: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        if not _MTU_MIN <= mtu <= 0xFFFF:
            raise ConfigError(f"MTU {mtu}: give {_MTU_MIN} to 65535")
        if not 1 <= lease_s <= 0xFFFF_FFFF:
            raise ConfigError(f"a lease of {lease_s} s: give 1 to 4294967295")
        if not _HOST_NAME.fullmatch(hostname):
            raise ConfigError(f"host name {hostname!r}: give up to 63 letters, digits and '-'")
        self._search = search
        self._guest_mac = network.guest_mac
        self._guest_ip = network.guest_ip
        self._gateway = network.gateway_ip
        self._identifier = _option(SERVER_IDENTIFIER, _U32.pack(self._gateway))
        self._lease = _option(LEASE_TIME, _U32.pack(lease_s))
        # The mask has to come before the router (RFC 2132 §3.3).
        self._settings = b"".join(
            (
                _option(SUBNET_MASK, _U32.pack(network.mask)),
                _option(ROUTER, _U32.pack(self._gateway)),
                _option(DOMAIN_NAME_SERVER, _U32.pack(network.dns_ip)),
                _option(HOST_NAME, hostname.encode("ascii")),
                _option(INTERFACE_MTU, _U16.pack(mtu)),
                _option(BROADCAST_ADDRESS, _U32.pack(network.broadcast_ip)),
            )
        )

    def receive(self, payload: bytes | memoryview) -> bytes | None:
        """Take the payload of a UDP datagram to port 67; whatever it holds, no exception leaves.

        Returns:
            The payload of the reply; None if there is none.
        """
        try:
            return self._receive(bytes(payload))
        except _Malformed:
            return None

    def _receive(self, payload: bytes) -> bytes | None:
        if len(payload) < _HEADER.size:
            return None
        op, htype, hlen, _, xid, _, flags, ciaddr, _, _, giaddr, chaddr, _, _, cookie = (
            _HEADER.unpack_from(payload)
        )
        if (op, htype, hlen, cookie) != (BOOTREQUEST, HTYPE_ETHERNET, MAC_BYTES, MAGIC_COOKIE):
            return None
        # giaddr: there is no relay between us and the guest.
        if chaddr[:MAC_BYTES] != self._guest_mac or giaddr:
            return None
        options = _parse_options(payload, _HEADER.size)
        type_ = self._reply_type(options, ciaddr)
        if type_ is None:
            return None
        is_inform = options[MESSAGE_TYPE][0] == DHCPINFORM
        body = _option(MESSAGE_TYPE, bytes([type_])) + self._identifier
        if type_ != DHCPNAK:
            body += self._settings if is_inform else self._lease + self._settings
        if CLIENT_IDENTIFIER in options:
            body += _option(CLIENT_IDENTIFIER, options[CLIENT_IDENTIFIER])  # RFC 6842 §3
        if type_ != DHCPNAK:
            body += _search_options(self._search(), _REPLY_BYTES_MAX - len(body) - 1)
        # Every field of the reply is made here: nothing of the request comes back by accident.
        header = _HEADER.pack(
            BOOTREPLY, HTYPE_ETHERNET, MAC_BYTES, 0, xid, 0, flags,
            ciaddr if type_ == DHCPACK else 0,
            0 if type_ == DHCPNAK or is_inform else self._guest_ip,
            0, 0, self._guest_mac, b"", b"", MAGIC_COOKIE,
        )  # fmt: skip
        return (header + body + bytes([END])).ljust(REPLY_BYTES_MIN, b"\0")

    def _reply_type(self, options: dict[int, bytes], ciaddr: int) -> int | None:
        """Return what to answer; RFC 2131 §4.3."""
        type_ = options.get(MESSAGE_TYPE, b"")
        server = _address_option(options, SERVER_IDENTIFIER)
        requested = _address_option(options, REQUESTED_ADDRESS)
        if server not in (None, self._gateway):
            return None  # the guest talks to another server
        if type_ == bytes([DHCPDISCOVER]):
            return DHCPOFFER
        if type_ == bytes([DHCPINFORM]):
            return DHCPACK
        if type_ != bytes([DHCPREQUEST]):
            return None
        # After an OFFER and after a reboot it is an option, on renewal it is ciaddr.
        wanted = ciaddr if requested is None else requested
        return DHCPACK if wanted == self._guest_ip else DHCPNAK


def _option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def _search_options(domains: Sequence[str], room: int) -> bytes:
    """Return the first domain as the guest's own, and as many as there is room for to search."""
    found = b""
    for count in range(1, len(domains) + 1):
        names = b"".join(map(_labels, domains[:count]))
        # Longer than an option: in several, which are one (RFC 3396).
        parts = [names[at : at + 255] for at in range(0, len(names), 255)]
        options = _option(DOMAIN_NAME, domains[0].encode("ascii"))
        options += b"".join(_option(DOMAIN_SEARCH, part) for part in parts)
        if len(options) > room:
            break
        found = options
    return found


def _labels(domain: str) -> bytes:
    """Return a name as RFC 1035 has it."""
    return (
        b"".join(bytes([len(label)]) + label for label in domain.encode("ascii").split(b"."))
        + b"\0"
    )


def _parse_options(payload: bytes, at: int) -> dict[int, bytes]:
    """Return the options; of those that come twice, the first.

    Raises:
        _Malformed: one is cut off, or they do not end.
    """
    options: dict[int, bytes] = {}
    while at < len(payload):
        code = payload[at]
        if code == END:
            return options
        at += 1
        if code == PAD:
            continue
        if at == len(payload) or at + 1 + payload[at] > len(payload):
            break
        value = payload[at + 1 : at + 1 + payload[at]]
        options.setdefault(code, value)
        at += 1 + len(value)
    raise _Malformed


def _address_option(options: dict[int, bytes], code: int) -> int | None:
    value = options.get(code)
    if value is None:
        return None
    if len(value) != _U32.size:
        raise _Malformed
    return int.from_bytes(value)
