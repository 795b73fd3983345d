"""What one image costs Redis, by how many wait: `python -m benchmarks.store` on a Redis of its own.

With so many images of one key in line, each in a job of its own, images are submitted, claimed,
started, finished and canceled. Printed is the time that Redis itself spent in the scripts for each,
in microseconds (`INFO commandstats`; the median of rounds), and how many finished images a second
that allows for, since Redis works on one thing at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import redis

from benchmarks.decode import processor
from model.request import GenerationRequest, Label, ModelInfo, SamplingSettings
from pathar.contract import FILE_NAMES
from pathar.embedded_redis import find_redis_server, redis_command, redis_url
from runtime.connection import connect
from store import keys
from store.access import ANYBODY
from store.job import Job
from store.jobs import JobStore
from store.parts import HeldPart, PartStore, read_part

INFO = ModelInfo(
    name="benchmark",
    version="ab" * 32,
    numerics="0123456789ab",
    labels=(Label("histology", "modality"),),
    defaults=SamplingSettings(),
    codebook_size=256,
    grid_size=16,
    image_size=256,
)
REQUEST = GenerationRequest(("histology",), 1, 7, (SamplingSettings(),))
FILES = {name: bytes(40_000) for name in FILE_NAMES}
T = TypeVar("T")
R = TypeVar("R")
ACTS = ("submit", "claim and start", "finish", "cancel")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--waiting", default="60,1000,5000,9900", help="lengths of the queue")
    parser.add_argument("--images", type=int, default=50, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lengths = [int(text) for text in args.waiting.split(",")]
    with own_redis() as client:
        version = client.info("server")["redis_version"]
        costs = {length: measure(client, length, args.images, args.rounds) for length in lengths}
    report(version, costs)


@contextmanager
def own_redis() -> Iterator[redis.Redis]:
    """A client of a new Redis without a disk, for as long as it is used."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        command = redis_command(find_redis_server(), socket, Path(folder))
        options = ["--appendonly", "no", "--save", ""]
        process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        client = connect(redis_url(socket))
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield client
        finally:
            client.close()
            process.terminate()
            process.wait()


def measure(client: redis.Redis, length: int, images: int, rounds: int) -> dict[str, float]:
    """Microseconds of Redis for each act, with so many images waiting."""
    client.flushall()
    jobs = JobStore(client, result_ttl=600, max_waiting=10**6)
    parts = PartStore(client, keys.queue_name(INFO.version, INFO.numerics), "w", result_ttl=600)
    took: dict[str, list[float]] = {act: [] for act in ACTS}

    def timed(act: str, one: Callable[[T], R], things: Iterable[T]) -> list[R]:
        client.config_resetstat()
        results = [one(thing) for thing in things]
        took[act].append(client.info("commandstats")["cmdstat_evalsha"]["usec"] / len(results))
        return results

    def submit(_: int) -> Job:
        return jobs.submit(REQUEST, INFO, owner=ANYBODY)[0]

    def start(_: int) -> HeldPart:
        (claim,) = parts.claim(1)
        held = parts.start(claim, read_part(claim))
        assert held is not None
        return held

    for number in range(length):
        submit(number)
    for _ in range(1 + rounds):
        held = timed("claim and start", start, range(images))
        timed("finish", lambda part: parts.finish(part, FILES, 1.0), held)
        made = timed("submit", submit, range(2 * images))
        timed("cancel", lambda job: jobs.cancel(job.id, owner=ANYBODY), made[::2])
    return {act: statistics.median(each[1:]) for act, each in took.items()}  # the first loads them


def report(version: str, costs: dict[int, dict[str, float]]) -> None:
    """A table, and JSON in the last line."""
    print(f"{processor()}, Redis {version}, microseconds of Redis for one image")
    print(f"{'waiting':>8}" + "".join(f"{act:>17}" for act in ACTS) + f"{'images/s':>12}")
    for length, cost in costs.items():
        row = "".join(f"{cost[act]:>17.0f}" for act in ACTS)
        print(f"{length:>8}{row}{rate(cost):>12.0f}")
    rates = {length: rate(cost) for length, cost in costs.items()}
    print(json.dumps({"redis": version, "us": costs, "images_per_s": rates}))


def rate(cost: dict[str, float]) -> float:
    """Images a second that are submitted, drawn and finished, were Redis all that takes time."""
    return 1e6 / sum(cost[act] for act in ("submit", "claim and start", "finish"))


if __name__ == "__main__":
    main()
