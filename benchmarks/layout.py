"""What large images keep of a mask that is given: `python -m benchmarks.layout --masks FOLDER`.

For each mask in the folder (PNG, 0 is ground), cut to whole locations: the Dice of the given mask
and that of the large image, and the mean of the same over its whole patches, each given alone,
which is what the tokenizer keeps without any neighbour. No figure is a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.engine import Engine, TokenGrids, load_engine
from model.given import Given, Size, Stream
from model.request import ImageRequest
from model.segmenter import dice
from model.windows import Overlap, plan
from worker.settings import SHIPPED

Mask = NDArray[np.bool_]


def main() -> None:
    """Print a line for each mask, and the means."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--masks", type=Path, required=True)
    args = parser.parse_args()
    engine = load_engine(args.checkpoint, device="cpu", slots=1, threads=1)
    found = []
    for path in sorted(args.masks.glob("*.png")):
        with Image.open(path) as opened:
            mask = whole(np.asarray(opened) > 0, engine.config.tokenizer.downsample)
        found.append((kept(engine, mask), alone(engine, mask)))
        height, width = mask.shape
        print(f"{path.name}: {width} x {height}, {_told(found[-1])}", flush=True)
    print(f"{len(found)} masks: {_told(np.mean(found, axis=0))}")


def whole(mask: Mask, cell: int) -> Mask:
    """A mask without the pixels at its right and bottom that make no whole location."""
    rows, columns = (side // cell * cell for side in mask.shape)
    return mask[:rows, :columns]


def kept(engine: Engine, mask: Mask) -> float:
    """The Dice of a mask and that of a large image that is given it."""
    config = engine.config.tokenizer
    size: Size = (mask.shape[1], mask.shape[0])
    stream = Stream("mask", np.packbits(mask).tobytes())
    label = engine.config.labels[0].name
    layout = engine.layout_of(
        ImageRequest(label, 0, engine.config.settings(label), Given(stream), size)
    )
    rows, columns = (side // config.downsample for side in mask.shape)
    tokens = np.zeros((rows, columns), np.int64)
    side = config.grid_size
    for window in plan(rows, columns, Overlap.of(side)):
        here = slice(window.top, window.top + side), slice(window.left, window.left + side)
        tokens[here] = layout.of(window)[:, 0].reshape(side, side)
    return _returned(engine, mask, tokens)


def alone(engine: Engine, mask: Mask) -> float:
    """The mean Dice of the whole patches of a mask, each given alone."""
    side = engine.config.tokenizer.image_size
    return float(
        np.mean([
            kept(engine, mask[top : top + side, left : left + side])
            for top in range(0, mask.shape[0] - side + 1, side)
            for left in range(0, mask.shape[1] - side + 1, side)
        ])
    )  # fmt: skip


def _returned(engine: Engine, mask: Mask, tokens: NDArray[np.int64]) -> float:
    drawn = engine.render(TokenGrids(tokens, np.zeros_like(tokens)))
    return float(dice(mask, drawn.mask > 0))


def _told(found: Sequence[float] | NDArray[np.float64]) -> str:
    return f"{found[0]:.3f} of the whole, {found[1]:.3f} of its patches alone"


if __name__ == "__main__":
    main()
