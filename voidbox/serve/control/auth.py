"""Which key a request carries, and whether it may do what it asks for."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key, Keys


def key_of(request: HTTPConnection, keys: Keys, scope: str) -> Key:
    """Return a request's key.

    Raises:
        ApiError: it has none, or one that may not do this.
    """
    secret = request.headers.get("x-api-key", "")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not secret and scheme.lower() == "bearer":  # as Prometheus sends it
        secret = token.strip()
    key = keys.find(secret)
    if key is None:
        why = "Invalid API key" if secret else "Missing API key, send it as X-API-KEY"
        raise ApiError(401, f"{why}: voidbox serve key add NAME makes one")
    request.scope["voidbox.key"] = key.name  # for the log
    if not key.may(scope):
        raise ApiError(403, f"the key {key.name} has no scope {scope!r}")
    return key
