"""Read a request's map: every value is checked for its kind before it is used."""

from __future__ import annotations

from guest_agent.connection import RequestError
from guest_agent.protocol import BAD_REQUEST, EXTENTS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Values = dict[str, Any]

PATH_BYTES_MAX = 4096


def _bad(name: str, wanted: str) -> RequestError:
    return RequestError(BAD_REQUEST, f"{name!r} must be {wanted}")


def text(values: Values, name: str, default: str | None = None) -> str:
    """Return a string without zero bytes."""
    value = values.get(name, default)
    if not isinstance(value, str) or "\0" in value:
        raise _bad(name, "a string without zero bytes")
    return value


def optional_text(values: Values, name: str) -> str | None:
    """Return a string, or None if there is none."""
    return None if values.get(name) is None else text(values, name)


def path(values: Values, name: str = "path") -> str:
    """Return an absolute path.

    Relative ones are refused: the agent's own folder would be a surprising place to start from.
    """
    value = text(values, name)
    if not value.startswith("/") or len(value.encode("utf-8", "surrogateescape")) > PATH_BYTES_MAX:
        raise _bad(name, f"an absolute path of {PATH_BYTES_MAX} bytes at most")
    return value


def integer(values: Values, name: str, default: int | None = None, low: int = 0) -> int:
    """Return a whole number of at least `low` that fits into the kernel's signed 64 bits."""
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << 63:
        raise _bad(name, f"a whole number of at least {low}")
    return value


def optional_integer(values: Values, name: str, low: int = 0) -> int | None:
    """Return a whole number, or None if there is none."""
    return None if values.get(name) is None else integer(values, name, low=low)


def seconds(values: Values, name: str) -> float | None:
    """Return a positive time, or None if there is none."""
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise _bad(name, "a positive number of seconds")
    return float(value)


def flag(values: Values, name: str, default: bool = False) -> bool:
    """Return a boolean."""
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise _bad(name, "true or false")
    return value


def texts(values: Values, name: str) -> list[str]:
    """Return a list of strings, at least one."""
    value = values.get(name)
    if not isinstance(value, list) or not value:
        raise _bad(name, "a list of strings")
    return [text({name: item}, name) for item in value]


def extents(values: Values, name: str) -> list[tuple[int, int]] | None:
    """Return pairs of bytes of a hole, and of the data after it; None if there are none."""
    value = values.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > EXTENTS_MAX
        or not all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    ):
        raise _bad(name, f"a list of {EXTENTS_MAX} pairs at most")
    return [(integer({name: hole}, name), integer({name: data}, name)) for hole, data in value]


def text_map(values: Values, name: str) -> dict[str, str]:
    """Return a map of strings; an empty one if there is none."""
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise _bad(name, "a map of strings")
    for key in value:
        if not key or "=" in key or "\0" in key:
            raise _bad(name, "a map whose keys are names of variables")
    return {key: text({name: item}, name) for key, item in value.items()}
