"""The options that limit what a sandbox uses of the host, of `run` and `limit`."""

from __future__ import annotations

import argparse

from voidbox.cli.network import parse_rate
from voidbox.cli.parser import parse_number
from voidbox.errors import ConfigError
from voidbox.vmm.config import parse_memory

_NONE = "none"


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add the limits that a sandbox can also be started with."""
    parser.add_argument(
        "--cpu-limit",
        "--cpu",
        metavar="N",
        help="CPUs of this host that it uses, such as 0.5; its vCPUs alone without a control group",
    )
    parser.add_argument(
        "--host-memory",
        metavar="SIZE",
        help="what its machine may hold of this host's memory, all in all, such as 1G",
    )
    parser.add_argument("--pids", metavar="N", help="threads and processes of its machine")
    parser.add_argument(
        "--disk-rate", metavar="SIZE", help="bytes a second of each disk, such as 20M"
    )
    parser.add_argument("--disk-ops", metavar="N", help="requests a second of each disk")


def parse(options: argparse.Namespace) -> dict[str, float | None]:
    """Return the limits of add_options() that were given.

    Raises:
        ConfigError: one is no number.
    """
    found: dict[str, float | None] = {}
    if options.cpu_limit is not None:
        found["cpu"] = _cpus(options.cpu_limit)
    if options.host_memory is not None:
        found["host_memory_bytes"] = (
            None if options.host_memory == _NONE else parse_memory(options.host_memory)
        )
    if options.pids is not None:
        found["pids"] = None if options.pids == _NONE else parse_number(options.pids, "--pids")
    if options.disk_rate is not None:
        found["disk_bytes_s"] = size_of(options.disk_rate, "--disk-rate")
    if options.disk_ops is not None:
        found["disk_ops_s"] = (
            None if options.disk_ops == _NONE else parse_number(options.disk_ops, "--disk-ops")
        )
    return found


def _cpus(text: str) -> float | None:
    if text == _NONE:
        return None
    try:
        return float(text)  # whether it can be a limit says who sets it
    except ValueError:
        raise ConfigError(f"--cpu-limit {text}: give CPUs, such as 0.5, or none") from None


def size_of(text: str, option: str) -> int | None:
    """Return bytes a second; None for "none".

    Raises:
        ConfigError: it is no such quantity.
    """
    return None if text == _NONE else parse_rate(text, option)
