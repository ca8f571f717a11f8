"""Who may act on a sandbox's data plane, and as which of its users."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time

from starlette.requests import Request

from voidbox.serve.envd.users import GuestUser
from voidbox.serve.errors import ApiError
from voidbox.serve.served import Served

TOKEN_HEADER = "x-access-token"
_SIGNATURE_PREFIX = "v1_"
_NAME_CHARACTERS_MAX = 256


def check_token(served: Served, request: Request) -> None:
    """See that a request carries the sandbox's token, if it wants one.

    Raises:
        ApiError: 401.
    """
    wanted = served.token
    if wanted and not is_same(request.headers.get(TOKEN_HEADER, ""), wanted):
        raise ApiError(401, "unauthorized access, please provide a valid access token")


def user_name(request: Request) -> str:
    """Return whom a request wants to act as; "" for the default user.

    Raises:
        ApiError: the header cannot be read.
    """
    header = request.headers.get("authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        name, _, _ = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise ApiError(401, "invalid username: the header Authorization cannot be read") from None
    return name[:_NAME_CHARACTERS_MAX]


async def acting_user(served: Served, request: Request) -> GuestUser:
    """Return whom a request acts as.

    Raises:
        ApiError: see user_name().
        ConnectError: the sandbox has no such user.
    """
    return await served.users.find(user_name(request))


def signature(path: str, operation: str, user: str, token: str, expiration: str = "") -> str:
    """Return what a signed URL carries.

    Args:
        operation: "read" or "write".
        expiration: in seconds since 1970, if it is limited.
    """
    words = [path, operation, user, token, *([expiration] if expiration else [])]
    digest = hashlib.sha256(":".join(words).encode("utf-8", "surrogateescape")).digest()
    return _SIGNATURE_PREFIX + base64.b64encode(digest).decode().rstrip("=")


def is_signed(served: Served, request: Request, operation: str) -> bool:
    """Whether a request to /files carries a signature of this sandbox, expired or not."""
    query = request.query_params
    wanted = signature(
        query.get("path", ""),
        operation,
        query.get("username", ""),
        served.token,
        query.get("signature_expiration", ""),
    )
    return bool(served.token) and is_same(query.get("signature", ""), wanted)


def operation_of(request: Request) -> str:
    """Return what a request to /files does, as signatures call it."""
    return "write" if request.method == "POST" else "read"


def check_files(served: Served, request: Request) -> None:
    """See that a request to /files carries the token, or else a signature.

    Raises:
        ApiError: 401.
    """
    if not served.token:
        return
    if TOKEN_HEADER in request.headers:
        check_token(served, request)
        return
    if not request.query_params.get("signature"):
        raise ApiError(401, "missing signature query parameter")
    if not is_signed(served, request, operation_of(request)):
        raise ApiError(401, "invalid signature")
    expiration = request.query_params.get("signature_expiration", "")
    if expiration and (not expiration.isdecimal() or int(expiration) < time.time()):
        raise ApiError(401, "signature is already expired")


def is_same(given: str, wanted: str) -> bool:
    """Compare secrets in a time that tells nothing of them."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
