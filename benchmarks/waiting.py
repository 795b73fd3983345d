"""Many clients that wait at once: `python -m benchmarks.waiting` on one API process of its own.

Half of the clients wait for `POST /generate`, half follow the events of a job. The worker is
paused, so that all of them wait. `/healthz` is requested every 20 ms in four phases: before, while
all clients connect, while they wait, and while the worker answers all of them. The route does
nothing but pass through the event loop. So its time beyond that on an idle service is the lag of
the loop, with that of the clients' loop, which it shares here. Printed as well: memory and threads
of the API process, and how many clients got what they waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.decode import processor
from benchmarks.overload import resident_mib
from pathar.local_service import local_run
from worker.settings import SHIPPED

PROBE_S = 0.02
WAIT_S = 300
COMING_S = 15.0


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30, help="that all of them wait")
    args = parser.parse_args()
    with local_run({"PATHAR_CHECKPOINT": str(args.checkpoint)}) as run:
        phases, outcomes = asyncio.run(measure(run, args))
    report(args, phases, outcomes)


async def measure(
    run: dict[str, Any], args: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], Counter[str]]:
    """Figures of each phase, and how the clients' waits ended."""
    pid, worker = run["pids"]["service"], run["pids"]["worker"]
    limits = httpx.Limits(max_connections=None)
    options: dict[str, Any] = {"base_url": run["url"], "trust_env": False, "limits": limits}
    phases = {}
    async with httpx.AsyncClient(**options, timeout=2 * WAIT_S) as http:
        phases["no client waits"] = await _phase(http, pid, args.seconds)
        os.kill(worker, signal.SIGSTOP)
        try:
            clients = [
                asyncio.create_task((_sync, _follow)[number % 2](http, args.label))
                for number in range(args.clients)
            ]
            phases["all connect"] = await _phase(http, pid, COMING_S)
            phases["all wait"] = await _phase(http, pid, args.seconds)
        finally:
            os.kill(worker, signal.SIGCONT)
        answered = asyncio.gather(*clients)
        phases["all get a response"] = await _phase(http, pid, WAIT_S, until=answered)
        outcomes = Counter(await answered)
    return phases, outcomes


async def _sync(http: httpx.AsyncClient, label: str) -> str:
    answer = await http.post(f"/generate?wait={WAIT_S}", json={"label": label})
    return f"POST /generate: {answer.status_code}"


async def _follow(http: httpx.AsyncClient, label: str) -> str:
    made = await http.post("/generate?wait=0", json={"label": label})
    last = "nothing"
    async with http.stream("GET", f"/jobs/{made.json()['job_id']}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                last = line.removeprefix("event: ")
    return f"events: {last}"


async def _phase(
    http: httpx.AsyncClient, pid: int, seconds: float, until: asyncio.Future[Any] | None = None
) -> dict[str, float]:
    """Round trips of /healthz in ms, and the most memory and threads, for so many seconds."""
    took, memory, threads = [], [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (until and until.done()):
        started = time.perf_counter()
        await http.get("/healthz")
        took.append(1000 * (time.perf_counter() - started))
        memory.append(resident_mib(pid))
        threads.append(float(_threads(pid)))
        await asyncio.sleep(PROBE_S)
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return {
        "ms_50": cuts[49],
        "ms_99": cuts[98],
        "ms_most": max(took),
        "mib": max(memory),
        "threads": max(threads),
    }


def _threads(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("Threads:")).split()[1])


def report(
    args: argparse.Namespace, phases: dict[str, dict[str, float]], outcomes: Counter[str]
) -> None:
    """A table, and JSON in the last line."""
    print(f"{processor()}, {args.clients} clients, half of them on server-sent events")
    names = ("ms_50", "ms_99", "ms_most", "mib", "threads")
    print(f"{'':<18}" + "".join(f"{name:>9}" for name in names))
    for phase, figures in phases.items():
        print(f"{phase:<18}" + "".join(f"{figures[name]:>9.1f}" for name in names))
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome:<24}{count}")
    print(json.dumps({"clients": args.clients, "phases": phases, "outcomes": outcomes}))


if __name__ == "__main__":
    main()
