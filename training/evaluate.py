"""Figures of a checkpoint: `python -m training.evaluate --checkpoint C --data D --out DIR`.

Writes `report.json`, a sheet of real patches beside their reconstructions and a sheet of samples
by label. Reconstruction and codebook use are taken on validation groups. Recognition is the share
of samples that a classifier trained on real training patches gives the modality they were asked
for: multinomial logistic regression on frozen AlexNet features.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint
from model.engine import Engine
from model.request import ImageRequest, Label
from training import data as patches
from training.losses import Lpips
from training.run import stage
from training.sheets import draw, reconstruction_sheet, sample_sheet
from training.tokenizer import evaluate

CLASSIFIER_STEPS = 500
CLASSIFIER_RATE = 0.01
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Classifier:
    """A linear classifier on standardised features; `predict` gives indices of `labels`."""

    labels: tuple[Label, ...]
    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """[M, D] -> [M]."""
        return ((features - self.mean) / self.deviation @ self.weight + self.bias).argmax(1)


@torch.no_grad()
def features(network: Lpips, images: Tensor) -> Tensor:
    """Mean and deviation over the patch of every feature map of AlexNet: [B, D]."""
    maps = network.features(images)
    return torch.cat([torch.cat([m.mean((2, 3)), m.std((2, 3))], 1) for m in maps], 1)


def real_features(network: Lpips, dataset: patches.Dataset, indices: Tensor) -> Tensor:
    """Features [M, D] of real patches, unturned."""
    chunks = [
        features(network, patches.batch(dataset, chunk, torch.zeros_like(chunk))[0])
        for chunk in indices.split(32)
    ]
    return torch.cat(chunks)


def fit_classifier(inputs: Tensor, targets: Tensor, labels: tuple[Label, ...]) -> Classifier:
    """Fit on features [M, D] and label indices [M]."""
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    weight = torch.zeros(inputs.shape[1], len(labels), requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], CLASSIFIER_RATE, weight_decay=WEIGHT_DECAY)
    standard = (inputs - mean) / deviation
    for _ in range(CLASSIFIER_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(standard @ weight + bias, targets).backward()
        optimizer.step()
    return Classifier(labels, mean, deviation, weight.detach(), bias.detach())


def draw_images(engine: Engine, label: Label, count: int) -> Tensor:
    """`count` samples under the checkpoint's own settings, seeds 0 on: [count, 3, H, W]."""
    settings = engine.config.defaults
    requests = [ImageRequest(label.name, seed, settings) for seed in range(count)]
    images = []
    for start in range(0, count, engine.slots):
        for _, patch in draw(engine, requests[start : start + engine.slots]):
            images.append(torch.from_numpy(patch.image).permute(2, 0, 1) / 127.5 - 1)
        print(f"evaluate: {label.name} {min(start + engine.slots, count)}/{count}", flush=True)
    return torch.stack(images)


def recognition(
    checkpoint: Checkpoint, network: Lpips, dataset: patches.Dataset, count: int, threads: int
) -> dict[str, object]:
    """Recognised share of `count` samples a modality, and of real validation patches."""
    modalities = tuple(label for label in dataset.labels if label.kind == "modality")
    table = dataset.label_table()[:, [dataset.labels.index(label) for label in modalities]]
    targets = table.float().argmax(1)
    inputs = real_features(network, dataset, dataset.training)
    classifier = fit_classifier(inputs, targets[dataset.training], modalities)
    held_out = classifier.predict(real_features(network, dataset, dataset.validation))
    report: dict[str, object] = {
        "real_validation": float((held_out == targets[dataset.validation]).float().mean())
    }
    engine = Engine(checkpoint, device="cpu", slots=16, threads=threads)
    for index, label in enumerate(modalities):
        drawn = draw_images(engine, label, count)
        named = classifier.predict(torch.cat([features(network, c) for c in drawn.split(32)]))
        report[label.name] = float((named == index).float().mean())
    return report


def write_report(args: argparse.Namespace) -> None:
    """All figures and sheets into `args.out`."""
    checkpoint = load_checkpoint(args.checkpoint)
    config = checkpoint.config
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = patches.read_dataset(args.data, args.licence, config.tokenizer.image_size)
    network = Lpips(args.perceptual)
    sheets = {
        "reconstructions.png": reconstruction_sheet(checkpoint.tokenizer, dataset),
        "samples.png": sample_sheet(config, checkpoint.tokenizer, checkpoint.prior),
    }
    for name, sheet in sheets.items():
        sheet.reduce(2).save(args.out / name)
    report = {
        "model": {"name": config.name, "version": checkpoint.version},
        "patches": {"training": len(dataset.training), "validation": len(dataset.validation)},
        "reconstruction": evaluate(checkpoint.tokenizer, network, dataset, dataset.validation),
        "training_use": evaluate(checkpoint.tokenizer, None, dataset, dataset.training),
        "recognition": recognition(checkpoint, network, dataset, args.samples, args.threads),
        "samples_per_modality": args.samples,
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--licence", action="append", default=[], help="as in training")
    parser.add_argument("--perceptual", type=Path, required=True, help="AlexNet features")
    parser.add_argument("--samples", type=int, default=100, help="drawn for each modality")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with stage("evaluate"):
        write_report(args)


if __name__ == "__main__":
    main()
