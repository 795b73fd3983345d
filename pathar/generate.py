"""`pathar generate`: pairs into a folder, drawn by an engine here or by a service.

Both ways give the same bytes for the same model version and numerics. Knows no Redis.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.request import MAX_SEED, resolve
from pathar.client import Client
from pathar.errors import CommandError, UsageError
from pathar.files import NAMES, write_pair

FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0

Files = Mapping[str, bytes]


def generate(fields: Mapping[str, Any], out: Path, url: str | None) -> None:
    """Draw what `fields` (named as in `POST /generate`) ask for into `out`."""
    fields = {"seed": secrets.randbelow(MAX_SEED + 1), **fields}
    pairs = draw_here(fields) if url is None else draw_at(url, fields)
    n, done = fields["n"], 0
    try:
        for index, files in pairs:
            paths = write_pair(out, fields["label"], fields["seed"], index, files)
            done += 1
            print(f"{done}/{n} {paths[0]}", file=sys.stderr, flush=True)
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error


def draw_here(fields: Mapping[str, Any]) -> Iterator[tuple[int, Files]]:
    """Each image's index and files from an engine in this process, as they are finished."""
    from model.engine import load_engine
    from model.memory import SlotsError
    from worker.drawing import draw
    from worker.images import numerics
    from worker.settings import SettingsError, read_settings

    try:
        settings = read_settings(os.environ)
        engine = load_engine(
            settings.checkpoint,
            device=settings.device,
            slots=max(1, min(fields["n"], settings.slots)),
            threads=settings.threads,
        )
        request = resolve(fields, engine.info(numerics(engine)), seed=fields["seed"])
    except SlotsError as error:
        refusal = SettingsError("PATHAR_SLOTS", str(settings.slots), error.expected)
        raise UsageError(str(refusal)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    yield from draw(engine, request.images())


def draw_at(url: str, fields: Mapping[str, Any]) -> Iterator[tuple[int, Files]]:
    """Each image's index and files from the service at `url`, as they are finished."""
    with Client(url) as client:
        job = client.submit(fields)
        fetched: set[int] = set()
        wait = FIRST_POLL_SECONDS
        while True:
            job = client.job(job["job_id"])
            for image in job["images"]:
                index = image["index"]
                if image["status"] == "finished" and index not in fetched:
                    yield index, {name: client.file(job["job_id"], index, name) for name in NAMES}
                    fetched.add(index)
                    wait = FIRST_POLL_SECONDS
            if job["status"] == "finished":
                return
            if job["status"] in ("failed", "canceled"):
                raise CommandError(f"job {job['job_id']} {job['status']}: {job['error']}")
            time.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL_SECONDS)
