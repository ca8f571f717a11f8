"""One connection of the guest to where a guarded host is: a thread, from hello to end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import h11

from voidbox.named_tuple import NamedTuple
from voidbox.secrets.audit import Entry
from voidbox.secrets.hello import Hello, HelloReader
from voidbox.secrets.http1 import Broken, Http1
from voidbox.secrets.http2 import Http2
from voidbox.secrets.judge import Judge, Rules
from voidbox.secrets.spec import Place
from voidbox.secrets.wire import PENDING_BYTES_MAX, READ_BYTES, Wire

HELLO_S, HANDSHAKE_S = 60.0, 30.0
IDLE_S = 3600.0
_END_S, _DRAIN_BYTES_MAX = 2.0, 4 << 20
PLAIN_PORT = 80


class Contexts(NamedTuple):
    """What TLS needs, made before the first connection: later no file can be read.

    Attributes:
        servers: by host, by what was chosen by ALPN; see authority.server_contexts.
        clients: see authority.client_contexts.
    """

    servers: Mapping[str, Mapping[str, ssl.SSLContext]]
    clients: Mapping[str, ssl.SSLContext]
    hellos: HelloReader


class _Engine(Protocol):
    is_done: bool
    pause_s: float

    def wants_guest(self) -> bool: ...
    def from_guest(self, data: bytes) -> None: ...
    def from_far(self, data: bytes) -> None: ...
    def lose(self, why: str) -> None: ...


class _Splice:
    """Passes everything on, unread."""

    def __init__(self, guest: Wire, far: Wire) -> None:
        self.is_done, self.pause_s = False, 0.0
        self._guest, self._far = guest, far

    def wants_guest(self) -> bool:
        return True

    def from_guest(self, data: bytes) -> None:
        self._pass(data, self._guest, self._far)

    def from_far(self, data: bytes) -> None:
        self._pass(data, self._far, self._guest)

    def _pass(self, data: bytes, source: Wire, target: Wire) -> None:
        if data:
            target.write(data)
        self.is_done = self._guest.has_ended and self._far.has_ended

    def lose(self, why: str) -> None:
        """Nobody is told."""


class Connection:
    """Thread: its own.

    Args:
        guest: the guest's end.
        far: a socket that is connected to where the guest wants to, or is being so.
        port: which the guest asked for.
        is_guarded: whether a place is one of ours.
    """

    def __init__(
        self,
        rules: Rules,
        contexts: Contexts,
        guest: socket.socket,
        far: socket.socket,
        port: int,
        is_guarded: Callable[[Place], bool],
    ) -> None:
        self._rules, self._contexts = rules, contexts
        self._guest_socket, self._far_socket = guest, far
        self._port = port
        self._is_guarded = is_guarded

    def run(self) -> None:
        """Serve it, and close both ends."""
        guest, far = Wire(self._guest_socket), Wire(self._far_socket)
        try:
            if self._port == PLAIN_PORT:
                self._connect(far)
                judge = Judge(self._rules, None)
                self._pump(Http1(judge, guest, far), guest, far)
                return
            first, hello = self._hear(guest)
            guest = Wire(self._guest_socket, first)
            name = hello.server_name
            place = Place(name, self._port) if name is not None else None
            if place is not None and self._is_guarded(place):
                self._end_tls(place, hello, guest, far)
            else:
                self._connect(far)
                self._pump(_Splice(guest, far), guest, far)
        except (OSError, ssl.SSLError, Broken, h11.ProtocolError):
            pass  # told where it was known what it means
        finally:
            guest.close()
            far.close()

    def _hear(self, guest: Wire) -> tuple[bytes, Hello]:
        """Return the first bytes of the guest, and what they say.

        Raises:
            OSError: it is gone, or says nothing.
        """
        data = b""
        deadline = time.monotonic() + HELLO_S
        while True:
            _await(guest, select.POLLIN, deadline)
            part = self._guest_socket.recv(READ_BYTES)
            data += part
            hello = self._contexts.hellos.read(data) if part else Hello(is_tls=False)
            if hello is not None:
                return data, hello

    # A guarded host.

    def _end_tls(self, place: Place, hello: Hello, guest: Wire, far: Wire) -> None:
        broken = self._begin_far(place, hello, far)
        servers = self._contexts.servers[place.host]
        context = servers["any"] if broken else servers[far.protocol()]
        try:
            guest.start_tls(context)
            _shake_hands(guest)
        except OSError as error:
            self._tell_untrusted(place, error)
            with contextlib.suppress(OSError):
                guest.flush()
            return
        make = Http2 if guest.protocol() == "h2" else Http1
        judge = Judge(self._rules, place, broken)
        self._pump(make(judge, guest, None if broken else far), guest, None if broken else far)

    def _begin_far(self, place: Place, hello: Hello, far: Wire) -> str:
        """Speak TLS with the host; returns why that cannot be, "" if it can."""
        try:
            self._connect(far)
            context = self._contexts.clients["any" if hello.takes_http2 else "http/1.1"]
            far.start_tls(context, place.host)
            _shake_hands(far)
        except ssl.SSLCertVerificationError as error:
            why = f"the certificate of {place} is not accepted: {error.verify_message}"
        except ssl.SSLError as error:
            why = f"no TLS with {place}: {error.reason or type(error).__name__}"
        except OSError as error:
            why = f"{place} cannot be reached: {error.strerror or error}"
        else:
            return ""
        self._rules.say(why)
        return why

    def _connect(self, far: Wire) -> None:
        _await(far, select.POLLOUT, time.monotonic() + HANDSHAKE_S)
        error = self._far_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))

    def _tell_untrusted(self, place: Place, error: OSError) -> None:
        reason = getattr(error, "reason", None) or "it hung up"
        why = (
            f"a program of the guest did not accept the sandbox's certificate ({reason}): it pins "
            "another, or has a trust store of its own"
        )
        entry = Entry(place.host)
        entry.error = why
        self._rules.audit.add(entry)
        self._rules.say(f"{place}: {why}")

    # Data.

    def _pump(self, engine: _Engine, guest: Wire, far: Wire | None) -> None:
        try:
            self._take_first(engine, guest, far)
            while not engine.is_done:
                self._pass_once(engine, guest, far)
        except (OSError, ssl.SSLError, Broken, h11.ProtocolError) as error:
            engine.lose(f"it was broken off ({type(error).__name__})")
            with contextlib.suppress(OSError):  # without TLS's goodbye: something is missing
                _drain(guest, is_clean=False)
            raise
        if far is not None:
            far.finish()
        _drain(guest, is_clean=True)

    def _take_first(self, engine: _Engine, guest: Wire, far: Wire | None) -> None:
        """Take what came with the handshakes, of which poll(2) knows nothing."""
        if far is not None:
            self._take(engine.from_far, far)
        while not engine.wants_guest() and far is not None and not engine.is_done:
            _await(far, far.events(True), time.monotonic() + HANDSHAKE_S)
            far.flush()
            self._take(engine.from_far, far)
        if not engine.is_done:
            self._take(engine.from_guest, guest)

    def _pass_once(self, engine: _Engine, guest: Wire, far: Wire | None) -> None:
        if engine.pause_s > 0:
            pause_s, engine.pause_s = engine.pause_s, 0.0
            self._pause(pause_s, guest, far)
        if isinstance(engine, _Splice):
            _pass_ends(guest, far)
        is_open = engine.wants_guest() and (far is None or far.pending <= PENDING_BYTES_MAX)
        wanted = {guest: guest.events(is_open)}
        if far is not None:
            wanted[far] = far.events(guest.pending <= PENDING_BYTES_MAX)
        ready = _poll(wanted, IDLE_S)
        if not ready:
            raise TimeoutError(errno.ETIMEDOUT, "nothing was said for an hour")
        for wire, events in ready.items():
            if events & select.POLLOUT:
                wire.flush()
            if not events & ~select.POLLOUT:
                continue
            if not wanted[wire] & select.POLLIN:
                raise ConnectionResetError(errno.ECONNRESET, "it hung up")
            self._take(engine.from_guest if wire is guest else engine.from_far, wire)
            if engine.is_done:
                return

    def _take(self, handle: Callable[[bytes], None], wire: Wire) -> None:
        data = wire.read()
        if data is not None:
            handle(data)

    def _pause(self, pause_s: float, guest: Wire, far: Wire | None) -> None:
        """Let a minute's bytes be over; what is written already still goes."""
        deadline = time.monotonic() + pause_s
        while (left_s := deadline - time.monotonic()) > 0:
            wanted = {wire: wire.events(False) for wire in (guest, far) if wire is not None}
            for wire, events in _poll(wanted, left_s).items():
                if events & ~select.POLLOUT:
                    raise ConnectionResetError(errno.ECONNRESET, "it hung up")
                wire.flush()


def _pass_ends(guest: Wire, far: Wire | None) -> None:
    """Half-close each side whose other one has ended."""
    assert far is not None
    for source, target in ((guest, far), (far, guest)):
        if source.has_ended and not target.pending:
            target.finish()


def _shake_hands(wire: Wire) -> None:
    deadline = time.monotonic() + HANDSHAKE_S
    while not wire.shake_hands():
        _await(wire, wire.events(True), deadline)
        wire.flush()
    wire.flush()


def _await(wire: Wire, events: int, deadline: float) -> None:
    if not _poll({wire: events}, max(0.0, deadline - time.monotonic())):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _poll(wanted: Mapping[Wire, int], timeout_s: float) -> dict[Wire, int]:
    """Wait for events. Of a wire that nothing is wanted of, only its end is one."""
    poll = select.poll()
    wires = {wire.fileno(): wire for wire in wanted}
    for wire, events in wanted.items():
        if events or not wire.has_ended:
            poll.register(wire.fileno(), events)
    return {wires[fd]: events for fd, events in poll.poll(timeout_s * 1000)}


def _drain(wire: Wire, is_clean: bool) -> None:
    """Write what is left, and say goodbye; then read what still comes, or closing would reset.

    Raises:
        OSError: it is gone.
    """
    deadline = time.monotonic() + HANDSHAKE_S
    while wire.pending:
        _await(wire, select.POLLOUT, deadline)
        wire.flush()
    if not is_clean:
        return
    wire.finish()
    deadline, size = time.monotonic() + _END_S, 0
    while not wire.has_ended and size < _DRAIN_BYTES_MAX:
        _await(wire, wire.events(True), deadline)
        wire.flush()
        wire.finish()
        try:
            size += len(wire.read() or b"")
        except ssl.SSLError:  # after its goodbye nothing more makes sense
            return
