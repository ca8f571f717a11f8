"""Read what clients send: bounded, and each field of the kind it must be."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request

from voidbox.serve.errors import ApiError, bad

JSON_BYTES_MAX = 1 << 20
SILENCE_S = 60.0  # of a client whose body has not ended
_TEXTS_MAX = 1000  # of one map

Fields = dict[str, Any]


async def read_bytes(request: Request, bytes_max: int = JSON_BYTES_MAX) -> bytes:
    """Return a body of at most so many bytes.

    Raises:
        ApiError: 413; or 408, it does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(SILENCE_S) as limit:
            async for chunk in request.stream():
                limit.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                body += chunk
                if len(body) > bytes_max:
                    raise ApiError(413, f"a body of more than {bytes_max} bytes")
    except ClientDisconnect:
        raise bad("the body ended early") from None
    except TimeoutError:
        raise ApiError(
            408, f"nothing of the body came for {SILENCE_S:g} s", {"Connection": "close"}
        ) from None
    return bytes(body)


async def read_fields(request: Request) -> Fields:
    """Return a body's JSON object; an empty one for no body.

    Raises:
        ApiError: it is none, or too long.
    """
    return parse_fields(await read_bytes(request))


def parse_fields(body: bytes) -> Fields:
    """Return a JSON object; an empty one for nothing.

    Raises:
        ApiError: it is none.
    """
    if not body:
        return {}
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise bad("the body is no JSON") from None
    if not isinstance(fields, dict):
        raise bad("the body is no JSON object")
    return fields


def text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return a text. Raises ApiError for anything else."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad(f"{name}: give a text")
    return value


def flag(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return a boolean. Raises ApiError for anything else."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad(f"{name}: give true or false")
    return value


def number(fields: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """Return a number, JSON's own or as text. Raises ApiError if it is not within these limits."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad(f"{name}: give a number from {low:g} to {high:g}")
    return value


def texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """Return a list of texts; an empty one for none. Raises ApiError for anything else."""
    value = fields.get(name)
    if value is None:
        return []
    is_list = isinstance(value, list) and len(value) <= _TEXTS_MAX
    if not is_list or not all(isinstance(one, str) for one in value):
        raise bad(f"{name}: give a list of at most {_TEXTS_MAX} texts")
    return list(value)


def text_map(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return texts by their names; an empty map for none. Raises ApiError for anything else."""
    value = fields.get(name)
    if value is None:
        return {}
    is_map = isinstance(value, dict) and len(value) <= _TEXTS_MAX
    if not is_map or not all(isinstance(one, str) for one in value.values()):
        raise bad(f"{name}: give a map of at most {_TEXTS_MAX} texts")
    return dict(value)


def fields_of(fields: Mapping[str, Any], name: str) -> Fields:
    """Return an object in an object; an empty one for none. Raises ApiError for anything else."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(f"{name}: give an object")
    return value
