"""Weights of a trained tokenizer carried over to one of another configuration.

What has the same name and shape is taken as it is. Of three layers the parts that fit are taken:
the structure encoder's stem (borders begin without effect), the mask decoder's last layer (borders
begin as drawn at random), and the image decoder's enlargements (a resized layer begins as the mean
of the four phases of a pixel shuffle).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.tokenizer import Tokenizer

PHASES = 4
"""Of a pixel shuffle by 2."""


@torch.no_grad()
def warm_start(tokenizer: Tokenizer, trained: Mapping[str, Tensor]) -> list[str]:
    """Copy what fits of the state `trained` into `tokenizer`; the names of what began anew."""
    fresh = []
    for name, target in tokenizer.state_dict().items():
        source = trained.get(name)
        if source is None or not _taken(name, target, source.to(target.device)):
            fresh.append(name)
    return fresh


def _taken(name: str, target: Tensor, source: Tensor) -> bool:
    """Whether `source` fitted, wholly or in part, and was copied into `target`."""
    if source.shape == target.shape:
        target.copy_(source)
        return True
    if source.ndim == 4 and name == "structure_encoder.1.weight":
        return _more_inputs(target, source)
    if name.startswith("mask_decoder.") and source.shape[1:] == target.shape[1:]:
        target[: len(source)] = source
        return True
    if name.startswith("image_decoder.") and len(source) == PHASES * len(target):
        target.copy_(source.unflatten(0, (len(target), PHASES)).mean(1))
        return True
    return False


def _more_inputs(target: Tensor, source: Tensor) -> bool:
    if source.shape[1] > target.shape[1] or len(source) != len(target):
        return False
    target.zero_()
    target[:, : source.shape[1]] = source
    return True
