"""What a sandbox uses, and what its console showed."""

from __future__ import annotations

import contextlib
import time
from collections import deque

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.serve import bodies
from voidbox.serve.control.routes import Routes
from voidbox.serve.control.shapes import Shape, time_text
from voidbox.serve.keys import Key

_LINES_MAX = 1000


class ObserveRoutes(Routes):
    """Figures and logs."""

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("GET", "/sandboxes/{id}/metrics", self._metrics),
            route("GET", "/sandboxes/{id}/logs", self._logs),
            route("GET", "/v2/sandboxes/{id}/logs", self._logs),
        ]

    async def _metrics(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        query = request.query_params
        start = bodies.number(query, "start", 0, 0, 1e11)
        end = bodies.number(query, "end", time.time(), 0, 1e11)
        if not served.samples and served.is_running:
            await served.measure()
        return JSONResponse(
            [
                {
                    "timestamp": time_text(sample.at),
                    "timestampUnix": int(sample.at),
                    "cpuCount": sample.cpus,
                    "cpuUsedPct": sample.cpu_percent,
                    "memUsed": sample.memory_used,
                    "memTotal": sample.memory_total,
                    "memCache": sample.memory_cache,
                    "diskUsed": sample.disk_used,
                    "diskTotal": sample.disk_total,
                }
                for sample in served.samples
                if int(start) <= int(sample.at) <= end
            ]
        )

    async def _logs(self, request: Request, key: Key) -> Response:
        """Return the console's last lines. It has no clock: they have the time of the start."""
        served = self._find(request, key)
        limit = int(bodies.number(request.query_params, "limit", _LINES_MAX, 0, _LINES_MAX))
        lines: deque[str] = deque(maxlen=limit)
        box = await served.box()
        async with contextlib.aclosing(box.logs()) as source:
            async for line in source:
                lines.append(line.rstrip("\r\n"))
        await box.close()
        at = time_text(served.record.started_at or served.record.created_at)
        entries: list[Shape] = [
            {"timestamp": at, "message": line, "level": "info", "fields": {}} for line in lines
        ]
        if request.url.path.startswith("/v2/"):
            return JSONResponse({"logs": entries})
        plain = [{"timestamp": at, "line": line} for line in lines]
        return JSONResponse({"logs": plain, "logEntries": entries})
