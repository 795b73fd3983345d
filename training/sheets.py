"""Sheets of patches as images, for people to look at while a model trains."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.engine import Engine, Patch, TokenGrids
from model.request import ImageRequest, Label
from model.tokenizer import Tokenizer
from model.transformer import Prior
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
        if not len(chosen):
            continue
        planes = tokenizer.config.structure_planes
        images, masks = patches.batch(dataset, chosen, torch.zeros_like(chosen), planes)
        ids = tokenizer.encode(images.to(device), masks.to(device))
        drawn, logits = tokenizer.decode(*ids)
        real, found = (plane[:, :1].float().cpu() for plane in (masks, logits > 0))
        columns = [images.cpu(), drawn.clamp(-1, 1).cpu(), grey(real), grey(found)]
        rows.append([patch for group in zip(*columns, strict=True) for patch in group])
    return tile(rows)


SHEET_COLUMNS = 8


def sample_sheet(config: ModelConfig, tokenizer: Tokenizer, prior: Prior) -> Image.Image:
    """Two rows a label, images above their masks, drawn with fixed seeds."""
    device = next(prior.parameters()).device
    checkpoint = Checkpoint(config, "unsaved", tokenizer, prior)
    engine = Engine(
        checkpoint, device=str(device), slots=SHEET_COLUMNS, threads=torch.get_num_threads()
    )
    rows = []
    for label in config.labels:
        drawn = draw(
            engine,
            [
                ImageRequest(label.name, seed, config.settings(label.name))
                for seed in range(SHEET_COLUMNS)
            ],
        )
        images = [torch.from_numpy(patch.image).permute(2, 0, 1) / 127.5 - 1 for _, patch in drawn]
        masks = torch.stack([torch.from_numpy(patch.mask)[None] / 255 for _, patch in drawn])
        rows += [images, list(grey(masks))]
    return tile(rows)


def draw(engine: Engine, requests: list[ImageRequest]) -> list[tuple[TokenGrids, Patch]]:
    """Draw any number of images, as many at a time as the engine has slots; in their order."""
    waiting = list(enumerate(requests))[::-1]
    numbers: dict[int, int] = {}
    done: dict[int, tuple[TokenGrids, Patch]] = {}
    while len(done) < len(requests):
        while waiting and len(numbers) < engine.slots:
            number, request = waiting.pop()
            numbers[engine.admit(request)] = number
        for slot in engine.step():
            tokens = engine.retire(slot)
            done[numbers.pop(slot)] = tokens, engine.render(tokens)
    return [done[number] for number in range(len(requests))]


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
