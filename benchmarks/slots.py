"""How many slots: `python -m benchmarks.slots`.

A service of our own runs for each number of slots. In every round each of them is asked for 32
images at once, one a request: images a second, and how long a request waits in the mean. Then it
draws a bulk job while requests for one image come one after the other: how long such a request
takes. Services that are not asked are idle. The table has medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.decode import processor
from benchmarks.service import ask, client
from model.processors import usable_cores
from pathar.local_service import local_service
from worker.settings import SHIPPED

BULK = 500
"""Images of the bulk job, which is canceled: more than are drawn meanwhile."""
BEGIN_S = 1.0
"""After this long the bulk job is in all slots."""


@dataclass
class Measured:
    """By round: images a second and the mean wait of requests that come at once, and the mean time
    of a request beside a bulk job, in seconds."""

    images_per_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slots", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", default="1,2,4,8,16,32")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=32, help="asked for at once")
    parser.add_argument("--beside", type=int, default=8, help="requests beside the bulk job")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measured = {slots: Measured() for slots in map(int, args.slots.split(","))}
    with ExitStack() as stack:
        urls = {
            slots: stack.enter_context(local_service(settings(args, slots))) for slots in measured
        }
        for url in urls.values():
            asyncio.run(at_once(url, args.label, 2))
        for _ in range(args.rounds):
            for slots, url in urls.items():
                seconds = asyncio.run(at_once(url, args.label, args.images))
                measured[slots].images_per_s.append(args.images / max(seconds))
                measured[slots].wait_s.append(statistics.mean(seconds))
                beside = asyncio.run(beside_bulk(url, args.label, args.beside))
                measured[slots].beside_s.append(statistics.mean(beside))
    report(args, measured)


def settings(args: argparse.Namespace, slots: int) -> dict[str, str]:
    """The settings of a service with so many slots."""
    return {
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(slots),
        "PATHAR_THREADS": str(args.threads),
    }


async def at_once(url: str, label: str, images: int) -> list[float]:
    """Seconds of each of so many requests that are sent at the same time."""
    async with client(url, images) as http:
        return list(await asyncio.gather(*(ask(http, label, seed) for seed in range(images))))


async def beside_bulk(url: str, label: str, requests: int) -> list[float]:
    """Seconds of each of so many requests, one after the other, while a bulk job is drawn."""
    body = {"label": label, "n": BULK, "seed": 1, "priority": "bulk"}
    async with client(url, 2) as http:
        answer = await http.post("/generate", params={"wait": 0}, json=body)
        job = answer.raise_for_status().json()["job_id"]
        await asyncio.sleep(BEGIN_S)
        seconds = [await ask(http, label, seed) for seed in range(requests)]
        (await http.delete(f"/jobs/{job}", params={"files": "true"})).raise_for_status()
        return seconds


def report(args: argparse.Namespace, measured: dict[int, Measured]) -> None:
    """The table, then the line of JSON."""
    print(f"{args.checkpoint.name}, {args.threads} threads, {processor()}")
    heads = ("slots", "images/s", f"{args.images} at once, s", "beside bulk, s")
    print("".join(head.rjust(18) for head in heads))
    table = {}
    for slots, found in measured.items():
        table[slots] = {name: statistics.median(values) for name, values in vars(found).items()}
        print(f"{slots}".rjust(18) + "".join(f"{v:.2f}".rjust(18) for v in table[slots].values()))
    result = {name: getattr(args, name) for name in ("threads", "images", "rounds")}
    print(json.dumps({"checkpoint": args.checkpoint.name, **result, "slots": table}))


if __name__ == "__main__":
    main()
