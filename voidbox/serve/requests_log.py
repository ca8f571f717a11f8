"""Each request: an ID, a line in the log, and its place in the figures."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voidbox.serve.proxy.headers import value_of
from voidbox.serve.telemetry import Telemetry

_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
# Upper bounds in seconds of the classes that durations are counted in.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

_logger = logging.getLogger("voidbox.serve.requests")


class RequestsLog:
    """An ASGI application around another one.

    Attributes:
        counts: of requests, by plane, method and status.
        durations: of requests, by plane and class; see BUCKETS.
        total_s: of all, by plane.
        under_way: how many are.
    """

    def __init__(self, inner: ASGIApp, telemetry: Telemetry) -> None:
        self._inner = inner
        self._telemetry = telemetry
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.durations: Counter[tuple[str, float]] = Counter()
        self.total_s: Counter[str] = Counter()
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._inner(scope, receive, send)
            return
        given = value_of(scope["headers"], b"x-request-id")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["voidbox.request"] = request_id
        scope["voidbox.telemetry"] = self._telemetry
        with self._telemetry.request(scope):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["voidbox.request"]
        status = 0
        began_at = time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        self.under_way += 1
        try:
            await self._inner(scope, receive, noting)
        except BaseException:
            status = status or 500
            raise
        finally:
            self.under_way -= 1
            scope["voidbox.status"] = status
            self._note(scope, status, time.monotonic() - began_at)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        sandbox_id = scope.get("voidbox.sandbox", "")
        plane = "data" if sandbox_id else "control"
        method = scope.get("method", "WEBSOCKET")
        self.counts[plane, method, status] += 1
        self.total_s[plane] += seconds  # type: ignore[assignment]
        self._telemetry.answered(plane, method, status, seconds)
        for bound in BUCKETS:
            if seconds <= bound:
                self.durations[plane, bound] += 1
                break
        if not _logger.isEnabledFor(logging.INFO):
            return
        line = {
            "at": round(time.time(), 3),
            "request": scope["voidbox.request"],
            "method": method,
            "path": scope["path"],  # the query may hold signatures
            "status": status,
            "ms": round(1000 * seconds, 1),
            "key": scope.get("voidbox.key", ""),
            "sandbox": sandbox_id,
            "sdk": value_of(scope["headers"], b"user-agent"),
        }
        _logger.info(json.dumps(line))
