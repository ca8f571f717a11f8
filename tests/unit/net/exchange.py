"""Timed exchanges of segments, written as lines of words.

    guest sends SYN seq 1000 win 65535 mss 1460 ws 7
    stack answers SYN|ACK seq 0 ack 1001 mss 1460 ws 7
    host gives 100
    stack sends ACK seq 1 data 100
    wait 1 s

What the guest numbers stands as it is on the wire; our numbers (its `ack`, our `seq`) count from
our first one, whatever that is. Data are a pattern that depends on the place in the stream, so that
every byte is checked. Each frame that the guest gets must be in the script; PSH may be set or not.
"""

from __future__ import annotations

import errno

from tests.unit.net.world import (
    ACK,
    FAR,
    FIN,
    GATEWAY,
    PSH,
    RST,
    SYN,
    URG,
    FakeStream,
    Seen,
    World,
    tcp,
)
from voidbox.net.tcp import DELAYED_ACK_NS
from voidbox.net.tcp_flow import TcpFlow
from voidbox.net.tcp_outgoing import U32

_FLAGS = {"FIN": FIN, "SYN": SYN, "RST": RST, "PSH": PSH, "ACK": ACK, "URG": URG}
_PERIOD = bytes((i * 7 + (i >> 8)) & 255 for i in range(1 << 16))


def pattern(at: int, size: int) -> bytes:
    """The bytes from `at` on of either side's stream."""
    at &= 0xFFFF
    return (_PERIOD * ((at + size >> 16) + 1))[at : at + size]


def _flags_of(text: str) -> int:
    return sum(_FLAGS[name] for name in text.split("|"))


def _name_of(flags: int) -> str:
    return "|".join(name for name, bit in _FLAGS.items() if flags & bit) or "0"


class Exchange:
    """One connection, played line by line.

    Args:
        window: how much of the guest's data the stack holds, and how much it sends ahead.
        iss: our first sequence number; None for what the stack chooses.
    """

    def __init__(
        self,
        script: str = "",
        *,
        world: World | None = None,
        window: int | None = None,
        iss: int | None = None,
        destination: int = FAR,
    ) -> None:
        self.world = world or World()
        if window is not None:
            self.world.stack._tcp._window_bytes = lambda: window  # type: ignore[method-assign]
        if iss is not None:
            self.world.stack._tcp._initial_seq = lambda key: iss  # type: ignore[method-assign]
        self.sport, self.dport, self.destination = 40000, 80, destination
        self.iss: int | None = None
        self.isn: int | None = None
        self.window = 65535
        self.given = 0
        self.seen: list[Seen] = []
        self.edge: int | None = None
        self.scale = 0
        self.play(script)

    def play(self, script: str) -> Exchange:
        for line in script.splitlines():
            words = line.split("#")[0].split()
            if not words:
                continue
            try:
                self._line(words)
                self.world.check()
            except AssertionError as error:
                raise AssertionError(f"{line.strip()}: {error}") from error
        self._expect_nothing()
        return self

    @property
    def stream(self) -> FakeStream:
        assert self.world.host.last is not None
        return self.world.host.last

    @property
    def flow(self) -> TcpFlow:
        (flow,) = self.world.flows
        return flow

    def _collect(self) -> None:
        self.seen += self.world.take()

    def _expect_nothing(self) -> None:
        self._collect()
        assert not self.seen, f"the guest also got {self._describe(self.seen[0])}"

    def _describe(self, seen: Seen) -> str:
        if seen.protocol != 6:
            return seen.frame.hex()
        t = seen.tcp
        return (f"{_name_of(t.flags)} seq {(t.seq - (self.iss or 0)) & U32} ack {t.ack} "
                f"win {t.window} data {len(t.payload)}")  # fmt: skip

    def _line(self, words: list[str]) -> None:
        match words:
            case ["stack", "answers" | "sends", "nothing"]:
                self._expect_nothing()
            case ["stack", "answers" | "sends", "unreachable", code]:
                self._collect()
                assert self.seen, "the guest got nothing"
                seen = self.seen.pop(0)
                assert seen.protocol == 1 and seen.body[:2] == bytes((3, int(code))), seen
            case ["stack", "answers" | "sends", flags, *rest]:
                self._answer(_flags_of(flags), dict(zip(rest[::2], rest[1::2], strict=True)))
            case ["guest", "sends", flags, *rest]:
                self._expect_nothing()
                self._send(_flags_of(flags), dict(zip(rest[::2], rest[1::2], strict=True)))
            case ["guest", "has", count, "buffers"]:
                self.world.rx.credits = None if count == "all" else int(count)
            case ["wait", seconds, "s"]:
                self._expect_nothing()
                self.world.wait(float(seconds))
            case ["flows", count]:
                self._collect()
                assert len(self.world.flows) == int(count), self.world.flows
                assert len(self.world.host.streams) == int(count)
            case ["state", name]:
                assert self.flow.connection.state.name == name, self.flow.connection.state
            case ["host", *rest]:
                self._host(rest)
            case _:
                raise ValueError(f"not understood: {words}")

    def _host(self, words: list[str]) -> None:
        host = self.world.host
        match words:
            case ["listens"] | ["black", "hole"]:
                host.connects = words == ["listens"]
            case ["connects"]:
                self.stream.is_connected = True
                self.stream.owner.connected(0)
            case ["fails", name]:
                self.stream.owner.connected(getattr(errno, name))
            case ["opens", port]:
                stream = host.accepted()
                flow = self.world.stack.open_to_guest(int(port), stream, self.world.now_ns)
                assert flow is not None
                stream.owner = flow
                self.sport, (self.destination, self.dport) = flow.guest_port, flow.remote
                assert self.destination == GATEWAY
            case ["gives", count]:
                self.stream.gives += pattern(self.given, int(count))
                self.given += int(count)
            case ["ends"]:
                self.stream.has_ended = True
            case ["breaks"]:
                self.stream.breaks = True
            case ["takes", count]:
                self.stream.room = 1 << 62 if count == "all" else int(count)
            case ["got", "FIN"]:
                assert self.stream.is_shut
            case ["got", "no", "FIN"]:
                assert not self.stream.is_shut
            case ["got", count]:
                self._collect()
                assert len(self.stream.got) == int(count), len(self.stream.got)
                assert bytes(self.stream.got) == pattern(0, int(count))
            case ["is", "open"]:
                assert self.stream.is_open
            case ["is", "closed"]:
                assert not self.stream.is_open and not self.stream.was_reset
            case ["is", "reset"]:
                assert not self.stream.is_open and self.stream.was_reset
            case _:
                raise ValueError(f"not understood: {words}")

    def _send(self, flags: int, fields: dict[str, str]) -> None:
        seq = int(fields.pop("seq"))
        ack = int(fields.pop("ack", "0"))
        self.window = int(fields.pop("win", self.window))
        size = int(fields.pop("data", "0"))
        options = b""
        if flags & SYN:
            self.isn = seq
            if "mss" in fields:
                options += b"\x02\x04" + int(fields.pop("mss")).to_bytes(2, "big")
            if "ws" in fields:
                options += b"\x01\x03\x03" + bytes((int(fields.pop("ws")),))
        urgent = int(fields.pop("urg", "0"))
        assert not fields, fields
        place = (seq - (self.isn or 0) - 1) & U32
        # As Linux sends them where it may leave the sums to the card: then the short way is taken.
        self.world.send(
            tcp(self.sport, self.dport, seq, (ack + (self.iss or 0)) if flags & ACK else 0,
                flags, self.window, pattern(place, size), options, self.destination, urgent),
            needs_csum=True,
        )  # fmt: skip

    def _answer(self, flags: int, fields: dict[str, str]) -> None:
        self._collect()
        if not self.seen:  # an acknowledgement that waits for data to go along with
            self.world.wait(DELAYED_ACK_NS / 1e9)
            self._collect()
        assert self.seen, "the guest got nothing"
        seen = self.seen.pop(0)
        said = self._describe(seen)
        got = seen.tcp
        assert (got.sport, got.dport, seen.source) == (self.dport, self.sport, self.destination)
        if got.flags & SYN and self.iss is None:
            self.iss = got.seq
        assert got.flags & ~PSH == flags, said
        place = (got.seq - (self.iss or 0)) & U32
        assert got.payload == pattern(place - 1, len(got.payload)), f"wrong bytes in {said}"
        self._check_edge(got.flags, got.ack, got.window, got.wscale)
        known = {
            "seq": place, "ack": got.ack, "win": got.window, "data": len(got.payload),
            "mss": got.mss, "ws": got.wscale, "gso": seen.gso_size,
        }  # fmt: skip
        fields.setdefault("data", "0")
        for name, value in fields.items():
            expected = None if value == "none" else int(value)
            assert known[name] == expected, f"{name} is {known[name]} in {said}"

    def _check_edge(self, flags: int, ack: int, window: int, wscale: int | None) -> None:
        """RFC 9293 §3.8.6: the right edge of our window never moves back."""
        if flags & RST or not flags & ACK:
            if flags & SYN:
                self.scale = wscale or 0
            return
        if flags & SYN:
            self.scale = wscale or 0
            edge = (ack + window) & U32
        else:
            edge = (ack + (window << self.scale)) & U32
        if self.edge is not None:
            back = (self.edge - edge) & U32
            # The field is rounded down to the scale; what lies up to the edge is taken.
            assert back >= 1 << 31 or back < 1 << self.scale, f"the edge moves back by {back}"
            if back < 1 << 31:
                return
        self.edge = edge
