"""The whole stack with Linux's own TCP/IP as the guest, and the host's loopback as the world."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.net.tap import TapGuest, echo_server, needs_tap
from voidbox.errors import ConfigError, HostError
from voidbox.nat import resolv_conf_file, sockets
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import Forward, parse_forward
from voidbox.net import tcp_outgoing, tcp_table
from voidbox.net.stack import StackStatistics

pytestmark = needs_tap

# Connects to 10.0.2.2, sends argv[2] bytes that depend on their place, and checks that they return.
ECHO_CLIENT = """
import hashlib, socket, sys, threading
port, size = int(sys.argv[1]), int(sys.argv[2])
block = bytes(range(251)) * 1000
data = (block * (size // len(block) + 1))[:size]
sock = socket.create_connection(("10.0.2.2", port), timeout=100)
def send():
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
thread = threading.Thread(target=send)
thread.start()
got = bytearray()
while part := sock.recv(1 << 16):
    got += part
thread.join()
assert bytes(got) == data, (len(got), size)
print("same")
"""


def statistics(guest: TapGuest) -> StackStatistics:
    found = guest.on_loop(guest.backend.statistics)
    assert isinstance(found, StackStatistics)
    return found


def wait_for(condition: object, what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def guest_with_echo(**options: object) -> Iterator[tuple[TapGuest, int]]:
    with (
        echo_server() as port,
        TapGuest(NatConfig(allow_host_ports=(port,)), **options) as guest,  # type: ignore[arg-type]
    ):
        yield guest, port


# --- TCP ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("has_offloads", [True, False], ids=["offloads", "plain"])
@pytest.mark.parametrize("size", [0, 1, 1460, 70_000, 20_000_000])
def test_what_is_sent_comes_back(has_offloads: bool, size: int) -> None:
    with guest_with_echo(has_offloads=has_offloads) as (guest, port):
        assert guest.python(ECHO_CLIENT, port, size) == "same\n"
        wait_for(lambda: statistics(guest).tcp_flows == 0, "the flow is still there")


@pytest.mark.slow
@pytest.mark.parametrize("one_in", [5, 10, 100])
def test_frames_that_get_lost_are_sent_again(one_in: int) -> None:
    # Not every fifth: what is sent again could then be the one that is lost, again and again.
    source = random.Random(one_in)
    with guest_with_echo() as (guest, port):
        guest.line.loses = lambda number: source.randrange(one_in) == 0
        assert guest.python(ECHO_CLIENT, port, 100_000 * one_in, timeout_s=120) == "same\n"


def test_many_connections_at_once() -> None:
    code = """
import socket, sys
socks = [socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=30) for _ in range(200)]
for number, sock in enumerate(socks):
    sock.sendall(b"%d" % number * 1000)
for number, sock in enumerate(socks):
    want = b"%d" % number * 1000
    assert sock.recv(len(want), socket.MSG_WAITALL) == want
for sock in socks:
    sock.close()
"""
    with guest_with_echo() as (guest, port):
        guest.python(code, port)
        wait_for(lambda: statistics(guest).tcp_flows == 0, "flows are left")


@pytest.mark.slow
def test_many_connections_after_one_another_leave_nothing() -> None:
    """VOIDBOX_LONG=1 for 100,000."""
    count = 100_000 if "VOIDBOX_LONG" in os.environ else 2000
    code = """
import socket, sys
for number in range(int(sys.argv[2])):
    with socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=30) as sock:
        sock.send(b"x")
        assert sock.recv(1) == b"x"
"""
    with guest_with_echo() as (guest, port):
        # The guest's own ports would run out: each is kept for a minute after its connection.
        guest.sh("echo 1000 > /proc/sys/net/ipv4/tcp_max_tw_buckets")
        guest.python(code, port, 200)
        before = len(os.listdir("/proc/self/fd"))
        guest.python(code, port, count, timeout_s=600)
        wait_for(lambda: statistics(guest).tcp_flows == 0, "flows are left")
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors are left")


def test_a_refused_port_fails_at_once_and_others_go_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        port = taken.getsockname()[1]
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            code = """
import socket, sys, time
started = time.monotonic()
try:
    socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=30)
except ConnectionRefusedError:
    assert time.monotonic() - started < 25
    print("refused")
"""
            assert guest.python(code, port) == "refused\n"
            assert statistics(guest).tcp_flows == 0


def test_an_unreachable_network_is_told_by_icmp() -> None:
    """The namespace that the host's sockets are in has no route to TEST-NET-1."""
    code = """
import errno, socket, sys
try:
    socket.create_connection(("192.0.2.1", 80), timeout=10)
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""
    with TapGuest() as guest:
        guest.on_loop(lambda: _make_unreachable(guest))
        assert guest.python(code) == "ENETUNREACH\n"


def _make_unreachable(guest: TapGuest) -> None:
    guest.backend._sockets.connect_tcp = lambda address, port, owner: 101  # type: ignore[assignment]


def test_half_close_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sock.sendall(b"question")
sock.shutdown(socket.SHUT_WR)
print(sock.recv(100, socket.MSG_WAITALL).decode())
"""
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            process = guest.start(code, port)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(100, socket.MSG_WAITALL) == b"question"
                time.sleep(0.2)
                connection.sendall(b"answer")
            assert process.communicate(timeout=60)[0] == b"answer\n"
            # And the other way: the host ends first, the guest goes on.
            code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
assert sock.recv(1) == b""
sock.sendall(b"late")
"""
            process = guest.start(code, port)
            connection, _ = server.accept()
            with connection:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(60)
                assert connection.recv(100, socket.MSG_WAITALL) == b"late"
            assert process.wait(60) == 0
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()
            wait_for(lambda: statistics(guest).tcp_flows == 0, "the flow is still there")


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-closed connection is asked for after half a second or one, at both ends."""
    monkeypatch.setattr(tcp_outgoing, "HALF_CLOSED_NS", 500_000_000)
    monkeypatch.setattr(tcp_outgoing, "KEEPALIVE_INTVL_NS", 1_000_000_000)
    monkeypatch.setattr(sockets, "KEEP_ALIVE_S", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("impatience")
def test_half_closed_connections_end_when_the_guest_forgot_them() -> None:
    """And not before: what a program of it still has open stays."""
    code = """
import socket, sys
socks = [socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60) for _ in range(2)]
for sock in socks:
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
socks.pop(0).close()
print(socks[0].recv(100, socket.MSG_WAITALL).decode())
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            guest.sh("echo 1 > /proc/sys/net/ipv4/tcp_fin_timeout")
            process = guest.start(code, port)
            (first, _), (second, _) = server.accept(), server.accept()
            with first, second:
                for connection in (first, second):
                    connection.settimeout(60)
                    assert connection.recv(100, socket.MSG_WAITALL) == b"question"
                wait_for(lambda: statistics(guest).tcp_flows == 1, "the flow is still there")
                # It had sent its end, and the far end's program did not take the hint.
                with pytest.raises(ConnectionError):
                    first.sendall(b"answer")
                    first.sendall(b"answer")
                time.sleep(1.5)
                assert statistics(guest).tcp_flows == 1
                second.sendall(b"answer")
            assert process.communicate(timeout=60)[0] == b"answer\n"
            wait_for(lambda: statistics(guest).tcp_flows == 0, "flows are left")


@pytest.mark.usefixtures("impatience")
def test_a_slow_reader_gets_all_of_what_a_guest_sent_that_is_gone() -> None:
    """Its kernel takes it to be delivered, and forgets the connection after tcp_fin_timeout."""
    code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sock.sendall(bytes(300_000))
"""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            guest.sh("echo 1 > /proc/sys/net/ipv4/tcp_fin_timeout")
            assert guest.python(code, port) == ""
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                wait_for(lambda: statistics(guest).tcp_flows == 0, "the flow is still there")
                got = 0
                while part := connection.recv(65536):
                    got += len(part)
                assert got == 300_000


@pytest.mark.usefixtures("impatience")
def test_half_closed_connections_end_when_the_far_end_forgot_them() -> None:
    code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
assert sock.recv(1) == b""
print("ended", flush=True)
sys.stdin.read()
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = NatConfig(allow_host_ports=(port,))
        with TapGuest(config) as guest, guest.start(code, port) as process:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
            connection.close()
            assert process.stdout is not None and process.stdout.readline() == b"ended\n"
            assert statistics(guest).tcp_flows == 1
            wait_for(lambda: statistics(guest).tcp_flows == 0, "the flow is still there")


def test_a_published_port_full_of_half_closed_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's programs have ended their side, and the guest's server does not care."""
    monkeypatch.setattr(tcp_table, "TCP_FLOWS_MAX", 50)
    code = """
import socket
with socket.create_server(("10.0.2.15", 80), backlog=200) as server:
    print("listening", flush=True)
    kept = []
    while True:
        kept.append(server.accept()[0])
        kept[-1].sendall(b"hello")
"""
    with TapGuest(NatConfig(publish=(Forward("127.0.0.1", 0, 80, False),))) as guest:
        process = guest.start(code)
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        (forward,) = guest.backend.forwards.list()
        clients = []
        for _ in range(120):
            client = socket.create_connection(("127.0.0.1", forward.host_port), timeout=60)
            clients.append(client)
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.001)
        assert statistics(guest).tcp_flows == 50
        assert any("half-closed" in line for line in guest.log)
        for client in clients:
            client.close()
        process.kill()
        process.communicate(timeout=60)


def test_a_reset_goes_through_both_ways() -> None:
    abort = struct.pack("ii", 1, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = """
import socket, struct, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sock.send(b"x")
try:
    sock.recv(1)
except ConnectionResetError:
    print("reset")
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()
"""
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            process = guest.start(code, port)
            connection, _ = server.accept()
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
            connection.close()
            second, _ = server.accept()
            with second:
                second.settimeout(60)
                with pytest.raises(ConnectionResetError):
                    second.recv(1)
            assert process.communicate(timeout=60)[0] == b"reset\n"
            wait_for(lambda: statistics(guest).tcp_flows == 0, "the flow is still there")


def test_an_answer_that_comes_before_the_end_of_the_request() -> None:
    """The server does not want the rest, and its kernel says so by RST, right behind the answer."""
    code = """
import socket, sys
for _ in range(10):
    sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
    try:
        while True:
            sock.sendall(bytes(65536))
    except ConnectionError:
        print(sock.recv(100).decode())
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            process = guest.start(code, port)
            for _ in range(10):
                connection, _ = server.accept()
                with connection:
                    connection.recv(100_000)
                    connection.sendall(b"too large")
            assert process.communicate(timeout=60)[0] == b"too large\n" * 10


def test_a_slow_reader_holds_up_nobody_else_and_grows_nothing() -> None:
    """The guest sends to a program that does not read; then it reads everything."""
    with socket.create_server(("127.0.0.1", 0)) as server, echo_server() as echo_port:
        port = server.getsockname()[1]
        code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sock.sendall(bytes(range(250)) * 100000)
sock.shutdown(socket.SHUT_WR)
assert sock.recv(1) == b""
"""
        with TapGuest(NatConfig(allow_host_ports=(port, echo_port))) as guest:
            process = guest.start(code, port)
            connection, _ = server.accept()
            with connection:
                time.sleep(0.5)
                assert guest.python(ECHO_CLIENT, echo_port, 100_000) == "same\n"
                held = guest.on_loop(
                    lambda: [
                        f.connection.held_bytes for f in guest.backend._stack._tcp.flows.values()
                    ]
                )
                assert (
                    isinstance(held, list) and max(held) <= (2 << 20) + 200
                )  # the window is rounded up
                got = bytearray()
                while part := connection.recv(1 << 20):
                    got += part
                assert bytes(got) == bytes(range(250)) * 100000
            assert process.wait(60) == 0
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()


@pytest.mark.slow
def test_a_guest_that_does_not_read_fills_no_memory() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = """
import socket, sys, time
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
sys.stdin.readline()
got = bytearray()
while part := sock.recv(1 << 20):
    got += part
assert bytes(got) == bytes(range(250)) * 200000, len(got)
"""
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            process = guest.start(code, port)
            connection, _ = server.accept()
            data = bytes(range(250)) * 200000
            sender = threading.Thread(target=_send_all, args=(connection, data))
            sender.start()
            time.sleep(3)  # the window is shut, and probed
            kept = guest.on_loop(
                lambda: [flow._kept.size for flow in guest.backend._stack._tcp.flows.values()]
            )
            assert isinstance(kept, list) and max(kept) <= 2 << 20
            output = process.communicate(b"\n", timeout=60)
            assert process.returncode == 0, output
            sender.join()


def _send_all(connection: socket.socket, data: bytes) -> None:
    with connection:
        connection.sendall(data)


# --- UDP, ping, DNS -----------------------------------------------------------------------------


def test_udp_and_its_errors() -> None:
    code = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.connect(("10.0.2.2", int(sys.argv[1])))
for size in (0, 1, 1472, 1473, 9000, 60000):
    data = bytes(size)
    sock.send(data) if size <= 1472 else None
    if size <= 1472:
        assert sock.recv(65536) == data, size
dead = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dead.settimeout(10)
dead.connect(("10.0.2.2", int(sys.argv[2])))
dead.send(b"x")
try:
    dead.recv(1)
except ConnectionRefusedError:
    print("refused")
"""
    with echo_server(socket.SOCK_DGRAM) as port, socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
        taken.close()
        with TapGuest(NatConfig(allow_host_ports=(port, dead))) as guest:
            assert guest.python(code, port, dead) == "refused\n"
            assert statistics(guest).datagram_flows == 2


def test_a_datagram_longer_than_the_mtu_arrives_in_fragments() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)
        port = server.getsockname()[1]
        code = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.sendto(b"x", ("10.0.2.2", int(sys.argv[1])))
for size in (1473, 9000, 60000):
    assert sock.recv(65536) == bytes(range(250)) * (size // 250) + bytes(size % 250), size
"""
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            process = guest.start(code, port)
            _, peer = server.recvfrom(10)
            for size in (1473, 9000, 60000):
                server.sendto(bytes(range(250)) * (size // 250) + bytes(size % 250), peer)
            output = process.communicate(timeout=60)
            assert process.returncode == 0, output


def test_a_datagram_longer_than_the_mtu_goes_there_and_back() -> None:
    code = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(60)
sock.connect(("10.0.2.2", int(sys.argv[1])))
for size in (1472, 1473, 9000, 65507):
    data = (bytes(range(251)) * 300)[:size]
    sock.send(data)
    assert sock.recv(65536) == data, size
"""
    with (
        echo_server(socket.SOCK_DGRAM) as port,
        TapGuest(NatConfig(allow_host_ports=(port,))) as guest,
    ):
        guest.python(code, port)
        assert not statistics(guest).dropped.get("unfinished datagram")


# Asks by ARP for every address of the network, and prints those that are somebody's.
SCAN = """
import socket, struct, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x806))
sock.bind(("tap0", 0))
mac = bytes.fromhex("525400123456")
for last in range(256):
    target = bytes((10, 0, 2, last))
    head = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1)
    body = head + mac + bytes((10, 0, 2, 15)) + bytes(6) + target
    sock.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + body)
found = set()
try:
    while True:
        sock.settimeout(20 if len(found) < int(sys.argv[1]) else 0.5)
        frame = sock.recv(100)
        if frame[20:22] == b"\\0\\2":
            found.add(socket.inet_ntoa(frame[28:32]))
except TimeoutError:
    print(*sorted(found))
"""


@pytest.mark.parametrize(
    ("allow", "found"),
    [((), "10.0.2.2 10.0.2.3\n"), (("*", "10.0.2.77:80"), "10.0.2.2 10.0.2.3 10.0.2.77\n")],
)
def test_a_scan_of_the_network_finds_those_that_exist(allow: tuple[str, ...], found: str) -> None:
    with TapGuest(NatConfig(allow=allow)) as guest:
        assert guest.python(SCAN, len(found.split())) == found


PING = """
import os, socket, struct, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.settimeout(5)
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
for sequence in range(3):
    head = struct.pack("!BBHHH", 8, 0, 0, 4711, sequence)
    body = b"payload of the echo"+ b"."
    head = struct.pack("!BBHHH", 8, 0, checksum(head + body), 4711, sequence)
    sock.sendto(head + body, (sys.argv[1], 0))
    while True:
        data, peer = sock.recvfrom(2000)
        if data[20] != 8:
            break
    type, code, _, identifier, number = struct.unpack("!BBHHH", data[20:28])
    print(type, code, identifier == 4711 and number == sequence and data[28:] == body)
"""


def test_ping() -> None:
    with TapGuest() as guest:
        for address in ("10.0.2.2", "10.0.2.3"):
            assert guest.python(PING, address) == "0 0 True\n" * 3


@pytest.mark.skipif(
    Path("/proc/sys/net/ipv4/ping_group_range").read_text().split() == ["1", "0"],
    reason="the host lets nobody ping: sysctl net.ipv4.ping_group_range='0 2147483647'",
)
def test_ping_of_the_world() -> None:
    with TapGuest() as guest:
        # 127.0.0.1 under another name: only the adapter may know that.
        real = guest.backend._sockets.open_ping
        guest.backend._sockets.open_ping = lambda address, owner: real(0x7F000001, owner)  # type: ignore[method-assign]
        assert guest.python(PING, "192.0.2.77") == "0 0 True\n" * 3


def test_a_ping_that_the_host_may_not_send_is_refused_honestly() -> None:
    with TapGuest() as guest:
        guest.backend._sockets.open_ping = lambda address, owner: 13  # type: ignore[method-assign]
        assert guest.python(PING, "192.0.2.77").split("\n")[0].startswith("3 13")


# --- policy -------------------------------------------------------------------------------------

TRY = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("open")
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "0.0.0.1", "224.0.0.1", "100.100.100.200"]
)
def test_closed_addresses_are_closed(address: str) -> None:
    with TapGuest() as guest:
        guest.sh("ip route add 127.0.0.1 via 10.0.2.2 table local 2>/dev/null; true")
        assert guest.python(TRY, address, 80) != "open\n"


def test_the_hosts_loopback_is_closed_but_for_the_ports_that_were_opened() -> None:
    with echo_server() as other, guest_with_echo() as (guest, port):
        assert guest.python(TRY, "10.0.2.2", port) == "open\n"
        assert guest.python(TRY, "10.0.2.2", other) == "ECONNREFUSED\n"
        (rule,) = statistics(guest).refused
        assert statistics(guest).refused[rule] == 1
        assert guest.log == [f"refused TCP to 10.0.2.2:{other}: {rule}"]


def test_the_hosts_other_addresses_are_not_the_world() -> None:
    code = """
import errno, socket
from voidbox.nat.sockets import open_connected
with socket.create_server(("198.51.100.7", 0)) as server:
    port = server.getsockname()[1]
    print(open_connected(socket.SOCK_STREAM, 0, 0xC6336407, port) == errno.ECONNREFUSED)
    print(open_connected(socket.SOCK_DGRAM, 0, 0xC6336407, port) == errno.EACCES)
"""
    with TapGuest() as guest:  # its network namespace is the host's here
        guest.sh("ip address add 198.51.100.7/32 dev lo")
        assert guest.python(code) == "True\nTrue\n"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6(), reason="no ::1: sysctl net.ipv6.conf.lo.disable_ipv6=0"
)


@needs_ipv6
@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_service_on_ipv6_alone_is_found(
    monkeypatch: pytest.MonkeyPatch, is_at_once: bool
) -> None:
    if not is_at_once:  # as on a machine that is busy
        state_of, late = sockets._state_of, [sockets.TCP_SYN_SENT] * 2
        monkeypatch.setattr(
            sockets, "_state_of", lambda sock: late.pop() if late else state_of(sock)
        )
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("::1", port))
        datagrams.settimeout(60)
        code = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[2] == "tcp" else socket.SOCK_DGRAM
sock = socket.socket(socket.AF_INET, kind)
sock.settimeout(60)
sock.connect(("10.0.2.2", int(sys.argv[1])))
for part in (b"question", b"another"):
    sock.send(part)
    assert sock.recv(100) == part.upper()
"""
        with TapGuest(NatConfig(allow_host_ports=(port,))) as guest:
            with guest.start(code, port, "tcp") as process:
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(100):
                        connection.sendall(data.upper())
                assert process.wait(60) == 0
            with guest.start(code, port, "udp") as process:
                for _ in range(2):
                    data, peer = datagrams.recvfrom(100)
                    datagrams.sendto(data.upper(), peer)
                assert process.wait(60) == 0


@needs_ipv6
def test_a_service_on_ipv4_comes_first_and_one_on_neither_is_refused() -> None:
    code = """
import socket, sys
try:
    sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])), timeout=60)
    print(sock.recv(4, socket.MSG_WAITALL))
except ConnectionRefusedError:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("10.0.2.2", int(sys.argv[1])))
    sock.settimeout(60)
    try:
        sock.send(b"x")
        sock.recv(1)
    except ConnectionRefusedError:
        print("refused")
"""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET6) as other,
        socket.socket() as nobody,
    ):
        nobody.bind(("127.0.0.1", 0))
        port, dead = server.getsockname()[1], nobody.getsockname()[1]
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", port))
        other.listen()
        with TapGuest(NatConfig(allow_host_ports=(port, dead))) as guest:
            with guest.start(code, port) as process:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"IPv4")
                assert process.communicate(timeout=60)[0] == b"b'IPv4'\n"
            assert guest.python(code, dead) == "refused\n"
            wait_for(lambda: statistics(guest).tcp_flows == 0, "flows are left")


def test_rules() -> None:
    with TapGuest(NatConfig(allow=("192.0.2.0/24",), deny=("192.0.2.7",))) as guest:
        real = guest.backend._sockets.connect_tcp
        with echo_server() as port:
            guest.backend._sockets.connect_tcp = lambda a, p, owner: real(0x7F000001, port, owner)  # type: ignore[method-assign]
            assert guest.python(TRY, "192.0.2.1", 80) == "open\n"
            assert guest.python(TRY, "192.0.2.7", 80) == "ECONNREFUSED\n"
            assert guest.python(TRY, "198.51.100.1", 80) == "ECONNREFUSED\n"


# --- published ports ----------------------------------------------------------------------------

SERVER = """
import socket, sys
server = socket.create_server(("10.0.2.15", 80))
print("up", flush=True)
for _ in range(int(sys.argv[1])):
    sock, peer = server.accept()
    data = sock.recv(1 << 16)
    sock.sendall(peer[0].encode() + b" " + data)
    sock.close()
"""


def test_a_published_port_reaches_the_guest() -> None:
    config = NatConfig(publish=(parse_forward("0:80"),))
    with TapGuest(config) as guest:
        (forward,) = guest.backend.forwards.list()
        assert forward.host_ip == "127.0.0.1" and forward.host_port
        process = guest.start(SERVER, 3)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", forward.host_port), timeout=60) as sock:
                sock.sendall(b"hello")
                assert sock.recv(100, socket.MSG_WAITALL) == b"10.0.2.2 hello"
        process.communicate(timeout=60)
        # Nobody listens any more: the program is told at once.
        with (
            contextlib.suppress(ConnectionResetError),
            socket.create_connection(("127.0.0.1", forward.host_port), timeout=60) as sock,
        ):
            assert sock.recv(1) == b""
        assert guest.on_loop(lambda: guest.backend.forwards.remove(forward)) is True
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", forward.host_port))


def test_a_published_udp_port_answers_each_peer() -> None:
    code = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.0.2.15", 53))
print("up", flush=True)
for _ in range(4):
    data, peer = server.recvfrom(2000)
    server.sendto(data.upper(), peer)
"""
    with TapGuest() as guest:
        forward = guest.on_loop(lambda: guest.backend.forwards.add(parse_forward("0:53/udp")))
        assert isinstance(forward, Forward)
        process = guest.start(code)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
            for number, sock in enumerate(socks * 2):
                sock.settimeout(60)
                sock.sendto(b"from %d" % number, ("127.0.0.1", forward.host_port))
                assert sock.recv(100) == b"FROM %d" % number
        process.communicate(timeout=60)


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(HostError, match=f"{port}:80: another program has that port"):
            TapGuest(NatConfig(publish=(parse_forward(f"{port}:80"),)))


@pytest.mark.parametrize("text", ["", "80", "x:80", "1:2:3", "70000:80", "80:0", "1.2.3.400:1:2"])
def test_what_is_no_publication_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="HOSTPORT:GUESTPORT"):
        parse_forward(text)


# --- DNS ----------------------------------------------------------------------------------------

RESOLVE = """
import os, socket, struct, sys
name, is_tcp = sys.argv[1], sys.argv[2] == "tcp"
query = struct.pack("!HHHHHH", 4242, 0x100, 1, 0, 0, 0)
query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\\0"
query += struct.pack("!HH", 1, 1)
if is_tcp:
    sock = socket.create_connection(("10.0.2.3", 53), timeout=60)
    sock.sendall(struct.pack("!H", len(query)) + query)
    (size,) = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))
    reply = sock.recv(size, socket.MSG_WAITALL)
else:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(15)
    sock.sendto(query, ("10.0.2.3", 53))
    reply = sock.recv(2000)
identifier, flags, _, answers, _, _ = struct.unpack_from("!HHHHHH", reply)
print(identifier, flags & 15, answers, socket.inet_ntoa(reply[-4:]) if answers else "-")
"""


@contextlib.contextmanager
def name_server(
    place: tuple[str, int] = ("127.0.0.1", 0), gives: str = "192.0.2.33"
) -> Iterator[int]:
    """A resolver on loopback, UDP and TCP, that gives the same address for every name."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket() as tcp,
    ):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(place)
        tcp.listen(10)
        udp.bind(tcp.getsockname())

        def answer(query: bytes) -> bytes:
            head = query[:2] + b"\x81\x80" + query[4:6] + b"\0\1\0\0\0\0"
            question = query[12 : query.index(b"\0", 12) + 5]
            return head + question + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(gives)

        def serve_udp() -> None:
            with contextlib.suppress(OSError):
                while True:
                    query, peer = udp.recvfrom(2000)
                    if not query:
                        return
                    udp.sendto(answer(query), peer)

        def serve_tcp() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = tcp.accept()
                    with connection:
                        (size,) = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
                        reply = answer(connection.recv(size, socket.MSG_WAITALL))
                        connection.sendall(struct.pack("!H", len(reply)) + reply)

        for target in (serve_udp, serve_tcp):
            threading.Thread(target=target, daemon=True).start()
        yield udp.getsockname()[1]
        for sock in (udp, tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_names_are_resolved_by_the_hosts_resolvers(protocol: str) -> None:
    with name_server() as port:
        resolvers = (("127.0.0.1", port),)
        with TapGuest(NatConfig(resolvers=resolvers)) as guest:
            assert guest.python(RESOLVE, "example.com", protocol) == "4242 0 1 192.0.2.33\n"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_next_resolver_is_asked_when_one_is_dead(protocol: str) -> None:
    with name_server() as port, socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
        taken.close()
        resolvers = (("127.0.0.1", dead), ("127.0.0.1", port))
        with TapGuest(NatConfig(resolvers=resolvers)) as guest:
            assert guest.python(RESOLVE, "example.com", protocol) == "4242 0 1 192.0.2.33\n"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_hosts_resolvers_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """A VPN comes up: the new one answers also what was asked before, of one that is dead."""
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolv_conf_file, "RESOLV_CONF", str(conf))
    monkeypatch.setattr(resolv_conf_file, "LOOK_NS", 0)
    # Ours alone: others run this test at the same time.
    pid = os.getpid()
    first, silent, second = (f"127.{n}.{pid >> 8 & 255}.{pid & 255}" for n in (77, 78, 79))
    conf.write_text("")
    with (
        TapGuest() as guest,
        name_server((first, 53), "192.0.2.1"),
        name_server((second, 53), "192.0.2.2"),
        socket.socket(type=socket.SOCK_DGRAM) as never,
        socket.create_server((silent, 53)),
    ):
        never.bind((silent, 53))
        assert guest.python(RESOLVE, "example.com", protocol) == "4242 2 0 -\n"
        conf.write_text(f"nameserver {first}\n")
        assert guest.python(RESOLVE, "example.com", protocol) == "4242 0 1 192.0.2.1\n"
        conf.write_text(f"nameserver {silent}\n")
        waiting = guest.start(RESOLVE, "slow.example.com", protocol)
        pending = guest.backend._names._forwarder._pending
        wait_for(lambda: pending, "it was not asked")
        conf.write_text(f"nameserver {second}\n")
        assert guest.python(RESOLVE, "example.com", protocol) == "4242 0 1 192.0.2.2\n"
        assert waiting.communicate(timeout=60)[0] == b"4242 0 1 192.0.2.2\n"
        assert len(guest.backend._names._resolvers._udp) <= 1  # the old ones' sockets are closed


def test_without_a_resolver_the_guest_gets_servfail() -> None:
    with TapGuest(NatConfig(resolvers=())) as guest:
        assert guest.python(RESOLVE, "example.com", "udp") == "4242 2 0 -\n"
        assert guest.python(RESOLVE, "example.com", "tcp") == "4242 2 0 -\n"


def test_a_rule_for_a_name_holds_for_the_addresses_that_it_was_given() -> None:
    with name_server() as dns_port, echo_server() as port:
        resolvers = (("127.0.0.1", dns_port),)
        with TapGuest(NatConfig(allow=("example.com",), resolvers=resolvers)) as guest:
            real = guest.backend._sockets.connect_tcp
            guest.backend._sockets.connect_tcp = lambda a, p, owner: real(0x7F000001, port, owner)  # type: ignore[method-assign]
            assert guest.python(TRY, "192.0.2.33", 443) == "ECONNREFUSED\n"
            assert guest.python(RESOLVE, "example.com", "udp") == "4242 0 1 192.0.2.33\n"
            assert guest.python(TRY, "192.0.2.33", 443) == "open\n"
            assert guest.python(TRY, "192.0.2.34", 443) == "ECONNREFUSED\n"
            assert guest.python(RESOLVE, "evil.org", "udp") == "4242 5 0 -\n"


# --- the rest -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rate_limit_holds_both_ways() -> None:
    with echo_server() as port:
        config = NatConfig(allow_host_ports=(port,), rate_bytes_s=2_000_000)
        with TapGuest(config) as guest:
            started = time.monotonic()
            assert guest.python(ECHO_CLIENT, port, 2_000_000) == "same\n"
            # 4 MB in all; the burst is a tenth of a second's.
            assert time.monotonic() - started > 1.5


def test_sockets_that_wait_for_the_rate_keep_nobody_busy() -> None:
    code = """
import socket, sys
sock = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
while sock.recv(65536):
    pass
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = NatConfig(allow_host_ports=(port,), rate_bytes_s=1000)
        with TapGuest(config) as guest:
            process = guest.start(code, port)
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(100_000))

                def masks_of_waiting() -> list[int]:
                    """What is watched of the sockets with data, while the rate holds them back."""
                    backend = guest.backend
                    if backend._rate_timer is None:
                        return []
                    flows = [f for f in backend._stack._tcp.flows.values() if f.is_queued]
                    return [f.stream._mask for f in flows if f.readable]  # type: ignore[union-attr]

                wait_for(lambda: guest.on_loop(masks_of_waiting) == [0], "unwatched", 60)
            process.kill()
            process.communicate()


def test_pcap(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcap"
    with (
        echo_server() as port,
        TapGuest(NatConfig(allow_host_ports=(port,), pcap=str(path))) as guest,
    ):
        assert guest.python(ECHO_CLIENT, port, 1000) == "same\n"
    from scapy.layers.inet import TCP
    from scapy.utils import rdpcap

    packets = rdpcap(str(path))
    ports = {packet[TCP].dport for packet in packets if TCP in packet}
    assert port in ports
    assert b"".join(
        bytes(packet[TCP].payload)
        for packet in packets
        if TCP in packet and packet[TCP].sport == port
    )[:250] == bytes(range(250))


def test_a_pcap_file_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(ConfigError, match="cannot write --pcap /nonexistent/x"):
        TapGuest(NatConfig(pcap="/nonexistent/x"))
