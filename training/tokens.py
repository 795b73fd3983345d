"""Token extraction: `python -m training.tokens --data D --workdir R` encodes all views.

Writes `tokens.safetensors` in the run folder: structure and appearance ids [M, 8, N] of the eight
dihedral views of every patch, and what the prior stage needs to know of each patch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from model.tokenizer import Tokenizer
from training import data as patches
from training.codebooks import usage
from training.distributed import training_device
from training.run import save_tensors, stage
from training.tokenizer import channels_last, load_tokenizer

TOKENS = "tokens.safetensors"
BATCH = 32


@torch.inference_mode()
def extract(tokenizer: Tokenizer, dataset: patches.Dataset) -> tuple[Tensor, Tensor]:
    """Ids of both streams, int16 [M, 8, N] each."""
    tokenizer = channels_last(tokenizer, dataset.images.device)
    count = len(dataset.samples)
    locations = tokenizer.config.grid_size**2
    planes = tokenizer.config.structure_planes
    ids = torch.zeros(2, patches.VIEWS, count, locations, dtype=torch.int16)
    started = time.monotonic()
    for view in range(patches.VIEWS):
        for chunk in torch.arange(count).split(BATCH):
            images, masks = patches.batch(dataset, chunk, torch.full_like(chunk, view), planes)
            for stream, grid in enumerate(tokenizer.encode(images, masks)):
                ids[stream, view, chunk] = grid.flatten(1).short().cpu()
        rate = (view + 1) * count / (time.monotonic() - started)
        print(f"tokens: view {view + 1}/{patches.VIEWS}, {rate:.0f} patches/s", flush=True)
    return ids[0].transpose(0, 1), ids[1].transpose(0, 1)


def main(words: Sequence[str] | None = None) -> None:
    """Encode the dataset with the run's tokenizer and report codebook usage."""
    parser = argparse.ArgumentParser(prog="python -m training.tokens", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="run folder of the tokenizer stage"
    )
    args = parser.parse_args(words)
    with stage("tokens"):
        write_tokens(args.data, args.workdir)


def write_tokens(data: Path, run: Path) -> None:
    """Encode `data` with the tokenizer of `run` and write the ids there."""
    tokenizer, options = load_tokenizer(run)
    dataset = patches.read_dataset(data, options.licences, tokenizer.config.image_size)
    dataset = dataset.to(training_device())
    structure, appearance = extract(tokenizer, dataset)
    training = dataset.training
    for name, ids in (("structure", structure), ("appearance", appearance)):
        share, perplexity = usage(ids[training].long(), tokenizer.config.codebook_size)
        print(f"tokens: {name} codebook use {share:.1%}, perplexity {perplexity:.0f} (training)")
    tensors = {
        "structure": structure,
        "appearance": appearance,
        "labels": dataset.label_table(),
        "training": training,
        "validation": dataset.validation,
    }
    meta = {
        "labels": [asdict(label) for label in dataset.labels],
        "licences": dataset.licences(),
        "held_out_sha256": dataset.held_out_digest(),
        "options": asdict(options),
    }
    save_tensors(run / TOKENS, tensors, meta)


if __name__ == "__main__":
    main()
