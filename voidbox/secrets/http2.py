"""HTTP/2 between a guest and a host, by h2: each stream of the guest is one of the host's.

The guest's side begins when the host has said how many streams it takes, so that there are never
more. Flow control is passed on: what the guest has not taken is not acknowledged to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from h2 import events
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from voidbox.secrets.h2_flow import STREAMS_MAX, Flow, Side
from voidbox.secrets.http1 import Broken, Sink
from voidbox.secrets.http_rules import Refused
from voidbox.secrets.judge import BODY_BYTES_MAX, Judge, Passed
from voidbox.secrets.put_in import Headers

RESETS_MAX = 1000  # of requests by the guest, on one connection (CVE-2023-44487)
_AUTHORITY = frozenset({b":authority", b"host"})


class _Stream:
    """A request and its response.

    Attributes:
        held_body: of a request that waits for all of it.
    """

    def __init__(self, guest_id: int, pseudo: Headers, passed: Passed, up: Flow, down: Flow):
        self.guest_id = up.source_id = down.target_id = guest_id
        self.far_id = 0
        self.pseudo = pseudo
        self.passed = passed
        self.up, self.down = up, down
        self.held_body: bytearray | None = bytearray() if passed.needs_body else None


class Http2:
    """Sans I/O. Thread: the connection's. See Http1 for arguments and attributes."""

    def __init__(self, judge: Judge, guest: Sink, far: Sink | None) -> None:
        self.is_done = False
        self.pause_s = 0.0
        self._judge = judge
        self._guest = Side(guest, is_client=False)
        self._far = Side(far, is_client=True) if far is not None else None
        self._by_guest: dict[int, _Stream] = {}
        self._by_far: dict[int, _Stream] = {}
        self._has_begun = False
        self._is_leaving = False  # the host takes no more requests
        self._resets = 0
        self._guest_events: dict[type, Callable[[Any], None]] = {
            events.RequestReceived: self._take_request,
            events.DataReceived: self._take_body,
            events.TrailersReceived: self._take_trailers,
            events.StreamEnded: self._take_end,
            events.StreamReset: self._guest_reset,
            events.ConnectionTerminated: self._guest_leaves,
        }
        self._far_events: dict[type, Callable[[Any], None]] = {
            events.RemoteSettingsChanged: self._begin_guest,
            events.InformationalResponseReceived: self._take_information,
            events.ResponseReceived: self._take_response,
            events.DataReceived: self._take_response_body,
            events.TrailersReceived: self._take_response_trailers,
            events.StreamEnded: self._take_response_end,
            events.StreamReset: self._far_reset,
            events.ConnectionTerminated: self._far_leaves,
        }
        if self._far is None:
            self._begin_guest(None)
        else:
            self._far.begin()

    def _begin_guest(self, event: object) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        far_max = STREAMS_MAX
        if self._far is not None:
            far_max = self._far.h2.remote_settings.max_concurrent_streams
        self._guest.begin(min(STREAMS_MAX, far_max))

    def wants_guest(self) -> bool:
        """See Http1."""
        return self._has_begun

    def from_guest(self, data: bytes) -> None:
        """See Http1."""
        if not data:
            self.lose("the guest hung up")
            self.is_done = True
            return
        self._take(self._guest, data, self._guest_events)

    def from_far(self, data: bytes) -> None:
        """See Http1."""
        if not data or self._far is None:
            is_idle = not self._by_guest
            self.lose("the host hung up")
            self._close_guest(ErrorCodes.NO_ERROR if is_idle else ErrorCodes.INTERNAL_ERROR)
            return
        self._take(self._far, data, self._far_events)

    def _take(self, side: Side, data: bytes, handlers: dict[type, Callable[[Any], None]]) -> None:
        try:
            for event in side.h2.receive_data(data):
                handler = handlers.get(type(event))
                if handler is not None:
                    handler(event)
            self._move()
        except H2Error as error:
            whose = "guest" if side is self._guest else "host"
            self.lose(f"the {whose} speaks no HTTP/2 that passes ({type(error).__name__})")
            if side is self._guest:
                self.is_done = True  # h2 has told it so
            else:
                self._close_guest(ErrorCodes.INTERNAL_ERROR)
        self._flush()
        if self._is_leaving and not self._by_guest:
            self._close_guest(ErrorCodes.NO_ERROR)

    def _flush(self) -> None:
        self._guest.flush()
        if self._far is not None:
            self._far.flush()

    def _move(self) -> None:
        for stream in list(self._by_guest.values()):
            try:
                stream.up.move()
                stream.down.move()
            except H2Error:  # one of them is no more
                self._drop(stream, ErrorCodes.CANCEL, "it was broken off")
                continue
            if stream.up.has_ended and stream.down.has_ended:
                self._forget(stream)

    # From the guest.

    def _take_request(self, event: Any) -> None:
        pseudo = [(bytes(n), bytes(v)) for n, v in event.headers if n.startswith(b":")]
        headers = [(bytes(n), bytes(v)) for n, v in event.headers if not n.startswith(b":")]
        named = dict(pseudo)
        authorities = [value for name, value in (*pseudo, *headers) if name in _AUTHORITY]
        method = named.get(b":method", b"")
        found: Passed | Refused = Refused(400, "its scheme is not https")
        if named.get(b":scheme") == b"https" or method == b"CONNECT":
            headers = [pair for pair in headers if pair[0] != b"host"]
            found = self._judge.request(method, named.get(b":path", b""), authorities, headers)
        if isinstance(found, Refused):
            self._answer(event.stream_id, found, method)
            return
        if self._is_leaving or self._far is None:
            found.finish("the host takes no more requests on this connection")
            self._guest.reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        passed_pseudo = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", authorities[0]),
            (b":path", found.target),
        ]
        up, down = Flow(self._guest, self._far), Flow(self._far, self._guest)
        stream = _Stream(event.stream_id, passed_pseudo, found, up, down)
        self._by_guest[stream.guest_id] = stream
        if stream.held_body is None:
            self._send_head(stream, found.headers, event.stream_ended is not None)
        elif any(pair[0] == b"expect" for pair in headers):
            self._guest.h2.send_headers(stream.guest_id, [(b":status", b"100")])

    def _send_head(self, stream: _Stream, headers: Headers, is_end: bool) -> None:
        assert self._far is not None
        h2 = self._far.h2
        stream.far_id = h2.get_next_available_stream_id()
        h2.send_headers(stream.far_id, [*stream.pseudo, *headers], end_stream=is_end)
        self._by_far[stream.far_id] = stream
        stream.up.target_id = stream.down.source_id = stream.far_id
        stream.up.has_ended = is_end

    def _take_body(self, event: Any) -> None:
        data, owed = bytes(event.data), int(event.flow_controlled_length)
        stream = self._by_guest.get(event.stream_id)
        if stream is None:  # of a request that was refused
            self._guest.acknowledge(event.stream_id, owed)
            return
        stream.passed.look_at_body(data)
        self.pause_s = max(self.pause_s, stream.passed.pause_s(len(data)))
        if stream.held_body is None:
            stream.up.add(data, owed)
            return
        self._guest.acknowledge(event.stream_id, owed)
        stream.held_body += data
        if len(stream.held_body) > BODY_BYTES_MAX:
            size = BODY_BYTES_MAX >> 20
            refused = Refused(413, f"a body into which a secret may go has more than {size} MiB")
            stream.passed.entry.refused, stream.passed.entry.status = refused.why, refused.status
            self._forget(stream)
            self._answer(stream.guest_id, refused, b"")

    def _take_trailers(self, event: Any) -> None:
        stream = self._by_guest.get(event.stream_id)
        if stream is not None:
            stream.up.trailers = [(bytes(n), bytes(v)) for n, v in event.headers]

    def _take_end(self, event: Any) -> None:
        stream = self._by_guest.get(event.stream_id)
        if stream is None:
            return
        stream.up.is_ending = True
        if stream.held_body is not None:
            self._send_held(stream, bytes(stream.held_body))

    def _send_held(self, stream: _Stream, body: bytes) -> None:
        stream.held_body = None
        passed = stream.passed
        kind = next((value for name, value in passed.headers if name == b"content-type"), b"")
        body = passed.fill_body(body, kind)
        headers = [pair for pair in passed.headers if pair[0] not in (b"content-length", b"expect")]
        if body or len(headers) != len(passed.headers):
            headers.append((b"content-length", b"%d" % len(body)))
        self._send_head(stream, headers, is_end=not body and not stream.up.trailers)
        stream.up.add(body, 0)

    def _answer(self, stream_id: int, refused: Refused, method: bytes) -> None:
        """Answer in the host's place."""
        text = b"" if method == b"HEAD" else f"voidbox: {refused.why}\n".encode()
        headers = [
            (b":status", b"%d" % refused.status),
            (b"content-type", b"text/plain; charset=utf-8"),
        ]
        if refused.retry_s is not None:
            headers.append((b"retry-after", b"%d" % refused.retry_s))
        h2 = self._guest.h2
        h2.send_headers(stream_id, headers)
        room = min(h2.local_flow_control_window(stream_id), h2.max_outbound_frame_size)
        h2.send_data(stream_id, text[: max(room, 0)], end_stream=True)

    def _guest_reset(self, event: Any) -> None:
        self._resets += 1
        stream = self._by_guest.get(event.stream_id)
        if stream is not None:
            self._drop(stream, event.error_code, "the guest broke it off")
        if self._resets > RESETS_MAX:
            self.lose("the guest broke off too many requests")
            self._close_guest(ErrorCodes.ENHANCE_YOUR_CALM)

    def _guest_leaves(self, event: Any) -> None:
        self.lose("the guest left")
        self.is_done = True

    # From the host.

    def _take_information(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        if stream is not None:
            self._guest.h2.send_headers(stream.guest_id, self._shown(stream, event.headers))

    def _take_response(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        if stream is None:
            return
        headers = self._shown(stream, event.headers)
        stream.passed.entry.status = int(dict(headers).get(b":status", b"0"))
        is_end = event.stream_ended is not None
        self._guest.h2.send_headers(stream.guest_id, headers, end_stream=is_end)
        stream.down.has_ended = is_end

    @staticmethod
    def _shown(stream: _Stream, headers: Any) -> Headers:
        return stream.passed.response_headers([(bytes(n), bytes(v)) for n, v in headers])

    def _take_response_body(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        owed = int(event.flow_controlled_length)
        if stream is None:
            assert self._far is not None
            self._far.acknowledge(event.stream_id, owed)
            return
        data = bytes(event.data)
        self.pause_s = max(self.pause_s, stream.passed.pause_s(len(data)))
        stream.down.add(stream.passed.response_body(data), owed)

    def _take_response_trailers(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        if stream is not None:
            stream.down.trailers = self._shown(stream, event.headers)

    def _take_response_end(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        if stream is not None:
            stream.down.add(stream.passed.response_end(), 0)
            stream.down.is_ending = True

    def _far_reset(self, event: Any) -> None:
        stream = self._by_far.get(event.stream_id)
        if stream is None:
            return
        if stream.down.is_ending and event.error_code == ErrorCodes.NO_ERROR:
            stream.up.drop()  # RFC 9113 §8.1: it has answered, and wants no more of the request
            return
        self._drop(stream, event.error_code, "the host broke it off")

    def _far_leaves(self, event: Any) -> None:
        """GOAWAY: what it has begun with, it may end."""
        self._is_leaving = True
        last = event.last_stream_id or 0
        for stream in list(self._by_guest.values()):
            if not 0 < stream.far_id <= last:
                self._drop(stream, ErrorCodes.REFUSED_STREAM, "the host took no more requests")

    # The end.

    def _drop(self, stream: _Stream, code: int, why: str) -> None:
        """End a stream on both sides."""
        stream.up.drop()
        stream.down.drop()
        self._guest.reset(stream.guest_id, code)
        if self._far is not None and stream.far_id:
            self._far.reset(stream.far_id, code)
        self._forget(stream, why)

    def _forget(self, stream: _Stream, why: str = "") -> None:
        self._by_guest.pop(stream.guest_id, None)
        self._by_far.pop(stream.far_id, None)
        stream.passed.finish(why)

    def _close_guest(self, code: int) -> None:
        if not self._has_begun:
            raise Broken("the host hung up before it had said anything")
        self._guest.h2.close_connection(code)
        self._guest.flush()
        self.is_done = True

    def lose(self, why: str) -> None:
        """The connection ended from outside."""
        for stream in list(self._by_guest.values()):
            self._forget(stream, why)
