"""The relay with the guest's real command, as ordinary programs of this machine."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.sandbox.team import ROOT, World
from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.relay.courier import Courier
from voidbox.sandbox.relay.mailbox import Mailbox
from voidbox.sandbox.relay.server import RelayServer


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


def test_a_message_goes_from_one_guest_to_another(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    assert alice.run("send", "bob", "hello", "there") == (0, "", "")
    assert alice.run("send", "bob", "-", stdin=b"two\nlines\n") == (0, "", "")
    assert bob.run("receive") == (0, "alice: hello there\nalice: two\n    lines\n", "")
    assert bob.run("receive") == (1, "", "")
    assert bob.run("send", "bob", "a note") == (0, "", "")
    assert bob.run("receive") == (0, "bob: a note\n", "")


def test_any_bytes_arrive_as_they_are(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    data = bytes(range(256)) + "é😀".encode()
    assert alice.run("send", "bob", "-", stdin=data)[0] == 0
    status, output, _ = bob.run("receive", "--json")
    assert status == 0
    message = json.loads(output)
    assert message["from"] == "alice"
    assert message["text"].encode("utf-8", "surrogateescape") == data
    assert abs(message["at"] - time.time()) < 60


def test_a_receiver_waits_for_the_first_message(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    receiver = bob.start("receive", "--wait", "30")
    await_true(lambda: bob.server.statistics().requests == 1)
    assert receiver.poll() is None
    assert alice.run("send", "bob", "now")[0] == 0
    assert receiver.communicate(timeout=60) == (b"alice: now\n", b"")
    assert receiver.returncode == 0


def test_a_receiver_gives_up_in_time(world: World) -> None:
    started = time.monotonic()
    assert world.add("bob").run("receive", "--wait", "0.5") == (1, "", "")
    assert time.monotonic() - started >= 0.5


def test_everything_is_received_unless_a_count_says_otherwise(world: World) -> None:
    bob = world.add("bob")
    bob.mailbox = bob.server._mailbox = Mailbox()
    texts = [f"{number}" for number in range(120)]  # more than one reply may have
    for text in texts:
        bob.mailbox.put("alice", text)
    assert bob.run("receive", "--count", "2")[1] == "alice: 0\nalice: 1\n"
    assert bob.run("receive")[1] == "".join(f"alice: {text}\n" for text in texts[2:])


def test_a_broadcast_tells_what_became_of_each(world: World) -> None:
    alice, bob, carol = world.add("alice"), world.add("bob"), world.add("carol")
    world.add("stranger", team="blue")
    assert alice.run("peers") == (0, "bob\ncarol\n", "")
    assert json.loads(bob.run("peers", "--json")[1]) == {"name": "bob", "peers": ["alice", "carol"]}
    assert alice.run("broadcast", "all") == (0, "", "")
    assert carol.run("receive")[1] == "alice: all\n"
    while bob.mailbox.put("alice", "x") == "delivered":
        pass
    status, output, errors = alice.run("broadcast", "--json", "again")
    assert (status, json.loads(output)) == (1, {"bob": "full", "carol": "delivered"})
    assert errors == ""
    assert alice.run("broadcast", "again") == (
        1,
        "",
        "voidbox-relay: the mailbox of 'bob' is full: try again later\n",
    )
    assert len(world.members["stranger"].mailbox) == 0


def test_nobody_to_broadcast_to_is_told(world: World) -> None:
    told = "voidbox-relay: nobody else of the team runs\n"
    assert world.add("alice").run("broadcast", "x") == (1, "", told)
    refused = "voidbox-relay: this sandbox is in no team\n"
    assert world.add("loner", team=None).run("broadcast", "x") == (2, "", refused)


def test_what_was_not_delivered_is_told_in_a_line(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    world.add("spy", team="blue")
    world.add("asleep").is_running = False
    world.add("hung")

    def fail(name: str) -> None:
        if name == "hung":
            raise AgentError("the sandbox's process is gone")

    world.on_hand_over = fail
    while bob.mailbox.put("alice", "x") == "delivered":
        pass
    for name, expected in (
        ("bob", "the mailbox of 'bob' is full: try again later"),
        ("nobody", "no sandbox is called 'nobody'"),
        ("../../etc", "no sandbox is called '../../etc'"),
        ("b\x1b[31mb", "no sandbox is called 'b\\x1b[31mb'"),
        ("spy", "'spy' is not in this sandbox's team"),
        ("asleep", "'asleep' does not run"),
        ("hung", "'hung' does not answer: it may have got the message, or not"),
    ):
        assert alice.run("send", name, "x") == (1, "", f"voidbox-relay: {expected}\n")
    too_long = "voidbox-relay: a message has 8192 bytes at most\n"
    assert alice.run("send", "bob", "-", stdin=b"x" * 8193) == (2, "", too_long)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["send", "bob"], "the following arguments are required: TEXT"),
        (["shout"], "invalid choice: 'shout'"),
        (["receive", "--wait", "-1"], "give seconds, from 0 on"),
        (["receive", "--wait", "nan"], "give seconds, from 0 on"),
        (["receive", "--wait", "soon"], "'soon'"),
        (["receive", "--count", "0"], "give a number of at least 1"),
    ],
)
def test_wrong_usage_is_told_in_a_line(world: World, arguments: list[str], expected: str) -> None:
    status, output, errors = world.add("alice").run(*arguments)
    assert (status, output) == (2, "")
    assert expected in errors
    assert errors.count("\n") == 1
    assert errors.startswith("voidbox-relay: ")


def test_words_that_look_like_options_can_be_sent(world: World) -> None:
    alice, bob = world.add("alice"), world.add("bob")
    assert alice.run("send", "bob", "--", "--force", "-")[0] == 0
    assert alice.run("send", "bob", "-5", "degrees")[0] == 0
    assert bob.run("receive")[1] == "alice: --force -\nalice: -5 degrees\n"


def test_a_host_without_a_relay_is_told(world: World) -> None:
    alice = world.add("alice")
    alice.server.close()
    told = "voidbox-relay: the host offers no relay (No such file or directory)\n"
    assert alice.run("peers") == (3, "", told)


def test_a_relay_that_ends_ends_who_waits_for_it(world: World) -> None:
    bob = world.add("bob")
    receiver = bob.start("receive", "--wait", "60")
    await_true(lambda: bob.server.statistics().requests == 1)
    bob.server.close()
    assert receiver.communicate(timeout=60)[1].startswith(b"voidbox-relay: the host's relay ended")
    assert receiver.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_receiver_that_is_killed_loses_nothing(world: World, number: signal.Signals) -> None:
    bob = world.add("bob")
    receiver = bob.start("receive", "--wait", "60")
    await_true(lambda: bob.server.statistics().requests == 1)
    receiver.send_signal(number)
    _, errors = receiver.communicate(timeout=60)
    assert errors == b""
    await_true(lambda: bob.server.statistics().connections == 0)
    bob.mailbox.put("alice", "kept")
    assert bob.run("receive")[1] == "alice: kept\n"


def test_what_could_not_be_printed_waits_again(world: World) -> None:
    bob = world.add("bob")
    bob.mailbox.put("alice", "kept")
    receiver = bob.start("receive", "--wait", "0")
    assert receiver.stdout is not None
    receiver.stdout.close()  # long before Python has started
    assert receiver.stderr is not None
    assert receiver.stderr.read() == b""
    receiver.stderr.close()
    assert receiver.wait(60) == 1
    assert bob.run("receive")[1] == "alice: kept\n"


def test_a_terminal_is_shown_nothing_that_it_would_obey(world: World) -> None:
    bob = world.add("bob")
    bob.mailbox.put("alice", "\x1b]0;title\x07é\r\tx")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "VOIDBOX_RELAY_SOCKET": bob.path, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "guest_agent.relay", "receive"]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, check=True, timeout=30)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert shown.startswith("alice: \\x1b]0;title\\x07é\\r")
    assert "\x1b" not in shown


def test_two_receivers_each_get_their_own(world: World) -> None:
    bob = world.add("bob")
    receivers = [bob.start("receive", "--wait", "30", "--count", "1") for _ in range(2)]
    await_true(lambda: bob.server.statistics().requests == 2)
    bob.mailbox.put("alice", "one")
    bob.mailbox.put("alice", "two")
    outputs = {receiver.communicate(timeout=60)[0] for receiver in receivers}
    assert outputs == {b"alice: one\n", b"alice: two\n"}


def test_a_slow_peer_holds_up_nobody_else(world: World) -> None:
    alice = world.add("alice")
    world.add("bob")
    world.add("hung")
    release = threading.Event()

    def hang(name: str) -> None:
        if name == "hung":
            assert release.wait(60)

    world.on_hand_over = hang
    sender = alice.start("send", "hung", "x")
    await_true(lambda: "hung" in world.looked_up)
    assert alice.run("send", "bob", "x")[0] == 0
    assert sender.poll() is None
    release.set()
    assert sender.communicate(timeout=60) == (b"", b"")
    assert sender.returncode == 0


def test_a_fault_of_the_hosts_is_an_answer_and_a_line_in_the_log(world: World) -> None:
    alice = world.add("alice")
    world.add("bob")

    def fail(name: str) -> None:
        raise ValueError("a bug")

    world.on_hand_over = fail
    assert alice.run("send", "bob", "x")[2] == (
        "voidbox-relay: the relay failed: see the sandbox's log\n"
    )
    assert alice.faults == ["relay: a fault of voidbox's own: ValueError('a bug')"]
    alice.faults.clear()


def test_a_path_in_use_is_refused(world: World) -> None:
    alice = world.add("alice")
    courier = Courier("red", lambda: "x", list, lambda *_: "full")
    with pytest.raises(ConfigError, match="in use"):
        RelayServer(alice.path, Mailbox(), courier)


def test_nothing_is_left_behind(world: World) -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    alice = world.add("alice")
    world.add("bob")
    assert os.stat(alice.path).st_mode & 0o777 == 0o600
    client = alice.dial()
    assert client.ask(op="send", to="bob", text="x") == {"outcome": "delivered"}
    world.close()
    world.close()
    assert client.reply() is None
    client.close()
    assert not list(world.folder.iterdir())
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() == threads
