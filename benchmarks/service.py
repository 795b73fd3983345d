"""The whole service: `python -m benchmarks.service` asks a real one through HTTP, Redis and PNG.

First what one process reaches by itself from admission to PNG bytes, with the same checkpoint,
slots and threads; then a service of our own (`pathar up`) under a full queue; both in turn, round
by round, so that a drifting machine drifts for both. `engine_share` is the service's images a
second over the bare process's. Then latency at several offered loads, as shares of what the
service reached, with requests arriving at random (a Poisson process).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from benchmarks.decode import processor
from model.processors import usable_cores
from pathar.local_service import local_service
from worker.settings import SHIPPED

PERCENTILES = (50, 90, 99)
WAIT_S = 300
CONNECTIONS = 32
"""Of one client: httpx looks through all of them at every answer, so a client with hundreds would
take time that the service is to have."""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=192, help="drawn in each round")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--loads", default="0.25,0.5,0.8", help="shares of the service's rate")
    parser.add_argument("--seconds", type=float, default=30, help="of each offered load")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        serve_bare(args)
    else:
        report(args, *measure(args))


def measure(args: argparse.Namespace) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """Images a second alone and through the service, by round; latencies by offered load."""
    settings = {
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(args.slots),
        "PATHAR_THREADS": str(args.threads),
    }
    alone, served = [], []
    latencies: dict[str, list[float]] = {}
    with local_service(settings) as url:
        asyncio.run(full_queue(url, args.label, args.slots))
        for _ in range(args.rounds):
            alone.append(bare_rate(args))
            served.append(asyncio.run(full_queue(url, args.label, args.images)))
        for load in args.loads.split(","):
            rate = float(load) * statistics.median(served)
            latencies[load] = asyncio.run(offered(url, args.label, rate, args.seconds))
    return alone, served, latencies


def bare_rate(args: argparse.Namespace) -> float:
    """Images a second of one process that only draws, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.service", "--bare", "--label", args.label]
    for name in ("checkpoint", "slots", "threads", "images"):
        command += [f"--{name}", str(getattr(args, name))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def serve_bare(args: argparse.Namespace) -> None:
    """Draw `--images` images from admission to PNG bytes and print how many a second."""
    # The main process measures the service and needs no torch.
    from model.engine import load_engine
    from model.request import ImageRequest
    from worker.drawing import draw

    engine = load_engine(args.checkpoint, slots=args.slots, threads=args.threads)
    engine.warm_up()
    defaults = engine.config.settings(args.label)
    requests = [ImageRequest(args.label, seed, defaults) for seed in range(args.images)]
    list(draw(engine, requests[: args.slots]))
    started = time.perf_counter()
    list(draw(engine, requests))
    print(args.images / (time.perf_counter() - started))


async def full_queue(
    url: str, label: str, images: int, key: str | None = None, each: int = 1
) -> float:
    """Ask for all images at once, `each` a request, with an API key or none; images a second."""
    seeds = range(0, images, each)
    async with AsyncExitStack() as stack:
        many = range(0, len(seeds), CONNECTIONS)
        open_ = [await stack.enter_async_context(client(url, CONNECTIONS, key)) for _ in many]
        asked = [(open_[k % len(open_)], seed) for k, seed in enumerate(seeds)]
        started = time.perf_counter()
        await asyncio.gather(*(ask(h, label, s, min(each, images - s)) for h, s in asked))
        return images / (time.perf_counter() - started)


async def offered(url: str, label: str, rate: float, seconds: float) -> list[float]:
    """Seconds from request to answer of requests that arrive at `rate` a second, at random."""
    chance = random.Random(0)
    tasks: list[asyncio.Task[float]] = []
    async with client(url, 1000) as http:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            tasks.append(asyncio.create_task(ask(http, label, len(tasks))))
            await asyncio.sleep(chance.expovariate(rate))
        return list(await asyncio.gather(*tasks))


async def ask(http: httpx.AsyncClient, label: str, seed: int, n: int = 1) -> float:
    """Ask for `n` images in one request; seconds until they are there."""
    started = time.perf_counter()
    body = {"label": label, "n": n, "seed": seed}
    answer = await http.post("/generate", params={"wait": WAIT_S}, json=body)
    if answer.raise_for_status().json()["status"] != "finished":
        raise RuntimeError(f"not drawn within {WAIT_S} s")
    return time.perf_counter() - started


def client(url: str, connections: int, key: str | None = None) -> httpx.AsyncClient:
    """A client that may hold so many requests open."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(max_connections=connections),
        timeout=WAIT_S + 30,
        trust_env=False,
    )


def report(
    args: argparse.Namespace,
    alone: list[float],
    served: list[float],
    latencies: dict[str, list[float]],
) -> None:
    """The tables, then the line of JSON."""
    share = statistics.median(s / a for s, a in zip(served, alone, strict=True))
    print(f"{args.checkpoint.name}, {args.slots} slots, {args.threads} threads, {processor()}")
    print(f"images a second: alone {statistics.median(alone):.2f}, ", end="")
    print(f"through the service {statistics.median(served):.2f}, share {share:.3f}")
    print("latency, s".ljust(18) + "".join(f"p{p}".rjust(10) for p in PERCENTILES))
    table = {}
    for load, seconds in latencies.items():
        ranked = statistics.quantiles(seconds, n=100, method="inclusive")
        table[load] = {f"p{p}": ranked[p - 1] for p in PERCENTILES} | {"requests": len(seconds)}
        shown = "".join(f"{ranked[p - 1]:.3f}".rjust(10) for p in PERCENTILES)
        print(f"load {load} ({len(seconds)})".ljust(18) + shown)
    result = {
        "threads": args.threads,
        "slots": args.slots,
        "images_per_s": statistics.median(served),
        "engine_images_per_s": statistics.median(alone),
        "engine_share": share,
        "latency_s": table,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
