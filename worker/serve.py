"""A worker process from start to end: loads the engine, warms it up, then reports ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import redis

from model.engine import Engine, load_engine
from model.memory import SlotsError, memory
from pathar.contract import VERSION
from runtime.connection import connect
from runtime.objects import Objects, ObjectsAway, open_objects
from runtime.settings import SettingsError
from runtime.telemetry import Traces, log_as_json, open_traces
from worker.batch_worker import BatchWorker
from worker.dataset_writer import DatasetWriter
from worker.device_use import use_of
from worker.images import numerics
from worker.metrics import WorkerMetrics
from worker.settings import READY, WorkerSettings
from worker.storing import MAX_BACKOFF_S

DATASET_TIMEOUT_S = 10.0
"""How long a request for the files of data sets may take; a third of a writer's lease."""


def serve(settings: WorkerSettings) -> int:
    """Run until a signal; returns the exit code: 0 stopped, 1 failed, 2 bad setting."""
    log_as_json()
    try:
        traces = open_traces("pathar-worker")
        objects = open_objects(settings.results_url)
        engine = _load(settings)
    except ValueError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    return _draw_until_stopped(engine, settings, traces, objects)


def _load(settings: WorkerSettings) -> Engine:
    try:
        return load_engine(
            settings.checkpoint,
            device=settings.device,
            slots=settings.slots,
            threads=settings.threads,
        )
    except SlotsError as error:
        raise SettingsError("PATHAR_SLOTS", str(settings.slots), error.expected) from None


def _draw_until_stopped(
    engine: Engine, settings: WorkerSettings, traces: Traces, objects: Objects | None
) -> int:
    engine.warm_up()
    metrics = _metrics(engine)
    if settings.metrics_port:
        try:
            metrics.serve(settings.host, settings.metrics_port)
        except OSError as error:
            port = settings.metrics_port
            print(f"worker: PATHAR_WORKER_METRICS_PORT={port}: {error.strerror}", file=sys.stderr)
            return 1
    client = connect(settings.redis_url)
    _wait_for("Redis", client.ping)
    if objects is not None:
        _wait_for("the storage of results", objects.check)
    worker = BatchWorker(
        engine, client, metrics, traces, result_ttl=settings.result_ttl, objects=objects
    )
    writer = _dataset_writer(client, settings, metrics)
    worker.enter()
    if writer is not None:
        writer.start()
    print(ready_line(engine, worker), flush=True)
    try:
        worker.work()
    finally:
        if writer is not None:
            writer.stop()
        traces.close()
    return 0


def _dataset_writer(
    client: redis.Redis, settings: WorkerSettings, metrics: WorkerMetrics
) -> DatasetWriter | None:
    """What writes data sets, where there is a storage for them. Large files take it longer."""
    objects = open_objects(settings.results_url, timeout_s=DATASET_TIMEOUT_S)
    if objects is None:
        return None
    return DatasetWriter(client, objects, result_ttl=settings.result_ttl, stored=metrics.stored)


def _metrics(engine: Engine) -> WorkerMetrics:
    info = engine.info(numerics(engine))
    told = {name: engine.facts[name] for name in ("device", "decoder", "precision")}
    build = {"version": VERSION, "model_version": info.version[:12]}
    metrics = WorkerMetrics(info.name, {**build, "numerics": info.numerics, **told})
    metrics.device(partial(memory, engine.device), use_of(engine.device))
    return metrics


def ready_line(engine: Engine, worker: BatchWorker) -> str:
    """A line for people: which model is served, and what determines its bits."""
    info, facts = worker.info, engine.facts
    return (
        f"{READY}: model {info.name} {info.version[:12]}, device {facts['device']}, "
        f"{facts['decoder']} decoder in {facts['precision']}, {engine.slots} slots, "
        f"{engine.threads} threads, numerics {info.numerics}"
    )


def _wait_for(what: str, answers: Callable[[], object]) -> None:
    waited = False
    while True:
        try:
            answers()
            return
        except (redis.RedisError, ObjectsAway) as error:
            if not waited:
                print(f"worker: waiting for {what}: {error}", file=sys.stderr, flush=True)
            waited = True
            time.sleep(MAX_BACKOFF_S)
