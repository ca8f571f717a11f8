"""IPv4 addresses, 32-bit numbers everywhere but in text; and which ones are on the guest's line."""

from __future__ import annotations

import re

from voidbox.errors import ConfigError
from voidbox.named_tuple import NamedTuple

ALL_ADDRESSES = 0xFFFF_FFFF
MAC_BYTES = 6

_DECIMAL = re.compile("0|[1-9][0-9]{0,2}")


def parse_address(text: str) -> int | None:
    """Return an IPv4 address of four decimal numbers; None if it is not one.

    A leading zero is refused, as some take it for octal.
    """
    parts = text.split(".")
    if len(parts) != 4 or not all(map(_DECIMAL.fullmatch, parts)):
        return None
    numbers = [int(part) for part in parts]
    return int.from_bytes(bytes(numbers)) if max(numbers) <= 255 else None


def format_address(address: int) -> str:
    """Return an IPv4 address as text."""
    return ".".join(map(str, address.to_bytes(4)))


class NetworkConfig(NamedTuple):
    """The addresses on the guest's line; MAC addresses are six bytes."""

    guest_ip: int = 0x0A00_020F  # 10.0.2.15
    gateway_ip: int = 0x0A00_0202  # 10.0.2.2
    dns_ip: int = 0x0A00_0203  # 10.0.2.3
    prefix_bits: int = 24
    guest_mac: bytes = bytes.fromhex("525400123456")
    gateway_mac: bytes = bytes.fromhex("525400123401")

    @property
    def mask(self) -> int:
        """The network's mask."""
        return ALL_ADDRESSES << (32 - self.prefix_bits) & ALL_ADDRESSES

    @property
    def broadcast_ip(self) -> int:
        """The network's last address, which is all of its hosts."""
        return self.guest_ip & self.mask | ~self.mask & ALL_ADDRESSES

    def validate(self) -> None:
        """Check that the three can talk to each other.

        Raises:
            ConfigError: they cannot; one line.
        """
        if not 1 <= self.prefix_bits <= 30:
            raise ConfigError(f"a network prefix of {self.prefix_bits} bits: give 1 to 30")
        hosts = (self.guest_ip, self.gateway_ip, self.dns_ip)
        if len(set(hosts)) < len(hosts):
            raise ConfigError("guest, gateway and name server need an address each")
        first = self.guest_ip & self.mask
        for address in hosts:
            if not first < address < self.broadcast_ip:
                raise ConfigError(
                    f"{format_address(address & ALL_ADDRESSES)}: give addresses of hosts "
                    f"in {format_address(first)}/{self.prefix_bits}"
                )
        for mac in (self.guest_mac, self.gateway_mac):
            if len(mac) != MAC_BYTES or mac[0] & 1:
                raise ConfigError(f"MAC address {mac.hex(':')!r}: give six bytes, the first even")
