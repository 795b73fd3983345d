"""`pathar generate`: pairs into a folder, drawn in this process or by a service.

Both give the same bytes for the same model version and numerics. Knows no Redis.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathar.client import Client
from pathar.contract import MAX_SEED
from pathar.errors import CommandError, UsageError
from pathar.local_engine import local_engine
from pathar.pair_files import files_of, write_pair

FIRST_ANSWER_S = 3.0

Files = Mapping[str, bytes]


def generate(fields: Mapping[str, Any], out: Path, url: str | None) -> None:
    """Draw pairs into `out`. `fields` are named as in `POST /generate`."""
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
    engine, model = local_engine(os.environ, "generate", fields["n"])
    from model.request import resolve
    from worker.drawing import draw

    try:
        request = resolve(fields, model, seed=fields["seed"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    yield from draw(engine, request.images())


def draw_at(url: str, fields: Mapping[str, Any]) -> Iterator[tuple[int, Files]]:
    """Each image's index and files from the service at `url`, as they are finished."""
    settings = {name: value for name, value in fields.items() if name not in ("label", "n")}
    with Client(url, patience=FIRST_ANSWER_S) as client:
        client.labels()  # a wrong URL or key fails at once, not after minutes
    with Client(url) as client:
        for pair in client.stream(fields["label"], fields["n"], **settings):
            yield pair.index, files_of(pair)
