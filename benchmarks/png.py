"""PNG files of drawn patches: `python -m benchmarks.png`, ours beside Pillow's, interleaved.

Patches are drawn with the shipped checkpoint, so that what is compressed is what users get: an
image and a mask each.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.decode import processor
from model.engine import load_engine
from model.request import resolve
from worker.drawing import draw
from worker.images import numerics
from worker.png import ENCODER, encode_png
from worker.settings import SHIPPED

TEXT = ("pathar", "{}")


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.png", description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="patches of each modality")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    pictures = drawn(args.images)
    variants: dict[str, Callable[[np.ndarray], bytes]] = {
        ENCODER: lambda pixels: encode_png(pixels, dict([TEXT])),
        "Pillow, level 1": partial(by_pillow, level=1),
        "Pillow, level 6": partial(by_pillow, level=6),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, encode in variants.items():
            began = time.perf_counter()
            for pixels in pictures:
                encode(pixels)
            seconds[name].append((time.perf_counter() - began) / len(pictures) * 2)
    report(pictures, variants, seconds)


def drawn(images: int) -> list[np.ndarray]:
    """Images and masks of each modality of the shipped checkpoint."""
    engine = load_engine(SHIPPED, device="cpu", slots=images)
    info = engine.info(numerics(engine))
    labels = [label.name for label in info.labels if label.kind == "modality"]
    requests = [resolve({"label": name, "n": images}, info, seed=7) for name in labels]
    files = [made for request in requests for _, made in draw(engine, request.images())]
    names = ("image.png", "mask.png")
    return [np.array(Image.open(io.BytesIO(made[name]))) for made in files for name in names]


def by_pillow(pixels: np.ndarray, level: int) -> bytes:
    """As `encode_png`, with Pillow's own choice of filters."""
    notes, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    notes.add_itxt(*TEXT)
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notes, compress_level=level)
    return buffer.getvalue()


def report(
    pictures: list[np.ndarray],
    variants: dict[str, Callable[[np.ndarray], bytes]],
    seconds: dict[str, list[float]],
) -> None:
    """A table, then one line of JSON: medians of rounds, and of each round's ratio to ours."""
    ours = seconds[ENCODER]
    figures = {}
    for name, encode in variants.items():
        ratios = [theirs / own for theirs, own in zip(seconds[name], ours, strict=True)]
        figures[name] = {
            "ms_a_pair": round(statistics.median(seconds[name]) * 1e3, 2),
            "bytes_a_pair": round(sum(len(encode(each)) for each in pictures) / len(pictures) * 2),
            "times_ours": round(statistics.median(ratios), 2),
        }
    print(f"{len(pictures) // 2} pairs on one core of {processor()}")
    for name, of in figures.items():
        print(
            f"{name:18} {of['ms_a_pair']:7.2f} ms a pair {of['bytes_a_pair']:8,.0f} bytes "
            f"{of['times_ours']:5.2f} times ours"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
