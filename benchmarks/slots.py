"""How many slots: `python -m benchmarks.slots --rounds 5`.

Engines with different numbers of slots are in turn asked for 32 images at once, from admission to
PNG bytes: images a second, and after how long an image is there in the mean. Both by the clock and
by the processor time of this process: with one thread they are the same on an idle machine, and
other work on the machine changes the second one little. The table has medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.decode import processor
from model.engine import Engine, load_engine
from model.processors import usable_cores
from model.request import ImageRequest
from worker.drawing import draw
from worker.settings import SHIPPED


@dataclass
class Measured:
    """By round: images a second and the mean wait in seconds, by the clock and by processor time.
    The first is of all threads together.
    """

    per_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)
    wait_cpu_s: list[float] = field(default_factory=list)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slots", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--slots", default="1,2,4,8,16,32")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=32, help="asked for at once")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    engines = {
        slots: load_engine(args.checkpoint, device="cpu", slots=slots, threads=args.threads)
        for slots in map(int, args.slots.split(","))
    }
    measured = {slots: Measured() for slots in engines}
    for engine in engines.values():
        engine.warm_up()
    for _ in range(args.rounds):
        for slots, engine in engines.items():
            measure(engine, args.images, measured[slots])
    report(args, measured)


def measure(engine: Engine, images: int, into: Measured) -> None:
    """One round of one engine."""
    label = engine.config.labels[0].name
    defaults = engine.config.settings(label)
    requests = [ImageRequest(label, seed, defaults) for seed in range(images)]
    began, began_cpu = time.perf_counter(), time.process_time()
    there, there_cpu = [], []
    for _ in draw(engine, requests):
        there.append(time.perf_counter() - began)
        there_cpu.append(time.process_time() - began_cpu)
    into.per_s.append(images / there[-1])
    into.wait_s.append(statistics.mean(there))
    into.per_cpu_s.append(images / there_cpu[-1])
    into.wait_cpu_s.append(statistics.mean(there_cpu))


def report(args: argparse.Namespace, measured: dict[int, Measured]) -> None:
    """The table, then the line of JSON."""
    print(f"{args.checkpoint.name}, {args.threads} threads, {processor()}")
    heads = ("slots", "images/s", "mean wait, s", "images/CPU s", "mean wait, CPU s")
    print("".join(head.rjust(18) for head in heads))
    table = {}
    for slots, found in measured.items():
        table[slots] = {name: statistics.median(values) for name, values in vars(found).items()}
        print(f"{slots}".rjust(18) + "".join(f"{v:.2f}".rjust(18) for v in table[slots].values()))
    result = {name: getattr(args, name) for name in ("threads", "images", "rounds")}
    print(json.dumps({"checkpoint": args.checkpoint.name, **result, "slots": table}))


if __name__ == "__main__":
    main()
