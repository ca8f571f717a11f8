"""Which sandbox, and which of its ports, a request is for; or the server itself.

URL mode: headers say it (E2b-Sandbox-Id, E2b-Sandbox-Port), or the token that comes alone, and
signed URLs of /files by whose token their signature was made. Domain mode: the Host says it,
PORT-ID.DOMAIN.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from voidbox.errors import VoidboxError
from voidbox.named_tuple import NamedTuple
from voidbox.serve.envd import access, service
from voidbox.serve.errors import ApiError, SandboxGone, as_api_error, gone
from voidbox.serve.interpreter import starting
from voidbox.serve.proxy import http, websocket
from voidbox.serve.proxy.headers import TRAFFIC_TOKEN, value_of
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

_HOST = re.compile(r"(\d{1,5})-([a-z0-9]+)(?:-[^.]*)?\.")
# Some SDKs (e2b 2.7, say) send a sandbox's headers also with calls of the control plane, which a
# key tells from what a guest serves under such a path.
_OWN = ("/sandboxes/", "/v2/sandboxes/")
_ID = re.compile(r"[a-z0-9]+(?:-[A-Za-z0-9]*)?")


class _Target(NamedTuple):
    sandbox_id: str
    port: int


class Gateway:
    """The whole server as an ASGI application.

    Args:
        app: the control plane and the dashboard.
    """

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._registry = registry
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            target = self._target(scope)
            if target is None:
                await self._app(scope, receive, send)
                return
            scope["voidbox.sandbox"] = target.sandbox_id
            await self._to_sandbox(target, scope, receive, send)
        except (ApiError, VoidboxError) as error:
            answer = error if isinstance(error, ApiError) else as_api_error(error)
            await _refuse(answer, scope, receive, send)
        except SandboxGone:
            sandbox_id = scope.get("voidbox.sandbox", "")
            await _refuse(gone(sandbox_id), scope, receive, send)

    def _target(self, scope: Scope) -> _Target | None:
        headers = scope["headers"]
        sandbox_id = value_of(headers, b"e2b-sandbox-id")
        if scope["path"].startswith(_OWN) and value_of(headers, b"x-api-key"):
            return None
        if sandbox_id:
            if not _ID.fullmatch(sandbox_id):
                raise ApiError(400, "E2b-Sandbox-Id is no sandbox's ID")
            port = value_of(headers, b"e2b-sandbox-port") or str(service.PORT)
            return _Target(sandbox_id.partition("-")[0], _port(port))
        found = _HOST.match(value_of(headers, b"host").lower())
        if found is not None:
            return _Target(found[2], _port(found[1]))
        token = value_of(headers, access.TOKEN_HEADER.encode())
        if token:
            return self._holder(token)
        if scope["type"] == "http" and scope["path"] == "/files":
            return self._signed(Request(scope))
        return None

    def _holder(self, token: str) -> _Target:
        """Return the sandbox whose token comes alone, as e2b 2.7 sends it after a connect()."""
        for served in self._registry:
            if served.token and access.is_same(token, served.token):
                return _Target(served.id, service.PORT)
        raise ApiError(401, "unauthorized access, please provide a valid access token")

    def _signed(self, request: Request) -> _Target:
        """Return the sandbox whose token has signed a URL that names none."""
        if not request.query_params.get("signature"):
            raise ApiError(404, "no sandbox: send E2b-Sandbox-Id, or a signature")
        operation = access.operation_of(request)
        for served in self._registry:
            if access.is_signed(served, request, operation):
                return _Target(served.id, service.PORT)
        raise ApiError(401, "invalid signature")

    async def _to_sandbox(
        self, target: _Target, scope: Scope, receive: Receive, send: Send
    ) -> None:
        served = await self._registry.awake(target.sandbox_id)
        if target.port != service.PORT:
            _check_traffic(served, scope)
            if target.port == starting.PORT:
                await self._registry.interpreter(served).ready(served)
            proxy = http if scope["type"] == "http" else websocket
            await proxy.forward(served, target.port, scope, receive, send)
        elif scope["type"] == "http":
            response = await service.answer(served, Request(scope, receive))
            await response(scope, receive, send)
        else:
            raise ApiError(404, "envd serves no WebSockets")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 0xFFFF:
        raise ApiError(400, f"{text[:20]!r} is no port")
    return int(text)


def _check_traffic(served: Served, scope: Scope) -> None:
    wanted = served.traffic_token
    if wanted and not access.is_same(value_of(scope["headers"], TRAFFIC_TOKEN), wanted):
        raise ApiError(403, "this sandbox's ports want the header E2B-Traffic-Access-Token")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response: Response = JSONResponse(error.body(), error.status, error.headers)
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, _as_denial(send))
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:100]})


def _as_denial(send: Send) -> Send:
    async def denying(message: object) -> None:
        assert isinstance(message, dict)
        await send({**message, "type": f"websocket.{message['type']}"})

    return denying
