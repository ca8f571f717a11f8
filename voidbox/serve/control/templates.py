"""/templates: what sandboxes can be made from."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.serve.control import shapes
from voidbox.serve.control.routes import Routes
from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key
from voidbox.vmm.config import MEMORY_BYTES_DEFAULT


class TemplateRoutes(Routes):
    """What there is to make sandboxes from."""

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("GET", "/templates", self._list),
            route("GET", "/v2/templates", self._list),
            route("GET", "/templates/aliases/{alias:path}", self._alias),
            route("DELETE", "/templates/{id:path}", self._delete),
        ]

    async def _list(self, request: Request, key: Key) -> Response:
        templates = self._registry.templates
        names = await asyncio.to_thread(templates.names)
        found = [
            shapes.template(name, self._registry.started_at, 1, MEMORY_BYTES_DEFAULT >> 20)
            for name in names
        ]
        others = [
            (one.record.name or one.record.id, "", one) for one in await templates.snapshots(key)
        ]
        built = [(tag.title, tag.build, one) for tag, one in await templates.built(key)]
        for name, build, one in [*built, *others]:
            sandbox = one.record.sandbox
            mib = sandbox.memory_bytes >> 20
            found.append(shapes.template(name, one.record.created_at, sandbox.cpus, mib, build))
        return JSONResponse(found)

    async def _alias(self, request: Request, key: Key) -> Response:
        found = await self._registry.templates.find(request.path_params["alias"], key)
        return JSONResponse({"templateID": found.id, "public": found.snapshot is None})

    async def _delete(self, request: Request, key: Key) -> Response:
        name = request.path_params["id"]
        if not await self._registry.templates.remove(name, key):
            raise ApiError(404, f"template {name!r} not found; images go by voidbox image rm")
        self._registry.database.audit(key.name, "remove template", "", name)
        return Response(status_code=204)
