"""Who looks at the dashboard: a key, shown once, and then a signed cookie; never across origins."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time

from starlette.requests import HTTPConnection
from starlette.responses import Response

from voidbox.serve.errors import ApiError
from voidbox.serve.keys import Key, Keys

COOKIE = "voidbox_session"
PATH = "/dashboard"
LIFE_S = 12 * 3600
_COOKIE_CHARACTERS_MAX = 1000


class Sessions:
    """Cookies, which hold all there is of a session; a key that is removed ends its own.

    Args:
        secret: the server's.
    """

    def __init__(self, keys: Keys, secret: bytes) -> None:
        self._keys = keys
        self._secret = hmac.new(secret, b"dashboard", hashlib.sha256).digest()

    def begin(self, response: Response, key: Key, is_https: bool) -> None:
        """Have a response begin a session."""
        content = base64.urlsafe_b64encode(json.dumps([key.id, time.time() + LIFE_S]).encode())
        value = f"{content.decode()}.{self._sign(content)}"
        response.set_cookie(
            COOKIE, value, LIFE_S, path=PATH, secure=is_https, httponly=True, samesite="strict"
        )

    def end(self, response: Response) -> None:
        """Have a response end a session."""
        response.delete_cookie(COOKIE, path=PATH)

    def key_of(self, connection: HTTPConnection) -> Key | None:
        """Return whose session a request belongs to."""
        value = connection.cookies.get(COOKIE, "")[:_COOKIE_CHARACTERS_MAX]
        content, _, signature = value.partition(".")
        wanted = self._sign(content.encode("utf-8", "replace"))
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), wanted.encode()):
            return None
        try:
            key_id, end_at = json.loads(base64.urlsafe_b64decode(content))
        except (binascii.Error, ValueError, TypeError):
            return None
        return self._keys.by_id(str(key_id)) if time.time() < end_at else None

    def _sign(self, content: bytes) -> str:
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()


def check_origin(connection: HTTPConnection) -> None:
    """See that it is a page of ours that asks.

    Raises:
        ApiError: 403.
    """
    origin = connection.headers.get("origin", "")
    host = connection.headers.get("host", "")
    if not host or origin not in (f"http://{host}", f"https://{host}"):
        raise ApiError(403, "this comes from another origin than the dashboard's own pages")
