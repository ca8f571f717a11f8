"""Which key a request carries, and whether it may do what it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key, Keys

Handler = Callable[[Request, Key], Awaitable[Response]]


class Guard:
    """Makes routes that only those with a key get through."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def key_of(self, request: Request, scope: str) -> Key:
        """Return a request's key.

        Raises:
            ApiError: it has none, or one that may not do this.
        """
        secret = request.headers.get("x-api-key", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not secret and scheme.lower() == "bearer":  # as Prometheus sends it
            secret = token.strip()
        key = self._keys.find(secret)
        if key is None:
            why = "Invalid API key" if secret else "Missing API key, send it as X-API-KEY"
            raise ApiError(401, f"{why}: voidbox serve key add NAME makes one")
        request.scope["voidbox.key"] = key.name  # for the log
        if not key.may(scope):
            raise ApiError(403, f"the key {key.name} has no scope {scope!r}")
        return key

    def route(self, method: str, path: str, handler: Handler, scope: str = "run") -> Route:
        """Return the route of a handler. GET needs no more than the scope read."""
        wanted = "read" if method == "GET" and scope == "run" else scope

        async def endpoint(request: Request) -> Response:
            return await handler(request, self.key_of(request, wanted))

        return Route(path, endpoint, methods=[method])
