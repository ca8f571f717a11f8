"""The forwarder joined to resolvers that are functions; scapy builds and reads the messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

from voidbox.net import dns_message
from voidbox.net.dns import (
    DEMOTED_NS,
    LOCAL_TTL_S,
    PENDING_MAX,
    SERVER_TIMEOUT_NS,
    UDP_BYTES_MAX,
    Action,
    Forwarder,
    Reply,
    SendTcp,
    SendUdp,
)
from voidbox.net.policy import Policy

S = 1_000_000_000
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
A, CNAME, TXT, AAAA, HTTPS = 1, 5, 16, 28, 65
ADDRESS = 0xC0000201  # 192.0.2.1
KEY = ("10.0.2.15", 40000)


def make(policy: Policy | None = None, servers: int = 2, first_id: int = 0x1000) -> Forwarder:
    ids = itertools.count(first_id)
    return Forwarder(policy or Policy(), servers, lambda: next(ids))


def query(name: str = "example.com", qtype: int = A, id: int = 7, **fields: object) -> bytes:
    return bytes(DNS(**{"id": id, "rd": 1, "qd": [DNSQR(qname=name, qtype=qtype)]} | fields))


def answer(sent: Action, *records: DNSRR, **fields: object) -> bytes:
    """What a resolver makes of a query."""
    asked = DNS(sent.message)
    return bytes(
        DNS(**{"id": asked.id, "qr": 1, "rd": 1, "ra": 1, "qd": asked.qd, "an": list(records)}
            | fields)
    )  # fmt: skip


def a_record(name: str = "example.com", address: str = "192.0.2.1", ttl: int = 300) -> DNSRR:
    return DNSRR(rrname=name, type="A", rdata=address, ttl=ttl)


def one(actions: list[Action]) -> Action:
    assert len(actions) == 1, actions
    return actions[0]


def sent(actions: list[Action]) -> SendUdp | SendTcp:
    action = one(actions)
    assert isinstance(action, SendUdp | SendTcp)
    return action


def replied(actions: list[Action], key: object = KEY, id: int = 7) -> DNS:
    action = one(actions)
    assert isinstance(action, Reply)
    assert action.source_key == key
    message = DNS(action.message)
    assert (message.qr, message.id) == (1, id)
    return message


def ask(forwarder: Forwarder, name: str = "example.com", qtype: int = A, **fields: object) -> DNS:
    """Ask for what is answered at once."""
    return replied(forwarder.query(KEY, query(name, qtype, **fields), False, 0))


# There and back.


def test_a_query_goes_to_the_first_resolver_and_its_reply_to_the_guest() -> None:
    policy = Policy(allow=["example.com"])
    forwarder = make(policy)
    question = query("eXample.com", id=0x0707, ar=[DNSRROPT(rclass=1232)])
    action = sent(forwarder.query(KEY, question, False, 0))
    assert action == SendUdp(0, 0x1000, b"\x10\x00" + question[2:])
    assert forwarder.statistics().pending == 1
    upstream = answer(action, a_record(ttl=600))
    reply = one(forwarder.reply(0, upstream, 1 * S))
    assert reply == Reply(KEY, b"\x07\x07" + upstream[2:])
    assert policy.check("TCP", ADDRESS, 443, 600 * S).allowed
    assert not policy.check("TCP", ADDRESS, 443, 601 * S).allowed
    assert forwarder.next_deadline_ns() is None
    assert forwarder.statistics()._asdict() == {
        "queries": 1, "invalid": 0, "local": 0, "refused": 0, "merged": 0, "forwarded": 1,
        "answered": 1, "failed": 0, "timeouts": 0, "ignored": 0, "pending": 0,
    }  # fmt: skip
    assert forwarder.reply(0, upstream, 1 * S) == []  # twice


def test_a_query_over_tcp_stays_on_tcp() -> None:
    forwarder = make()
    action = sent(forwarder.query("connection 3", query(), True, 0))
    assert isinstance(action, SendTcp)
    big = answer(action, *(a_record(address=f"192.0.2.{each}") for each in range(99)))
    assert len(big) > UDP_BYTES_MAX
    reply = replied(forwarder.reply(0, big, 0), "connection 3")
    assert (reply.tc, reply.ancount) == (0, 99)


@pytest.mark.parametrize(
    ("announced", "reply_bytes", "truncated"),
    [
        (None, 512, False), (None, 513, True), (100, 512, False), (1232, 1232, False),
        (1232, 1233, True), (4096, 1472, False), (4096, 1473, True),
    ],
)  # fmt: skip
def test_replies_that_the_guests_udp_does_not_take_are_truncated(
    announced: int | None, reply_bytes: int, truncated: bool
) -> None:
    policy = Policy(allow=["example.com"])
    forwarder = make(policy)
    options = [] if announced is None else [DNSRROPT(rclass=announced)]
    action = sent(forwarder.query(KEY, query(ar=options), False, 0))
    upstream = answer(action, a_record())
    padding = reply_bytes - len(upstream) - 11
    upstream = answer(action, a_record(), ar=[DNSRR(rrname=".", type=99, rdata=b"x" * padding)])
    assert len(upstream) == reply_bytes
    reply = one(forwarder.reply(0, upstream, 0))
    seen = DNS(reply.message)
    assert seen.tc == truncated
    assert len(reply.message) == (29 if truncated else reply_bytes)
    assert (seen.ancount, seen.arcount) == ((0, 0) if truncated else (1, 1))
    assert policy.check("TCP", ADDRESS, 443, 0).allowed


def test_a_truncated_reply_goes_on_as_it_is() -> None:
    forwarder = make()
    upstream = answer(sent(forwarder.query(KEY, query(), False, 0)), a_record(), tc=1)
    assert one(forwarder.reply(0, upstream, 0)) == Reply(KEY, b"\0\7" + upstream[2:])


@pytest.mark.parametrize("rcode", [NXDOMAIN, FORMERR])
def test_what_a_resolver_says_of_the_name_is_final(rcode: int) -> None:
    forwarder = make()
    action = sent(forwarder.query(KEY, query(), False, 0))
    assert replied(forwarder.reply(0, answer(action, rcode=rcode), 0)).rcode == rcode


def test_aliases_pin_under_the_name_that_was_asked() -> None:
    policy = Policy(allow=["example.com", "*.unasked.net"])
    forwarder = make(policy)
    action = sent(forwarder.query(KEY, query("EXAMPLE.com"), False, 0))
    records = (
        DNSRR(rrname="example.com", type="CNAME", rdata="a.cdn.net", ttl=100),
        DNSRR(rrname="a.cdn.net", type="CNAME", rdata="b.cdn.net", ttl=3000),
        a_record("b.cdn.net", "192.0.2.1"),
        a_record("b.cdn.net", "192.0.2.2"),
        a_record("www.unasked.net", "192.0.2.66"),
    )
    forwarder.reply(0, answer(action, *records), 0)
    assert policy.check("TCP", ADDRESS, 443, 0) == (True, "allow example.com")
    assert policy.check("TCP", ADDRESS + 1, 443, 100 * S - 1).allowed
    assert not policy.check("TCP", ADDRESS, 443, 100 * S).allowed
    assert not policy.check("TCP", 0xC0000242, 443, 0).allowed


def test_rebinding_to_the_host_is_answered_but_leads_nowhere() -> None:
    policy = Policy(allow=["example.com"])
    forwarder = make(policy)
    action = sent(forwarder.query(KEY, query(), False, 0))
    reply = forwarder.reply(0, answer(action, a_record(address="127.0.0.1")), 0)
    assert replied(reply).rcode == NOERROR
    assert not policy.check("TCP", 0x7F000001, 80, 0).allowed


# What is answered here.


def test_ipv6_addresses_do_not_exist() -> None:
    reply = ask(make(servers=0), "example.com", AAAA)
    assert (reply.rcode, reply.ancount, reply.ra, reply.rd) == (NOERROR, 0, 1, 1)
    assert reply.qd[0].qtype == AAAA
    forwarder = make(Policy(deny=["example.com"]))
    assert ask(forwarder, "example.com", AAAA).rcode == REFUSED
    assert forwarder.statistics().refused == 1
    assert forwarder.statistics().local == 0


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("localhost", "127.0.0.1"), ("a.LocalHost", "127.0.0.1"),
        ("host.voidbox.internal", "10.0.2.2"), ("Gateway.voidbox.internal", "10.0.2.2"),
    ],
)  # fmt: skip
def test_own_names(name: str, address: str) -> None:
    forwarder = make(Policy(deny=["*"]), servers=0)
    reply = ask(forwarder, name)
    assert reply.rcode == NOERROR
    assert [(each.rdata, each.ttl) for each in reply.an] == [(address, LOCAL_TTL_S)]
    for qtype in (AAAA, TXT, HTTPS):
        reply = ask(forwarder, name, qtype)
        assert (reply.rcode, reply.ancount) == (NOERROR, 0)
    assert ask(forwarder, name, 255).ancount == 1
    assert forwarder.statistics().local == 5


def test_the_own_domain_is_never_asked_for_outside() -> None:
    assert ask(make(), "other.voidbox.internal").rcode == NXDOMAIN
    assert ask(make(), "a.host.voidbox.internal").rcode == NXDOMAIN
    reply = ask(make(), "voidbox.internal")
    assert (reply.rcode, reply.ancount) == (NOERROR, 0)
    sent(make().query(KEY, query("notvoidbox.internal"), False, 0))
    sent(make().query(KEY, query("notlocalhost"), False, 0))


def test_names_that_the_policy_refuses() -> None:
    policy = Policy(allow=["example.com"])
    forwarder = make(policy)
    reply = ask(forwarder, "secret.exfiltrated.example.net", TXT, id=7)
    assert (reply.rcode, reply.ancount, reply.qd[0].qtype) == (REFUSED, 0, TXT)
    assert forwarder.statistics().refused == 1
    assert policy.statistics().refused == {"no allow rule matches": 1}
    # One label with dots in it is not a name below another.
    label = b"\x0bx.example.a"
    raw = query()[:12] + label + b"\x03com\0\0\1\0\1"
    assert replied(make(Policy(allow=["*.a.com"])).query(KEY, raw, False, 0)).rcode == REFUSED


def test_without_resolvers() -> None:
    forwarder = make(servers=0)
    assert ask(forwarder).rcode == SERVFAIL
    assert (forwarder.statistics().failed, forwarder.statistics().pending) == (1, 0)


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (query(opcode=5), NOTIMP),
        (query(opcode=2), NOTIMP),
        (query(qtype=252), NOTIMP),
        (query(qtype=251), NOTIMP),
        (query(qd=[DNSQR(qname="version.bind", qtype=TXT, qclass=3)]), NOTIMP),
        (query(qd=[]), FORMERR),
        (query(qd=[], opcode=4), NOTIMP),
        (query(qd=[DNSQR(qname="a"), DNSQR(qname="b")]), FORMERR),
        (query()[:12], FORMERR),
        (query()[:-1], FORMERR),
        (query()[:12] + b"\xc0\x0c\0\1\0\1", FORMERR),
        (query().ljust(5000, b"x"), FORMERR),
    ],
)
def test_queries_that_are_not_served(message: bytes, rcode: int) -> None:
    reply = replied(make().query(KEY, message, False, 0))
    assert (reply.rcode, reply.rd, reply.opcode) == (rcode, 1, DNS(message).opcode)
    assert reply.ancount == 0


def test_what_is_no_query_gets_no_answer() -> None:
    forwarder = make()
    for message in (b"", b"\0" * 11, query(qr=1), query(qr=1)[:12]):
        assert forwarder.query(KEY, message, False, 0) == []
    assert forwarder.statistics().invalid == 4


# Resolvers that fail.


def test_silence_leads_through_all_resolvers_to_servfail() -> None:
    forwarder = make(servers=3)
    question = query("eXample.com")
    first = sent(forwarder.query(KEY, question, False, 100))
    now_ns = 100
    for server_idx in (1, 2):
        now_ns += SERVER_TIMEOUT_NS
        assert forwarder.next_deadline_ns() == now_ns
        assert forwarder.expire(now_ns - 1) == []
        assert sent(forwarder.expire(now_ns)) == SendUdp(server_idx, 0x1000, first.message)
    reply = replied(forwarder.expire(now_ns + SERVER_TIMEOUT_NS))
    assert (reply.rcode, reply.rd, reply.ra) == (SERVFAIL, 1, 1)
    assert reply.qd[0].qname == b"eXample.com."
    assert forwarder.next_deadline_ns() is None
    statistics = forwarder.statistics()
    assert (statistics.timeouts, statistics.failed, statistics.pending) == (3, 1, 0)


def test_a_late_reply_still_counts_as_long_as_no_other_came() -> None:
    forwarder = make()
    first = sent(forwarder.query(KEY, query(), False, 0))
    second = sent(forwarder.expire(SERVER_TIMEOUT_NS))
    assert replied(forwarder.reply(0, answer(first, a_record()), 3 * S)).ancount == 1
    assert forwarder.reply(1, answer(second, a_record()), 3 * S) == []
    assert forwarder.statistics().ignored == 1


def test_a_late_failure_does_not() -> None:
    forwarder = make()
    first = sent(forwarder.query(KEY, query(), False, 0))
    second = sent(forwarder.expire(SERVER_TIMEOUT_NS))
    assert forwarder.reply(0, answer(first, rcode=SERVFAIL), 3 * S) == []
    assert forwarder.failed(0, [first.upstream_id], 3 * S) == []
    assert replied(forwarder.reply(1, answer(second, a_record()), 3 * S)).ancount == 1


@pytest.mark.parametrize("rcode", [SERVFAIL, REFUSED, NOTIMP])
def test_a_resolver_that_says_it_fails_is_followed_by_the_next(rcode: int) -> None:
    forwarder = make()
    first = sent(forwarder.query(KEY, query(), False, 0))
    second = sent(forwarder.reply(0, answer(first, rcode=rcode), S))
    assert second.server_idx == 1
    assert forwarder.next_deadline_ns() == S + SERVER_TIMEOUT_NS
    assert replied(forwarder.reply(1, answer(second, rcode=rcode), S)).rcode == rcode


def test_a_resolver_that_cannot_be_reached_is_followed_by_the_next() -> None:
    forwarder = make()
    sends = [sent(forwarder.query(KEY, query(id=id), False, 0)) for id in (1, 2)]
    tcp = sent(forwarder.query("connection", query(id=3), True, 0))
    again = sent(forwarder.failed(0, [sends[0].upstream_id, 9], 0))
    assert again == sends[0]._replace(server_idx=1)
    assert sent(forwarder.failed(0, None, 0)) == sends[1]._replace(server_idx=1)
    assert sent(forwarder.failed(0, [tcp.upstream_id], 0)) == tcp._replace(server_idx=1)
    failed = forwarder.failed(1, [each.upstream_id for each in (*sends, tcp)] * 2, 0)
    assert [(each.source_key, DNS(each.message).rcode) for each in failed] == [
        (KEY, SERVFAIL), (KEY, SERVFAIL), ("connection", SERVFAIL),
    ]  # fmt: skip
    assert forwarder.failed(1, None, 0) == []


def test_a_silent_resolver_is_asked_last_for_a_while() -> None:
    forwarder = make(servers=3)
    first = sent(forwarder.query(KEY, query(id=1), False, 0))
    second = sent(forwarder.expire(2 * S))
    forwarder.reply(1, answer(second, a_record()), 2 * S)
    for now_ns, server_idx in ((3 * S, 1), (2 * S + DEMOTED_NS - 1, 1), (2 * S + DEMOTED_NS, 0)):
        action = sent(forwarder.query(KEY, query(id=2), False, now_ns))
        assert action.server_idx == server_idx
        forwarder.reply(server_idx, answer(action, a_record()), now_ns)
    # A reply, be it late, rehabilitates.
    first = sent(forwarder.query(KEY, query(id=3), False, 100 * S))
    forwarder.expire(102 * S)
    forwarder.reply(0, answer(first, a_record()), 103 * S)
    assert sent(forwarder.query(KEY, query(id=4), False, 103 * S)).server_idx == 0


def test_a_resolver_without_tcp_is_not_demoted() -> None:
    forwarder = make()
    action = sent(forwarder.query("connection", query(id=1), True, 0))
    assert sent(forwarder.failed(0, [action.upstream_id], 0)).server_idx == 1
    assert sent(forwarder.query(KEY, query(id=2), False, 0)).server_idx == 0


# Forged and repeated.


def test_other_resolvers_are_asked_what_the_old_ones_were() -> None:
    ids, news = itertools.count(), list[int]()
    refresh = lambda now_ns: news.pop() if news else None  # noqa: E731
    forwarder = Forwarder(Policy(), 2, lambda: next(ids), refresh)
    by_udp = sent(forwarder.query(KEY, query(), False, 0))
    by_tcp = sent(forwarder.query("a connection", query(id=8), True, 0))
    forwarder.failed(0, None, 0)
    news.append(1)
    *again, new = forwarder.query(KEY, query("example.org"), False, S)
    assert again == [
        SendUdp(0, by_udp.upstream_id, by_udp.message),
        SendTcp(0, by_tcp.upstream_id, by_tcp.message),
    ]
    assert isinstance(new, SendUdp) and new.server_idx == 0
    assert forwarder.reply(1, answer(by_udp, a_record()), S) == []  # nobody knows that one
    assert replied(forwarder.reply(0, answer(by_udp, a_record()), S)).rcode == NOERROR
    assert forwarder.next_deadline_ns() == S + SERVER_TIMEOUT_NS
    # And there may be none any more.
    news.append(0)
    actions = forwarder.query(KEY, query(id=9), False, S)
    assert [type(action) for action in actions] == [Reply] * 3
    assert all(DNS(action.message).rcode == SERVFAIL for action in actions)
    news.append(3)
    assert sent(forwarder.query(KEY, query(id=10), False, S)).server_idx == 0


def test_replies_to_nothing_that_was_asked_are_ignored() -> None:
    policy = Policy(allow=["*.com"])
    forwarder = make(policy)
    action = sent(forwarder.query(KEY, query(), False, 0))
    good = answer(action, a_record())
    forged = [
        (0, dns_message.with_id(good, 0x1001)),
        (1, good),  # not asked yet
        (0, answer(action, a_record("evil.com"), qd=[DNSQR(qname="evil.com")])),
        (0, answer(action, a_record(), qd=[DNSQR(qname="example.com", qtype=CNAME)])),
        (0, answer(action, a_record(), qd=[DNSQR(qname="example.com", qclass=3)])),
        (0, answer(action, a_record(), qd=[])),
        (0, answer(action, a_record(), qr=0)),
        (0, good[:-1]),
        (0, b""),
    ]
    for server_idx, message in forged:
        assert forwarder.reply(server_idx, message, 0) == []
    assert forwarder.statistics().ignored == len(forged)
    assert policy.statistics().pins == 0
    lower = good.replace(b"example", b"EXAMPLE", 1)  # some change the capitals
    assert replied(forwarder.reply(0, lower, 0)).qd[0].qname == b"example.com."


def test_the_same_query_again_is_merged() -> None:
    forwarder = make()
    action = sent(forwarder.query(KEY, query(), False, 0))
    assert forwarder.query(KEY, query(), False, S) == []
    assert forwarder.next_deadline_ns() == SERVER_TIMEOUT_NS
    others = [
        forwarder.query(KEY, query(id=8), False, S),
        forwarder.query(KEY, query(qtype=TXT), False, S),
        forwarder.query((KEY[0], 40001), query(), False, S),
    ]
    assert len({sent(each).upstream_id for each in others} | {action.upstream_id}) == 4
    assert (forwarder.statistics().merged, forwarder.statistics().pending) == (1, 4)
    replied(forwarder.reply(0, answer(action, a_record()), S))
    sent(forwarder.query(KEY, query(), False, S))  # answered, so that it is a new one


def test_identifiers_are_random_and_unique() -> None:
    numbers = iter([5, 5, 0xFFFF, 0x1FFFF])
    forwarder = Forwarder(Policy(), 1, lambda: next(numbers))
    ids = [sent(forwarder.query(KEY, query(id=id), False, 0)).upstream_id for id in range(4)]
    assert ids == [5, 6, 0xFFFF, 0]


def test_at_the_limit_the_oldest_is_given_up() -> None:
    forwarder = make()
    for id in range(PENDING_MAX):
        sent(forwarder.query(KEY, query(id=id), False, id))
    forwarder.expire(SERVER_TIMEOUT_NS)  # the oldest is asked again: still the oldest
    oldest, action = forwarder.query(KEY, query(id=999), False, SERVER_TIMEOUT_NS)
    assert replied([oldest], id=0).rcode == SERVFAIL
    assert isinstance(action, SendUdp)
    assert forwarder.statistics().pending == PENDING_MAX
    assert len(forwarder._deadlines) == len(forwarder._by_query) == PENDING_MAX
    replies = forwarder.expire(10 * S) + forwarder.expire(20 * S)
    assert sum(isinstance(each, Reply) for each in replies) == PENDING_MAX
    assert not (forwarder._pending or forwarder._deadlines or forwarder._by_query)


# Anything at all.

STEP = st.one_of(
    st.tuples(st.just("query"), st.integers(0, 9), st.sampled_from([A, AAAA, TXT])),
    st.tuples(st.just("answer"), st.integers(0, 9), st.sampled_from([NOERROR, SERVFAIL])),
    st.tuples(st.just("failed"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("time"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("junk"), st.integers(0, 9), st.binary(max_size=30)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, max_size=25), st.integers(0, 3))
def test_every_query_is_answered_exactly_once(steps: Iterable[tuple], servers: int) -> None:
    forwarder = make(servers=servers)
    open_: set[int] = set()
    sends: list[SendUdp | SendTcp] = []
    now_ns = 0

    def handle(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                open_.remove(action.source_key)  # type: ignore[arg-type]
            else:
                sends.append(action)

    for number, (step, which, what) in enumerate(steps):
        if step == "query":
            open_.add(number)
            message = query(f"name{which}.example", what, id=which)
            handle(forwarder.query(number, message, bool(which & 1), now_ns))
        elif step == "time":
            now_ns += which * S
            handle(forwarder.expire(now_ns))
        elif step == "junk":
            action = forwarder.reply(which, what, now_ns)
            assert action == []
        elif sends:
            target = sends[which % len(sends)]
            if step == "answer":
                handle(forwarder.reply(target.server_idx, answer(target, rcode=what), now_ns))
            else:
                handle(forwarder.failed(target.server_idx, [target.upstream_id], now_ns))
        assert forwarder.statistics().pending == len(open_)
    while (deadline_ns := forwarder.next_deadline_ns()) is not None:
        handle(forwarder.expire(deadline_ns))
    assert not open_


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_random_bytes_of_the_guest(data: bytes, is_tcp: bool) -> None:
    forwarder = make()
    for message in (data, b"\0\7\1\0\0\1\0\0\0\0\0\1" + data):
        for action in forwarder.query(KEY, message, is_tcp, 0):
            if isinstance(action, Reply):
                assert action.message[:2] == message[:2]
