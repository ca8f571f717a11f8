"""Spans, metrics and logs, as a collector gets them by OTLP; with stand-ins for the machines."""

from __future__ import annotations

import gzip
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serve.conftest import Box, StandIn, output_of

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="make setup installs it")
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.slow

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """What was told, by path."""

    KINDS = {
        "/v1/traces": ExportTraceServiceRequest,
        "/v1/metrics": ExportMetricsServiceRequest,
        "/v1/logs": ExportLogsServiceRequest,
    }

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {path: [] for path in self.KINDS}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.found[self.path].append(collector.KINDS[self.path].FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.found["/v1/traces"]
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        return {
            metric.name: metric
            for request in self.found["/v1/metrics"]
            for of_resource in request.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        }

    @property
    def logs(self) -> list[Any]:
        return [
            line
            for request in self.found["/v1/logs"]
            for of_resource in request.resource_logs
            for of_scope in of_resource.scope_logs
            for line in of_scope.log_records
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value for one in span.attributes}


def printed(messages: list[dict[str, Any]]) -> str:
    return output_of([message["event"] for message in messages[:-1]]).decode().strip()


def test_what_a_collector_gets(collector: Collector) -> None:
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {"otlp": collector.url})
        try:
            header = f"00-{TRACE}-{PARENT}-01"
            made = server.request(
                "POST",
                "/v2/sandboxes",
                b'{"templateID": "base"}',
                {"X-API-KEY": server.key, "traceparent": header},
            )
            assert made.status == 201
            box = Box(server, made.json)
            line = "echo $TRACEPARENT; exit 3"
            process = {"cmd": "/bin/sh", "args": ["-c", line]}
            found = box.stream("/process.Process/Start", {"process": process}, traceparent=header)
            own = box.run("/bin/sh", "-c", "echo $TRACEPARENT")[0].decode()
            given = {
                "cmd": "/bin/sh",
                "args": ["-c", "echo $TRACEPARENT"],
                "envs": {"TRACEPARENT": "x"},
            }
            kept = box.stream("/process.Process/Start", {"process": given})
            box.kill()
            server.stop()  # which sends all
        finally:
            server.close()
        assert "Traceback" not in server.log.read_text()
    spans = {span.name: span for span in collector.spans}
    create, start = spans["create"], spans.get("boot") or spans["restore"]
    (request,) = [
        span
        for span in collector.spans
        if span.parent_span_id.hex() == PARENT
        and "/v2/sandboxes" in str(attributes(span).get("url.path"))
    ]
    assert request.trace_id.hex() == TRACE
    assert create.parent_span_id == request.span_id and start.parent_span_id == create.span_id
    assert create.trace_id == start.trace_id == request.trace_id
    assert start.start_time_unix_nano <= start.end_time_unix_nano
    assert attributes(request)["http.response.status_code"].int_value == 201
    execs = [span for span in collector.spans if span.name == "exec"]
    (ours,) = [span for span in execs if span.trace_id.hex() == TRACE]
    assert attributes(ours)["voidbox.status"].int_value == 3
    assert attributes(ours)["voidbox.sandbox"].string_value == box.id
    assert printed(found) == f"00-{TRACE}-{ours.span_id.hex()}-01"
    assert own.startswith("00-") and TRACE not in own  # a trace of its own, without a client's
    assert printed(kept) == "x"
    assert {"voidbox.sandboxes", "voidbox.operations", "voidbox.request.duration"} <= set(
        collector.metrics
    )
    lines = [line for line in collector.logs if '"path": "/v2/sandboxes"' in line.body.string_value]
    assert lines and lines[0].trace_id.hex() == TRACE
    assert all(server.key not in line.body.string_value for line in collector.logs)


def test_a_collector_that_is_not_there(collector: Collector) -> None:
    """It costs nothing but the data."""
    with tempfile.TemporaryDirectory(prefix="vbx") as folder:
        server = StandIn(Path(folder), {"otlp": "http://127.0.0.1:1"})
        try:
            box = server.create()
            assert box.run("/bin/echo", "on")[0] == b"on\n"
            box.kill()
        finally:
            server.close()
