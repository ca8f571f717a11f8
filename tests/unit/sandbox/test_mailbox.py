"""Mailboxes, couriers and the rate, without sockets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from voidbox.errors import AgentError, ConfigError
from voidbox.sandbox.relay import protocol
from voidbox.sandbox.relay.courier import Courier, CourierError, Peer, deliver_within
from voidbox.sandbox.relay.mailbox import OVERHEAD_BYTES, Mailbox, Message
from voidbox.sandbox.relay.protocol import DELIVERED, FULL, NOT_RUNNING
from voidbox.sandbox.relay.rate import Rate
from voidbox.sandbox.relay.server import HOST_NAME, deliver_op

MESSAGES_MAX, BYTES_MAX = 6, 1000


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


class MailboxMachine(RuleBasedStateMachine):
    """A mailbox beside a list that does the same slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox(MESSAGES_MAX, BYTES_MAX, clock=lambda: 0.0)
        self.waiting: list[tuple[str, str]] = []
        self.taken: list[list[Message]] = []
        self.calls = self.puts = 0
        self.mailbox.on_put = self.count_call

    def count_call(self) -> None:
        self.calls += 1

    def held(self) -> list[tuple[str, str]]:
        return [*self.waiting, *((m.from_name, m.text) for batch in self.taken for m in batch)]

    @rule(sender=st.sampled_from(["a", "b", "c"]), size=st.integers(0, 300))
    def put(self, sender: str, size: int) -> None:
        def cost(messages: list[tuple[str, str]]) -> int:
            return sum(OVERHEAD_BYTES + len(name) + len(text) for name, text in messages)

        wanted = [*self.held(), (sender, "x" * size)]
        own = [message for message in wanted if message[0] == sender]
        fits = len(wanted) <= MESSAGES_MAX and cost(wanted) <= BYTES_MAX
        fits = fits and len(own) <= MESSAGES_MAX // 2 and cost(own) <= BYTES_MAX // 2
        assert self.mailbox.put(sender, "x" * size) == (DELIVERED if fits else FULL)
        if fits:
            self.waiting.append(wanted[-1])
            self.puts += 1

    @rule(count=st.integers(1, 4), size=st.integers(0, 500))
    def take(self, count: int, size: int) -> None:
        taken = self.mailbox.take(count, size)
        expected = self.waiting[: len(taken)]
        assert [(m.from_name, m.text) for m in taken] == expected
        assert len(taken) <= count
        assert sum(m.cost_bytes for m in taken) <= size
        self.waiting = self.waiting[len(taken) :]
        if len(taken) < count and self.waiting:
            sender, text = self.waiting[0]
            following = OVERHEAD_BYTES + len(sender) + len(text)
            assert sum(m.cost_bytes for m in taken) + following > size
        self.taken.append(taken)

    @precondition(lambda self: self.taken)
    @rule()
    def confirm(self) -> None:
        self.mailbox.confirm(self.taken.pop())

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self) -> None:
        batch = self.taken.pop()
        self.mailbox.give_back(batch)
        self.waiting = [*((m.from_name, m.text) for m in batch), *self.waiting]

    @invariant()
    def agrees(self) -> None:
        assert len(self.mailbox) == len(self.waiting)
        assert self.calls == self.puts


TestMailbox = pytest.mark.slow(MailboxMachine.TestCase)


def test_a_flood_of_one_leaves_room_for_another() -> None:
    mailbox = Mailbox(messages_max=10)
    outcomes = [mailbox.put("loud", "x") for _ in range(100)]
    assert outcomes == [DELIVERED] * 5 + [FULL] * 95
    assert mailbox.put("quiet", "x") == DELIVERED


def test_a_closed_mailbox_takes_nothing() -> None:
    mailbox = Mailbox()
    mailbox.close()
    assert mailbox.put("a", "x") == NOT_RUNNING


def test_the_control_sockets_op_checks_what_it_gets() -> None:
    mailbox = Mailbox(clock=lambda: 12.5)
    assert deliver_op(mailbox, {"text": "hello"}) == {"outcome": DELIVERED}
    assert deliver_op(mailbox, {"from": "a", "text": "caf\udce9"}) == {"outcome": DELIVERED}
    first, second = mailbox.take(9, 9999)
    assert first[:3] == (HOST_NAME, "hello", 12.5)
    assert second[:3] == ("a", "caf\udce9", 12.5)
    for values, expected in (
        ({}, "must be strings"),
        ({"from": 1, "text": "x"}, "must be strings"),
        ({"text": "x" * 8193}, "8193 bytes: 8192 at most"),
        ({"from": "x" * 129, "text": "x"}, "129 bytes: 128 at most"),
        ({"text": "\ud800"}, "half a character"),
    ):
        with pytest.raises(ConfigError, match=expected):
            deliver_op(mailbox, values)


@given(st.binary(max_size=200))
def test_any_bytes_survive_the_line_between_owners(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert json.loads(json.dumps(text)) == text


def test_the_longest_text_fits_into_a_line_between_owners() -> None:
    for char in ("\0", "é", "\udcff", "\U0001f600", "€"):
        count = protocol.TEXT_BYTES_MAX // len(char.encode("utf-8", "surrogateescape"))
        assert len(json.dumps({"op": "deliver", "from": "n" * 63, "text": char * count})) < 65_000


# --- the courier -------------------------------------------------------------------------------


class Post:
    """What the owner gives a courier."""

    def __init__(self) -> None:
        self.peers = {
            "bob": Peer("bob", "red", True),
            "spy": Peer("spy", "blue", True),
            "loner": Peer("loner", None, True),
            "asleep": Peer("asleep", "red", False),
            "hung": Peer("hung", "red", True),
            "odd": Peer("odd", "red", True),
        }
        self.looked_up: list[str] = []
        self.carried: list[tuple[str, str, str]] = []

    def find(self, name: str) -> Peer | None:
        self.looked_up.append(name)
        return self.peers.get(name)

    def hand_over(self, peer: Peer, from_name: str, text: str) -> str:
        if peer.name == "hung":
            raise AgentError("the sandbox's process is gone")
        self.carried.append((peer.name, from_name, text))
        return "mumble" if peer.name == "odd" else DELIVERED

    def courier(self, team: str | None = "red", names: tuple[str, ...] = ()) -> Courier:
        deliver = deliver_within(team, self.find, self.hand_over)
        return Courier(team, lambda: "alice", lambda: list(names), deliver)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("bob", "delivered"),
        ("nobody", "unknown"),
        ("spy", "other-team"),
        ("loner", "other-team"),
        ("asleep", "not-running"),
        ("hung", "no-answer"),
        ("odd", "no-answer"),
    ],
)
def test_what_became_of_a_message(name: str, outcome: str) -> None:
    post = Post()
    assert post.courier().send(name, "hi") == outcome
    carried = name in ("bob", "odd")
    assert post.carried == ([(name, "alice", "hi")] if carried else [])


@pytest.mark.parametrize(
    "name", ["", "../bob", "bob/", "bob\n", "bob\0", ".", "..", "@host", "b" * 64, "bo\udcff"]
)
def test_what_cannot_be_a_name_is_never_looked_up(name: str) -> None:
    post = Post()
    assert post.courier().send(name, "hi") == "unknown"
    assert post.looked_up == []


def test_a_broadcast_reaches_all_but_the_sender() -> None:
    courier = Post().courier(names=("bob", "alice", "hung", "asleep", "bob"))
    assert courier.broadcast("hi") == {
        "asleep": "not-running",
        "bob": "delivered",
        "hung": "no-answer",
    }
    with pytest.raises(CourierError, match="257 peers: a broadcast reaches 256 at most"):
        Post().courier(names=tuple(f"n{i}" for i in range(257))).broadcast("hi")


def test_who_is_in_no_team_writes_to_nobody() -> None:
    post = Post()
    for call in (
        lambda: post.courier(None).send("loner", "hi"),
        lambda: post.courier(None).broadcast("hi"),
        lambda: post.courier(None).peers(),
    ):
        with pytest.raises(CourierError, match="in no team"):
            call()
    assert deliver_within(None, post.find, post.hand_over)("loner", "alice", "hi") == "other-team"


# --- the rate ----------------------------------------------------------------------------------


def test_a_rate_saves_up_owes_and_refuses() -> None:
    rate = Rate(per_s=10, burst=2)
    assert [rate.charge(0) for _ in range(6)] == [0, 0, 0.1, 0.2, None, None]
    assert rate.charge(100_000_000) == pytest.approx(0.2)
    assert [rate.charge(10**12) for _ in range(3)] == [0, 0, 0.1]
    rate.charge_more(1000)
    assert rate.charge(10**12) is None
    assert rate.charge(10**12 + 10**9) == 0


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_a_rate_keeps_its_promise(gaps: list[int]) -> None:
    rate, now, starts = Rate(per_s=5, burst=3), 0, []
    for gap in gaps:
        now += gap
        delay = rate.charge(now)
        if delay is not None:
            assert delay <= 3 / 5 + 1e-6
            starts.append(now / 1e9 + delay)
    for i, first in enumerate(starts):
        for j in range(i, len(starts)):
            assert j - i + 1 <= 3 + (starts[j] - first) * 5 + 1 + 1e-6
