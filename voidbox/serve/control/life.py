"""What changes a sandbox: connect, timeout, pause, resume, network."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.serve import bodies
from voidbox.serve.control import shapes, wishes
from voidbox.serve.control.routes import Routes
from voidbox.serve.errors import ApiError, not_supported
from voidbox.serve.keys import Key
from voidbox.serve.served import Served


class LifeRoutes(Routes):
    """Connect, timeout, pause, resume, network."""

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("POST", "/v2/sandboxes/{id}/connect", self._connect),
            route("POST", "/sandboxes/{id}/connect", self._connect),
            route("POST", "/sandboxes/{id}/resume", self._resume),
            route("POST", "/sandboxes/{id}/timeout", self._timeout),
            route("POST", "/sandboxes/{id}/refreshes", self._refresh),
            route("POST", "/sandboxes/{id}/pause", self._pause),
            route("PUT", "/sandboxes/{id}/network", self._network),
        ]

    async def _connect(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        _check_memory(fields)
        timeout_s = wishes.life_s(fields, self._registry.config, 300.0)
        has_resumed = await self._registry.resume(served, timeout_s, key.name)
        if not has_resumed:  # it is only ever extended
            left_s = self._registry.end_at(served, served.record) - time.time()
            if timeout_s > left_s:
                await self._registry.set_timeout(served, timeout_s)
        shape = shapes.made(served, self._registry.config.domain)
        return JSONResponse(shape, 201 if has_resumed else 200)

    async def _resume(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        timeout_s = wishes.life_s(fields, self._registry.config, 15.0)
        if not await self._registry.resume(served, timeout_s, key.name):
            raise ApiError(409, f"Sandbox {served.id} is already running")
        return JSONResponse(shapes.made(served, self._registry.config.domain), 201)

    async def _timeout(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        timeout_s = wishes.life_s(fields, self._registry.config, -1)
        _check_runs(served)
        await self._registry.set_timeout(served, timeout_s)
        return Response(status_code=204)

    async def _refresh(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        high = self._registry.config.life_s_max
        seconds = bodies.number(fields, "duration", 300.0, 1, high)
        _check_runs(served)
        if time.time() + seconds > self._registry.end_at(served, served.record):
            await self._registry.set_timeout(served, seconds)
        return Response(status_code=204)

    async def _pause(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        _check_memory(await bodies.read_fields(request))
        await self._registry.pause(served, key.name)
        return Response(status_code=204)

    async def _network(self, request: Request, key: Key) -> Response:
        self._find(request, key)
        raise not_supported("other network rules for a sandbox that runs: give them to create()")


def _check_memory(fields: bodies.Fields) -> None:
    if not bodies.flag(fields, "memory", True):
        raise not_supported("memory: false; a pause keeps the memory")


def _check_runs(served: Served) -> None:
    if not served.is_running:
        raise ApiError(409, f"Sandbox {served.id} is paused: connect to it first")
