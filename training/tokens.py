"""Token extraction: `python -m training.tokens --data D --workdir R` encodes all views.

Writes `tokens.safetensors` in the run folder: structure and appearance ids [M, 8, N] of the eight
dihedral views of every patch, and what the prior stage needs to know of each patch. If the command
is killed, run it again: it resumes from ids that it saved at most a minute before.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from model.tokenizer import Tokenizer
from training import data as patches
from training.codebooks import usage
from training.distributed import training_device
from training.overview import overview
from training.run import (
    Progress,
    Saves,
    drop_state,
    load_tensors,
    save_tensors,
    stage,
    state_beside,
    try_to_write,
)
from training.tokenizer import channels_last, load_tokenizer

TOKENS = "tokens.safetensors"
BATCH = 32


@torch.inference_mode()
def extract(tokenizer: Tokenizer, dataset: patches.Dataset, kept: Path) -> tuple[Tensor, Tensor]:
    """Ids of both streams, int16 [M, 8, N] each; those that there are stand in `kept` meanwhile."""
    tokenizer = channels_last(tokenizer, dataset.images.device)
    chunks = torch.arange(len(dataset.samples)).split(BATCH)
    places = [(view, chunk) for view in range(patches.VIEWS) for chunk in chunks]
    shape = (2, patches.VIEWS, len(dataset.samples), tokenizer.config.grid_size**2)
    facts = {"tokenizer": _digest(tokenizer), "patches": dataset.digest()}
    ids, done = _begun(kept, facts, shape)
    planes = tokenizer.config.structure_planes
    progress, saves = Progress(None, "tokens", every=len(chunks)), Saves()
    for number, (view, chunk) in enumerate(places[done:], start=done + 1):
        images, masks = patches.batch(dataset, chunk, torch.full_like(chunk, view), planes)
        for stream, grid in enumerate(tokenizer.encode(images, masks)):
            ids[stream, view, chunk] = grid.flatten(1).short().cpu()
        progress.add({})
        if progress.due(number):
            progress.report(number, len(places), BATCH)
        if saves.due():
            save_tensors(kept, {"ids": ids}, {"done": number, **facts})
            saves.done()
    return ids[0].transpose(0, 1), ids[1].transpose(0, 1)


def _begun(kept: Path, facts: dict[str, str], shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """The ids that were made before by the same tokenizer of the same patches, and of how many
    chunks; else none."""
    if kept.exists():
        tensors, meta = load_tensors(kept)
        if all(meta[name] == value for name, value in facts.items()):
            print(f"tokens: resumes after {meta['done']} chunks of {BATCH}", flush=True)
            return tensors["ids"], meta["done"]
        print(
            f"tokens: {kept} is from another tokenizer or other patches, so it is not used",
            flush=True,
        )
    return torch.zeros(shape, dtype=torch.int16), 0


def _digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of its weights."""
    found = hashlib.sha256()
    for tensor in tokenizer.state_dict().values():
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def main(words: Sequence[str] | None = None) -> None:
    """Encode the dataset with the run's tokenizer and report codebook usage."""
    parser = argparse.ArgumentParser(prog="python -m training.tokens", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="run folder of the tokenizer stage"
    )
    args = parser.parse_args(words)
    with stage("tokens"):
        try_to_write("--workdir", args.workdir)
        write_tokens(args.data, args.workdir)


def write_tokens(data: Path, run: Path) -> None:
    """Encode `data` with the tokenizer of `run` and write the ids there."""
    tokenizer, options = load_tokenizer(run)
    dataset = patches.read_dataset(data, options.licences, tokenizer.config.image_size)
    dataset = dataset.to(training_device())
    kept = state_beside(run / TOKENS)
    structure, appearance = extract(tokenizer, dataset, kept)
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
        "facts": overview(dataset.samples, "tokens").facts(),
        "options": asdict(options),
    }
    save_tensors(run / TOKENS, tensors, meta)
    drop_state(kept)


if __name__ == "__main__":
    main()
