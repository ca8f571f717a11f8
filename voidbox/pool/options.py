"""What a pool is told, checked."""

from __future__ import annotations

import os
from typing import Any

from voidbox.errors import ConfigError
from voidbox.sdk import draft
from voidbox.sdk.creating import DEFAULTS, CreateOptions

_NOT_FOR_MANY = ("name", "pcap")
_CPUS_USUAL = 2


def check_count(name: str, value: int, least: int) -> int:
    """Return a number of sandboxes.

    Raises:
        ConfigError: it is none.
    """
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={value!r}: give a whole number, {least} or more")
    return value


def starts_at_first(starts: int | None) -> tuple[int, int]:
    """Return how many starts may be under way at first, and at most.

    Raises:
        ConfigError: `starts` is no number.
    """
    if starts is not None:
        return check_count("starts", starts, 1), starts
    cpus = len(os.sched_getaffinity(0)) or _CPUS_USUAL
    return max(1, cpus // 2), 2 * cpus


def complete(options: CreateOptions, over: CreateOptions | None = None) -> CreateOptions:
    """Return all options of create(), with those of one sandbox over those of the pool.

    Raises:
        ConfigError: one of them is for one sandbox alone, or there is no such option.
    """
    given: dict[str, Any] = {**options, **(over or {})}
    unknown = given.keys() - DEFAULTS.keys()
    if unknown:
        raise ConfigError(f"a pool's sandboxes have no {', '.join(sorted(unknown))}")
    for name in _NOT_FOR_MANY:
        if options.get(name) is not None:
            raise ConfigError(f"{name}= is for one sandbox: a pool has many")
    return CreateOptions(**{**DEFAULTS, **given})  # type: ignore[typeddict-item]


def guest_bytes(options: CreateOptions) -> int:
    """Return how much memory a guest is given, as far as the options say."""
    return draft.memory_bytes(options.get("memory"))
