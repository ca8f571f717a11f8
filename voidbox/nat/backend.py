"""The network device's backend: the stack, its sockets, its clock, its rate.

device ─► NetBackend ─► Stack ─► HostSockets ─► the host's kernel
          one timer, one rate limit, one pcap file
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from voidbox.errors import ConfigError
from voidbox.loop_api import Loop, TimerHandle
from voidbox.nat.bucket import Bucket
from voidbox.nat.config import NatConfig, host_servers, make_forwarder
from voidbox.nat.forwards import Forwards
from voidbox.nat.limited_log import LimitedLog
from voidbox.nat.outside import NoResolvers, Outside
from voidbox.nat.resolvers import HostResolvers
from voidbox.nat.sockets import HostSockets
from voidbox.net.dhcp import Server as DhcpServer
from voidbox.net.flow_state import FlowState
from voidbox.net.line import RxFrames
from voidbox.net.name_service import NameService
from voidbox.net.pcap import PcapWriter
from voidbox.net.policy import Gate, Policy
from voidbox.net.stack import Header, Stack, StackStatistics

_FLUSH_S = 1.0  # how old what is in the pcap file's buffer may get


class Offloads(Protocol):
    """What the guest's driver takes; see virtio.net."""

    @property
    def guest_csum(self) -> bool: ...
    @property
    def guest_tso4(self) -> bool: ...


class NatBackend:
    """A FrameBackend. Thread: loop.

    Args:
        log: takes a line about what was refused, or failed behind the guest's back.
    Raises:
        ConfigError: a rule or an address is wrong, or the pcap file cannot be written.
        HostError: a published port is taken.

    Attributes:
        on_pending: set by the device: has_pending() is true.
        forwards: the published ports.
        has_pending: the stack's: whether transmit() may have something.
    """

    def __init__(
        self, config: NatConfig, loop: Loop, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self.on_pending: Callable[[], None] = lambda: None
        self._loop = loop
        self._log = log
        self._timer: TimerHandle | None = None
        self._timer_ns = 0
        self._budget: Bucket | None = None
        self._datagrams: Bucket | None = None  # of the guest
        self._rate_timer: TimerHandle | None = None
        self._is_paused = False  # the guest stands still
        self._pcap: PcapWriter | None = None
        self._pcap_timer: TimerHandle | None = None
        self._is_closed = False
        self._resources = ExitStack()
        try:
            self._build(config)
        except BaseException:
            self._resources.close()
            raise

    def _build(self, config: NatConfig) -> None:
        self._set_budgets(config.rate_bytes_s)
        log = LimitedLog(self._loop, self._log)
        self._resources.callback(log.close)
        listen_on = None
        gate: Gate
        if config.outside is not None:
            gate, self._names, self._sockets = self._ask(config.outside)
            listen_on = config.outside.listen
        else:
            gate = policy = config.make_policy()
            policy.on_refused = lambda text: log.add(f"refused {text}")
            self._sockets = HostSockets(self._loop, self._after)
            self._names = self._resolve(config, policy)
        self._stack = Stack(
            config.network,
            self._sockets,
            gate,
            self._names,
            DhcpServer(config.network, search=config.search),
            os.urandom(16),
            tap=self._capture if config.pcap is not None else None,
        )
        self._line = self._stack.line
        self._line.on_note = log.add
        self._line.takes_datagram = self._takes_datagram
        self.has_pending = self._stack.has_pending
        self._resources.callback(self._stack.reset)
        self.forwards = Forwards(self._loop, self._stack, self._sockets, self._after, listen_on)
        self._resources.callback(self.forwards.close)
        for forward in config.publish:
            self.forwards.add(forward)
        if config.pcap is not None:  # last: whatever is wrong, an older capture survives it
            self._open_pcap(config.pcap)

    def _resolve(self, config: NatConfig, policy: Policy) -> NameService:
        """Return a name service whose queries this process sends."""
        servers = host_servers(config)
        resolvers = HostResolvers(self._loop, servers, self._replied, self._resolver_failed)
        self._resources.callback(resolvers.close)
        return NameService(make_forwarder(policy, servers), resolvers)

    def _ask(self, outside: Outside) -> tuple[Gate, NameService, HostSockets]:
        """Return what asks another process."""
        policy, forwarder = outside.attach(self._loop, partial(self._replied, 0))
        self._resources.callback(outside.detach)
        names = NameService(forwarder, NoResolvers())
        return policy, names, HostSockets(self._loop, self._after, outside.open_connected)

    def _open_pcap(self, path: str) -> None:
        try:
            file = self._resources.enter_context(open(path, "wb"))  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write --pcap {path}: {error.strerror}") from error
        self._pcap = PcapWriter(
            file, time.time_ns, lambda error: self._log(f"--pcap {path}: {error.strerror}")
        )
        self._resources.callback(self._pcap.flush)

    # The device's calls.

    def start(self, offloads: Offloads) -> None:
        """The driver is ready."""
        self._stack.start(offloads.guest_csum, offloads.guest_tso4)

    def receive(self, frame: list[memoryview], header: Header) -> None:
        """Take one frame of the guest."""
        now_ns = time.monotonic_ns()
        if self._budget is not None:
            self._budget.spend(sum(map(len, frame)), now_ns)
        self._stack.receive(frame, header, now_ns)
        if self._line.has_new_deadline:
            self._set_timer(now_ns)

    def transmit(self, rx: RxFrames) -> bool:
        """Give the guest the next frame."""
        now_ns = time.monotonic_ns()
        budget = self._budget
        if budget is None:
            done = self._stack.transmit(rx, now_ns)
        else:
            if not self._has_budget(budget, now_ns):
                self._stack.pause()  # sockets with data would keep the loop busy
                return False
            before = self._line.bytes_to_guest
            done = self._stack.transmit(rx, now_ns)
            budget.spend(self._line.bytes_to_guest - before, now_ns)
        if self._line.has_new_deadline:
            self._set_timer(now_ns)
        return done

    def pause(self) -> None:
        """The guest stands still, and so do its time-outs; sockets with data wait, unwatched."""
        self._is_paused = True
        self._stack.pause()

    def resume(self) -> None:
        """It goes on, and is late with no answer for the time between."""
        if self._is_paused:
            self._is_paused = False
            now_ns = time.monotonic_ns()
            self._stack.resume(now_ns)
            self._set_timer(now_ns)

    def reset(self) -> None:
        """The driver let go of the device."""
        self._is_paused = False
        self._stack.reset()

    # Snapshots.

    def flow_states(self) -> tuple[FlowState, ...]:
        """Return the guest's TCP connections, for reset_flows()."""
        return self._stack.flow_states()

    def reset_flows(self, states: Sequence[FlowState]) -> None:
        """Tell the guest of a restored machine that its connections of before are over."""
        self._stack.reset_flows(states)

    # The rate: what goes to the guest waits, and with it what acknowledges the guest's own data.

    def set_rate(self, bytes_s: int | None) -> None:
        """Change the rate; None for no limit.

        Raises:
            ConfigError: less than a byte a second.
        """
        self._set_budgets(bytes_s)
        if self._rate_timer is not None:
            self._rate_timer.cancel()
        self._on_budget()

    def _set_budgets(self, bytes_s: int | None) -> None:
        if bytes_s is not None and bytes_s < 1:
            raise ConfigError(f"a rate of {bytes_s} bytes a second: give at least 1")
        now_ns = time.monotonic_ns()
        self._budget = None if bytes_s is None else Bucket(bytes_s, now_ns)
        self._datagrams = None if bytes_s is None else Bucket(bytes_s, now_ns)

    def _has_budget(self, budget: Bucket, now_ns: int) -> bool:
        wait_s = budget.wait_s(now_ns)
        if wait_s and self._rate_timer is None:
            self._rate_timer = self._loop.call_later(wait_s, self._on_budget)
        return not wait_s

    def _takes_datagram(self, size: int, now_ns: int) -> bool:
        """Whether a datagram of the guest may pass, which no acknowledgement ever holds back.

        They have a budget of their own, and are charged to the other as well: streams, which may
        overdraw that one for long, do not have all of them dropped.
        """
        if self._budget is None or self._datagrams is None:
            return True
        if self._datagrams.wait_s(now_ns):
            self._budget.spend(-size, now_ns)  # it is not sent
            return False
        self._datagrams.spend(size, now_ns)
        return True

    def _on_budget(self) -> None:
        self._rate_timer = None
        if self.has_pending():
            self.on_pending()

    # The host's side.

    def _after(self) -> None:
        """A socket has moved something."""
        if self.has_pending():
            self.on_pending()
        if self._line.has_new_deadline:
            self._set_timer(time.monotonic_ns())

    def _replied(self, server_idx: int, message: bytes) -> None:
        self._names.replied(server_idx, message, time.monotonic_ns())
        self._after()
        self._set_timer(time.monotonic_ns())

    def _resolver_failed(self, server_idx: int, ids: Iterable[int] | None) -> None:
        self._names.failed(server_idx, ids, time.monotonic_ns())
        self._after()
        self._set_timer(time.monotonic_ns())

    def _set_timer(self, now_ns: int) -> None:
        """One timer, for the earliest deadline; one that is later than needed is replaced."""
        deadline_ns = self._stack.next_deadline_ns()
        if deadline_ns is None or self._is_closed:
            return
        if self._timer is not None:
            if self._timer_ns <= deadline_ns:
                return
            self._timer.cancel()
        self._timer_ns = deadline_ns
        self._timer = self._loop.call_later(max(0, deadline_ns - now_ns) / 1e9, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._is_paused:
            return
        self._stack.on_time(time.monotonic_ns())
        self._after()
        self._set_timer(time.monotonic_ns())

    def _flush_pcap(self) -> None:
        self._pcap_timer = None
        if self._pcap is not None:
            self._pcap.flush()

    def _capture(self, buffers: Sequence[memoryview | bytes], length: int) -> None:
        if self._pcap is not None:
            self._pcap.add(buffers, length)
            if self._pcap_timer is None:
                self._pcap_timer = self._loop.call_later(_FLUSH_S, self._flush_pcap)

    # Life.

    def statistics(self) -> StackStatistics:
        """Return the counters."""
        return self._stack.statistics()

    def close(self) -> None:
        """End every connection and close every socket. Idempotent.

        Thread: loop, or any once the loop is stopped.
        """
        self._is_closed = True
        for timer in (self._timer, self._rate_timer, self._pcap_timer):
            if timer is not None:
                timer.cancel()
        self._resources.close()
