from __future__ import annotations

from collections.abc import Callable

from model.engine import Engine
from model.request import ModelInfo
from store.jobs import JobStore
from tests.worker.conftest import WorkerProcess, alone, ask, ended

Start = Callable[..., WorkerProcess]


def test_smoke(start_worker: Start, jobs: JobStore, engine: Engine, info: ModelInfo) -> None:
    worker = start_worker().ready()
    print(worker.log())
    job = jobs.submit(ask(n=6), info)
    print(ended(jobs, job.id))
    print(worker.stop(), worker.log())
