"""The same bytes whatever is killed: `python -m benchmarks.kills --requests 200 --kills 10`.

The random requests of `benchmarks.identity` (free, forced, forced in part, the best of several
draws, and large images of each kind) are drawn alone, one after the other. Then a service of its
own gets all of them at once by HTTP, and its worker gets kill -9 again and again, at even
distances, while it draws. Every file of every image must have the same SHA-256; the exit code is 1
if one differs or a job does not finish.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.decode import processor
from benchmarks.identity import (
    LABELS,
    Hashes,
    Setup,
    differing,
    draw,
    in_part,
    random_requests,
)
from model.checkpoint import create_random_checkpoint
from model.config import NAMED_SIZES, ModelConfig
from model.given import Given, Size, Stream
from model.processors import usable_cores
from model.request import ImageRequest
from pathar.contract import END_STATES, FILE_NAMES
from pathar.local_service import local_run
from pathar.run_file import read_run
from service.request_schemas import MOST_LISTED

LOOK_S = 0.1


def main(words: Sequence[str] | None = None) -> int:
    """Draw alone and with kills, compare, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--size", choices=NAMED_SIZES, default="small", help="of random weights")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        sizes = NAMED_SIZES[args.size]
        path = create_random_checkpoint(Path(folder), args.size, sizes, labels=LABELS)
        return compared(args, path)


def compared(args: argparse.Namespace, checkpoint: Path) -> int:
    """The same with a checkpoint."""
    engine = Setup(checkpoint, "cpu", args.threads, "auto").engine(1)
    requests = random_requests(args.requests, engine.config)
    kinds = Counter(map(kind, requests))
    print(f"{engine.config.name}, {args.slots} slots, {args.threads} threads, {processor()}")
    kinds["best of several"] = sum(bool(each.rivals) for each in requests)
    print(f"{len(requests)} requests: {', '.join(f'{n} {name}' for name, n in kinds.items())}")
    alone = draw(engine, requests)
    settings = {
        "PATHAR_CHECKPOINT": str(checkpoint),
        "PATHAR_DEVICE": "cpu",
        "PATHAR_SLOTS": str(args.slots),
        "PATHAR_THREADS": str(args.threads),
    }
    bodies = [body(request, engine.config) for request in requests]
    with local_run(settings) as run, httpx.Client(base_url=run["url"], timeout=600) as http:
        drawn = with_kills(http, Path(run["home"]), bodies, args.kills)
    wrong = differing(alone, drawn)
    print(f"{args.kills} kills, {len(wrong)} images differ", *wrong)
    found = {"requests": len(requests), **kinds, "kills": args.kills}
    print(json.dumps({**found, "differing": len(wrong), "equal": not wrong}))
    return 1 if wrong else 0


def kind(request: ImageRequest) -> str:
    """How a request is counted."""
    if request.size is not None:
        return "large"
    if not isinstance(request.given, Given):
        return "free"
    return "forced in part" if in_part(request) else "forced"


def with_kills(
    http: httpx.Client, home: Path, bodies: list[dict[str, Any]], kills: int
) -> list[Hashes]:
    """The hashes of all images, in the order of `bodies`. RuntimeError when a job does not
    finish."""
    worker = read_run(home)["pids"]["worker"]
    os.kill(worker, signal.SIGSTOP)  # so that it has all of them to draw
    jobs = [
        http.post("/generate", params={"wait": 0}, json=each).raise_for_status().json()["job_id"]
        for each in bodies
    ]
    os.kill(worker, signal.SIGCONT)
    dues = [len(jobs) * (number + 1) // (kills + 1) for number in range(kills)]
    killed, before = 0, 0
    while True:
        states = status(http)
        if dues and states["finished"] >= max(dues[0], before + 1) and states["started"]:
            pid = read_run(home)["pids"]["worker"]
            if pid != killed:  # else it has not been started again
                os.kill(pid, signal.SIGKILL)
                killed, before = pid, states["finished"]
                print(f"{states['finished']} finished: kill -9 {pid}", file=sys.stderr, flush=True)
                dues.pop(0)
        if sum(states[end] for end in END_STATES) == len(jobs):
            break
        time.sleep(LOOK_S)
    if dues or states["finished"] < len(jobs):
        raise RuntimeError(f"expected all jobs finished and all kills made: {states}, {dues} left")
    return [files(http, job) for job in jobs]


def status(http: httpx.Client) -> Counter[str]:
    """How many jobs there are in each state."""
    states: Counter[str] = Counter()
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        params = {"limit": MOST_LISTED, **({"cursor": page["next"]} if page["next"] else {})}
        page = http.get("/jobs", params=params).raise_for_status().json()
        states.update(job["status"] for job in page["jobs"])
    return states


def files(http: httpx.Client, job: str) -> Hashes:
    """The hashes of the files of a job's image."""
    base = f"/jobs/{job}/images/0"
    contents = {n: http.get(f"{base}/{n}").raise_for_status().content for n in FILE_NAMES}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def body(request: ImageRequest, config: ModelConfig) -> dict[str, Any]:
    """The request as JSON for `POST /generate`."""
    asked: dict[str, Any] = {"label": request.label, "n": 1, "seed": request.seed}
    asked |= asdict(request.settings)
    if request.rivals:
        asked["best_of"] = 1 + len(request.rivals)
    if request.size is not None:
        asked["width"], asked["height"] = request.size
    if isinstance(request.given, Given):
        streams = vars(request.given).items()
        asked |= {
            name: form(each, config, request.size) for name, each in streams if each is not None
        }
    return asked


def form(stream: Stream, config: ModelConfig, size: Size | None) -> dict[str, Any]:
    """What is given of a stream, in a form of the API."""
    cell, side = config.tokenizer.downsample, config.tokenizer.image_size
    width, height = size or (side, side)
    rows, columns = height // cell, width // cell
    kept = np.array(stream.kept(rows * columns)).reshape(rows, columns)
    if isinstance(stream.content, tuple):
        ids = [i if keeps else None for i, keeps in zip(stream.content, kept.flat, strict=True)]
        return {"tokens": [ids[at : at + columns] for at in range(0, len(ids), columns)]}
    content = np.frombuffer(stream.content, np.uint8)
    given = (
        {"mask_png": png(np.unpackbits(content).reshape(height, width) * np.uint8(255))}
        if stream.kind == "mask"
        else {"image_png": png(content.reshape(height, width, 3))}
    )
    if stream.keep is not None:
        pixels = np.kron(kept, np.ones((cell, cell), np.uint8))
        given["keep_png"] = png(pixels.astype(np.uint8) * np.uint8(255))
    return given


def png(pixels: NDArray[np.uint8]) -> str:
    """A PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
