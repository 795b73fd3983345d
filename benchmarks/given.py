"""What is given of a pair, and what comes of it: `python -m benchmarks.given --data DATA`.

Takes real validation patches of each modality of a checkpoint. First it gives their masks, under
their own label and under another: how much of a mask stays, and whether the image obeys it. Then it
gives patches with a hole, a quarter of their area, and draws that anew: what changes outside, and
whether the picture goes on across the border. Prints tables, then a line of JSON. With `--sheet`
it also writes a sheet of holes: the real patch, the hole, and the best of the fillings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.decode import processor
from model.checkpoint import load_checkpoint
from model.engine import Engine, Patch, TokenGrids, choose_device
from model.given import Given, Stream, keep_bits
from model.processors import usable_cores
from model.request import ImageRequest, Label
from model.segmenter import FILE
from model.tokenizer import Tokenizer
from training import data as patches
from training import segmenter as segmenters
from training.evaluation.pair_tensors import Pairs, of_label, real_pairs
from training.evaluation.reconstruction import decode
from training.evaluation.swaps import Find, spread, through_a_poor_copy
from training.losses import overlap
from training.sheets import draw, tile
from worker.settings import SHIPPED

SLOTS = 16
GOAL = 0.95
"""Of the Dice of a given mask and the returned one."""
TRIES = 8
"""How often a hole is filled, to keep what fits best."""
SHOWN = 6
"""Holes on a sheet, of all modalities together."""
SIDES = ("top", "left", "bottom", "right")
Drawn = list[tuple[TokenGrids, Patch]]
Bools = NDArray[np.bool_]


def main(words: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.given", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--licence", action="append", default=[], help="only of these")
    parser.add_argument("--patches", type=int, default=50, help="of each modality, at most")
    parser.add_argument("--holes", type=int, default=10, help="of each modality, at most")
    parser.add_argument("--label", action="append", help="modality; all by default")
    parser.add_argument("--sheet", type=Path, help="PNG of some holes")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args(words)
    checkpoint = load_checkpoint(args.checkpoint)
    tokenizer = checkpoint.tokenizer
    dataset = patches.read_dataset(args.data, args.licence, tokenizer.config.image_size)
    modalities = [label for label in checkpoint.config.labels if label.kind == "modality"]
    real = {
        label.name: spread(
            real_pairs(dataset, of_label(dataset, dataset.validation, label), tokenizer),
            args.patches,
        )
        for label in modalities
        if label.name in (args.label or [label.name])
    }
    segmenter = segmenters.load(args.checkpoint / FILE)
    engine = Engine(checkpoint, device=choose_device("auto"), slots=SLOTS, threads=args.threads)

    def find(images: Tensor) -> Tensor:
        with torch.no_grad():
            return segmenters.find(segmenter, images)

    print(f"{checkpoint.config.name}, {', '.join(f'{len(p)} {n}' for n, p in real.items())}")
    print(f"{args.threads} threads, torch {torch.__version__}, {processor()}")
    masks = {
        label.name: given_masks(
            engine, tokenizer, find, real[label.name], (label.name, _other(modalities, label))
        )
        for label in modalities
        if label.name in real
    }
    report_masks(masks)
    holes, rows = [], []
    for name, pairs in real.items():
        filled, shown = fill(engine, find, spread(pairs, args.holes), name)
        holes.append(filled)
        rows += shown[: -(-SHOWN // len(real))]
    report_holes(holes)
    if args.sheet is not None:
        tile(rows).save(args.sheet)
    print(json.dumps({"masks": masks, "holes": told_of(holes)}))


def _other(labels: Sequence[Label], label: Label) -> str:
    """The modality after this one."""
    return labels[(labels.index(label) + 1) % len(labels)].name


# -- masks -----------------------------------------------------------------------------------------


def given_masks(
    engine: Engine, tokenizer: Tokenizer, find: Find, real: Pairs, labels: tuple[str, str]
) -> dict[str, float]:
    """Figures of the first label's masks, drawn under it and under the other: mean Dice, shares,
    and `gap` with its standard error.
    """
    label, other = labels
    given = [Given(_mask(real, at)) for at in range(len(real))]
    own = draw(engine, _requests(engine, label, given))
    print(f"{label}: drew {len(own)}", flush=True)
    foreign = draw(engine, _requests(engine, other, given))
    print(f"{label} as {other}: drew {len(foreign)}", flush=True)
    returned = overlap(_masks(own), real.masks)
    _, limit = decode(tokenizer, real.structure, real.appearance)
    copy = through_a_poor_copy(find)
    of_own, of_other, of_real = (
        overlap(find(images), real.masks) for images in (_images(own), _images(foreign),
                                                         real.pixels())
    )  # fmt: skip
    same = [
        np.array_equal(a.structure, b.structure)
        for (a, _), (b, _) in zip(own, foreign, strict=True)
    ]
    gap = of_own - of_other
    return {
        "patches": len(real),
        "returned": _mean(returned),
        "returned_least": float(returned[~returned.isnan()].min()),
        "returned_reach_goal": float((returned[~returned.isnan()] >= GOAL).float().mean()),
        "limit": _mean(overlap(limit, real.masks)),
        "found": _mean(of_own),
        "found_real": _mean(of_real),
        "found_other_label": _mean(of_other),
        "gap": _mean(gap),
        "gap_error": float(gap[~gap.isnan()].std() / (~gap.isnan()).sum() ** 0.5),
        "found_poor_copy": _mean(overlap(copy(_images(own)), real.masks)),
        "found_real_poor_copy": _mean(overlap(copy(real.pixels()), real.masks)),
        "same_structure": float(np.mean(same)),
    }


def report_masks(masks: Mapping[str, Mapping[str, float]]) -> None:
    """The table of given masks."""
    columns = {
        "returned": "returned", "limit": "limit", "returned_reach_goal": f"over {GOAL}",
        "found": "FS1", "found_real": "FS2", "found_other_label": "other label",
        "gap": "gap", "gap_error": "+-", "found_poor_copy": "FS1 copy",
        "found_real_poor_copy": "FS2 copy", "same_structure": "same tokens",
    }  # fmt: skip
    print("given masks".ljust(14) + "".join(name.rjust(13) for name in columns.values()))
    for label, of in masks.items():
        print(label.ljust(14) + "".join(f"{of[name]:.4f}".rjust(13) for name in columns))


# -- holes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seam:
    """Pairs of pixels across the border of a hole, summed over patches, by side: `pairs`; those of
    which one lies in a nucleus (`touching`), and of these the ones whose other does not (`cut`);
    the sum of their differences in grey levels (`step`).
    """

    pairs: Mapping[str, int]
    touching: Mapping[str, int]
    cut: Mapping[str, int]
    step: Mapping[str, float]

    def figures(self, sides: Sequence[str]) -> tuple[float, float]:
        """The share of touching pairs that are cut, and the mean difference, over some sides."""
        touching = sum(self.touching[side] for side in sides)
        pairs = sum(self.pairs[side] for side in sides)
        cut = sum(self.cut[side] for side in sides) / max(touching, 1)
        return cut, sum(self.step[side] for side in sides) / pairs


@dataclass(frozen=True)
class Holes:
    """What came of a label's patches with holes. Changes are those from the reconstruction,
    outside: of tokens (a count), of pixels (mean levels, up to a location from the hole and farther
    away), and of the mask (a share of its pixels).
    """

    label: str
    patches: int
    tokens: int
    near: float
    far: float
    mask: float
    seams: Mapping[str, Seam]


def fill(engine: Engine, find: Find, real: Pairs, label: str) -> tuple[Holes, list[list[Tensor]]]:
    """Draw a quarter of each patch anew, TRIES times. Also a row of pictures of each: the
    patch, the hole, the best filling."""
    grid, side = engine.layout.grid_size, engine.config.tokenizer.image_size
    hole = np.zeros((grid, grid), bool)
    hole[grid // 4 : -(grid // 4), grid // 4 : -(grid // 4)] = True
    keep = keep_bits([bool(kept) for kept in ~hole.flatten()])
    whole = [Given(_mask(real, at), _image(real, at)) for at in range(len(real))]
    parts = [
        Given(*(stream and replace(stream, keep=keep) for stream in (g.structure, g.appearance)))
        for g in whole
    ]
    encoded = draw(engine, _requests(engine, label, whole))
    tries = [draw(engine, _requests(engine, label, parts, at)) for at in range(TRIES)]
    print(f"{label}: filled {len(real)} holes {TRIES} times", flush=True)
    best = [max(of, key=_fit) for of in zip(*tries, strict=True)]
    worst = [min(of, key=_fit) for of in zip(*tries, strict=True)]
    pixels = np.kron(hole, np.ones((side // grid, side // grid), bool))
    looks = {
        "real": real.pixels(),
        "reconstruction": _images(encoded),
        "filled": torch.cat([_images(each) for each in tries]),
        "best": _images(best),
        "worst": _images(worst),
    }
    seams = {name: seam(images, find(images), pixels) for name, images in looks.items()}
    shown = [
        [patch, patch.masked_fill(torch.from_numpy(pixels), 0), filled]
        for patch, filled in zip(looks["real"], looks["best"], strict=True)
    ]
    return Holes(label, len(real), *changes(tries, encoded, hole, pixels), seams), shown


def _fit(drawn: tuple[TokenGrids, Patch]) -> float:
    """How likely the kept tokens are beside what was drawn."""
    kept = drawn[0].kept_log_likelihood
    assert kept is not None
    return kept.structure + kept.appearance


def changes(
    tries: Sequence[Drawn], encoded: Drawn, hole: Bools, pixels: Bools
) -> tuple[int, float, float, float]:
    """The changes of `Holes`."""
    near = grown(pixels, len(pixels) // len(hole)) & ~pixels
    far = ~pixels & ~near
    tokens, levels, masks = 0, [], []
    for drawn in tries:
        for (ours, seen), (theirs, plain) in zip(drawn, encoded, strict=True):
            for a, b in ((ours.structure, theirs.structure), (ours.appearance, theirs.appearance)):
                tokens += int((a != b)[~hole].sum())
            moved = np.abs(seen.image.astype(int) - plain.image.astype(int)).mean(2)
            levels.append((moved[near].mean(), moved[far].mean()))
            masks.append((seen.mask != plain.mask)[~pixels].mean())
    of_near, of_far = np.mean(levels, 0)
    return tokens, float(of_near), float(of_far), float(np.mean(masks))


def grown(region: Bools, by: int) -> Bools:
    """A rectangle with so many pixels more on each side."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    wider = np.zeros_like(region)
    wider[rows[0] - by : rows[-1] + by + 1, columns[0] - by : columns[-1] + by + 1] = True
    return wider


def seam(images: Tensor, found: Tensor, hole: Bools) -> Seam:
    """Across the border of `hole`, in images [M, 3, H, W] with nuclei `found` [M, H, W]."""
    grey = (images.mean(1).numpy() + 1) * 127.5
    nuclei = found.numpy()
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    inside: dict[str, tuple[int | NDArray[np.int64], int | NDArray[np.int64]]] = {
        "top": (int(rows[0]), columns), "bottom": (int(rows[-1]), columns),
        "left": (rows, int(columns[0])), "right": (rows, int(columns[-1])),
    }  # fmt: skip
    outward = {"top": (-1, 0), "bottom": (1, 0), "left": (0, -1), "right": (0, 1)}
    pairs, touching, cut, step = {}, {}, {}, {}
    for side in SIDES:
        y, x = inside[side]
        beyond = (..., y + outward[side][0], x + outward[side][1])
        here, there = nuclei[..., y, x], nuclei[beyond]
        pairs[side], touching[side] = here.size, int((here | there).sum())
        cut[side] = int((here != there).sum())
        step[side] = float(np.abs(grey[..., y, x] - grey[beyond]).sum())
    return Seam(pairs, touching, cut, step)


def report_holes(holes: Sequence[Holes]) -> None:
    """The tables of holes."""
    print("outside holes".ljust(16) + "tokens changed   levels near   levels far   mask changed")
    for of in holes:
        cells = f"{of.tokens:14d}{of.near:14.3f}{of.far:13.3f}{of.mask:15.5f}"
        print(of.label.ljust(16) + cells)
    print("across the border: nuclei that are cut, step in grey levels")
    print("".ljust(32) + "top and left".rjust(20) + "bottom and right".rjust(20))
    for of in holes:
        for name, across in of.seams.items():
            figures = (across.figures(sides) for sides in (SIDES[:2], SIDES[2:]))
            cells = "".join(f"{cut:.3f} {step:.2f}".rjust(20) for cut, step in figures)
            print(f"{of.label}, {name}".ljust(32) + cells)


def told_of(holes: Sequence[Holes]) -> dict[str, object]:
    """The same for JSON."""
    return {
        of.label: {
            "patches": of.patches,
            "tokens_changed": of.tokens,
            "levels_near": of.near,
            "levels_far": of.far,
            "mask_changed": of.mask,
            "seams": {
                name: {
                    "before": dict(zip(("cut", "step"), across.figures(SIDES[:2]), strict=True)),
                    "after": dict(zip(("cut", "step"), across.figures(SIDES[2:]), strict=True)),
                }
                for name, across in of.seams.items()
            },
        }
        for of in holes
    }


# -- what both use ---------------------------------------------------------------------------------


def _requests(
    engine: Engine, label: str, given: Sequence[Given], attempt: int = 0
) -> list[ImageRequest]:
    settings = engine.config.settings(label)
    return [
        ImageRequest(label, 1000 * attempt + at, settings, each) for at, each in enumerate(given)
    ]


def _mask(real: Pairs, at: int) -> Stream:
    return Stream("mask", np.packbits(real.masks[at].numpy()).tobytes())


def _image(real: Pairs, at: int) -> Stream:
    return Stream("image", real.images[at].numpy().tobytes())


def _images(drawn: Sequence[tuple[TokenGrids, Patch]]) -> Tensor:
    """Float [M, 3, H, W] in -1..1."""
    pixels = torch.from_numpy(np.stack([patch.image for _, patch in drawn]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _masks(drawn: Sequence[tuple[TokenGrids, Patch]]) -> Tensor:
    return torch.from_numpy(np.stack([patch.mask for _, patch in drawn])) > 0


def _mean(scores: Tensor) -> float:
    """Over the pairs of masks that are not both empty."""
    return float(scores.nanmean())


if __name__ == "__main__":
    main()
