"""Snapshots and forks."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.errors import VoidboxError
from voidbox.serve import bodies
from voidbox.serve.control import shapes, wishes
from voidbox.serve.control.routes import Routes
from voidbox.serve.errors import as_api_error, not_supported
from voidbox.serve.keys import Key
from voidbox.serve.served import Served

_PAGE_MAX = 100
_FORKS_MAX = 100


class CopyRoutes(Routes):
    """Snapshots and forks."""

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("POST", "/sandboxes/{id}/snapshots", self._snapshot),
            route("POST", "/sandboxes/{id}/fork", self._fork),
            route("GET", "/snapshots", self._list),
        ]

    async def _snapshot(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        if not bodies.flag(fields, "memory", True):
            raise not_supported("memory: false; a snapshot keeps the memory")
        name = bodies.text(fields, "name", "").removesuffix(":default") or None
        info = await self._registry.snapshot(served, name, key.name)
        shown = info.name or info.snapshot_id
        names = [info.name] if info.name else []
        return JSONResponse({"snapshotID": f"{shown}:default", "names": names}, 201)

    async def _list(self, request: Request, key: Key) -> Response:
        query = request.query_params
        found = await self._registry.templates.snapshots(key)
        if query.get("sandboxID"):
            found = [one for one in found if one.record.sandbox.id == query["sandboxID"]]
        if query.get("name"):
            wanted = query["name"].removesuffix(":default")
            found = [one for one in found if wanted in (one.record.name, one.record.id)]
        limit = int(bodies.number(query, "limit", _PAGE_MAX, 1, _PAGE_MAX))
        begin = int(bodies.number(query, "nextToken", 0, 0, 1e9))
        rest = found[begin + limit :]
        headers = {"x-next-token": str(begin + limit)} if rest else {}
        page = [shapes.snapshot(one) for one in found[begin : begin + limit]]
        return JSONResponse(page, headers=headers)

    async def _fork(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        timeout_s = wishes.life_s(fields, self._registry.config, 15.0)
        count = int(bodies.number(fields, "count", 1, 1, _FORKS_MAX))
        forks = await self._registry.fork(served, count, key.name)
        return JSONResponse([await self._told(fork, timeout_s) for fork in forks], 201)

    async def _told(self, fork: Served | VoidboxError, timeout_s: float) -> shapes.Shape:
        if isinstance(fork, VoidboxError):
            return {"error": as_api_error(fork).body()}
        await self._registry.set_timeout(fork, timeout_s)
        return {"sandbox": shapes.made(fork, self._registry.config.domain)}
