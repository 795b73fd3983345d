"""What a decode in 8 bits costs in samples: `python -m benchmarks.kid --data DATA --features NAME`.

Draws images of every modality by the torch decoder in fp32 and by the compiled one in 8 bits, and
gives the KID of both to real training patches, with the same seeds. Then the KID of the two to each
other, and beside it that of 8 bits to 8 bits, which is what sets of this size give by chance. There
the seeds differ: images of one seed are alike, and sets that are alike image by image have a KID
below zero. Deviations are standard errors (`training.evaluation.distances.kernel_distance`).
Given again, the command goes on with the images in `--kept`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.decode import processor
from model.checkpoint import load_checkpoint
from model.engine import BUILD, Engine, Kernel
from model.processors import usable_cores
from model.request import ImageRequest, Label
from training import data as patches
from training.evaluation.distances import FEWEST, kernel_distance
from training.evaluation.features import Features, parse_features
from training.evaluation.pair_tensors import of_label
from training.sheets import draw
from worker.settings import SHIPPED

SLOTS = 16
KERNELS: dict[str, Kernel] = {"fp32": "torch", "8 bits": "native"}
REAL, OTHERS = "real", "8 bits, other seeds"
COMPARED = {
    "fp32 to real": ("fp32", REAL),
    "8 bits to real": ("8 bits", REAL),
    "fp32 to 8 bits": ("fp32", OTHERS),
    "8 bits to 8 bits": ("8 bits", OTHERS),
}
Sets = dict[str, Tensor]
"""Images uint8 [M, H, W, 3] by the names in COMPARED."""
Found = dict[str, dict[str, tuple[float, float]]]
"""KID and its standard error, by label and by what is compared."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse, draw, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kid", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--licence", action="append", default=[], help="only of these")
    parser.add_argument(
        "--features", action="append", required=True, help="NAME or NAME=PATH of a frozen network"
    )
    parser.add_argument("--images", type=int, default=100, help="of a modality, and real ones")
    parser.add_argument("--kept", type=Path, default=Path("runs/kid"), help="folder for images")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args(words)
    if args.images < FEWEST:
        parser.error(f"--images: got {args.images}, expected at least {FEWEST}")
    networks, _ = parse_features(args.features)
    checkpoint = load_checkpoint(args.checkpoint)
    dataset = patches.read_dataset(args.data, args.licence, checkpoint.config.tokenizer.image_size)
    engines = {
        name: Engine(checkpoint, device="cpu", slots=SLOTS, threads=args.threads, kernel=kernel)
        for name, kernel in KERNELS.items()
    }
    args.kept.mkdir(parents=True, exist_ok=True)
    sets: dict[str, Sets] = {}
    for label in dataset.labels:
        if label.kind != "modality" or label not in checkpoint.config.labels:
            continue
        trained_on = real(dataset, label, args.images)
        if len(trained_on) < FEWEST:
            print(f"{label.name} is left out: {len(trained_on)} patches, expected {FEWEST} or more")
            continue
        ours = {
            name: drawn(engine, label, range(args.images), args.kept)
            for name, engine in engines.items()
        }
        others = range(args.images, 2 * args.images)
        ours[OTHERS] = drawn(engines["8 bits"], label, others, args.kept)
        sets[label.name] = {REAL: trained_on, **ours}
    for network in networks:
        report(network.name, args.images, measure(network, sets))


def drawn(engine: Engine, label: Label, seeds: range, kept: Path) -> Tensor:
    """One image a seed; files of an earlier run are not drawn again."""
    parts = []
    for start in range(0, len(seeds), SLOTS):
        some = seeds[start : start + SLOTS]
        decoder = type(engine.decoder).__name__
        of = f"{engine.version}-{BUILD}-{decoder}-{label.name}"
        path = kept / f"{of}-{some.start}-{some.stop}.npy"
        if not path.exists():
            requests = [
                ImageRequest(label.name, seed, engine.config.settings(label.name)) for seed in some
            ]
            images = np.stack([patch.image for _, patch in draw(engine, requests)])
            part = path.with_suffix(".part.npy")
            np.save(part, images)
            part.replace(path)
            print(path, flush=True)
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)


def real(dataset: patches.Dataset, label: Label, count: int) -> Tensor:
    """Training patches of a label, drawn at random; all of them where there are fewer."""
    of_training = of_label(dataset, dataset.training, label)
    order = torch.randperm(len(of_training), generator=torch.Generator().manual_seed(0))
    return dataset.images[of_training[order[:count]]]


def measure(network: Features, sets: dict[str, Sets]) -> Found:
    """All of COMPARED, on the features of one network."""
    found: Found = {}
    for label, by_name in sets.items():
        features = {
            name: network(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
            for name, images in by_name.items()
        }
        found[label] = {
            name: kernel_distance(features[one], features[other])
            for name, (one, other) in COMPARED.items()
        }
    return found


def report(features: str, images: int, found: Found) -> None:
    """The table, then the line of JSON."""
    print(f"{images} images a set, KID on {features}, torch {torch.__version__}, {processor()}")
    print("".ljust(18) + "".join(label.rjust(24) for label in found))
    for name in COMPARED:
        cells = (f"{of[name][0]:.5f} +- {of[name][1]:.5f}".rjust(24) for of in found.values())
        print(name.ljust(18) + "".join(cells))
    print(json.dumps({"images": images, "features": features, "kid": found}))


if __name__ == "__main__":
    main()
