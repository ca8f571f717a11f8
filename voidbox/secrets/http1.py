"""HTTP/1.1 between a guest and a host, by h11: each message is parsed, judged and written anew.

So what the host reads is what was judged: lengths, chunks and line ends are h11's, whatever the
guest wrote. One connection to the host for one of the guest's: nobody else's requests share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import h11

from voidbox.secrets.http_rules import Refused
from voidbox.secrets.judge import BODY_BYTES_MAX, Judge, Passed
from voidbox.secrets.put_in import Headers

HEAD_BYTES_MAX = 64 << 10
_OF_CONNECTION = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings",
})  # fmt: skip
_WEBSOCKET = b"websocket"
_MIGHT_SWITCH: Any = h11.MIGHT_SWITCH_PROTOCOL  # type: ignore[attr-defined,unused-ignore]


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> None: ...


class Broken(Exception):
    """The connection is over, and the guest is to see that something is missing."""


class Http1:
    """Sans I/O. Thread: the connection's.

    Args:
        far: None for a host that cannot be talked to, which the judge knows.

    Attributes:
        is_done: there is nothing more to say, once what is written has gone.
        pause_s: for how long nothing more should pass.
    """

    def __init__(self, judge: Judge, guest: Sink, far: Sink | None) -> None:
        self.is_done = False
        self.pause_s = 0.0
        self._judge = judge
        self._guest, self._far = guest, far
        self._server = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._client = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._passed: Passed | None = None
        self._request: h11.Request | None = None
        self._held_body: bytearray | None = None  # of a request that waits for all of it
        self._is_tunnel = False
        self._has_response = False
        self._method = b""

    # From the guest.

    def wants_guest(self) -> bool:
        """Whether more of the guest can be used now."""
        return self._is_tunnel or self._server.their_state not in (
            h11.DONE, h11.MUST_CLOSE, h11.CLOSED, _MIGHT_SWITCH,
        )  # fmt: skip

    def from_guest(self, data: bytes) -> None:
        """Take bytes of the guest; b"" for its end.

        Raises:
            Broken: see there.
        """
        if self._is_tunnel:
            self._through(data, self._far)
            return
        try:
            self._server.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._refuse_nonsense(error)
        self._take_guest()

    def _take_guest(self) -> None:
        while not self.is_done:
            try:
                event = self._server.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse_nonsense(error)
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                self._take_request(event)
            elif isinstance(event, h11.Data):
                self._take_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._take_end(event)
            else:  # ConnectionClosed
                self.is_done = True

    def _take_request(self, event: h11.Request) -> None:
        names = [name for name, _ in event.headers]
        has_two_lengths = b"transfer-encoding" in names and b"content-length" in names
        if has_two_lengths:  # each is somebody's: nothing behind it is believed (RFC 9112 §6.3)
            found: Passed | Refused = Refused(400, "it has two lengths")
        else:
            found = self._judge.request(
                event.method,
                event.target,
                [value for name, value in event.headers if name == b"host"],
                self._end_to_end(event.headers.raw_items(), event.headers, is_request=True),
            )
        self._has_response, self._method = False, event.method
        if isinstance(found, Refused):
            self._passed = None
            self._answer(found, is_last=has_two_lengths)
            return
        self._passed, self._request = found, event
        if found.needs_body:
            self._held_body = bytearray()
            if self._server.they_are_waiting_for_100_continue:
                self._to_guest(h11.InformationalResponse(status_code=100, headers=[]))
        else:
            self._send_head(found.headers)

    def _send_head(self, headers: Headers) -> None:
        assert self._request is not None and self._passed is not None
        self._to_far(
            h11.Request(method=self._request.method, target=self._passed.target, headers=headers)
        )

    def _take_body(self, data: bytes) -> None:
        passed = self._passed
        if passed is None:
            return  # of a request that was refused
        passed.look_at_body(data)
        self.pause_s = max(self.pause_s, passed.pause_s(len(data)))
        if self._held_body is None:
            self._to_far(h11.Data(data=data))
            return
        self._held_body += data
        if len(self._held_body) > BODY_BYTES_MAX:
            self._passed = self._held_body = None
            size = BODY_BYTES_MAX >> 20
            why = f"a body into which a secret may go has more than {size} MiB"
            passed.entry.refused, passed.entry.status = why, 413
            passed.finish()
            self._answer(Refused(413, why))

    def _take_end(self, event: h11.EndOfMessage) -> None:
        passed = self._passed
        if passed is not None:
            if self._held_body is not None:
                self._send_held(passed, bytes(self._held_body))
                self._to_far(h11.EndOfMessage())
            else:
                self._to_far(h11.EndOfMessage(headers=event.headers))
        self._next_cycle()

    def _send_held(self, passed: Passed, body: bytes) -> None:
        self._held_body = None
        kind = next((v for n, v in passed.headers if n.lower() == b"content-type"), b"")
        body = passed.fill_body(body, kind)
        dropped = (b"content-length", b"transfer-encoding", b"expect")
        headers = [pair for pair in passed.headers if pair[0].lower() not in dropped]
        if body or len(headers) != len(passed.headers):
            headers.append((b"content-length", b"%d" % len(body)))
        self._send_head(headers)
        if body:
            self._to_far(h11.Data(data=body))

    def _refuse_nonsense(self, error: h11.RemoteProtocolError) -> None:
        if self._has_response or self._server.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._cut("the guest sends what is no HTTP/1.1")
        self._abandon("the guest sends what is no HTTP/1.1")
        status = error.error_status_hint or 400
        self._answer(Refused(status, "this is no HTTP/1.1 that voidbox understands"))
        self.is_done = True

    def _answer(self, refused: Refused, is_last: bool = False) -> None:
        """Answer in the host's place."""
        text = f"voidbox: {refused.why}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"),
                   (b"content-length", b"%d" % len(text))]  # fmt: skip
        if refused.retry_s is not None:
            headers.append((b"retry-after", b"%d" % refused.retry_s))
        is_last |= self._server.their_state is h11.ERROR
        if is_last or self._server.they_are_waiting_for_100_continue:
            headers.append((b"connection", b"close"))
        self._to_guest(h11.Response(status_code=refused.status, headers=headers))
        if self._method != b"HEAD":
            self._to_guest(h11.Data(data=text))
        self._to_guest(h11.EndOfMessage())
        self.is_done |= is_last
        self._next_cycle()

    # From the host.

    def from_far(self, data: bytes) -> None:
        """Take bytes of the host; b"" for its end.

        Raises:
            Broken: see there.
        """
        if self._is_tunnel:
            self._through(self._mask(data), self._guest)
            return
        try:
            self._client.receive_data(data)
            self._take_far()
        except h11.RemoteProtocolError as error:
            self._lose_far("the host's answer is no HTTP/1.1" if data else "the host hung up")
            if not self.is_done:
                raise Broken from error
        self._take_guest()  # the next request may be here already

    def _take_far(self) -> None:
        while not self.is_done:
            event = self._client.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.InformationalResponse | h11.Response):
                self._take_response(event)
            elif isinstance(event, h11.Data):
                self._take_response_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._take_response_end(event)
            else:  # ConnectionClosed
                self._lose_far("the host hung up")

    def _take_response(self, event: h11.InformationalResponse | h11.Response) -> None:
        passed = self._passed
        if passed is None:
            raise h11.RemoteProtocolError("a response to nothing")
        headers = self._end_to_end(event.headers.raw_items(), event.headers, is_request=False)
        headers = passed.response_headers(headers)
        passed.entry.status = event.status_code
        if isinstance(event, h11.Response):
            self._has_response = True
            self._to_guest(
                h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
            )
            return
        version = self._server.their_http_version
        if version is not None and version < b"1.1":
            return  # which knows nothing of the kind
        if event.status_code == 101:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", _WEBSOCKET)]
        self._to_guest(
            h11.InformationalResponse(
                status_code=event.status_code, headers=headers, reason=event.reason
            )
        )
        if event.status_code == 101:
            self._begin_tunnel()

    def _take_response_body(self, data: bytes) -> None:
        assert self._passed is not None
        self.pause_s = max(self.pause_s, self._passed.pause_s(len(data)))
        shown = self._passed.response_body(data)
        if shown:
            self._to_guest(h11.Data(data=shown))

    def _take_response_end(self, event: h11.EndOfMessage) -> None:
        assert self._passed is not None
        rest = self._passed.response_end()
        if rest:
            self._to_guest(h11.Data(data=rest))
        trailers = self._passed.response_headers(list(event.headers))
        self._to_guest(h11.EndOfMessage(headers=trailers))
        self._passed.finish()
        self._passed = None
        self._next_cycle()

    def _next_cycle(self) -> None:
        """Begin with the next request, once this one and its answer are over."""
        if self._server.our_state is not h11.DONE or self._server.their_state is not h11.DONE:
            ends = (h11.MUST_CLOSE, h11.CLOSED)
            self.is_done = self._server.our_state in ends or self.is_done
            return
        if self._client.our_state is h11.DONE and self._client.their_state is h11.DONE:
            self._client.start_next_cycle()
        if self._client.our_state is not h11.IDLE:
            self.is_done = True  # the host takes no more
            return
        self._server.start_next_cycle()
        self._request = None

    def _lose_far(self, why: str) -> None:
        """The host has gone: nothing is missing if nothing was asked."""
        if self._passed is None:
            self.is_done = True
            return
        if self._has_response or self._server.our_state is not h11.SEND_RESPONSE:
            self._cut(why)
        self._abandon(why)
        self._answer(Refused(502, f"{why} before it had answered"))
        self.is_done = True

    def _cut(self, why: str) -> None:
        self._abandon(why)
        raise Broken(why)

    def _abandon(self, why: str) -> None:
        passed, self._passed = self._passed, None
        if passed is not None:
            passed.finish(why)

    def lose(self, why: str) -> None:
        """The connection ended from outside."""
        self._abandon(why)

    # Websockets.

    def _begin_tunnel(self) -> None:
        self._is_tunnel = True
        for mine, sink in ((self._server, self._far), (self._client, self._guest)):
            data = bytes(mine.trailing_data[0])
            if data:
                self._through(self._mask(data) if sink is self._guest else data, sink)

    def _mask(self, data: bytes) -> bytes:
        if self._passed is None:
            return data
        return self._passed.response_body(data) if data else b""

    def _through(self, data: bytes, sink: Sink | None) -> None:
        if not data:
            self._abandon("")
            self.is_done = True
        elif sink is not None:
            if sink is self._far and self._passed is not None:
                self._passed.entry.sent += len(data)
            sink.write(data)

    # Both.

    def _end_to_end(
        self, raw: Iterable[tuple[bytes, bytes]], folded: Any, is_request: bool
    ) -> Headers:
        """Return a message's headers without those that are of one connection alone."""
        named = {
            word.strip().lower()
            for name, value in folded
            if name == b"connection"
            for word in value.split(b",")
        }
        dropped = _OF_CONNECTION | (named - {b"host", b"content-length", b"transfer-encoding"})
        headers = [(name, value) for name, value in raw if name.lower() not in dropped]
        upgrades = [value.lower() for name, value in folded if name == b"upgrade"]
        if is_request and upgrades == [_WEBSOCKET] and b"upgrade" in named:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", _WEBSOCKET)]
        if not is_request and b"close" in named:
            headers.append((b"Connection", b"close"))
        return headers

    def _to_guest(self, event: Any) -> None:
        self._guest.write(self._server.send(event) or b"")

    def _to_far(self, event: Any) -> None:
        if self._far is not None and self._client.our_state not in (h11.MUST_CLOSE, h11.CLOSED):
            self._far.write(self._client.send(event) or b"")
