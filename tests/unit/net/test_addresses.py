from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voidbox.errors import ConfigError
from voidbox.net.addresses import NetworkConfig, format_address, parse_address


@given(st.integers(0, 0xFFFF_FFFF))
def test_there_and_back(address: int) -> None:
    text = str(ipaddress.IPv4Address(address))
    assert parse_address(text) == address
    assert format_address(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.-4", "1.2.3.x", " 1.2.3.4", "1.2.3.0004",
     "1.2.3.04", "1..2.3", "1.2.3.\u0664", "0x1.2.3.4", "1.2.3.4\n"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert parse_address(text) is None


def test_the_network_of_the_guest() -> None:
    network = NetworkConfig(prefix_bits=28, guest_ip=0x0A00020E)
    network.validate()
    assert format_address(network.mask) == "255.255.255.240"
    assert format_address(network.broadcast_ip) == "10.0.2.15"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"gateway_ip": 0x0A000302}, "10.0.3.2: give addresses of hosts in 10.0.2.0/24"),
        ({"dns_ip": 0x0A000202}, "an address each"),
        ({"guest_ip": 0x0A000200}, "10.0.2.0:"),
        ({"dns_ip": 0x0A0002FF}, "10.0.2.255:"),
        ({"dns_ip": 1 << 32 | 0x0A000203}, "10.0.2.3:"),
        ({"dns_ip": -1}, "255.255.255.255:"),
        ({"prefix_bits": 31}, "31 bits"),
        ({"prefix_bits": 0}, "0 bits"),
        ({"guest_mac": b"\2\0\0\0\1"}, "'02:00:00:00:01'"),
        ({"gateway_mac": b"\1\0\0\0\0\1"}, "the first even"),
    ],
)
def test_a_network_whose_hosts_cannot_talk(wrong: dict[str, int | bytes], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        NetworkConfig()._replace(**wrong).validate()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
