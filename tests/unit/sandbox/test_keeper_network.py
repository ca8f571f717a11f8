"""The network by way of the keeper: what test_nat shows of one that asks nobody, and the rules."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.unit.net import tap, test_nat
from tests.unit.net.tap import needs_tap
from voidbox.event_loop import EventLoop
from voidbox.loop_api import Loop, TimerHandle
from voidbox.nat.backend import NatBackend
from voidbox.nat.config import NatConfig
from voidbox.nat.forwards import parse_forward
from voidbox.sandbox.keeper import channel
from voidbox.sandbox.keeper.channel import Channel
from voidbox.sandbox.keeper.network import Answer, NetworkKeeper
from voidbox.sandbox.keeper.outside import KeptNetwork

LOOPBACK, FAR = 0x7F000001, 0xC0000221  # 192.0.2.33


class InProcess:
    """A keeper on a thread of this process, instead of in one of its own."""

    def __init__(
        self,
        config: NatConfig,
        log: Callable[[str], None],
        kind: type[NetworkKeeper] = NetworkKeeper,
    ) -> None:
        self._stack = ExitStack()
        quick, queries = channel.pair(), channel.pair()
        for sock in (*quick, *queries):
            self._stack.callback(sock.close)
        errors: list[BaseException] = []
        loop = EventLoop(on_error=errors.append)
        self._stack.callback(loop.close)
        self.keeper = kind(config, loop, queries[1], log)

        def answer(ready: int) -> None:
            values = channel.parse(quick[1].recv(channel.MESSAGE_BYTES_MAX))
            found, sock = self.keeper.answer(values["op"], values)
            channel.send_answer(quick[1], found, sock.fileno() if sock is not None else None)
            if sock is not None:
                sock.close()

        loop.watch(quick[1].fileno(), select.EPOLLIN, answer)
        loop.start()
        self._stack.callback(self.keeper.close)
        self._stack.callback(loop.stop)
        queries[0].setblocking(False)
        self.outside = KeptNetwork(Channel(quick[0]), queries[0], config.make_policy())
        self.close = self._stack.close
        self.errors = errors


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have guests of taps ask a keeper."""
    keepers: list[InProcess] = []

    class Generous(NetworkKeeper):  # who has a port published has ordered it
        def answer(self, op: str, values: dict[str, Any]) -> Answer:
            if op == "listen":
                self.allow(parse_forward(values["forward"]), True)
            return super().answer(op, values)

    def make(config: NatConfig, loop: Loop, log: Callable[[str], None]) -> NatBackend:
        keepers.append(InProcess(config, log, Generous))
        return NatBackend(config._replace(outside=keepers[-1].outside), loop, log)

    monkeypatch.setattr(tap, "NatBackend", make)
    yield
    for keeper in keepers:
        assert not keeper.errors
        keeper.close()


@needs_tap
def test_tcp(kept: None) -> None:
    test_nat.test_what_is_sent_comes_back(True, 1_000_000)


@needs_tap
def test_published_ports(kept: None) -> None:
    test_nat.test_a_published_port_reaches_the_guest()
    test_nat.test_a_published_udp_port_answers_each_peer()
    test_nat.test_a_taken_port_is_one_line()


@needs_tap
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_names(kept: None, protocol: str) -> None:
    test_nat.test_names_are_resolved_by_the_hosts_resolvers(protocol)
    test_nat.test_the_next_resolver_is_asked_when_one_is_dead(protocol)


class FakeLoop:
    """Reports nothing."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def call_soon(self, callback: Callable[[], None]) -> None: ...
    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        raise AssertionError


@pytest.fixture
def ruled() -> Iterator[InProcess]:
    lines: list[str] = []
    config = NatConfig(allow=("example.com:443",), allow_host_ports=(7,), resolvers=())
    keeper = InProcess(config, lines.append)
    yield keeper
    keeper.close()


def test_an_address_is_open_once_its_name_was_resolved_here(ruled: InProcess) -> None:
    def target(address: int, port: int) -> object:
        values = {"protocol": "TCP", "address": address, "port": port}
        return ruled.keeper.answer("target", values)[0]["address"]

    assert target(FAR, 443) is None
    ruled.keeper._policy.pin("example.com", [FAR], 60, 0)
    ruled.keeper._policy.pin("example.com", [FAR], 86400, 10**18)
    assert target(FAR, 443) == FAR
    assert target(FAR, 80) is None
    assert target(FAR + 1, 443) is None


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_no_socket_to_what_the_rules_close(ruled: InProcess, kind: int) -> None:
    for address, port in ((FAR, 443), (LOOPBACK, 8), (0xA9FEA9FE, 80), (0x0A000202, 7)):
        made = ruled.outside.open_connected(kind, 0, address, port)
        assert made == errno.EACCES, hex(address)


def test_the_loopbacks_open_port_is_connected(ruled: InProcess) -> None:
    made = ruled.outside.open_connected(socket.SOCK_DGRAM, 0, LOOPBACK, 7)
    assert isinstance(made, socket.socket)
    assert made.getpeername() == ("127.0.0.1", 7)
    made.close()


def test_a_tcp_connection_is_one_question(
    ruled: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's own 127.0.0.1 is not the gateway's address, though both would be LOOPBACK."""
    asked: list[str] = []
    answer = ruled.keeper.answer
    monkeypatch.setattr(
        ruled.keeper, "answer", lambda op, values: (asked.append(op), answer(op, values))[1]
    )
    gate, _ = ruled.outside.attach(FakeLoop(), lambda message: None)
    for address, port in ((FAR, 443), (0x0A000202, 8), (0x7F000002, 7)):
        target = gate.target("TCP", address, port, 0)
        assert target is not None and not asked
        assert ruled.outside.open_connected(socket.SOCK_STREAM, 0, target, port) == errno.EACCES
        assert asked == ["connect"]
        asked.clear()
    assert gate.target("TCP", LOOPBACK, 7, 0) is None
    assert gate.target("TCP", 0x0A000203, 443, 0) is None
    assert gate.target("UDP", 0x7F000002, 7, 0) is None


def test_no_port_is_published_that_nobody_ordered(ruled: InProcess) -> None:
    forward = parse_forward("127.0.0.1:0:80")
    with pytest.raises(PermissionError):
        ruled.outside.listen(forward)
    ruled.keeper.allow(forward, True)
    sock, port = ruled.outside.listen(forward)
    assert port and sock.getsockname()[1] == port
    sock.close()
    ruled.keeper.allow(forward, False)
    with pytest.raises(PermissionError):
        ruled.outside.listen(forward)


@pytest.mark.parametrize(
    "values",
    [
        {}, {"address": -1, "port": 1}, {"address": 1 << 32, "port": 1},
        {"address": FAR, "port": 1 << 16}, {"address": "127.0.0.1", "port": 7},
        {"address": FAR, "port": 443, "kind": socket.SOCK_RAW, "protocol": 0},
        {"address": FAR, "port": 443, "kind": socket.SOCK_DGRAM, "protocol": 255},
        {"address": [], "port": None, "kind": {}, "protocol": []}, {"protocol": "SCTP"},
        {"forward": "rm -rf"}, {"forward": 5}, {"address": 1.5, "port": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("op", ["target", "connect", "listen", "nothing"])
def test_whatever_is_asked_the_keeper_goes_on(
    ruled: InProcess, op: str, values: dict[str, object]
) -> None:
    answer, sock = ruled.keeper.answer(op, values)
    assert sock is None
    assert answer.get("errno") or answer.get("address", 0) is None


def test_what_is_no_question_is_none() -> None:
    for data in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"op": 1}'):
        assert channel.parse(data) in ({}, {"op": 1})


def test_a_channel_whose_keeper_is_gone_says_so() -> None:
    ours, theirs = channel.pair()
    asking = Channel(ours)
    theirs.close()
    with pytest.raises(OSError):
        asking.ask("target")
    asking.close()
