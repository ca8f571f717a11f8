"""The guest's name server: forwards to the host's resolvers. No I/O, no clock.

    guest ──query──► local answer, or refused by the policy ──Reply──► guest
                  └► SendUdp or SendTcp ──► resolver ──reply──► pin the addresses ──Reply──► guest

Every query is answered: a resolver that is silent or fails is followed by the next, and the last by
SERVFAIL. A resolver that was silent is asked last for a while, so that only the first query waits
for it. Queries over TCP go on over TCP; a reply too long for UDP goes to the guest truncated, which
then asks again over TCP.

The guest has IPv4 only, so that AAAA gets "no such record" from here. Records of other types, such
as HTTPS with its hints, go through as they are; the policy knows no addresses out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from voidbox.named_tuple import NamedTuple
from voidbox.net import dns_message as dns
from voidbox.net.dns_message import ParseError, Query
from voidbox.net.policy import Policy

# Of all queries under way. Beyond it the oldest is answered SERVFAIL.
PENDING_MAX = 256
SERVER_TIMEOUT_NS = 2_000_000_000
# How long a resolver that did not answer is asked last.
DEMOTED_NS = 30_000_000_000
# The longest reply over UDP that goes into one IPv4 packet of 1500 bytes, whatever the guest takes.
UDP_BYTES_MAX = 1472
LOCAL_TTL_S = 60

_LOOPBACK = 0x7F00_0001
_OWN_DOMAIN = "voidbox.internal"
GATEWAY_NAMES = frozenset(f"{host}.{_OWN_DOMAIN}" for host in ("host", "gateway"))
# These say something about the server rather than the name.
_SERVER_FAILED = (dns.SERVFAIL, dns.NOTIMP, dns.REFUSED)


class SendUdp(NamedTuple):
    """Send a query to a resolver. Its reply comes in by Forwarder.reply."""

    server_idx: int
    upstream_id: int
    message: bytes


class SendTcp(NamedTuple):
    """The same over TCP; the message is not framed."""

    server_idx: int
    upstream_id: int
    message: bytes


class Reply(NamedTuple):
    """Send a reply to the guest, to where the query with this key came from. Not framed."""

    source_key: Hashable
    message: bytes


Action = SendUdp | SendTcp | Reply


class ForwarderStatistics(NamedTuple):
    """Counters of a forwarder.

    Attributes:
        queries: all that came, in all shapes.
        invalid: not to be read as a query.
        local: answered from here: own names, AAAA, what is not supported.
        refused: by the policy.
        merged: the same query again while it was under way.
        forwarded: sent to some resolver.
        answered: by a resolver.
        failed: answered SERVFAIL, for want of a resolver that answers or of room.
        timeouts: of one resolver each.
        ignored: replies that answer nothing that was asked.
        pending: queries under way.
    """

    queries: int
    invalid: int
    local: int
    refused: int
    merged: int
    forwarded: int
    answered: int
    failed: int
    timeouts: int
    ignored: int
    pending: int


class _Pending:
    """A query under way: whose, what, and whom to ask."""

    __slots__ = ("asked", "is_tcp", "message", "query", "source_key", "upstream_id", "waiting")

    def __init__(
        self, source_key: Hashable, message: bytes, query: Query, is_tcp: bool, upstream_id: int
    ) -> None:
        self.source_key = source_key
        self.message = message  # the guest's
        self.query = query
        self.is_tcp = is_tcp
        self.upstream_id = upstream_id
        self.asked: list[int] = []  # resolvers, the one whose turn it is last
        self.waiting: list[int] = []  # those not yet asked, in order


class Forwarder:
    """Queries of one guest. Thread: loop.

    Args:
        policy: which names may be resolved; it is told their addresses.
        server_count: how many resolvers there are, in the order of preference.
        random_u16: a new unpredictable number of 16 bits; who guesses it forges replies.
        refresh: asked at each query, with the time: how many resolvers there are, if they are
            others now.
    """

    def __init__(
        self,
        policy: Policy,
        server_count: int,
        random_u16: Callable[[], int],
        refresh: Callable[[int], int | None] = lambda now_ns: None,
    ) -> None:
        self._policy = policy
        self._refresh = refresh
        self._random_u16 = random_u16
        self._demoted_until_ns = [0] * server_count
        self._pending: dict[int, _Pending] = {}  # by upstream identifier; the oldest is first
        self._by_query: dict[tuple[Hashable, bytes], _Pending] = {}
        # When the next resolver is asked. All time-outs are alike, so the order is that of time.
        self._deadlines: dict[_Pending, int] = {}
        self._queries = self._invalid = self._local = self._refused = self._merged = 0
        self._forwarded = self._answered = self._failed = self._timeouts = self._ignored = 0

    # From the guest.

    def query(
        self, source_key: Hashable, message: bytes, is_tcp: bool, now_ns: int
    ) -> list[Action]:
        """Take a query of the guest; whatever it holds, no exception leaves.

        Args:
            source_key: what a Reply goes back by: a UDP source, or a TCP connection that is never
                another's later.
            message: without its length, if it came over TCP.
        """
        self._queries += 1
        try:
            query = dns.parse_query(message)
        except ParseError:
            return self._complain(source_key, message)
        reply = self._answer(query)
        if reply is not None:
            return [Reply(source_key, reply)]
        server_count = self._refresh(now_ns)
        actions = [] if server_count is None else self._restart(server_count, now_ns)
        if (source_key, message) in self._by_query:
            self._merged += 1
            return actions
        return actions + self._forward(source_key, message, query, is_tcp, now_ns)

    def _complain(self, source_key: Hashable, message: bytes) -> list[Action]:
        """Answer what cannot be read, if it is a query at all; never a reply by a reply."""
        self._invalid += 1
        if len(message) < dns.HEADER_BYTES:
            return []
        id_, flags = dns.parse_id(message)
        if flags & dns.QR:
            return []
        rcode = dns.FORMERR if dns.opcode_of(flags) == dns.OPCODE_QUERY else dns.NOTIMP
        return [Reply(source_key, dns.build_bare_error(id_, flags, rcode))]

    def _answer(self, query: Query) -> bytes | None:
        """Answer what needs no resolver; None for what does."""
        reply = _answer_own(query, self._policy.gateway)
        if reply is None and not self._policy.check_name(query.question.name).allowed:
            self._refused += 1
            return dns.build_reply(query, dns.REFUSED)
        if reply is None and self._has_none(query.question):
            reply = dns.build_reply(query, dns.NOERROR)
        self._local += reply is not None
        return reply

    def _has_none(self, question: dns.Question) -> bool:
        """Whether the guest is to hear that a name has no records of a type."""
        if question.qtype in (dns.TYPE_SVCB, dns.TYPE_HTTPS):
            return self._policy.hides_services(question.name)
        return question.qtype == dns.TYPE_AAAA

    def _forward(
        self, source_key: Hashable, message: bytes, query: Query, is_tcp: bool, now_ns: int
    ) -> list[Action]:
        actions: list[Action] = []
        if len(self._pending) >= PENDING_MAX:
            actions.append(self._fail(next(iter(self._pending.values()))))
        pending = _Pending(source_key, message, query, is_tcp, self._allocate_id())
        # Those that were silent lately come last; sorted() keeps the order otherwise.
        pending.waiting = sorted(
            range(len(self._demoted_until_ns)),
            key=lambda server_idx: self._demoted_until_ns[server_idx] > now_ns,
        )
        self._pending[pending.upstream_id] = pending
        self._by_query[source_key, message] = pending
        actions.append(self._ask_next(pending, now_ns))
        return actions

    def _allocate_id(self) -> int:
        upstream_id = self._random_u16() & 0xFFFF
        while upstream_id in self._pending:  # few are
            upstream_id = (upstream_id + 1) & 0xFFFF
        return upstream_id

    def _ask_next(self, pending: _Pending, now_ns: int) -> Action:
        """Go on to the next resolver; SERVFAIL if there is none."""
        if not pending.waiting:
            return self._fail(pending)
        server_idx = pending.waiting.pop(0)
        pending.asked.append(server_idx)
        # Anew, so that it comes last.
        self._deadlines.pop(pending, None)
        self._deadlines[pending] = now_ns + SERVER_TIMEOUT_NS
        self._forwarded += 1
        send = SendTcp if pending.is_tcp else SendUdp
        upstream_id = pending.upstream_id
        return send(server_idx, upstream_id, dns.with_id(pending.message, upstream_id))

    def _fail(self, pending: _Pending) -> Reply:
        self._failed += 1
        return self._finish(pending, dns.build_reply(pending.query, dns.SERVFAIL))

    def _finish(self, pending: _Pending, reply: bytes) -> Reply:
        del self._pending[pending.upstream_id]
        del self._by_query[pending.source_key, pending.message]
        self._deadlines.pop(pending, None)
        return Reply(pending.source_key, reply)

    # From the resolvers.

    def reply(self, server_idx: int, message: bytes, now_ns: int) -> list[Action]:
        """Take what came from a resolver; what answers nothing that it was asked is ignored.

        A resolver that was given up may still answer, as long as no other has.
        """
        try:
            answer = dns.parse_answer(message)
        except ParseError:
            self._ignored += 1
            return []
        pending = self._pending.get(answer.id)
        if (
            pending is None
            or server_idx not in pending.asked
            or answer.question != pending.query.question
        ):
            self._ignored += 1
            return []
        self._demoted_until_ns[server_idx] = 0
        if answer.rcode in _SERVER_FAILED:
            if server_idx != pending.asked[-1]:
                return []  # the next one has been asked already
            if pending.waiting:
                return [self._ask_next(pending, now_ns)]
        self._answered += 1
        addresses, ttl_s = answer.addresses()
        self._policy.pin(answer.question.name, addresses, ttl_s, now_ns)
        return [self._finish(pending, _fit(dns.pass_on(message, pending.query), pending))]

    def failed(self, server_idx: int, ids: Iterable[int] | None, now_ns: int) -> list[Action]:
        """A resolver cannot be reached, or its connection broke.

        Args:
            ids: the upstream identifiers of the queries concerned; None for all over UDP, since an
                ICMP error on a UDP socket does not say which.
        """
        actions = []
        for upstream_id in list(self._pending) if ids is None else ids:
            pending = self._pending.get(upstream_id)
            if pending is None or pending.asked[-1] != server_idx:
                continue
            if ids is not None or not pending.is_tcp:
                self._demote(pending, now_ns)
                actions.append(self._ask_next(pending, now_ns))
        return actions

    def _demote(self, pending: _Pending, now_ns: int) -> None:
        # Many a router's resolver knows no TCP; that says nothing about UDP.
        if not pending.is_tcp:
            self._demoted_until_ns[pending.asked[-1]] = now_ns + DEMOTED_NS

    def _restart(self, server_count: int, now_ns: int) -> list[Action]:
        """The resolvers are others now: what is under way is asked anew, of them."""
        self._demoted_until_ns = [0] * server_count
        actions: list[Action] = []
        for pending in list(self._pending.values()):
            pending.asked.clear()
            pending.waiting = list(range(server_count))
            actions.append(self._ask_next(pending, now_ns))
        return actions

    # Time.

    def next_deadline_ns(self) -> int | None:
        """When `expire` has to be called next."""
        return next(iter(self._deadlines.values()), None)

    def expire(self, now_ns: int) -> list[Action]:
        """Go on to the next resolver with those that were not answered in time."""
        actions = []
        while self._deadlines:
            pending, deadline_ns = next(iter(self._deadlines.items()))
            if deadline_ns > now_ns:
                break
            self._timeouts += 1
            self._demote(pending, now_ns)
            actions.append(self._ask_next(pending, now_ns))
        return actions

    def statistics(self) -> ForwarderStatistics:
        """Return the counters."""
        return ForwarderStatistics(
            queries=self._queries,
            invalid=self._invalid,
            local=self._local,
            refused=self._refused,
            merged=self._merged,
            forwarded=self._forwarded,
            answered=self._answered,
            failed=self._failed,
            timeouts=self._timeouts,
            ignored=self._ignored,
            pending=len(self._pending),
        )


def _is_in(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _answer_own(query: Query, gateway: int) -> bytes | None:
    """Answer our own names, and what is not supported whatever the name is."""
    name, qtype, qclass = query.question
    # A zone comes in many messages, and the other classes tell about the host's resolver.
    if (
        query.opcode != dns.OPCODE_QUERY
        or qtype in (dns.TYPE_AXFR, dns.TYPE_IXFR)
        or qclass != dns.CLASS_IN
    ):
        return dns.build_reply(query, dns.NOTIMP)
    is_localhost = _is_in(name, "localhost")  # with all below it: RFC 6761 §6.3
    if is_localhost or name in GATEWAY_NAMES:
        address = _LOOPBACK if is_localhost else gateway
        addresses = [address] if qtype in (dns.TYPE_A, dns.TYPE_ANY) else []
        return dns.build_reply(query, dns.NOERROR, addresses, LOCAL_TTL_S)
    if _is_in(name, _OWN_DOMAIN):
        return dns.build_reply(query, dns.NOERROR if name == _OWN_DOMAIN else dns.NXDOMAIN)
    return None


def _fit(reply: bytes, pending: _Pending) -> bytes:
    """Truncate a reply that the guest's UDP does not take."""
    if pending.is_tcp or len(reply) <= min(pending.query.udp_bytes, UDP_BYTES_MAX):
        return reply
    return dns.truncate(reply, pending.query)
