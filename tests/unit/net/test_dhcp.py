"""DHCP for the one guest; scapy builds the requests and reads the replies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from voidbox.errors import ConfigError
from voidbox.net.addresses import NetworkConfig
from voidbox.net.dhcp import Server

MAC = bytes.fromhex("02aabbccddee")
NETWORK = NetworkConfig(guest_mac=MAC)
OTHER_MAC = bytes.fromhex("02aabbccddef")
XID = 0x12345678
SETTINGS = {
    "subnet_mask": "255.255.255.0",
    "router": "10.0.2.2",
    "name_server": "10.0.2.3",
    "hostname": b"voidbox",
    "interface-mtu": 1500,
    "broadcast_address": "10.0.2.255",
}
LEASE = {"lease_time": 86400}


@pytest.fixture
def server() -> Server:
    return make()


def make(network: NetworkConfig = NETWORK, **arguments: object) -> Server:
    return Server(network, **arguments)  # type: ignore[arg-type]


def request(*options: tuple[str, object], mac: bytes = MAC, **fields: object) -> bytes:
    bootp = BOOTP(**{"op": 1, "xid": XID, "chaddr": mac} | fields)
    return bytes(bootp / DHCP(options=[*options, "end"]))


def parse(reply: bytes | None) -> tuple[BOOTP, dict[str, object]]:
    assert reply is not None
    bootp = BOOTP(reply)
    options = [option for option in bootp[DHCP].options if option not in ("pad", "end")]
    names = [option[0] for option in options]
    assert len(set(names)) == len(names)
    assert bootp[DHCP].options[len(options)] == "end"
    return bootp, {option[0]: option[1] for option in options}


def check_offer(reply: bytes | None, type_: int) -> None:
    bootp, options = parse(reply)
    assert (bootp.op, bootp.htype, bootp.hlen, bootp.hops, bootp.secs) == (2, 1, 6, 0, 0)
    assert (bootp.xid, bootp.yiaddr, bootp.siaddr, bootp.giaddr) == (
        XID, "10.0.2.15", "0.0.0.0", "0.0.0.0",
    )  # fmt: skip
    assert bootp.chaddr == MAC + bytes(10)
    assert (bootp.sname, bootp.file) == (bytes(64), bytes(128))
    assert options == {"message-type": type_, "server_id": "10.0.2.2", **LEASE, **SETTINGS}


def test_the_exchange_of_a_guest_that_starts(server: Server) -> None:
    check_offer(server.receive(request(("message-type", "discover"))), 2)
    selecting = request(
        ("message-type", "request"), ("server_id", "10.0.2.2"), ("requested_addr", "10.0.2.15")
    )
    check_offer(server.receive(selecting), 5)
    check_offer(server.receive(memoryview(selecting)), 5)


def test_a_guest_that_asked_for_another_address_is_offered_its_own(server: Server) -> None:
    discover = request(("message-type", "discover"), ("requested_addr", "192.168.1.7"))
    check_offer(server.receive(discover), 2)


def test_init_reboot_and_renewal(server: Server) -> None:
    reboot = request(("message-type", "request"), ("requested_addr", "10.0.2.15"))
    check_offer(server.receive(reboot), 5)
    renewal = server.receive(request(("message-type", "request"), ciaddr="10.0.2.15"))
    check_offer(renewal, 5)
    assert parse(renewal)[0].ciaddr == "10.0.2.15"


@pytest.mark.parametrize(
    ("options", "ciaddr"),
    [
        ([("requested_addr", "10.0.2.16")], "0.0.0.0"),
        ([("requested_addr", "10.0.2.16"), ("server_id", "10.0.2.2")], "0.0.0.0"),
        ([("requested_addr", "192.168.1.7")], "10.0.2.15"),
        ([("requested_addr", "0.0.0.0")], "10.0.2.15"),
        ([], "10.0.2.16"),
        ([], "0.0.0.0"),
    ],
)
def test_another_address_is_refused(
    server: Server, options: list[tuple[str, object]], ciaddr: str
) -> None:
    reply = server.receive(request(("message-type", "request"), *options, ciaddr=ciaddr))
    bootp, seen = parse(reply)
    assert seen == {"message-type": 6, "server_id": "10.0.2.2"}
    assert (bootp.ciaddr, bootp.yiaddr) == ("0.0.0.0", "0.0.0.0")
    assert len(bytes(reply or b"")) == 300


def test_inform_brings_settings_without_a_lease(server: Server) -> None:
    bootp, options = parse(server.receive(request(("message-type", "inform"), ciaddr="10.0.2.77")))
    assert options == {"message-type": 5, "server_id": "10.0.2.2", **SETTINGS}
    assert (bootp.ciaddr, bootp.yiaddr) == ("10.0.2.77", "0.0.0.0")


@pytest.mark.parametrize("type_", ["decline", "release", "offer", "ack", "nak", 0, 9, 255])
def test_what_gets_no_answer(server: Server, type_: object) -> None:
    assert server.receive(request(("message-type", type_))) is None
    assert server.receive(request(("requested_addr", "10.0.2.15"))) is None


def test_what_is_meant_for_another_server(server: Server) -> None:
    elsewhere = ("server_id", "10.0.2.4")
    wanted = ("requested_addr", "10.0.2.15")
    assert server.receive(request(("message-type", "request"), elsewhere, wanted)) is None


def test_another_mac_gets_nothing(server: Server) -> None:
    assert server.receive(request(("message-type", "discover"), mac=OTHER_MAC)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 2}, {"htype": 6}, {"hlen": 0}, {"hlen": 5}, {"hlen": 7}, {"hlen": 16},
        {"hlen": 255}, {"giaddr": "10.0.2.9"}, {"options": b"\x63\x82\x53\x64"},
    ],
)  # fmt: skip
def test_a_header_that_lies(server: Server, fields: dict[str, object]) -> None:
    assert server.receive(request(("message-type", "discover"), **fields)) is None


def test_settings_are_those_of_the_arguments() -> None:
    network = NetworkConfig(0xC0A80702, 0xC0A80701, 0xC0A80701, 30, MAC)
    server = make(network, mtu=65520, hostname="a-1", lease_s=60)
    bootp, options = parse(server.receive(request(("message-type", "discover"))))
    assert bootp.yiaddr == "192.168.7.2"
    assert options == {
        "message-type": 2,
        "server_id": "192.168.7.1",
        "lease_time": 60,
        "subnet_mask": "255.255.255.252",
        "router": "192.168.7.1",
        "name_server": "192.168.7.1",
        "hostname": b"a-1",
        "interface-mtu": 65520,
        "broadcast_address": "192.168.7.3",
    }


@pytest.mark.parametrize(
    ("prefix_bits", "mask", "broadcast"),
    [(8, "255.0.0.0", "10.255.255.255"), (28, "255.255.255.240", "10.0.2.15")],
)
def test_mask_and_broadcast_are_those_of_the_prefix(
    prefix_bits: int, mask: str, broadcast: str
) -> None:
    server = make(NETWORK._replace(guest_ip=0x0A00020E, prefix_bits=prefix_bits))
    _, options = parse(server.receive(request(("message-type", "discover"))))
    assert (options["subnet_mask"], options["broadcast_address"]) == (mask, broadcast)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mtu": 575}, {"mtu": 65536}, {"hostname": ""}, {"hostname": "a.b"}, {"hostname": "-a"},
        {"hostname": "x" * 64}, {"lease_s": 0}, {"lease_s": 1 << 32},
    ],
)  # fmt: skip
def test_arguments_that_no_reply_can_carry(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make(**arguments)


DISCOVER = request(("message-type", "discover"), ("client_id", b"\x01" + MAC))


def test_every_length_short_of_the_whole_is_malformed(server: Server) -> None:
    assert DISCOVER[-1] == 255
    for length in range(len(DISCOVER)):
        assert server.receive(DISCOVER[:length]) is None, length
    check = server.receive(DISCOVER)
    assert check is not None
    assert server.receive(DISCOVER + b"junk after the end") == check


@pytest.mark.parametrize(
    "options",
    [
        b"\x35\x01\x01\x0c\xff" + bytes(253) + b"\xff",  # past the end by one
        b"\x35\x01\x01\x0c\x05\xff",
        b"\x35\x01\x01\x0c",
        b"\x35\x00\xff",
        b"\x35\x02\x01\x01\xff",
        b"\x35\x01\x01\x32\x03\x0a\x00\x02\xff",
        b"\x35\x01\x01\x36\x05\x0a\x00\x02\x02\x00\xff",
        b"\x35\x01\x01",
        b"",
        b"\xff",
        b"\xff\x35\x01\x01\xff",
        bytes(60),
    ],
)
def test_malformed_options(server: Server, options: bytes) -> None:
    header = DISCOVER[:240]
    assert server.receive(header + b"\x35\x01\x01\xff") is not None
    assert server.receive(header + b"\0\0\x35\x01\x01\0\xff") is not None
    assert server.receive(header + options) is None


def test_the_first_of_an_option_given_twice_counts(server: Server) -> None:
    reply = server.receive(DISCOVER[:240] + b"\x35\x01\x01\x35\x01\x03\xff")
    assert parse(reply)[1]["message-type"] == 2


def test_nothing_of_the_request_comes_back_but_what_must() -> None:
    noise = b"\xee"
    full = request(
        ("message-type", "request"),
        ("requested_addr", "10.0.2.15"),
        ("client_id", b"\x01mine"),
        ("vendor_class_id", noise * 200),
        mac=MAC + noise * 10,
        sname=noise * 64,
        file=noise * 128,
        secs=0xEEEE,
        hops=0xEE,
        siaddr="238.238.238.238",
        yiaddr="238.238.238.238",
        flags=0x8000,
    )
    reply = make().receive(full)
    assert reply is not None
    assert noise not in reply.replace(MAC, b"")
    bootp, options = parse(reply)
    assert (bootp.xid, bootp.flags) == (XID, 0x8000)
    assert options["client_id"] == b"\x01mine"
    assert len(reply) >= 300


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    assert make().receive(data) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 239), st.binary(max_size=4))
def test_random_options_and_damaged_headers(options: bytes, at: int, damage: bytes) -> None:
    header = bytearray(DISCOVER[:240])
    header[at : at + len(damage)] = damage
    reply = make().receive(bytes(header) + b"\x35\x01\x01" + options + b"\xff")
    if reply is not None:
        assert parse(reply)[0].chaddr == MAC + bytes(10)
        assert len(reply) <= 576


# --- the domains to search ----------------------------------------------------------------------


def options_of(reply: bytes | None) -> dict[int, bytes]:
    """The options as they are; those that come several times put together (RFC 3396)."""
    assert reply is not None
    options: dict[int, bytes] = {}
    at = 240
    while reply[at] != 255:
        size = reply[at + 1]
        options[reply[at]] = options.get(reply[at], b"") + reply[at + 2 : at + 2 + size]
        at += 2 + size
    return options


def test_search_domains_go_along() -> None:
    domains: tuple[str, ...] = ()
    server = make(search=lambda: domains)
    discover = request(("message-type", "discover"))
    assert not {15, 119} & options_of(server.receive(discover)).keys()
    domains = ("eng.example.com", "example.com")  # the host is elsewhere now
    options = options_of(server.receive(discover))
    assert options[15] == b"eng.example.com"
    assert options[119] == b"\3eng\7example\3com\0\7example\3com\0"
    bad = request(("message-type", "request"), ("requested_addr", "10.0.2.16"))
    assert not {15, 119} & options_of(server.receive(bad)).keys()


def test_as_many_search_domains_as_any_client_takes() -> None:
    domains = tuple(f"{'x' * 40}.{n}" for n in range(6))
    reply = make(search=lambda: domains).receive(request(("message-type", "discover")))
    assert reply is not None and len(reply) <= 548
    options = options_of(reply)
    assert options[15] == domains[0].encode()
    found = options[119].count(b"\x28")
    assert found == 4 and len(reply) + 44 > 548
    long = (".".join(["x" * 60] * 4),)
    options = options_of(make(search=lambda: long).receive(request(("message-type", "discover"))))
    assert 119 not in options and options[6]
