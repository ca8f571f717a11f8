"""The calls: a life, and the owner's control protocol as far as it is a client's to use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from voidbox.errors import VoidboxError
from voidbox.sandbox.state.lifecycle import State
from voidbox.serve import bodies
from voidbox.serve.control.routes import Routes
from voidbox.serve.errors import ApiError, as_api_error, bad, not_found, not_supported
from voidbox.serve.keys import Key
from voidbox.serve.own import shapes, wishes
from voidbox.serve.served import Served

BASE = "/voidbox/v1"
_STOP_S_MAX = 600.0
_FORKS_MAX = 100
# What is asked of the sandbox's process as it is. The rest of its protocol is about this machine:
# its ports, its limits, its files.
_PASSED_ON = frozenset(("metrics", "pause", "resume", "port_list"))


class OwnRoutes(Routes):
    """All of them but the way to the agent."""

    def routes(self) -> list[Route]:
        """See Routes."""
        of_one = "/sandboxes/{id}"
        return [
            self._route(method, f"{BASE}{path}", handler)
            for method, path, handler in (
                ("POST", "/sandboxes", self._create),
                ("GET", "/sandboxes", self._list),
                ("GET", of_one, self._get),
                ("DELETE", of_one, self._kill),
                ("POST", f"{of_one}/connect", self._connect),
                ("POST", f"{of_one}/control/{{op}}", self._control),
                ("POST", f"{of_one}/stop", self._stop),
                ("POST", f"{of_one}/suspend", self._suspend),
                ("POST", f"{of_one}/snapshot", self._snapshot),
                ("POST", f"{of_one}/fork", self._fork),
                ("GET", f"{of_one}/logs", self._logs),
            )
        ]

    def _find(self, request: Request, key: Key) -> Served:
        """Return the sandbox that a path names by its ID, an ID's beginning, or its name."""
        wanted = request.path_params["id"]
        with contextlib.suppress(ApiError):
            return self._registry.find(wanted, key)
        with contextlib.suppress(VoidboxError):
            return self._registry.find(self._registry.store.read(wanted).id, key)
        raise not_found(wanted)

    # Making and finding.

    async def _create(self, request: Request, key: Key) -> Response:
        fields = await bodies.read_fields(request)
        template, mark, options = wishes.read(fields, key, self._registry.config)
        served = await self._registry.create(key, template, mark, options)
        return JSONResponse(self._held(served), 201)

    async def _connect(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        if bodies.flag(fields, "auto_resume", True):
            await self._registry.resume(served, None, key.name)
        return JSONResponse(self._held(served))

    def _held(self, served: Served) -> shapes.Shape:
        """Return all that its client needs to speak to its agent."""
        record = served.record
        return {
            "info": shapes.sandbox(self._registry, served, record),
            "envs": self._registry.store.envs(record),
            "secret": self._registry.store.secret(served.id).hex(),
        }

    async def _list(self, request: Request, key: Key) -> Response:
        found = []
        for served in self._registry:
            if key.sees(served.mark.key_id):
                with contextlib.suppress(VoidboxError):  # it is just being removed
                    found.append(shapes.sandbox(self._registry, served, served.record))
        found.sort(key=lambda one: float(one["created_at"]))
        return JSONResponse({"sandboxes": found})

    async def _get(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        return JSONResponse({"info": shapes.sandbox(self._registry, served, served.record)})

    # Its life.

    async def _control(self, request: Request, key: Key) -> Response:
        served, op = self._find(request, key), request.path_params["op"]
        fields = await bodies.read_fields(request)
        if op == "set_timeout":
            await self._registry.set_timeout(served, self._life_s(fields))
            return JSONResponse({"ok": True})
        if op not in _PASSED_ON:
            raise not_supported(f"{op[:40]} from afar: it is about the server's own machine")
        if fields:
            raise bad(f"{op} takes nothing")
        answer = await served.control(op)
        if op in ("pause", "resume"):
            self._registry.database.audit(key.name, op, served.id, "from afar")
        return JSONResponse(answer)

    def _life_s(self, fields: bodies.Fields) -> float:
        most = self._registry.config.life_s_max
        return bodies.number(fields, "timeout", most, 0.001, most)

    async def _kill(self, request: Request, key: Key) -> Response:
        await self._registry.kill(self._find(request, key), key.name)
        return JSONResponse({"ok": True})

    async def _stop(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        fields = await bodies.read_fields(request)
        timeout_s = bodies.number(fields, "timeout", 10.0, 0, _STOP_S_MAX)
        if served.state is State.SUSPENDED:
            await self._registry.kill(served, key.name)
        else:
            box = await served.box()
            await box.stop(timeout_s or 0.001)
            await box.close()
            self._registry.database.audit(key.name, "stop", served.id)
        return JSONResponse({"ok": True})

    async def _suspend(self, request: Request, key: Key) -> Response:
        await self._registry.pause(self._find(request, key), key.name)
        return JSONResponse({"ok": True})

    async def _snapshot(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        name = bodies.text(await bodies.read_fields(request), "name", "") or None
        info = await self._registry.snapshot(served, name, key.name)
        return JSONResponse({"snapshot": {**info._asdict(), "image": served.mark.template}}, 201)

    async def _fork(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        count = int(bodies.number(await bodies.read_fields(request), "count", 1, 1, _FORKS_MAX))
        forks = await self._registry.fork(served, count, key.name)
        return JSONResponse(
            {
                "forks": [
                    {"error": as_api_error(fork).body()}
                    if isinstance(fork, VoidboxError)
                    else self._held(fork)
                    for fork in forks
                ]
            },
            201,
        )

    async def _logs(self, request: Request, key: Key) -> Response:
        served = self._find(request, key)
        source: Any = request.query_params.get("source", "console")
        if source not in ("console", "voidbox", "http"):
            raise bad("source: console, voidbox or http")
        follow = request.query_params.get("follow") == "true"
        box = await served.box()

        async def lines() -> AsyncIterator[bytes]:
            try:
                async with contextlib.aclosing(box.logs(follow=follow, source=source)) as found:
                    async for line in found:
                        yield line.encode("utf-8", "replace") + b"\n"
            finally:
                await asyncio.shield(box.close())

        return StreamingResponse(lines(), media_type="text/plain; charset=utf-8")
