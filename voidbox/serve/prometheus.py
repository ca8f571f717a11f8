"""/metrics, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from voidbox.serve.control.shapes import state_of
from voidbox.serve.keys import Key
from voidbox.serve.registry import Registry
from voidbox.serve.requests_log import BUCKETS, RequestsLog

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metrics:
    """The figures of a server."""

    def __init__(self, registry: Registry, log: RequestsLog) -> None:
        self._registry = registry
        self._log = log

    async def answer(self, request: Request, key: Key) -> Response:
        """Return all of them."""
        return Response("".join(f"{line}\n" for line in self._lines()), media_type=_TYPE)

    def _lines(self) -> Iterable[str]:
        registry, log = self._registry, self._log
        states = Counter(state_of(one) for one in registry)
        yield from _metric("voidbox_sandboxes", "gauge", "Sandboxes by state.", [
            ({"state": state}, states[state]) for state in ("running", "paused")
        ])  # fmt: skip
        yield from _metric("voidbox_sandboxes_max", "gauge", "How many may run.", [
            ({}, registry.config.sandboxes_max)
        ])  # fmt: skip
        yield from _metric("voidbox_operations_total", "counter", "Operations on sandboxes.", [
            ({"operation": name}, count) for name, count in registry.counts.items()
        ])  # fmt: skip
        if registry.waiting is not None:
            stats = registry.waiting.stats()
            yield from _metric("voidbox_pool_sandboxes", "gauge", "Sandboxes for new clients.", [
                ({"state": state}, getattr(stats, state)) for state in ("warm", "starting")
            ])  # fmt: skip
        yield from self._of_sandboxes()
        yield from _metric("voidbox_requests_total", "counter", "Answered requests.", [
            ({"plane": plane, "method": method, "status": str(status)}, count)
            for (plane, method, status), count in sorted(log.counts.items())
        ])  # fmt: skip
        yield from _metric("voidbox_requests_under_way", "gauge", "Unanswered requests.", [
            ({}, log.under_way)
        ])  # fmt: skip
        yield from self._durations()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield from _metric("process_cpu_seconds_total", "counter", "CPU time of the server.", [
            ({}, usage.ru_utime + usage.ru_stime)
        ])  # fmt: skip
        yield from _metric("process_max_resident_memory_bytes", "gauge", "The most it had.", [
            ({}, usage.ru_maxrss << 10)
        ])  # fmt: skip
        yield from _metric("process_uptime_seconds", "gauge", "Since its start.", [
            ({}, round(time.time() - registry.started_at, 3))
        ])  # fmt: skip

    def _of_sandboxes(self) -> Iterable[str]:
        samples = [(one.id, one.samples[-1]) for one in self._registry if one.samples]
        for name, kind, field, text in (
            ("cpu_percent", "gauge", "cpu_percent", "Of its CPUs, in use."),
            ("memory_used_bytes", "gauge", "memory_used", "Memory, as the guest sees it."),
            ("disk_used_bytes", "gauge", "disk_used", "Disk, as the guest sees it."),
            ("network_received_bytes_total", "counter", "received", "What came by its network."),
            ("network_sent_bytes_total", "counter", "sent", "What it sent by its network."),
        ):
            values = [({"sandbox": id}, getattr(sample, field)) for id, sample in samples]
            yield from _metric(f"voidbox_sandbox_{name}", kind, text, values)

    def _durations(self) -> Iterable[str]:
        name = "voidbox_request_seconds"
        yield f"# HELP {name} How long requests took."
        yield f"# TYPE {name} histogram"
        for plane in sorted({plane for plane, _, _ in self._log.counts}):
            count = sum(n for (of, _, _), n in self._log.counts.items() if of == plane)
            below = 0
            for bound in BUCKETS:
                below += self._log.durations[plane, bound]
                yield f'{name}_bucket{{plane="{plane}",le="{bound:g}"}} {below}'
            yield f'{name}_bucket{{plane="{plane}",le="+Inf"}} {count}'
            yield f'{name}_sum{{plane="{plane}"}} {self._log.total_s[plane]:.6f}'
            yield f'{name}_count{{plane="{plane}"}} {count}'


def _metric(
    name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], float]]
) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        shown = ",".join(f'{key}="{word.translate(_ESCAPES)}"' for key, word in labels.items())
        yield f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}"
