"""The same bits at any load: `python -m benchmarks.identity --size paper --requests 200`.

Random requests are drawn alone, one after the other, and then replayed: at several slot counts,
in random orders with rows that join at random steps while others are half way, and in a fresh
process, as after a restart. Every file of every image (both PNGs and the token ids) must have the
same SHA-256 each time; the exit code is 1 if one differs. The engine is the one that ships, with
random weights. Needs no server, so torch, numpy, pillow and safetensors are enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks.decode import processor
from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES, ModelConfig
from model.engine import Engine, Kernel, choose_device
from model.given import Given, Size, Stream, StreamKind, keep_bits
from model.processors import usable_cores
from model.request import ImageRequest, Label, SamplingSettings
from pathar.contract import MAX_SEED, SIDE_STEP, image_seed
from worker.images import image_files, made_with, numerics
from worker.picture import Picture

LABELS = (
    *(Label(name, "modality") for name in ("cytology", "fluorescence", "histology")),
    *(Label(name, "organ") for name in ("blood", "cervix")),
)
GIVEN, LARGE = 0.25, 0.05
"""Shares of the requests: of patches that are given some of their tokens, and of images beyond one
patch."""
LARGE_GIVEN = 0.8
"""The share of images beyond one patch that are given some of their tokens, too."""
RIVALS = 0.5
"""The share of images given in part that are the best of several draws."""
Hashes = dict[str, str]
"""The SHA-256 of each file of one image, by the file's name."""


@dataclass(frozen=True)
class Setup:
    """Which engine draws, with `slots` left open, and the seed that the requests come from."""

    checkpoint: Path
    device: str
    threads: int
    kernel: Kernel
    seed: int = 0

    def engine(self, slots: int) -> Engine:
        """A new engine with so many slots."""
        return Engine(
            load_checkpoint(self.checkpoint),
            device=choose_device(self.device),
            slots=slots,
            threads=self.threads,
            kernel=self.kernel,
        )


@dataclass(frozen=True)
class Replay:
    """One drawing of all requests: how it was done, how long it took, what came out."""

    name: str
    seconds: float
    drawn: list[Hashes]


def main() -> int:
    """Draw, compare, print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--size", choices=NAMED_SIZES, default="small")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--slots", default="3,16", help="slot counts of the replays")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernel", choices=get_args(Kernel), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--restarted", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    slot_counts = [int(slots) for slots in args.slots.split(",")]
    if args.restarted is not None:
        engine = Setup(args.restarted, args.device, args.threads, args.kernel).engine(*slot_counts)
        print(json.dumps(draw(engine, random_requests(args.requests, engine.config, args.seed))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sizes = NAMED_SIZES[args.size]
        path = create_random_checkpoint(Path(folder), args.size, sizes, labels=LABELS)
        setup = Setup(path, args.device, args.threads, args.kernel, args.seed)
        return report(setup, args.size, args.requests, slot_counts)


def random_requests(count: int, config: ModelConfig, seed: int = 0) -> list[ImageRequest]:
    """Requests all over the range of what may be asked for, ends of the ranges included."""
    chance = random.Random(seed)
    size = config.tokenizer.codebook_size
    requests = []
    for _ in range(count):
        settings = SamplingSettings(
            cfg_scale=chance.choice([1.0, 1.0, 10.0, chance.uniform(1, 10), chance.uniform(1, 3)]),
            temperature=chance.choice([0.0, 1e-3, 1.0, 2.0, chance.uniform(0.5, 1.5)]),
            top_k=chance.choice([0, 0, 1, size, chance.randint(2, size - 1)]),
            top_p=chance.choice([1.0, 1.0, 1e-6, chance.uniform(0.5, 1)]),
        )
        kind = chance.random()
        label = chance.choice(config.labels).name
        seed = chance.choice([0, MAX_SEED, *(chance.randint(0, MAX_SEED) for _ in range(8))])
        whole = random_size(config, chance) if kind > 1 - LARGE else None
        given = (
            _given(chance, config, whole)
            if kind < GIVEN or kind > 1 - LARGE * LARGE_GIVEN
            else None
        )
        request = ImageRequest(label, seed, settings, given, whole)
        if given is not None and given.in_part and chance.random() < RIVALS:
            draws = range(1, 1 + chance.randint(1, 3))
            request = replace(request, rivals=tuple(image_seed(seed, draw) for draw in draws))
        requests.append(request)
    return requests


def random_size(config: ModelConfig, chance: random.Random) -> Size:
    """Width and height of an image beyond one patch, of up to twice its side."""
    side, step = config.tokenizer.image_size, max(SIDE_STEP, config.tokenizer.downsample)
    return chance.randrange(side + step, 2 * side, step), chance.randrange(side, 2 * side, step)


def _given(chance: random.Random, config: ModelConfig, size: Size | None) -> Given:
    """Structure, appearance or both, of every kind, whole or in part, of a patch or of `size`."""
    pixels = math.prod(size or (config.tokenizer.image_size,) * 2)
    locations = pixels // config.tokenizer.downsample**2

    def stream(kinds: list[StreamKind]) -> Stream:
        keep = [chance.random() < 0.5 for _ in range(locations)]
        keep[chance.randrange(locations)] = True
        kind = chance.choice(kinds)
        bits = keep_bits(keep) if chance.random() < 0.5 else None
        if kind == "tokens":
            ids = config.tokenizer.codebook_size
            return Stream(kind, tuple(chance.randrange(ids) for _ in range(locations)), bits)
        return Stream(kind, chance.randbytes(pixels // 8 if kind == "mask" else 3 * pixels), bits)

    streams = chance.choice(["structure", "structure", "appearance", "both"])
    structure = stream(["tokens", "mask"]) if streams != "appearance" else None
    return Given(structure, stream(["tokens", "image"]) if streams != "structure" else None)


def in_part(row: ImageRequest) -> bool:
    """Whether a part of a stream is kept, and the rest drawn."""
    return isinstance(row.given, Given) and row.given.in_part


def draw(
    engine: Engine, requests: Sequence[ImageRequest], arrivals: random.Random | None = None
) -> list[Hashes]:
    """The hashes of every request's files, in the order of `requests`; progress on stderr.

    Slots are filled as they come free. With `arrivals` the order is random, and a row joins after
    a random number of steps, so that rows are at all kinds of locations.
    """
    model, facts = engine.info(numerics(engine)), made_with(engine)
    waiting = list(range(len(requests)))
    if arrivals is not None:
        arrivals.shuffle(waiting)
    # Twice as often as rows end, so that slots are sometimes free and mostly not.
    rate = 2 * engine.slots / engine.steps_per_image
    live: dict[int, Picture] = {}
    drawn: dict[int, Hashes] = {}
    while len(drawn) < len(requests):
        for picture in live.values():
            while picture.ready and engine.free:
                picture.admit(engine)
        while waiting and engine.free and (arrivals is None or arrivals.random() < rate):
            number = waiting.pop(0)
            live[number] = Picture(requests[number], model)
            live[number].admit(engine)
        for slot in engine.step():
            number = next(number for number, picture in live.items() if slot in picture.slots)
            tokens = live[number].end(engine, slot)
            if tokens is None:
                continue
            image = live.pop(number).drawn
            files = image_files(engine.render(tokens), tokens, image, model, facts)
            drawn[number] = {of: hashlib.sha256(data).hexdigest() for of, data in files.items()}
            if len(drawn) % 20 == 0:
                progress = f"{engine.slots} slots: {len(drawn)} of {len(requests)}"
                print(progress, file=sys.stderr, flush=True)
    return [drawn[number] for number in range(len(requests))]


def draw_after_restart(setup: Setup, requests: int, slots: int) -> list[Hashes]:
    """What `draw` gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.identity", "--restarted", str(setup.checkpoint)]
    command += ["--requests", str(requests), "--slots", str(slots), "--device", setup.device]
    command += ["--threads", str(setup.threads), "--kernel", setup.kernel]
    command += ["--seed", str(setup.seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    drawn: list[Hashes] = json.loads(done.stdout)
    return drawn


def replay(setup: Setup, requests: int, slot_counts: Sequence[int]) -> Iterator[Replay]:
    """Every drawing of the same requests, the one alone first."""
    engine = setup.engine(1)
    rows = random_requests(requests, engine.config, setup.seed)
    yield timed("alone", draw, engine, rows)
    for slots in slot_counts:
        engine = setup.engine(slots)
        yield timed(f"{slots} slots", draw, engine, rows)
        yield timed(f"{slots} slots, random order", draw, engine, rows, random.Random(slots))
    most = max(slot_counts)
    yield timed(f"{most} slots, restarted", draw_after_restart, setup, requests, most)


def timed(name: str, make: Callable[..., list[Hashes]], *args: object) -> Replay:
    """A replay and how long it took."""
    started = time.perf_counter()
    drawn = make(*args)
    return Replay(name, time.perf_counter() - started, drawn)


def differing(first: Sequence[Hashes], second: Sequence[Hashes]) -> list[int]:
    """Which images have a file that is not the same in both."""
    pairs = enumerate(zip(first, second, strict=True))
    return [number for number, (one, other) in pairs if one != other]


def report(setup: Setup, size: str, requests: int, slot_counts: Sequence[int]) -> int:
    """The table, then the line of JSON; the exit code."""
    engine = setup.engine(1)
    facts, rows = engine.facts, random_requests(requests, engine.config, setup.seed)
    print(f"{size} size, {facts['decoder']} decoder in {facts['precision']}, ", end="")
    print(f"{facts['device']}, {setup.threads} threads, torch {torch.__version__}, {processor()}")
    kinds = {
        "guided": sum(row.settings.cfg_scale != 1 for row in rows),
        "greedy": sum(row.settings.temperature == 0 for row in rows),
        "given": sum(row.given is not None for row in rows),
        "given_in_part": sum(in_part(row) for row in rows),
    }
    print(f"{requests} requests: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}")
    print("replay".ljust(28) + "seconds".rjust(10) + "differing".rjust(12), flush=True)
    table: dict[str, dict[str, float]] = {}
    alone: list[Hashes] = []
    for made in replay(setup, requests, slot_counts):
        alone = alone or made.drawn
        wrong = differing(alone, made.drawn)
        table[made.name] = {"seconds": made.seconds, "differing": len(wrong)}
        shown = f"{made.seconds:.1f}".rjust(10) + str(len(wrong)).rjust(12)
        print(made.name.ljust(28) + shown, *wrong[:5], flush=True)
    identical = not any(row["differing"] for row in table.values())
    result = {
        "size": size,
        "threads": setup.threads,
        "requests": requests,
        **kinds,
        "facts": facts,
        "replays": table,
        "identical": identical,
    }
    print(json.dumps(result))
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
