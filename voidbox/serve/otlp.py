"""Spans, metrics and logs by OTLP over HTTP; OpenTelemetry's own variables (OTEL_*) hold.

Imported with --otlp alone; it needs the extra "otel".
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from voidbox.serve.control.shapes import state_of
from voidbox.serve.proxy.headers import value_of
from voidbox.serve.registry import Registry
from voidbox.serve.telemetry import Lasting, Telemetry
from voidbox.version import __version__

_NAME = "voidbox.serve"
_TIMEOUT_S = 3.0  # for a collector to take it: the server's end waits for that, too
_W3C = TraceContextTextMapPropagator()
_SEVERITIES = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}  # SeverityNumber

Value = str | int | float | bool


class _Command(Lasting):
    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        # As OpenTelemetry's "Environment Variables as Context Propagation Carriers" has it.
        self.environment = {name.upper(): value for name, value in carrier.items()}

    def end(self, **attributes: Value) -> None:
        """See Lasting."""
        if self._span.is_recording():
            self._span.set_attributes(_named(attributes))
            self._span.end()


class Otlp(Telemetry):
    """Tells a collector.

    Args:
        endpoint: its URL, such as http://127.0.0.1:4318; what it is told is below that, in v1/.
    """

    def __init__(self, endpoint: str) -> None:
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "voidbox", "service.version": __version__})
        self._spans = TracerProvider(resource=resource)
        self._spans.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", timeout=_TIMEOUT_S))
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", timeout=_TIMEOUT_S)
        )
        self._metrics = MeterProvider([reader], resource=resource)
        self._logs = LoggerProvider(resource=resource)
        self._logs.add_log_record_processor(
            BatchLogRecordProcessor(OTLPLogExporter(f"{base}/v1/logs", timeout=_TIMEOUT_S))
        )
        self._tracer = self._spans.get_tracer(_NAME, __version__)
        meter = self._metrics.get_meter(_NAME, __version__)
        self._durations = meter.create_histogram(
            "voidbox.request.duration", "s", "How long requests took."
        )
        self._meter = meter
        self._handler = _Handler(self._logs)
        logging.getLogger(_NAME).addHandler(self._handler)

    @contextlib.contextmanager
    def request(self, scope: Scope) -> Iterator[None]:
        """See Telemetry."""
        given = scope["headers"]
        headers = {name: value_of(given, name.encode()) for name in _W3C.fields}
        parent = _W3C.extract({name: value for name, value in headers.items() if value})
        method = scope.get("method", "WEBSOCKET")
        with self._tracer.start_as_current_span(
            method,
            parent,
            SpanKind.SERVER,
            {"http.request.method": method, "url.path": scope["path"]},
        ) as span:
            yield
            status = scope.get("voidbox.status", 0)
            span.set_attribute("http.response.status_code", status)
            sandbox_id = scope.get("voidbox.sandbox")
            if sandbox_id:
                span.set_attribute("voidbox.sandbox", sandbox_id)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))

    @contextlib.contextmanager
    def span(self, name: str, **attributes: Value) -> Iterator[None]:
        """See Telemetry."""
        with self._tracer.start_as_current_span(name, attributes=_named(attributes)):
            yield

    def past(self, name: str, began_at: float, **attributes: Value) -> None:
        """See Telemetry."""
        self._tracer.start_span(
            name, attributes=_named(attributes), start_time=int(began_at * 1e9)
        ).end()

    def begin(self, name: str, **attributes: Value) -> Lasting:
        """See Telemetry."""
        return _Command(self._tracer.start_span(name, attributes=_named(attributes)))

    def answered(self, plane: str, method: str, status: int, seconds: float) -> None:
        """See Telemetry."""
        attributes: dict[str, Value] = {
            "plane": plane,
            "http.request.method": method,
            "http.response.status_code": status,
        }
        self._durations.record(seconds, attributes)

    def observe(self, registry: Registry) -> None:
        """See Telemetry."""

        def sandboxes(options: CallbackOptions) -> Iterable[Observation]:
            states = Counter(state_of(one) for one in registry)
            return [Observation(states[state], {"state": state}) for state in ("running", "paused")]

        def operations(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(n, {"operation": name}) for name, n in registry.counts.items()]

        self._meter.create_observable_gauge(
            "voidbox.sandboxes", [sandboxes], "{sandbox}", "Sandboxes by state."
        )
        self._meter.create_observable_counter(
            "voidbox.operations", [operations], "{operation}", "Operations on sandboxes."
        )

    def close(self) -> None:
        """See Telemetry. It waits for the collector, but not for long."""
        logging.getLogger(_NAME).removeHandler(self._handler)
        for part in (self._spans, self._metrics, self._logs):
            part.shutdown()


class _Handler(logging.Handler):
    """Gives the server's own log lines to the collector, with the span that they are of."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        from opentelemetry._logs import SeverityNumber

        try:
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                context=context.get_current(),
                severity_number=SeverityNumber(_SEVERITIES.get(record.levelname, 9)),
                severity_text=record.levelname,
                body=record.getMessage(),
            )
        except Exception:  # of a log no request may fail
            self.handleError(record)


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"voidbox.{name}": value for name, value in attributes.items()}
