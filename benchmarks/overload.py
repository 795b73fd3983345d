"""Overload: `python -m benchmarks.overload` offers three times the capacity.

It first measures the capacity with a full queue. Then requests arrive at random for two minutes, at
three times that rate. Every other request has an id of its own; the rest are all alike and have
none. A client that gets a 429 waits for Retry-After and sends the same request again. Printed: how
requests ended, the share of these retries that succeeded, and the memory of API and Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from benchmarks.decode import processor
from benchmarks.service import full_queue
from pathar.local_service import local_run
from worker.settings import SHIPPED

SAMPLE_S = 1.0
ACCEPTED = (200, 201, 202)


@dataclass
class Tally:
    """What became of the requests."""

    first: Counter[int] = field(default_factory=Counter)
    obeyed: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--times", type=float, default=3, help="offered load over capacity")
    parser.add_argument("--max-waiting", type=int, default=100)
    args = parser.parse_args()
    settings = {
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_MAX_WAITING": str(args.max_waiting),
    }
    with local_run(settings) as run:
        pids = {name: pid for name, pid in run["pids"].items() if name in ("service", "redis")}
        capacity = asyncio.run(full_queue(run["url"], args.label, 64))
        tally, memory = asyncio.run(overload(run["url"], args, capacity, pids))
    report(args, capacity, tally, memory)


async def overload(
    url: str, args: argparse.Namespace, capacity: float, pids: dict[str, int]
) -> tuple[Tally, dict[str, list[float]]]:
    """Offer the load; the outcomes, and MiB of each process second by second."""
    tally = Tally()
    memory: dict[str, list[float]] = {name: [] for name in pids}
    sampler = asyncio.create_task(_sample(memory, pids))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as http:
        asked: list[asyncio.Task[None]] = []
        until = time.monotonic() + args.seconds
        while time.monotonic() < until:
            named = len(asked) % 2 == 0
            asked.append(asyncio.create_task(_ask(http, args.label, named, tally)))
            await asyncio.sleep(random.expovariate(args.times * capacity))
        await asyncio.gather(*asked)
    sampler.cancel()
    return tally, memory


async def _ask(http: httpx.AsyncClient, label: str, named: bool, tally: Tally) -> None:
    method, path = ("PUT", f"/jobs/{uuid4().hex}") if named else ("POST", "/generate?wait=0")
    body = {"label": label}
    answer = await http.request(method, path, json=body)
    tally.first[answer.status_code] += 1
    while answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait = float(answer.headers["retry-after"])
        tally.waits.append(wait)
        await asyncio.sleep(wait)
        answer = await http.request(method, path, json=body)
        tally.obeyed[answer.status_code] += 1


async def _sample(memory: dict[str, list[float]], pids: dict[str, int]) -> None:
    while True:
        for name, pid in pids.items():
            memory[name].append(resident_mib(pid))
        await asyncio.sleep(SAMPLE_S)


def resident_mib(pid: int) -> float:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(
    args: argparse.Namespace, capacity: float, tally: Tally, memory: dict[str, list[float]]
) -> None:
    """A table, and JSON in the last line."""
    tries = sum(tally.obeyed.values())
    kept = sum(tally.obeyed[status] for status in ACCEPTED)
    strange = sum(
        count
        for counter in (tally.first, tally.obeyed)
        for status, count in counter.items()
        if status not in (*ACCEPTED, httpx.codes.TOO_MANY_REQUESTS)
    )
    share = kept / tries if tries else None
    print(f"{processor()}, {args.times:g} times {capacity:.1f} images/s for {args.seconds:g} s")
    print(f"{'first responses':<26}{dict(tally.first)}")
    print(f"{'responses to retries':<26}{dict(tally.obeyed)}")
    print(f"{'retries that succeeded':<26}{share if share is None else round(share, 3)}")
    print(f"{'longest wait, s':<26}{max(tally.waits, default=0):.0f}")
    for name, values in memory.items():
        print(f"{name + ', MiB':<26}{values[0]:.0f} first, {max(values):.0f} most")
    print(
        json.dumps(
            {
                "capacity": capacity,
                "first": tally.first,
                "obeyed": tally.obeyed,
                "obeyed_share": share,
                "other_answers": strange,
                "longest_wait_s": max(tally.waits, default=0.0),
                "mib": {name: {"first": v[0], "most": max(v)} for name, v in memory.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
