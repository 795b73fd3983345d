"""Two workers on hosts of their own, through one API: `python -m benchmarks.hosts`, as root.

Each host is a network namespace and has half of the cores; Redis and API are on a third host and
share the cores with both, as does this process, which asks for all images at once, `--each` of them
a request. Beside it two bare processes on the same halves, side by side, draw as many from
admission to PNG bytes. Both in turn, round by round, so that a drifting machine drifts for both;
`engine_share` is the images a second of the one over those of the other, the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cluster import Cluster
from benchmarks.decode import processor
from benchmarks.netns import NoNetwork, inside
from benchmarks.service import full_queue
from worker.settings import SHIPPED

HOSTS = 2


def main() -> int:
    """Parse, measure, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--label", default="histology")
    parser.add_argument("--slots", type=int, default=16, help="of each host")
    parser.add_argument("--images", type=int, default=384, help="drawn in each round, in all")
    parser.add_argument("--each", type=int, default=1, help="images that one request asks for")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        draw_bare(args)
        return 0
    try:
        report(args, *measure(args))
    except NoNetwork as error:
        print(f"benchmarks.hosts: {error}", file=sys.stderr)
        return 1
    return 0


def halves() -> list[set[int]]:
    """The cores of each host; a single core is shared."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // HOSTS)
    return [set(cores[:half]), set(cores[-half:])]


def measure(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Images a second of two bare processes and of two hosts, by round."""
    settings = {
        **os.environ,
        "PATHAR_CHECKPOINT": str(args.checkpoint),
        "PATHAR_SLOTS": str(args.slots),
        "PATHAR_THREADS": str(len(halves()[0])),
    }
    bare, served = [], []
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        cluster = Cluster(Path(folder), settings, halves())
        try:
            cluster.ready()
            ask(cluster, args, HOSTS * args.slots)
            for _ in range(args.rounds):
                bare.append(side_by_side(args))
                served.append(ask(cluster, args, args.images))
        finally:
            cluster.close()
    return bare, served


def ask(cluster: Cluster, args: argparse.Namespace, images: int) -> float:
    """Images a second of the two hosts, asked for from a host of its own."""
    with inside(cluster.asking.space):
        return asyncio.run(full_queue(cluster.url, args.label, images, cluster.key, args.each))


def side_by_side(args: argparse.Namespace) -> float:
    """Images a second of two processes that only draw: all images over the time until the last."""
    command = [sys.executable, "-m", "benchmarks.hosts", "--bare", "--label", args.label]
    command += ["--checkpoint", str(args.checkpoint), "--slots", str(args.slots)]
    command += ["--images", str(args.images // HOSTS)]
    processes = []
    try:
        for half in halves():
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
            os.sched_setaffinity(processes[-1].pid, half)
        for process in processes:  # each says that it is warm
            _said(process)
        started = time.perf_counter()
        for process in processes:
            print(file=process.stdin, flush=True)
        for process in processes:
            _said(process)
        return float(args.images // HOSTS * HOSTS) / (time.perf_counter() - started)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _said(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("a bare process ended early")


def draw_bare(args: argparse.Namespace) -> None:
    """Say when warm; at a word draw `--images` images from admission to PNG bytes; say it."""
    # The main process asks the service and needs no torch.
    from model.engine import load_engine
    from model.processors import usable_cores
    from model.request import ImageRequest
    from worker.drawing import draw

    threads = usable_cores()
    engine = load_engine(args.checkpoint, slots=args.slots, threads=threads)
    engine.warm_up()
    defaults = engine.config.settings(args.label)
    requests = [ImageRequest(args.label, seed, defaults) for seed in range(args.images)]
    list(draw(engine, requests[: args.slots]))
    print("warm", flush=True)
    sys.stdin.readline()
    list(draw(engine, requests))
    print("drawn", flush=True)


def report(args: argparse.Namespace, bare: list[float], served: list[float]) -> None:
    """The table, then the line of JSON."""
    share = statistics.median(s / b for s, b in zip(served, bare, strict=True))
    threads = len(halves()[0])
    each = f"{args.slots} slots and {threads} threads each, {args.each} images a request"
    print(f"{args.checkpoint.name}, {HOSTS} hosts, {each}, {processor()}")
    print(f"images a second: side by side {statistics.median(bare):.2f}, ", end="")
    print(f"through one API {statistics.median(served):.2f}, share {share:.3f}")
    result = {
        "hosts": HOSTS,
        "threads": threads,
        "slots": args.slots,
        "images_a_request": args.each,
        "images_per_s": statistics.median(served),
        "engine_images_per_s": statistics.median(bare),
        "engine_share": share,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
