"""The relay beside guests that do not speak as the command does."""

from __future__ import annotations

import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.sandbox.team import Client, Member, World
from voidbox.agent.packing import pack
from voidbox.sandbox.relay import protocol as relay_protocol
from voidbox.sandbox.relay import server as relay
from voidbox.sandbox.relay.rate import Rate


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def works(member: Member) -> None:
    """See that the relay still serves who behaves."""
    client = member.dial()
    assert client.ask(op="peers")["name"] == member.name
    client.close()


BROKEN = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", "no frame: it starts with b'GET '"),
    "another version": (b"vbR2\0\0\0\0", "no frame: it starts with b'vbR2'"),
    "a huge frame": (b"vbR1\xff\xff\xff\xff", "a payload of 4294967295 bytes"),
    "no MessagePack": (relay_protocol.encode(b"\xc1"), "a payload that cannot be read"),
    "nothing": (relay_protocol.encode(b""), "a payload that cannot be read"),
    "no map": (relay_protocol.encode(pack([1])), "a payload that is not a map"),
    "nested": (relay_protocol.encode(b"\x81\xa1a" * 4000), "nested too deeply"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_who_breaks_the_protocol_is_told_and_cut_off(world: World, case: str) -> None:
    data, expected = BROKEN[case]
    alice = world.add("alice")
    client = alice.dial()
    client.socket.sendall(data)
    reply = client.reply()
    assert reply is not None
    assert expected in reply["error"]
    assert client.reply() is None
    client.close()
    assert alice.server.statistics().cut_off == 1
    works(alice)


def test_a_request_that_cannot_be_is_refused_and_the_next_one_served(world: World) -> None:
    alice = world.add("alice")
    client = alice.dial()
    for values, expected in (
        ({"op": "shutdown"}, "no such request"),
        ({}, "no such request"),
        ({"op": ["send"]}, "no such request"),
        ({"op": "send", "to": 1}, "must be strings"),
        ({"op": "send", "text": "x" * 8193}, "8193 bytes: 8192 at most"),
        ({"op": "receive", "wait": 1e300}, "from 0 to 60"),
        ({"op": "receive", "wait": float("nan")}, "from 0 to 60"),
        ({"op": "receive", "wait": True}, "number of seconds"),
        ({"op": "receive", "count": -1}, "at least 1"),
    ):
        assert expected in client.ask(**values)["error"]
    assert client.ask(op="peers")["peers"] == []
    client.close()


def test_any_name_is_just_unknown(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    client = alice.dial()
    chance = random.Random(5)
    for _ in range(200):
        name = bytes(chance.randbytes(chance.randrange(100))).decode("utf-8", "surrogateescape")
        assert client.ask(op="send", to=name, text="x") == {"outcome": "unknown"}
    client.close()
    assert world.looked_up
    assert all("/" not in name and "\0" not in name for name in world.looked_up)


def test_requests_sent_ahead_are_answered_one_by_one(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    bob = world.add("bob")
    client = alice.dial()
    # More than Python's stack would hold if each were served within the one before.
    frames = relay_protocol.encode(pack({"op": "taken"})) * 3000
    frames += relay_protocol.encode(pack({"op": "send", "to": "bob", "text": "last"}))
    sender = threading.Thread(target=client.socket.sendall, args=(frames,))
    sender.start()
    replies = [client.reply() for _ in range(3001)]
    sender.join()
    assert replies[:-1] == [{}] * 3000
    assert replies[-1] == {"outcome": "delivered"}
    assert len(bob.mailbox) == 1
    client.close()


def test_a_request_that_comes_by_the_byte_is_served(world: World) -> None:
    client = world.add("alice").dial()
    for byte in relay_protocol.encode(pack({"op": "peers"})):
        client.socket.sendall(bytes((byte,)))
    assert client.reply() == {"name": "alice", "peers": [], "omitted": 0}
    client.close()


@pytest.mark.parametrize("start", [b"", b"vbR1", relay_protocol.encode(bytes(100))[:-1]])
def test_half_a_request_is_waited_for_but_not_for_ever(
    world: World, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REQUEST_S", 0.2)
    alice = world.add("alice")
    client = alice.dial()
    client.socket.sendall(start)
    assert client.reply() is None
    client.close()
    await_true(lambda: alice.server.statistics().connections == 0)


def test_bytes_now_and_then_do_not_prolong_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REQUEST_S", 0.3)
    client = world.add("alice").dial()
    client.socket.sendall(relay_protocol.HEADER.pack(relay_protocol.MAGIC, 1000))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(999):
            client.socket.sendall(b"x")
            time.sleep(0.02)
    client.close()


def test_who_never_reads_is_cut_off_and_its_messages_wait_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REQUEST_S", 0.3)
    alice, bob = world.add("alice", rate=Rate(1e6, 1e6)), world.add("bob")
    for number in range(8):
        assert alice.mailbox.put("bob", f"{number}" + "x" * 5000) == "delivered"
    clients = []
    for _ in range(3):
        client = alice.dial()
        clients.append(client)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.socket.send(relay_protocol.encode(pack({"op": "peers"})))
    client = alice.dial()
    clients.append(client)
    client.send(op="receive")
    await_true(lambda: alice.server.statistics().cut_off == 4)
    assert len(alice.mailbox) == 8
    assert alice.mailbox.take(1, 9999)[0].text.startswith("0x")
    works(alice)
    works(bob)
    for client in clients:
        client.close()


def test_messages_wait_again_in_their_order_if_nobody_confirms(world: World) -> None:
    alice = world.add("alice")
    for number in range(4):
        alice.mailbox.put("bob", str(number))
    waiting = alice.dial()
    client = alice.dial()
    taken = client.ask(op="receive", count=3)
    assert [message["text"] for message in taken["messages"]] == ["0", "1", "2"]
    assert taken["waiting"] == 1
    assert [m["text"] for m in waiting.ask(op="receive")["messages"]] == ["3"]
    assert waiting.ask(op="taken") == {}
    waiting.send(op="receive", wait=20)
    await_true(lambda: alice.server.statistics().requests == 4)
    client.close()  # what it did not confirm is the other's
    reply = waiting.reply()
    assert reply is not None
    assert [message["text"] for message in reply["messages"]] == ["0", "1", "2"]
    waiting.close()


def test_confirming_and_leaving_at_once_is_a_confirmation(world: World) -> None:
    alice = world.add("alice")
    for _ in range(50):
        alice.mailbox.put("bob", "x")
        client = alice.dial()
        assert len(client.ask(op="receive")["messages"]) == 1
        client.send(op="taken")
        client.close()
        await_true(lambda: alice.server.statistics().connections == 0)
        assert len(alice.mailbox) == 0


def test_a_flood_fills_a_mailbox_and_is_told(world: World) -> None:
    alice, bob, carol = world.add("alice", rate=Rate(1e6, 1e6)), world.add("bob"), world.add("c")
    client = alice.dial()
    outcomes = [client.ask(op="send", to="bob", text="x")["outcome"] for _ in range(200)]
    assert outcomes == ["delivered"] * 10 + ["full"] * 190
    client.close()
    client = carol.dial()
    assert client.ask(op="send", to="bob", text="x") == {"outcome": "delivered"}
    client.close()
    assert len(bob.mailbox) == 11


def test_a_fast_guest_is_slowed_down(world: World) -> None:
    alice = world.add("alice", rate=Rate(per_s=50, burst=5))
    client = alice.dial()
    started = time.monotonic()
    for _ in range(30):
        assert "error" not in client.ask(op="receive")
    assert time.monotonic() - started > 0.4
    client.close()


def test_many_requests_at_once_are_refused(world: World) -> None:
    alice = world.add("alice", rate=Rate(per_s=0.1, burst=3))
    clients = [alice.dial() for _ in range(8)]
    for client in clients:
        client.send(op="receive")
    replies = [client.reply() for client in (*clients[:3], *clients[6:])]
    assert [reply and reply.get("error") for reply in replies] == [
        *[None] * 3,
        *["too many requests: try again later"] * 2,
    ]
    for client in clients:
        client.close()


def test_thousands_of_connections_cost_a_bounded_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "REQUEST_S", 3600.0)  # however long it takes here, none is cut
    alice = world.add("alice")
    clients = []
    for _ in range(relay.CONNECTIONS_MAX):
        clients.append(alice.dial())
    await_true(lambda: alice.server.statistics().connections == relay.CONNECTIONS_MAX)
    for _ in range(2000):
        client = alice.dial()
        reply = client.reply()
        assert reply is not None
        assert "too many programs" in reply["error"]
        client.close()
    told = "voidbox-relay: too many programs use the relay at once\n"
    assert alice.run("peers") == (2, "", told)
    for client in clients:
        client.close()
    await_true(lambda: alice.server.statistics().connections == 0)
    assert alice.server.statistics().refused == 2001
    works(alice)


def test_leaving_in_the_middle_of_anything_leaves_nothing(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    world.add("bob")
    chance = random.Random(7)
    requests: list[dict[str, object]] = [
        {"op": "peers"},
        {"op": "send", "to": "bob", "text": "x"},
        {"op": "broadcast", "text": "x"},
        {"op": "receive", "wait": 50},
    ]
    for _ in range(300):
        client = alice.dial()
        frame = relay_protocol.encode(pack(chance.choice(requests)))
        with suppress(BrokenPipeError):  # not all that left before are noticed yet
            client.socket.sendall(frame[: chance.randrange(len(frame) + 1)])
        client.close()
    await_true(lambda: alice.server.statistics().connections == 0)
    works(alice)


@pytest.mark.slow
def test_jobs_that_nobody_waits_for_any_more_are_bounded(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    world.add("bob")
    release = threading.Event()
    world.on_hand_over = lambda name: release.wait(20) and None
    before = threading.active_count()
    refused = 0
    for _ in range(relay.JOBS_MAX + 20):
        client = alice.dial()
        client.send(op="send", to="bob", text="x")
        client.socket.settimeout(0.02)
        with suppress(TimeoutError):
            reply = client.reply()
            assert reply is not None
            assert reply["error"] == "too many messages are under way: try again later"
            refused += 1
        client.close()
    assert threading.active_count() - before <= relay.WORKERS_MAX
    release.set()
    assert refused == 20
    await_true(lambda: alice.server.statistics().connections == 0)


def test_closing_does_not_wait_for_jobs_that_wait(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    world.add("bob")
    hung = threading.Event()
    calls = []

    def hang(name: str) -> None:
        calls.append(name)
        hung.wait(0.5)

    world.on_hand_over = hang
    clients = [alice.dial() for _ in range(30)]
    for client in clients:
        client.send(op="send", to="bob", text="x")
    await_true(lambda: len(calls) == relay.WORKERS_MAX)
    alice.server.close()
    assert len(calls) <= 2 * relay.WORKERS_MAX
    for client in clients:
        client.close()


def test_a_host_out_of_descriptors_recovers(world: World) -> None:
    alice = world.add("alice")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    sock = socket.socket(socket.AF_UNIX)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    holes: list[socket.socket] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limits[1]))
        with suppress(OSError):
            while True:
                holes.append(socket.socket(socket.AF_UNIX))
        sock.connect(alice.path)
        time.sleep(0.3)
        assert alice.server.statistics().accepted == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for hole in holes:
            hole.close()
    await_true(lambda: alice.server.statistics().accepted == 1)
    sock.close()
    works(alice)


def test_noise_never_stops_it(world: World) -> None:
    alice = world.add("alice", rate=Rate(1e6, 1e6))
    chance = random.Random(11)
    good = relay_protocol.encode(pack({"op": "send", "to": "alice", "text": "x" * 50}))
    for _ in range(200):
        data = bytearray(good * chance.randrange(1, 4))
        for _ in range(chance.randrange(6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        client = Client(alice.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            client.socket.sendall(data)
        client.socket.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError):
            while client.reply() is not None:
                pass
        client.close()
    works(alice)
