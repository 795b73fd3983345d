"""What the agreement of an image costs beside the image: `python -m benchmarks.agreement`.

Draws a batch from admission to PNG, then runs the checkpoint's segmenter on as many images, in
turn. Prints the seconds of an image, by the clock and of the processor, and the median of the
rounds' shares. On a busy machine only the processor's mean something.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from model.engine import Engine, load_engine
from model.processors import usable_cores
from model.request import ImageRequest
from model.segmenter import FILE, read_segmenter
from worker.drawing import draw
from worker.settings import SHIPPED


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=16, help="of a batch, and slots")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    engine = load_engine(args.checkpoint, device="cpu", slots=args.images, threads=args.threads)
    read = read_segmenter(args.checkpoint / FILE)
    if read is None:
        parser.error(f"--checkpoint: {args.checkpoint} has no {FILE}")
    segmenter = read.to(engine.device, engine.pixels_in)
    side, label = engine.config.tokenizer.image_size, engine.config.labels[0].name
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (args.images, side, side, 3), dtype=np.uint8)
    engine.warm_up()
    drawn, found = [], []
    for number in range(args.rounds):
        first = number * args.images
        requests = [
            ImageRequest(label, seed, engine.config.settings(label))
            for seed in range(first, first + args.images)
        ]
        drawn.append(_seconds(partial(_drawn, engine, requests), args.images))
        found.append(_seconds(lambda: [segmenter.find(image) for image in pixels], args.images))
    print(f"{args.checkpoint.name}, {args.threads} threads, {args.images} images")
    for at, clock in enumerate(("clock", "processor")):
        of_image, of_segmenter = [each[at] for each in drawn], [each[at] for each in found]
        share = median(b / a for a, b in zip(of_image, of_segmenter, strict=True))
        print(
            f"{clock}: {1e3 * median(of_image):.1f} ms an image, {1e3 * median(of_segmenter):.1f} "
            f"ms of them the segmenter, {share:.1%} (median of {args.rounds} rounds)"
        )


def _drawn(engine: Engine, requests: Sequence[ImageRequest]) -> None:
    for _ in draw(engine, requests):
        pass


def _seconds(call: Callable[[], object], images: int) -> tuple[float, float]:
    """Seconds of an image, by the clock and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - begun) / images, (time.process_time() - used) / images


if __name__ == "__main__":
    main()
