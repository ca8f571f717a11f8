"""`voidbox stats`: what running sandboxes use."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from voidbox.cli import exit_status
from voidbox.cli.output import print_json, print_table, shown_size, shown_span
from voidbox.cli.parser import make_parser
from voidbox.cli.sandboxes import control, find_running, open_store
from voidbox.errors import AgentError, SandboxTimeout
from voidbox.named_tuple import NamedTuple
from voidbox.sandbox.state.records import SandboxRecord
from voidbox.sandbox.state.store import Store

_PERIOD_S = 1.0
_FIRST_S = 0.3  # between the two looks that a share of a CPU takes
_CLEAR = "\x1b[H\x1b[J"
_EPILOG = """\
CPU is the share of one processor that the sandbox's process has used since the last look; RSS what
it holds of the host's memory, of which MEMORY is the guest's. With --json each look is one line.

examples:
  voidbox stats
  voidbox stats --no-stream --json builder
"""


class _Look(NamedTuple):
    at: float
    values: dict[str, Any]


def make_options() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = make_parser("stats", "Show what running sandboxes use, every second.", _EPILOG)
    parser.add_argument("--no-stream", action="store_true", help="once")
    parser.add_argument("--json", action="store_true", help="print lists as JSON")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all that run by default")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = make_options().parse_args(argv)
    store = open_store()
    ids = {find_running(store, name).id for name in options.names}
    before = _look(store, ids)
    pause_s = _FIRST_S
    while True:
        if before:
            time.sleep(pause_s)
        now = _look(store, ids)
        rows = [
            _measure(record, before.get(record.id, (record, look))[1], look)
            for record, look in now.values()
        ]
        _print(rows, options.json, options.no_stream)
        if options.no_stream or not now:
            return exit_status.OK
        before, pause_s = now, _PERIOD_S


def _look(store: Store, ids: set[str]) -> dict[str, tuple[SandboxRecord, _Look]]:
    """Return what those say that still run: these, or all."""
    found = {}
    for record in store.list():
        if not record.state.has_process or (ids and record.id not in ids):
            continue
        try:
            values = control(store, record).request("metrics")
        except (AgentError, SandboxTimeout):
            continue  # it is beginning, or has just ended
        found[record.id] = (record, _Look(time.monotonic(), values))
    return found


def _measure(record: SandboxRecord, before: _Look, now: _Look) -> dict[str, object]:
    """Return a sandbox's figures as --json shows them. Documented in docs/cli.md."""
    span_s = now.at - before.at
    used_ns = _number(now, "cpu_ns") - _number(before, "cpu_ns")
    network = now.values.get("network")
    if not isinstance(network, dict):
        network = {}
    exits = now.values.get("exits")
    return {
        "name": record.name,
        "id": record.id,
        "state": record.state.value,
        "cpu_percent": round(used_ns / span_s / 1e7, 1) if span_s > 0 else 0.0,
        "cpu_ns": _number(now, "cpu_ns"),
        "vcpu_ns": _number(now, "vcpu_ns"),
        "rss_bytes": _number(now, "rss_bytes"),
        "memory_bytes": record.memory_bytes,
        "cpus": record.cpus,
        "network_received_bytes": network.get("bytes_to_guest"),
        "network_sent_bytes": network.get("bytes_from_guest"),
        "exits": sum(exits.values()) if isinstance(exits, dict) else 0,
        "uptime_s": round(_number(now, "uptime_s"), 3),
        "limits": now.values.get("limits") or {},
        "cpu_held_ns": _number(now, "cpu_held_ns"),
        "group": now.values.get("group") or {},
    }


def _number(look: _Look, key: str) -> float:
    value = look.values.get(key)
    return value if isinstance(value, int | float) else 0


def _print(rows: list[dict[str, Any]], as_json: bool, is_last: bool) -> None:
    if as_json:
        if is_last:
            print_json(rows)
        else:
            print(json.dumps(rows), flush=True)
        return
    if not is_last and sys.stdout is not None and sys.stdout.isatty():
        print(_CLEAR, end="")
    print_table(
        ("NAME", "CPU", "RSS", "MEMORY", "RECEIVED", "SENT", "EXITS", "UP"),
        [
            [
                row["name"],
                f"{row['cpu_percent']:.1f}%{_of_limit(row['limits'])}",
                shown_size(row["rss_bytes"]),
                shown_size(row["memory_bytes"]),
                _size_or_none(row["network_received_bytes"]),
                _size_or_none(row["network_sent_bytes"]),
                str(row["exits"]),
                shown_span(row["uptime_s"]),
            ]
            for row in rows
        ],
    )
    if sys.stdout is not None:
        sys.stdout.flush()


def _of_limit(limits: object) -> str:
    cpus = limits.get("cpu") if isinstance(limits, dict) else None
    return f"/{cpus * 100:g}%" if isinstance(cpus, int | float) else ""


def _size_or_none(value: object) -> str:
    return shown_size(value) if isinstance(value, int) else "-"
