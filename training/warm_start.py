"""Where a tokenizer's training starts: weights of a checkpoint, or of a tokenizer's file.

The configuration of these weights may differ in the structure encoder's input and in the decoder's
upsampling. Weights of the same layer with the same shape are copied. Two layers are copied in part:
the structure encoder's stem (borders start without effect) and the mask decoder's last layer
(borders start at random).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.checkpoint import load_checkpoint, stored
from model.config import NAMED_SIZES, TokenizerConfig
from model.tokenizer import Tokenizer
from training.run import RunError, load_tensors, option, save_tensors


@dataclass(frozen=True)
class Start:
    """A trained tokenizer to go on from. `origin` says which: the checkpoint's version, or the
    file's name and its training steps. `licence` is that of what it was trained on."""

    config: TokenizerConfig
    weights: Mapping[str, Tensor]
    origin: str
    licence: str


def read_start(path: Path) -> Start:
    """A checkpoint folder's tokenizer, or what `save_start` wrote; StageError on anything else."""
    if path.is_dir() or not path.exists():
        with option("--start-from"):
            checkpoint = load_checkpoint(path)
        config, weights = checkpoint.config, checkpoint.tokenizer.state_dict()
        return Start(config.tokenizer, weights, checkpoint.version, config.licence)
    try:
        tensors, meta = load_tensors(path)
        config_of_size = NAMED_SIZES[meta["size"]][0]
        origin = f"{path.name} of {meta['step']} steps"
        return Start(config_of_size, tensors, origin, meta["licence"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise RunError(
            f"--start-from: {path}: is not a tokenizer that training.weights wrote ({error!r})"
        ) from error


def save_start(path: Path, tokenizer: Tokenizer, size: str, step: int, licence: str) -> None:
    """Write a tokenizer alone: matrices in bf16, as checkpoints hold them."""
    tensors = {name: stored(name, tensor) for name, tensor in tokenizer.state_dict().items()}
    save_tensors(path, tensors, {"size": size, "step": step, "licence": licence})
    path.chmod(0o644)  # safetensors leaves it readable by its owner alone


def fits(config: TokenizerConfig, trained: TokenizerConfig) -> bool:
    """Whether `warm_start` can carry weights of `trained` over to `config`."""
    free = {name: getattr(config, name) for name in ("structure_input", "fine_widths")}
    return replace(trained, **free) == config


@torch.no_grad()
def warm_start(tokenizer: Tokenizer, trained: Mapping[str, Tensor]) -> list[str]:
    """Copy what fits of the state `trained` into `tokenizer`; the names of what begins anew, wholly
    or in part."""
    fresh = []
    for name, target in tokenizer.state_dict().items():
        source = trained.get(name)
        if source is not None and source.shape == target.shape:
            target.copy_(source)
            continue
        fresh.append(name)
        if source is not None:
            _take_part(name, target, source.to(target.device))
    return fresh


def _take_part(name: str, target: Tensor, source: Tensor) -> None:
    """Copy what fits of a layer that has more inputs or outputs now."""
    if name == "structure_encoder.1.weight" and source.shape[1] <= target.shape[1]:
        target.zero_()
        target[:, : source.shape[1]] = source
    elif name.startswith("mask_decoder.") and source.shape[1:] == target.shape[1:]:
        target[: len(source)] = source[: len(target)]
