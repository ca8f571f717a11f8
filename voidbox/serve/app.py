"""The server put together: the one place that knows all of its parts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from voidbox.errors import VoidboxError
from voidbox.serve.control.builds import BuildRoutes
from voidbox.serve.control.copies import CopyRoutes
from voidbox.serve.control.life import LifeRoutes
from voidbox.serve.control.observe import ObserveRoutes
from voidbox.serve.control.routes import guarded
from voidbox.serve.control.sandboxes import SandboxRoutes
from voidbox.serve.control.tags import TagRoutes
from voidbox.serve.control.templates import TemplateRoutes
from voidbox.serve.dashboard.routes import Dashboard
from voidbox.serve.errors import ApiError, as_api_error, not_supported
from voidbox.serve.gateway import Gateway
from voidbox.serve.own.agent import AgentWay
from voidbox.serve.own.routes import OwnRoutes
from voidbox.serve.prometheus import Metrics
from voidbox.serve.registry import Registry
from voidbox.serve.requests_log import RequestsLog

# What E2B's cloud has and this server has not: said, rather than "not found".
_CLOUDS_OWN = (
    "/volumes", "/volumecontent", "/secrets", "/teams", "/nodes", "/admin", "/access-tokens",
    "/api-keys",
)  # fmt: skip
_PARTS = (
    *(SandboxRoutes, LifeRoutes, CopyRoutes, ObserveRoutes),
    *(BuildRoutes, TagRoutes, TemplateRoutes, OwnRoutes),
)
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

_logger = logging.getLogger("voidbox.serve")


def make_app(registry: Registry) -> RequestsLog:
    """Return the server as an ASGI application; its lifespan is the registry's."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await registry.start()
        try:
            yield
        finally:
            await registry.stop()

    routes: list[BaseRoute] = []
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            ApiError: _on_api_error,
            VoidboxError: _on_voidbox_error,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )
    registry.telemetry.observe(registry)
    log = RequestsLog(Gateway(registry, app), registry.telemetry)
    for part in _PARTS:
        app.router.routes += part(registry).routes()
    app.router.routes += [AgentWay(registry).route(), *Dashboard(registry).routes()]
    metrics = Metrics(registry, log)
    app.router.routes += [
        Route("/health", _health, methods=["GET"]),
        guarded(registry, "GET", "/metrics", metrics.answer, "admin"),
        *(Route(path, _refuse, methods=_METHODS) for path in _CLOUDS_OWN),
        *(Route(f"{path}/{{more:path}}", _refuse, methods=_METHODS) for path in _CLOUDS_OWN),
    ]
    return log


async def _health(request: Request) -> Response:
    return Response(status_code=204)


async def _refuse(request: Request) -> Response:
    raise not_supported(f"{request.method} {request.url.path[:200]}")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _on_voidbox_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, VoidboxError)
    return await _on_api_error(request, as_api_error(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(
        {"code": error.status_code, "message": words}, error.status_code, error.headers
    )


async def _on_bug(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("voidbox.request", "")
    _logger.error("request %s failed", request_id, exc_info=error)
    message = f"a fault of the server's own: its log has it as request {request_id}"
    return JSONResponse({"code": 500, "message": message}, 500)
