"""The same frames to our stack, to libslirp and to passt: what matters in the answers is alike.

Where it is not, and ours means it, it stands in INTENDED with the reason.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.net.framed import Client, Peer, other_stack, our_stack, why_not
from tests.unit.net.tap import echo_server
from tests.unit.net.world import (
    ACK,
    DNS,
    FIN,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    RST,
    SYN,
    Seen,
    arp,
    echo,
    ethernet,
    ipv4,
    udp,
)
from voidbox.nat.config import NatConfig
from voidbox.nat.resolv_conf_file import read_resolv_conf


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of loopback where nobody is."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Ports:
    """Of the host's loopback: an echo server, one that answers after the end, and closed ones."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.tcp = stack.enter_context(echo_server())
        self.udp = stack.enter_context(echo_server(socket.SOCK_DGRAM))
        self.late = stack.enter_context(late_server())
        self.early = stack.enter_context(late_server(closes_first=True))
        self.closed_tcp = free_port()
        self.closed_udp = free_port(socket.SOCK_DGRAM)

    @property
    def all(self) -> tuple[int, ...]:
        return (self.tcp, self.udp, self.late, self.early, self.closed_tcp, self.closed_udp)


@contextlib.contextmanager
def late_server(closes_first: bool = False) -> Iterator[int]:
    """Answers with what it read, once the client has ended; or ends at once and reads on."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    if closes_first:
                        connection.sendall(b"bye")
                        connection.shutdown(socket.SHUT_WR)
                    data = b""
                    while part := connection.recv(1000):
                        data += part
                    if not closes_first:
                        connection.sendall(b"late " + data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


Scenario = Callable[[Client, Ports], object]

# --- scenarios: each returns what is to be alike ------------------------------------------------


def arp_reply(client: Client, ports: Ports) -> object:
    results = []
    for address in (GATEWAY, DNS):
        (seen,) = client.ask(arp(address), lambda seen: seen.ether_type == 0x806)
        kinds = struct.unpack_from("!HHBBH", seen.frame, 14)
        mac, sender = seen.frame[22:28], int.from_bytes(seen.frame[28:32], "big")
        results.append((kinds, mac == seen.frame[6:12], sender == address, seen.frame[32:38],
                        seen.frame[38:42], seen.frame[:6] == GUEST_MAC))  # fmt: skip
    return results


def arp_for_the_guest_itself(client: Client, ports: Ports) -> object:
    """Duplicate address detection: an answer would make the guest drop its address."""
    return client.ask(arp(GUEST, sender=0), lambda seen: seen.ether_type == 0x806, 0.2)


def ping_of_the_gateway(client: Client, ports: Ports) -> object:
    (seen,) = client.ask(echo(77, 3, b"0123456789", GATEWAY), lambda seen: seen.protocol == 1)
    return seen.source == GATEWAY, seen.body[:2], seen.body[4:]


def connect_and_echo(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41000, ports.tcp)
    answer = peer.connect()
    assert answer is not None
    peer.say(b"hello")
    data = peer.until(lambda seen: bool(seen.payload))
    assert data is not None
    return (answer.flags, answer.ack, bool(answer.mss), data.payload, data.seq == peer.ack,
            data.ack == peer.seq)  # fmt: skip


def window_scale_that_was_not_offered(client: Client, ports: Ports) -> object:
    answer = Peer(client, 41016, ports.tcp).connect()
    return answer and answer.wscale


def refused_port(client: Client, ports: Ports) -> object:
    answer = Peer(client, 41001, ports.closed_tcp).connect()
    return answer and (answer.flags, answer.ack)


def guest_closes_first(client: Client, ports: Ports) -> object:
    """Half-close: the server answers after the guest's FIN."""
    peer = Peer(client, 41002, ports.late)
    peer.connect()
    peer.say(b"question")
    is_acked = peer.until(lambda seen: seen.ack == peer.seq) is not None
    peer.say(b"", FIN)
    return is_acked, peer.read_to_end()


def a_fin_with_data(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41015, ports.late)
    peer.connect()
    peer.say(b"question", FIN)
    return peer.read_to_end()


def host_closes_first(client: Client, ports: Ports) -> object:
    """The guest's data and FIN after the host's FIN are acknowledged."""
    peer = Peer(client, 41003, ports.early)
    peer.connect()
    data = peer.read_to_end()
    peer.say(b"more")
    first = peer.until(lambda seen: seen.ack == peer.seq)
    peer.say(b"", FIN)
    last = peer.until(lambda seen: seen.ack == peer.seq)
    return data, first is not None, last is not None and last.flags & ~8


def segment_of_no_connection(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41004, ports.tcp)
    peer.send(ACK, seq=5000, ack=7777)
    answer = peer.next(1)
    return answer and (answer.flags, answer.seq)


def rst_of_no_connection(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41005, ports.tcp)
    peer.send(RST | ACK, seq=5000, ack=7777)
    return peer.next(0.2)


def data_twice_and_overlapping(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41006, ports.tcp)
    peer.connect()
    begin = peer.seq
    peer.send(ACK, b"0123456789", seq=begin)
    peer.send(ACK, b"0123456789", seq=begin)
    peer.send(ACK, b"56789abcde", seq=begin + 5)
    got = b""
    while len(got) < 15:
        seen = peer.until(lambda seen: bool(seen.payload))
        assert seen is not None
        if seen.seq == peer.ack:
            got += seen.payload
            peer.ack += len(seen.payload)
            peer.seq = begin + 15
            peer.send(ACK)
    return got


def keep_alive(client: Client, ports: Ports) -> object:
    peer = Peer(client, 41007, ports.tcp)
    peer.connect()
    for _ in client.frames(0.2):
        pass
    peer.send(ACK, seq=peer.seq - 1)
    answer = peer.next(1)
    return answer and (answer.flags, answer.seq == peer.ack, answer.ack == peer.seq)


def rst_outside_the_window(client: Client, ports: Ports) -> object:
    """Two of them, then data: does the connection live?"""
    peer = Peer(client, 41008, ports.tcp)
    peer.connect()
    peer.send(RST, seq=peer.seq - 1000)
    peer.send(RST, seq=peer.seq + (1 << 30))
    peer.say(b"alive")
    data = peer.until(lambda seen: bool(seen.payload), 2)
    return data and data.payload


def guests_reset(client: Client, ports: Ports) -> object:
    """The connection is gone: what follows is of none."""
    peer = Peer(client, 41009, ports.tcp)
    peer.connect()
    peer.send(RST)
    for _ in client.frames(0.2):
        pass
    peer.send(SYN, seq=99999, options=b"\x02\x04\x05\xb4")
    answer = peer.next()
    return answer and (answer.flags, answer.ack)


def udp_and_back(client: Client, ports: Ports) -> object:
    (seen,) = client.ask(udp(41010, ports.udp, b"datagram", GATEWAY), is_udp(41010))
    return seen.source == GATEWAY, seen.body[:2] == ports.udp.to_bytes(2, "big"), seen.body[8:]


def udp_to_a_closed_port(client: Client, ports: Ports) -> object:
    frame = udp(41011, ports.closed_udp, b"datagram", GATEWAY)
    seen = client.ask(frame, lambda seen: seen.protocol == 1, 1)
    return [(one.body[:2], one.source == GATEWAY, one.body[8:36][9:20] == frame[14:42][9:20])
            for one in seen]  # fmt: skip


def dns_forward(client: Client, ports: Ports) -> object:
    query = struct.pack("!HHHHHH", 4242, 0x100, 1, 0, 0, 0) + b"\x07invalid\0\0\1\0\1"
    answers = client.ask(udp(41012, 53, query, DNS), is_udp(41012), 10)
    if not answers:
        pytest.skip("the host's resolvers answer nobody")
    (seen,) = answers
    message = seen.body[8:]
    return seen.source == DNS, message[:2], message[2] >> 7, message[3] & 15, message[12:25]


def answers_of(client: Client) -> list[Seen]:
    """What comes in a moment, but for a SYN|ACK that an earlier scenario left behind."""
    found = client.frames(0.2)
    return [s for s in found if s.protocol != 6 or s.tcp.flags & (SYN | ACK) != SYN | ACK]


def fragment_alone(client: Client, ports: Ports) -> object:
    client.send(ethernet(ipv4(bytes(64), 17, GATEWAY, fragment=0x2000)))
    return answers_of(client)


def malformed(client: Client, ports: Ports) -> object:
    """None of them is answered."""
    good = udp(41013, ports.udp, b"x", GATEWAY)
    for frame in (
        good[:20], good[:34], ethernet(b""), ethernet(bytes(40)), ethernet(b"\x4f" + good[15:]),
        ethernet(ipv4(b"\0" * 7, 17, GATEWAY)), ethernet(ipv4(b"\0" * 19, 6, GATEWAY)),
        ethernet(ipv4(b"\0" * 20, 6, GATEWAY)), arp()[:41], ethernet(bytes(8), 0x88F8),
    ):  # fmt: skip
        client.send(frame)
    return answers_of(client)


def loopback(client: Client, ports: Ports) -> object:
    """A raw SYN to 127.0.0.1: whoever answers with SYN+ACK lets the guest into the host."""
    peer = Peer(client, 41014, ports.tcp, 0x7F00_0001)
    answer = peer.connect()
    return answer and answer.flags


def is_udp(port: int) -> Callable[[Seen], bool]:
    return lambda seen: seen.protocol == 17 and seen.body[2:4] == port.to_bytes(2, "big")


SCENARIOS = [
    arp_reply, arp_for_the_guest_itself, ping_of_the_gateway, connect_and_echo,
    window_scale_that_was_not_offered, refused_port,
    guest_closes_first, a_fin_with_data, host_closes_first, segment_of_no_connection,
    rst_of_no_connection, data_twice_and_overlapping, keep_alive, rst_outside_the_window,
    guests_reset, udp_and_back, udp_to_a_closed_port, dns_forward, fragment_alone, malformed,
    loopback,
]  # fmt: skip

# (the other stack, the scenario): what ours gives, and why that is meant.
INTENDED: dict[tuple[str, str], tuple[object, str]] = {
    ("libslirp", "loopback"): (RST | ACK, "it lets the guest into the host's loopback"),
    ("passt", "loopback"): (RST | ACK, "it lets the guest into the host's loopback"),
    ("libslirp", "rst_of_no_connection"): (None, "it answers an RST by an RST"),
    ("libslirp", "rst_outside_the_window"): (b"alive", "any RST ends a connection of its"),
    ("passt", "rst_outside_the_window"): (b"alive", "any RST ends a connection of its"),
    ("libslirp", "udp_to_a_closed_port"): (
        [(b"\x03\x03", True, True)], "its error does not come from the address that was asked"),
    ("passt", "udp_to_a_closed_port"): (
        [(b"\x03\x03", True, True)], "it says nothing: programs wait for their time-out"),
    ("passt", "segment_of_no_connection"): ((RST, 7777), "it says nothing"),
    ("passt", "keep_alive"): ((ACK, True, True), "it says nothing, so that the guest gives up"),
    ("passt", "window_scale_that_was_not_offered"): (None, "RFC 7323 §1.3 forbids it"),
    ("passt", "guest_closes_first"): ((True, b"late question"), "its FIN never comes"),
    ("passt", "a_fin_with_data"): (b"late question", "its FIN never comes"),
    ("passt", "refused_port"): ((RST | ACK, 1001), "an RST without ACK, which Linux ignores"),
    ("passt", "ping_of_the_gateway"): (
        (True, b"\0\0", b"\0M\0\x030123456789"),
        "it needs a ping socket of the host, which not every user may make"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    with contextlib.ExitStack() as stack:
        yield Ports(stack)


@pytest.fixture(scope="module")
def ours(ports: Ports) -> Iterator[Callable[[Scenario], object]]:
    """Plays a scenario with our stack; once is enough."""
    results: dict[Scenario, object] = {}

    def play(scenario: Scenario) -> object:
        if scenario not in results:
            results[scenario] = scenario(client, ports)
            client.forget()
        return results[scenario]

    with our_stack(NatConfig(allow_host_ports=ports.all)) as client:
        yield play


@pytest.fixture(scope="module", params=["libslirp", "passt"])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Client]]:
    name = request.param
    reason = why_not(name)
    if reason is not None:
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp(name)
    with other_stack(name, folder) as client:
        yield name, client


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_alike(
    scenario: Scenario, ours: Callable[[Scenario], object], other: tuple[str, Client], ports: Ports
) -> None:
    name, client = other
    if scenario is dns_forward and not read_resolv_conf().servers:
        pytest.skip("the host has no resolver in /etc/resolv.conf")
    intended = INTENDED.get((name, scenario.__name__))
    if intended is not None:
        assert ours(scenario) == intended[0]
    else:
        theirs = scenario(client, ports)
        client.forget()
        assert ours(scenario) == theirs
