"""What the parts of the control plane have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from voidbox.serve.control.auth import key_of
from voidbox.serve.keys import Key
from voidbox.serve.registry import Registry
from voidbox.serve.served import Served

Handler = Callable[[Request, Key], Awaitable[Response]]


def guarded(registry: Registry, method: str, path: str, handler: Handler, scope: str) -> Route:
    """Return a handler's route, which only a key with this scope gets through."""

    async def endpoint(request: Request) -> Response:
        return await handler(request, key_of(request, registry.keys, scope))

    return Route(path, endpoint, methods=[method])


class Routes(ABC):
    """Some of the control plane's calls, which need a key."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @abstractmethod
    def routes(self) -> list[Route]:
        """Return them."""

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        """Return the route of a handler. GET needs no more than the scope read."""
        return guarded(self._registry, method, path, handler, "read" if method == "GET" else "run")

    def _find(self, request: Request, key: Key) -> Served:
        """Return the sandbox that a path names, if the key sees it; else 404."""
        return self._registry.find(request.path_params["id"], key)
