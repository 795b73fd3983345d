"""One trace from the client's header to the stages of an image, in logs and in OpenTelemetry."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.running import Up, environment, wait_until

pytestmark = pytest.mark.processes

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
STAGES = {"queue", "decode", "vq_decode", "png", "store"}


class Collector(ThreadingHTTPServer):
    """Takes spans as OpenTelemetry's own collector does: OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever).start()

    def named(self, name: str) -> Any:
        [found] = [span for _, span in self.spans if span.name == name]
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(attributes["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on stderr."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running
        running.shutdown()


def lines(up: Up, process: str) -> list[dict[str, Any]]:
    text = next(up.home.rglob(f"{process}.log")).read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_every_stage_of_an_image_is_a_span_of_the_clients_trace_and_no_other_image_is(
    collector: Collector, test_checkpoint: Path
) -> None:
    """What is not to be sampled is sent by nobody: by the client's word, or where it has none by
    the API's sampler; the worker follows both."""
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    up = Up(test_checkpoint, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **sampler)
    spared = {"traceparent": f"00-{'5' * 32}-b7ad6b7169203331-00"}
    try:
        up.ready()
        for headers in ({}, spared, HEADERS):
            up.http.post("/generate", json={"label": "blood"}, headers=headers).raise_for_status()
        up.stop()  # an image is given out before its line is written
        told = {line["trace_id"] for line in lines(up, "worker") if "job" in line}
    finally:
        up.close()
    assert told > {TRACE, "5" * 32}, "logs have them all the same"
    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE}
    assert {service for service, _ in collector.spans} == {"pathar-service", "pathar-worker"}
    assert {span.name for _, span in collector.spans} == {"submit", "image", *STAGES}
    submit, image = collector.named("submit"), collector.named("image")
    assert submit.parent_span_id.hex() == "b7ad6b7169203331"
    assert image.parent_span_id == submit.span_id
    stages = [span for _, span in collector.spans if span.name in STAGES]
    assert all(span.parent_span_id == image.span_id for span in stages)
    assert min(span.start_time_unix_nano for span in stages) == image.start_time_unix_nano
    assert max(span.end_time_unix_nano for span in stages) == image.end_time_unix_nano
    attributes = {a.key: a.value for a in image.attributes}
    assert attributes["label"].string_value == "blood"
    assert attributes["key"].string_value == "anybody"


def test_logs_are_json_that_names_job_key_and_trace(stack: Up) -> None:
    def of(process: str, job: dict[str, Any]) -> list[dict[str, Any]]:
        return [line for line in lines(stack, process) if line.get("job") == job["job_id"]]

    one = stack.http.post("/generate", json={"label": "blood", "n": 2}, headers=HEADERS).json()
    other = stack.http.post("/generate", json={"label": "blood"}).json()
    stack.http.delete(f"/jobs/{other['job_id']}")
    # An image is given out before its line is written.
    wait_until(lambda: len(of("worker", one) + of("worker", other)) == 3, "the last line")
    [accepted] = of("service", one)
    assert accepted["message"] == "accepted"
    assert (accepted["trace_id"], accepted["key"], accepted["n"]) == (TRACE, "anybody", 2)
    finished = of("worker", one)
    assert [line["message"] for line in finished] == ["finished"] * 2
    assert {line["image"] for line in finished} == {0, 1}
    assert {line["trace_id"] for line in finished} == {TRACE}
    assert all(line[f"{stage}_s"] >= 0 for stage in STAGES for line in finished)
    [alone] = of("worker", other)
    assert alone["trace_id"] != TRACE, "a request without a trace begins one"
    assert len(alone["trace_id"]) == 32
    assert {"time", "level", "logger"} <= set(alone)


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01", f"01-{TRACE}-b7ad-01"]
)
def test_a_traceparent_that_is_none_begins_a_new_trace(header: str, stack: Up) -> None:
    answer = stack.http.post(
        "/generate", json={"label": "blood"}, headers={"traceparent": header}
    ).raise_for_status()
    job = answer.json()["job_id"]
    [line] = [line for line in lines(stack, "service") if line.get("job") == job]
    assert len(line["trace_id"]) == 32
    assert line["trace_id"] not in (TRACE, "0" * 32)


def test_an_endpoint_without_the_library_is_a_bad_setting(test_checkpoint: Path) -> None:
    hide = "import sys; sys.modules['opentelemetry'] = None; import worker.__main__ as w; "
    done = subprocess.run(
        [sys.executable, "-c", hide + "sys.exit(w.main())"],
        env=environment(test_checkpoint, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "OTEL_EXPORTER_OTLP_ENDPOINT='http://127.0.0.1:9'" in done.stderr
    assert "pathar[traces]" in done.stderr
