"""Sheets of patches as pictures, for people to look at while a model trains."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from model.request import Label
from model.tokenizer import Tokenizer
from training import data as patches


def pick(dataset: patches.Dataset, labels: tuple[Label, ...], count: int) -> Tensor:
    """Up to `count` validation samples of each label, spread over it."""
    table = dataset.label_table()[dataset.validation]
    chosen = []
    for label in labels:
        of_label = dataset.validation[table[:, dataset.labels.index(label)]]
        places = torch.linspace(0, len(of_label) - 1, min(count, len(of_label))).long()
        chosen.append(of_label[places])
    return torch.cat(chosen)


@torch.no_grad()
def reconstruction_sheet(tokenizer: Tokenizer, dataset: patches.Dataset) -> Image.Image:
    """Rows by modality: real | reconstruction | real mask | mask from structure tokens alone."""
    modalities = tuple(label for label in dataset.labels if label.kind == "modality")
    device = next(tokenizer.parameters()).device
    rows = []
    for modality in modalities:
        chosen = pick(dataset, (modality,), 4)
        images, masks = patches.batch(dataset, chosen, torch.zeros_like(chosen))
        ids = tokenizer.encode(images.to(device), masks.to(device))
        drawn, logits = tokenizer.decode(*ids)
        found = (logits > 0).float().cpu()
        columns = [images, drawn.clamp(-1, 1).cpu(), grey(masks), grey(found)]
        rows.append([patch for group in zip(*columns, strict=True) for patch in group])
    return tile(rows)


def grey(masks: Tensor) -> Tensor:
    """Masks [B, 1, H, W] in 0..1 as images [B, 3, H, W] in -1..1."""
    return (masks * 2 - 1).expand(-1, 3, -1, -1)


def tile(rows: list[list[Tensor]]) -> Image.Image:
    """Patches [3, H, W] in -1..1 as one picture, row by row; short rows end in white."""
    side, width = rows[0][0].shape[-1], max(len(row) for row in rows)
    canvas = torch.ones(3, side * len(rows), side * width)
    for y, row in enumerate(rows):
        for x, patch in enumerate(row):
            canvas[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = patch
    pixels = ((canvas + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
