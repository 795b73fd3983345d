"""Images beyond one patch: `python -m benchmarks.canvas --sides 256,512,1024,2048`.

Prints two tables. First, seconds and memory by size: each size in a process of its own, one image
at a time, with the seconds of processors that it took and its memory at most (VmHWM, Linux only).

Then, of `--images` images of `--seam-side` pixels for each label, the seams: how much pixels differ
across borders of locations between two windows, against all other borders of locations of the same
images. And the share of nuclei's pixels, against that in the whole image: by distance from its
border, in locations, and in the thirds at its sides, which are drawn in the order top, bottom and
left, right. Ratios have their standard error over the images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.decode import processor
from benchmarks.memory import most_bytes
from model.engine import Engine, Patch, TokenGrids, load_engine
from model.processors import usable_cores
from model.request import ImageRequest
from model.windows import Overlap, plan
from worker.images import image_files, made_with, numerics
from worker.picture import Picture
from worker.settings import SHIPPED

RINGS = (0, 2, 6, 12)
"""Locations from the border at which a ring begins."""
SECONDS = ("tokens_s", "pixels_s", "files_s", "cpu_s")
THIRDS = ("top", "bottom", "left", "right")
GREY = np.array([0.299, 0.587, 0.114])
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A mean of ratios, one for each image, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Of one ratio an image."""
        return cls(float(np.mean(ratios)), float(np.std(ratios, ddof=1) / len(ratios) ** 0.5))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.canvas", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--sides", default="256,512,1024,2048")
    parser.add_argument("--seam-side", type=int, default=1024)
    parser.add_argument("--images", type=int, default=4, help="of each label")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone is not None:
        print(json.dumps(cost_of(args, args.alone)))
        return
    print(f"{args.checkpoint.name}, {args.slots} slots, {args.threads} threads, {processor()}")
    result = {"sides": costs(args) if args.sides else [], "seams": seams(args)}
    print(json.dumps(result))


def costs(args: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds and memory of each size; prints them."""
    print("side    patches  tokens, s  pixels, s   files, s     CPU, s  MB at most", flush=True)
    table = []
    for side in args.sides.split(","):
        words = [sys.executable, "-m", "benchmarks.canvas", "--alone", side]
        words += ["--checkpoint", str(args.checkpoint), "--slots", str(args.slots)]
        words += ["--threads", str(args.threads)]
        told = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        table.append(told)
        times = "".join(f"{told[name]:11.2f}" for name in SECONDS)
        print(f"{side:>4} {told['cost']:10.0f}{times}{told['most_mb']:12.0f}", flush=True)
    return table


def cost_of(args: argparse.Namespace, side: int) -> dict[str, float]:
    """Of one image, in this process, after one of the smallest size."""
    engine = load_engine(args.checkpoint, device="cpu", slots=args.slots, threads=args.threads)
    engine.warm_up()
    model = engine.info(numerics(engine))
    size = None if side == model.image_size else (side, side)
    request = ImageRequest(model.label_names()[-1], 1, model.defaults, size=size)
    started, used = time.perf_counter(), time.process_time()
    tokens = drawn(engine, [request])[0]
    decoded = time.perf_counter()
    patch = engine.render(tokens)
    rendered = time.perf_counter()
    image_files(patch, tokens, request, model, made_with(engine))
    return {
        "side": side,
        "cost": model.cost(size),
        "tokens_s": decoded - started,
        "pixels_s": rendered - decoded,
        "files_s": time.perf_counter() - rendered,
        "cpu_s": time.process_time() - used,
        "most_mb": most_bytes(os.getpid()) / 1e6,
    }


def drawn(engine: Engine, requests: Sequence[ImageRequest]) -> list[TokenGrids]:
    """The tokens of images, as many at once as there are slots."""
    model = engine.info("")
    pictures = [Picture(request, model) for request in requests]
    done: dict[int, TokenGrids] = {}
    while len(done) < len(pictures):
        for picture in pictures:
            while picture.ready and engine.free:
                picture.admit(engine)
        for slot in engine.step():
            at = next(at for at, picture in enumerate(pictures) if slot in picture.slots)
            if (tokens := pictures[at].end(engine, slot)) is not None:
                done[at] = tokens
    return [done[at] for at in range(len(pictures))]


def seams(args: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Of the images of each label: ratios across borders, and of nuclei; prints them."""
    engine = load_engine(args.checkpoint, device="cpu", slots=args.slots, threads=args.threads)
    model = engine.info("")
    size = (args.seam_side, args.seam_side)
    rows, columns = model.grid(size)
    beside, below = borders(rows, columns, Overlap.of(model.grid_size))
    names = ["windows side by side", "one strip below another"]
    names += [f"nuclei {a} to {b}" for a, b in zip(RINGS, (*RINGS[1:], "the middle"), strict=True)]
    names += [f"{name} third" for name in THIRDS]
    print(f"\n{args.images} images of {size[0]} pixels a side" + "".join(f"; {n}" for n in names))
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for label in model.label_names():
        requests = [
            ImageRequest(label, seed, model.defaults, size=size) for seed in range(args.images)
        ]
        found: list[list[float]] = []
        for tokens in drawn(engine, requests):
            patch = engine.render(tokens)
            across, down = differences(patch, rows, columns)
            ratios = [across[beside].mean() / across[~beside].mean()]
            ratios += [down[below].mean() / down[~below].mean()]
            found.append([*ratios, *density(patch, rows, columns)])
        told = [Ratio.of(ratios) for ratios in zip(*found, strict=True)]
        print(f"{label:>14}  " + "  ".join(map(str, told)), flush=True)
        table[label] = {n: (r.mean, r.error) for n, r in zip(names, told, strict=True)}
    return table


def borders(
    rows: int, columns: int, overlap: Overlap
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which borders between locations lie between two windows: of a location and the one on its
    right [rows, columns - 1], and of a location and the one below [rows - 1, columns]."""
    owners = np.zeros((rows, columns), int)
    for window in plan(rows, columns, overlap):
        owners[slice(*window.rows), slice(*window.columns)] = window.number
    return owners[:, 1:] != owners[:, :-1], owners[1:] != owners[:-1]


def differences(patch: Patch, rows: int, columns: int) -> tuple[Map, Map]:
    """The mean step in brightness across each border between locations, as in `borders`."""
    grey = patch.image @ GREY
    cell = grey.shape[0] // rows
    across = np.abs(np.diff(grey, axis=1))[:, cell - 1 :: cell][:, : columns - 1]
    down = np.abs(np.diff(grey, axis=0))[cell - 1 :: cell][: rows - 1]
    return (
        across.reshape(rows, cell, -1).mean(1),
        down.reshape(rows - 1, columns, cell).mean(2),
    )


def density(patch: Patch, rows: int, columns: int) -> list[float]:
    """The share of nuclei's pixels in each ring and in each of THIRDS, by that in the whole image.
    (A count of nuclei is higher at the border, which cuts some.)"""
    cell = patch.mask.shape[0] // rows
    nuclei = (patch.mask > 0).reshape(rows, cell, columns, cell).mean((1, 3))
    y, x = np.mgrid[:rows, :columns]
    to_border = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x))
    ends = (*RINGS[1:], max(rows, columns))
    places = [(to_border >= a) & (to_border < b) for a, b in zip(RINGS, ends, strict=True)]
    places += [3 * y < rows, 3 * y >= 2 * rows, 3 * x < columns, 3 * x >= 2 * columns]
    return [float(nuclei[place].mean() / nuclei.mean()) for place in places]


if __name__ == "__main__":
    main()
