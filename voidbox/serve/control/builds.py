"""Template builds, as the SDKs' Template class asks for them."""

from __future__ import annotations

import os
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from voidbox.serve import bodies
from voidbox.serve.builds import plan
from voidbox.serve.builds.builder import Build, Builder
from voidbox.serve.control import tags as tag_routes
from voidbox.serve.control.routes import Routes
from voidbox.serve.control.shapes import Shape, time_text
from voidbox.serve.control.wishes import refuse_unknown
from voidbox.serve.errors import ApiError, bad
from voidbox.serve.keys import Key
from voidbox.serve.own.wishes import size
from voidbox.serve.registry import Registry
from voidbox.serve.tags import DEFAULT
from voidbox.serve.templates import BASE

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_KNOWN = frozenset(("name", "alias", "tags", "cpuCount", "memoryMB", "minFreeDiskMB", "teamID"))
_LINES_MAX = 100  # of one answer


class BuildRoutes(Routes):
    """Making of templates."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._builder = Builder(registry)

    def routes(self) -> list[Route]:
        """See Routes."""
        route = self._route
        return [
            route("POST", "/v3/templates", self._create),
            route("GET", "/templates/{id}/files/{hash}", self._link),
            Route("/templates/{id}/files/{hash}/upload", self._upload, methods=["PUT"]),
            route("POST", "/v2/templates/{id}/builds/{build}", self._start),
            route("GET", "/templates/{id}/builds/{build}/status", self._status),
        ]

    async def _create(self, request: Request, key: Key) -> Response:
        fields = await bodies.read_fields(request)
        refuse_unknown(fields, _KNOWN)
        given = bodies.text(fields, "name", "") or bodies.text(fields, "alias", "")
        name, colon, tag = given.partition(":")
        if not _NAME.fullmatch(name):
            raise bad("name: small letters, digits, '_', '.' and '-', at most 63")
        if name == BASE or self._registry.templates.is_given(name):
            raise bad(f"{name} is the server's own template: choose another name")
        named = [*([tag] if colon else []), *bodies.texts(fields, "tags")]
        tags = tag_routes.checked(named or [DEFAULT])
        limits = {"memory": fields.get("memoryMB"), "cpus": fields.get("cpuCount")}
        size(limits, self._registry.config)  # no more than the server gives
        build = self._builder.new(key, name, tags)
        shape = {
            "templateID": name,
            "buildID": build.id,
            "public": False,
            "names": [name],
            "tags": tags,
            "aliases": [name],
        }
        return JSONResponse(shape, 202)

    async def _link(self, request: Request, key: Key) -> Response:
        files_hash = self._hash(request)
        if not key.may("run"):
            raise bad("the key may not build")
        is_here = self._builder.uploads.path(key, files_hash) is not None
        signature = self._builder.uploads.signature(key.id, files_hash)
        url = f"{str(request.url).partition('?')[0]}/upload?signature={signature}"
        return JSONResponse({"present": is_here, "url": url}, 201)

    async def _upload(self, request: Request) -> Response:
        """Take an archive. Its URL is signed: SDKs send no key with it."""
        uploads, files_hash = self._builder.uploads, self._hash(request)
        key_id = uploads.signer(request.query_params.get("signature", ""), files_hash)
        if self._registry.keys.by_id(key_id) is None:
            raise ApiError(403, "the key of this URL is removed")
        await uploads.take(key_id, files_hash, request.stream())
        return Response(status_code=200)

    def _hash(self, request: Request) -> str:
        found: str = request.path_params["hash"]
        if not plan.HASH.fullmatch(found) or os.sep in found:
            raise bad("that is no hash")
        return found

    def _build(self, request: Request, key: Key) -> Build:
        return self._builder.find(request.path_params["build"], key)

    async def _start(self, request: Request, key: Key) -> Response:
        build = self._build(request, key)
        self._builder.start(build, plan.read(await bodies.read_fields(request)))
        return Response(status_code=202)

    async def _status(self, request: Request, key: Key) -> Response:
        build = self._build(request, key)
        query = request.query_params
        begin = int(bodies.number(query, "logsOffset", 0, 0, 1e9))
        count = int(bodies.number(query, "limit", _LINES_MAX, 1, _LINES_MAX))
        entries: list[Shape] = [
            {
                "timestamp": time_text(line.at),
                "message": line.text,
                "level": line.level,
                "step": line.step,
            }
            for line in build.lines[begin : begin + count]
        ]
        shape: dict[str, Any] = {
            "templateID": build.name,
            "buildID": build.id,
            "status": build.status,
            "logs": [],
            "logEntries": entries,
        }
        if build.reason is not None:
            message, step = build.reason
            shape["reason"] = {"message": message, "step": step}
        return JSONResponse(shape)
