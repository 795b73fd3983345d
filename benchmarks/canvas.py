"""Images beyond one patch: `python -m benchmarks.canvas --sides 256,512,1024,2048`.

Prints two tables. First, seconds and memory by size: each size in a process of its own, one image
at a time, with the seconds of processors that it took and its memory at most (VmHWM, Linux only).

Then, of `--images` images of `--seam-side` pixels for each label, the seams: how much pixels differ
across borders of locations between two windows, against all other borders of locations of the same
images. And the share of nuclei's pixels, against that in the whole image: by distance from its
border, in locations, and in the thirds at its sides, which are drawn in the order top, bottom and
left, right. Ratios have their standard error over the images.

With `--features` also the KID of crops: those that one window decides, against those in the middle
of which four windows meet. Beside it, how far the same crops are if they are cut into quarters that
do not belong together, as with seams that nobody would overlook. No pair of crops of one image is
compared, and the standard error is a jackknife over the images. KID is in thousandths.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from benchmarks.decode import processor
from benchmarks.memory import most_bytes
from benchmarks.seams import (
    RINGS,
    THIRDS,
    Crops,
    Ratio,
    borders,
    density,
    differences,
    kernel_distance,
)
from model.engine import Engine, Patch, TokenGrids, load_engine
from model.processors import usable_cores
from model.request import ImageRequest
from model.windows import Overlap
from training.evaluation.features import Features, parse_features
from worker.images import image_files, made_with, numerics
from worker.picture import Picture
from worker.settings import SHIPPED

SECONDS = ("tokens_s", "pixels_s", "files_s", "cpu_s")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.canvas", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--sides", default="256,512,1024,2048")
    parser.add_argument("--seam-side", type=int, default=1024)
    parser.add_argument("--images", type=int, default=4, help="of each label")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--cfg-scale", type=float, help="of the images for seams")
    parser.add_argument("--label", action="append", help="all by default; can be repeated")
    parser.add_argument(
        "--features", action="append", default=[], help="NAME or NAME=PATH of a frozen network"
    )
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
    label = model.label_names()[-1]
    request = ImageRequest(label, 1, model.settings(label, size), size=size)
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
    """Of the images of each label: ratios across borders and of nuclei, and KID; prints them."""
    engine = load_engine(args.checkpoint, device="cpu", slots=args.slots, threads=args.threads)
    networks, _ = parse_features(args.features)
    model = engine.info("")
    size = (args.seam_side, args.seam_side)
    grid, overlap = model.grid(size), Overlap.of(model.grid_size)
    names = ["windows side by side", "one strip below another"]
    names += [f"nuclei {a} to {b}" for a, b in zip(RINGS, (*RINGS[1:], "the middle"), strict=True)]
    names += [f"{name} third" for name in THIRDS]
    for network in networks:
        names += [f"KID of {network.name}", f"KID of {network.name}, cut"]
    print(f"\n{args.images} images of {size[0]} pixels a side" + "".join(f"; {n}" for n in names))
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for label in args.label or model.label_names():
        settings = model.settings(label, size)
        if args.cfg_scale is not None:
            settings = replace(settings, cfg_scale=args.cfg_scale)
        requests = [ImageRequest(label, seed, settings, size=size) for seed in range(args.images)]
        found, crops = [], []
        for tokens in drawn(engine, requests):
            patch = engine.render(tokens)
            found.append([*ratios(patch, grid, overlap), *density(patch, *grid)])
            crops.append(Crops.of(patch, *grid, overlap))
        told = [Ratio.of(each) for each in zip(*found, strict=True)]
        for network in networks:
            told += distances(network, crops)
        print(f"{label:>14}  " + "  ".join(map(str, told)), flush=True)
        table[label] = {n: (r.mean, r.error) for n, r in zip(names, told, strict=True)}
    return table


def ratios(patch: Patch, grid: tuple[int, int], overlap: Overlap) -> tuple[float, float]:
    """The step in brightness across borders of windows, by that across other borders of locations:
    side by side, and one below another."""
    (beside, below), (across, down) = borders(*grid, overlap), differences(patch, *grid)
    return (
        float(across[beside].mean() / across[~beside].mean()),
        float(down[below].mean() / down[~below].mean()),
    )


def distances(network: Features, crops: Sequence[Crops]) -> list[Ratio]:
    """KID of crops across borders to those inside, and of cut crops to those inside."""

    def of(name: str) -> list[Tensor]:
        squares = (getattr(each, name).permute(0, 3, 1, 2) for each in crops)
        return [network(pixels.float() / 127.5 - 1) for pixels in squares]

    inside = of("inside")
    return [kernel_distance(inside, of(name)) for name in ("across", "cut")]


if __name__ == "__main__":
    main()
