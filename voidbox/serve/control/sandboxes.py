"""/sandboxes and /v2/sandboxes: making, finding, listing and ending them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.errors import VoidboxError
from voidbox.serve import bodies
from voidbox.serve.control import shapes, wishes
from voidbox.serve.control.routes import Routes
from voidbox.serve.errors import bad
from voidbox.serve.keys import Key
from voidbox.serve.marks import users_own
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

_PAGE_MAX = 100
_IDEMPOTENT_MAX, _IDEMPOTENT_S = 1000, 600.0
_STATES = {"running", "paused"}


class SandboxRoutes(Routes):
    """Making, finding, listing and ending sandboxes."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._idempotent: OrderedDict[tuple[str, str], tuple[float, asyncio.Task[Served]]] = (
            OrderedDict()
        )

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("POST", "/v2/sandboxes", self._create),
            route("POST", "/sandboxes", self._create),
            route("GET", "/v2/sandboxes", self._list),
            route("GET", "/sandboxes", self._list_old),
            route("GET", "/sandboxes/{id}", self._get),
            route("GET", "/v2/sandboxes/{id}", self._get),
            route("DELETE", "/sandboxes/{id}", self._kill),
        ]

    async def _create(self, request: Request, key: Key) -> Response:
        fields = await bodies.read_fields(request)
        is_old = not request.url.path.startswith("/v2/")
        wish = wishes.read(fields, key, self._registry.config, is_old)
        timeout_s = wishes.life_s(fields, self._registry.config, 15.0 if is_old else 300.0)

        async def create() -> Served:
            served = await self._registry.create(key, wish.template, wish.mark, wish.options)
            if wish.mark.auto_pause:
                await self._registry.set_timeout(served, timeout_s)
            return served

        word = request.headers.get("idempotency-key")
        if not word:
            served = await create()
        else:
            served = await asyncio.shield(self._once((key.id, word[:200]), create))
        return JSONResponse(shapes.made(served, self._registry.config.domain), 201)

    def _once(self, mark: tuple[str, str], create: Any) -> asyncio.Task[Served]:
        """Return the one creation of a word that a client repeats with each attempt."""
        now, known = time.monotonic(), self._idempotent.get(mark)
        if known is not None and now - known[0] < _IDEMPOTENT_S and not _has_failed(known[1]):
            return known[1]
        task: asyncio.Task[Served] = asyncio.create_task(create())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._idempotent[mark] = now, task
        while len(self._idempotent) > _IDEMPOTENT_MAX:
            self._idempotent.popitem(last=False)
        return task

    async def _get(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        return JSONResponse(shapes.told(self._registry, served))

    async def _kill(self, request: Request, key: Key) -> Response:
        await self._registry.kill(self._find(request, key), key.name)
        return Response(status_code=204)

    async def _list(self, request: Request, key: Key) -> Response:
        query = request.query_params
        states = {word for text in query.getlist("state") for word in text.split(",") if word}
        if states - _STATES:
            raise bad("state: running, paused or both")
        found = self._matching(key, states or _STATES, _wanted_metadata(request))
        if query.get("template"):
            found = [one for one in found if one["templateID"] == query["template"]]
        if query.get("startedAfter"):
            after = _moment(query["startedAfter"])
            found = [one for one in found if _moment(one["startedAt"]) > after]
        found.sort(key=_place, reverse=query.get("order", "desc") != "asc")
        limit = int(bodies.number(query, "limit", _PAGE_MAX, 1, _PAGE_MAX))
        token = query.get("nextToken")
        if token:
            at = _decode(token)
            is_descending = query.get("order", "desc") != "asc"
            found = [
                one for one in found if (_place(one) < at if is_descending else _place(one) > at)
            ]
        page, rest = found[:limit], found[limit:]
        headers = {"x-next-token": _encode(_place(page[-1]))} if rest else {}
        return JSONResponse(page, headers=headers)

    async def _list_old(self, request: Request, key: Key) -> Response:
        found = self._matching(key, {"running"}, _wanted_metadata(request))
        return JSONResponse(sorted(found, key=_place, reverse=True))

    def _matching(self, key: Key, states: set[str], wanted: dict[str, str]) -> list[shapes.Shape]:
        found = []
        for served in self._registry:
            if not key.sees(served.mark.key_id) or served.mark.is_build or served.state.is_final:
                continue
            try:
                record = served.record
            except VoidboxError:
                continue  # it is just being removed
            metadata = users_own(record.metadata, served.mark)
            if shapes.state_of(served) in states and wanted.items() <= metadata.items():
                found.append(shapes.listed(self._registry, served, record))
        return found


def _has_failed(task: asyncio.Task[Served]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _wanted_metadata(request: Request) -> dict[str, str]:
    """Return what to look for: a form in the query, whose words SDKs have encoded once more."""
    text = request.query_params.get("metadata", "")
    return {unquote(name): unquote(value) for name, value in parse_qsl(text, True)}


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise bad(f"{text[:40]!r} is no time: write it as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise bad(f"{text[:40]!r}: say in which time zone")
    return moment


def _place(shape: shapes.Shape) -> tuple[str, str]:
    return shape["startedAt"], shape["sandboxID"]


def _encode(place: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(" ".join(place).encode()).decode().rstrip("=")


def _decode(token: str) -> tuple[str, str]:
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        at, sandbox_id = text.split(" ")
    except (binascii.Error, ValueError):
        raise bad("nextToken: give one that an answer had") from None
    return at, sandbox_id
