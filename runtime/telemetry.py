"""Logs and traces of service and worker.

Logs are JSON lines on stderr. The trace of a request starts with the client's `traceparent` header
(W3C Trace Context) or a new one. The job's record carries it to the worker, so that all log lines
of a job have one trace id. With the extra `traces` and OTEL_EXPORTER_OTLP_ENDPOINT set,
OpenTelemetry spans are sent there too, configured by OpenTelemetry's own variables. Knows no Redis.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pythonjsonlogger.json import JsonFormatter

from runtime.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

Attributes = Mapping[str, str | int | float]


def log_as_json() -> None:
    """Write each log record of this process to stderr as one line of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message", "exc_info"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
            timestamp="time",
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def trace_id(traceparent: str) -> str:
    """The trace id of a traceparent; "" when it is not one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""


@dataclass(frozen=True)
class Span:
    """A finished span; times in nanoseconds since 1970."""

    name: str
    start: int
    end: int


class Traces:
    """Spans of one process. Without a provider it only passes trace ids on."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pathar") if provider else None

    @contextmanager
    def span(self, name: str, parent: str | None) -> Iterator[str]:
        """A span around the body, which gets the traceparent to pass on. `parent` is the client's
        header; an invalid one starts a new trace."""
        if self._tracer is None:
            known = _TRACEPARENT.fullmatch(parent or "")
            trace, flags = known.group(1, 3) if known else (secrets.token_hex(16), "01")
            yield f"00-{trace}-{secrets.token_hex(8)}-{flags}"
            return
        with self._tracer.start_as_current_span(name, _context(parent)) as span:
            held = span.get_span_context()
            yield f"00-{held.trace_id:032x}-{held.span_id:016x}-{held.trace_flags:02x}"

    def stages(
        self, name: str, parent: str, stages: Sequence[Span], attributes: Attributes
    ) -> None:
        """Record a finished span `name` over all stages, with one child span for each stage."""
        if self._tracer is None:
            return
        from opentelemetry import trace

        whole = self._tracer.start_span(
            name, _context(parent), attributes=dict(attributes), start_time=stages[0].start
        )
        inside = trace.set_span_in_context(whole)
        for stage in stages:
            span = self._tracer.start_span(stage.name, inside, start_time=stage.start)
            span.end(stage.end)
        whole.end(max(stage.end for stage in stages))

    def close(self) -> None:
        """Send the spans that have not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def open_traces(service: str, env: Mapping[str, str] = os.environ) -> Traces:
    """Traces of this process, under the name `service`; off without an endpoint.

    SettingsError when an endpoint is set and OpenTelemetry is not installed.
    """
    asked = next((name for name in ENDPOINTS if env.get(name)), None)
    if asked is None:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(asked, env[asked], "pip install 'pathar[traces]' first") from None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


def _context(traceparent: str | None) -> Context | None:
    """The parent that a traceparent names, as OpenTelemetry holds it."""
    from opentelemetry import trace

    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None:
        return None
    ids, flags = (int(match[1], 16), int(match[2], 16)), trace.TraceFlags(int(match[3], 16))
    remote = trace.SpanContext(*ids, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))
