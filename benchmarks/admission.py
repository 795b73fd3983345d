"""An image that joins: `python -m benchmarks.admission --size small|paper`.

15 images with guidance decode and a 16th is admitted half way. The trace shows that it has its
sequences from the next step on, and what a step takes around it. A step gets slower with the
location too, so control runs in which nobody joins are interleaved: `rate_kept` is the others'
steps a second after the admission over those of the control runs at the same steps, medians by
step. If every image took an equal part of a step it would be the share, 15 / 16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.decode import LABEL, processor, rows
from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.engine import Engine, choose_device
from model.processors import usable_cores

OTHERS = 15
SHARE = OTHERS / (OTHERS + 1)
AROUND = 4
"""Steps of the trace before and after the admission."""


@dataclass(frozen=True)
class DecodeRun:
    """One decode of the others: seconds of each step, and what was live at those of the trace."""

    seconds: list[float]
    images: dict[int, int]
    sequences: dict[int, int]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admission", description=__doc__)
    parser.add_argument("--size", choices=NAMED_SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved; the median counts")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = NAMED_SIZES[args.size]
        path = create_random_checkpoint(Path(folder), args.size, sizes, labels=[LABEL])
        checkpoint = load_checkpoint(path)
    device = choose_device(args.device)
    engine = Engine(checkpoint, device=device, slots=OTHERS + 1, threads=args.threads)
    engine.warm_up()
    joined, control = [], []
    for _ in range(args.rounds):
        joined.append(decode(engine, joins=True))
        control.append(decode(engine, joins=False))
    report(args.size, engine, joined, control)


def decode(engine: Engine, *, joins: bool) -> DecodeRun:
    """Decode the others to their end, with or without the 16th; its admission counts as time of
    the step that follows.
    """
    *others, last = rows(OTHERS + 1)
    slots = [engine.admit(row) for row in others]
    admitted = engine.steps_per_image // 2
    run = DecodeRun([], {}, {})
    for step in range(1, engine.steps_per_image + 1):
        started = time.perf_counter()
        if joins and step == admitted + 1:
            slots.append(engine.admit(last))
        engine.step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        run.seconds.append(time.perf_counter() - started)
        if abs(step - admitted) <= AROUND:
            run.images[step] = engine.slots - engine.free
            run.sequences[step] = len(engine.decoder.logits()[0])
    for slot in slots:
        engine.retire(slot)
    return run


def report(size: str, engine: Engine, joined: list[DecodeRun], control: list[DecodeRun]) -> None:
    """The trace and the rates, then the line of JSON."""
    admitted, facts = engine.steps_per_image // 2, engine.facts
    print(f"{size} size, {facts['decoder']} decoder in {facts['precision']}, ", end="")
    print(f"{facts['device']}, {engine.threads} threads, {processor()}")
    print(f"the 16th image is admitted after step {admitted}; medians of {len(joined)} runs each")
    typical = {"joined": medians(joined), "control": medians(control)}
    print(
        "".join(column.rjust(12) for column in ("step", "images", "sequences", "ms", "ms, control"))
    )
    trace = []
    for step, sequences in joined[0].sequences.items():
        times = [round(1000 * seconds[step - 1], 3) for seconds in typical.values()]
        row = (step, joined[0].images[step], sequences, *times)
        print("".join(str(value).rjust(12) for value in row))
        trace.append(
            dict(zip(("step", "images", "sequences", "ms", "control_ms"), row, strict=True))
        )
    started = next(
        step for step, sequences in joined[0].sequences.items() if sequences == 2 * OTHERS + 2
    )
    rates = {
        name: {"before": rate(seconds[:admitted]), "after": rate(seconds[admitted:])}
        for name, seconds in typical.items()
    }
    fell, anyway = (of_runs["after"] / of_runs["before"] for of_runs in rates.values())
    kept = rates["joined"]["after"] / rates["control"]["after"]
    for name, of_runs in rates.items():
        print(
            f"{name}: {of_runs['before']:.1f} steps a second before, {of_runs['after']:.1f} after"
        )
    print(f"the others keep {kept:.4f} of their rate; their share is {SHARE:.4f}")
    result = {
        "size": size,
        "facts": facts,
        "rounds": len(joined),
        "admitted_after_step": admitted,
        "started_at_step": started,
        "trace": trace,
        "steps_per_s": rates,
        "rate_after_over_before": fell,
        "control_after_over_before": anyway,
        "rate_kept": kept,
        "share": SHARE,
        "holds": kept >= SHARE,
    }
    print(json.dumps(result))


def medians(runs: list[DecodeRun]) -> list[float]:
    """The median seconds of each step over some runs."""
    return [statistics.median(of_step) for of_step in zip(*(r.seconds for r in runs), strict=True)]


def rate(seconds: list[float]) -> float:
    """Steps a second."""
    return len(seconds) / sum(seconds)


if __name__ == "__main__":
    main()
