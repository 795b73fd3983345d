"""What is measured: a checkpoint, real patches and samples, each made when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.engine import Engine
from model.request import Label
from training import data as patches
from training import segmenter as segmenters
from training.distributed import training_device
from training.evaluation import segmentation
from training.evaluation.features import Features
from training.evaluation.metric import Missing
from training.evaluation.pair_tensors import Pairs, draw_pairs, joined, of_label, real_pairs
from training.losses import Lpips
from training.run import StageError

SLOTS, SLOTS_ON_A_GPU = 16, 64


@dataclass(frozen=True)
class StudyOptions:
    """What a report is made with, beyond the checkpoint and the data."""

    samples: int
    synthetic: int
    segmenter_steps: int
    seeds: int
    threads: int
    network: segmentation.Network = segmentation.MONAI


class Study:
    """A checkpoint, real patches and samples of every label, each made when it is first needed.

    Networks are taken to a GPU where there is one; patches and figures stay on the CPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: patches.Dataset,
        options: StudyOptions,
        features: list[Features],
        perceptual: Lpips | None,
        segmenter: nn.Module | None,
    ) -> None:
        self.checkpoint, self.dataset, self.options = checkpoint, dataset, options
        device = training_device()
        for network in (checkpoint.tokenizer, checkpoint.prior, perceptual, segmenter):
            if network is not None:
                network.to(device)
        self.device, self.tokenizer = str(device), checkpoint.tokenizer
        self.features, self.perceptual, self.segmenter = features, perceptual, segmenter
        self.labels = [label for label in checkpoint.config.labels if label in dataset.labels]
        if not self.labels:
            raise StageError(f"--data: holds none of the labels of {checkpoint.config.name}")
        self.modalities = [label for label in self.labels if label.kind == "modality"]
        self._drawn: dict[str, Pairs] = {}

    @cached_property
    def engine(self) -> Engine:
        """Draws the samples."""
        slots = SLOTS_ON_A_GPU if self.device.startswith("cuda") else SLOTS
        return Engine(
            self.checkpoint, device=self.device, slots=slots, threads=self.options.threads
        )

    def drawn(self, label: Label, count: int) -> Pairs:
        """Samples with seeds 0 on, under the checkpoint's own settings."""
        held = self._drawn.get(label.name)
        start = len(held) if held else 0
        if count > start:
            settings = self.checkpoint.config.settings(label.name)
            more = draw_pairs(self.engine, label.name, range(start, count), settings)
            held = more if held is None else joined([held, more])
            self._drawn[label.name] = held
        assert held is not None
        return held[:count]

    def samples(self, label: Label) -> Pairs:
        """As many samples as most figures are taken on."""
        return self.drawn(label, self.options.samples)

    def validation(self, label: Label) -> Pairs:
        """Real patches of a label that training never saw."""
        return self._real(of_label(self.dataset, self.dataset.validation, label))

    def training(self, label: Label, count: int | None = None) -> Pairs:
        """Real training patches of a label, `count` of them drawn at random."""
        chosen = of_label(self.dataset, self.dataset.training, label)
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        return self._real(chosen[order[:count]])

    def _real(self, indices: Tensor) -> Pairs:
        return real_pairs(self.dataset, indices, self.tokenizer)

    def found(self, images: Tensor) -> Tensor:
        """The nuclei that the checkpoint's segmenter finds."""
        assert self.segmenter is not None
        return segmenters.find(self.segmenter, images)


def with_real(
    study: Study, labels: list[Label], least: int, figures: str
) -> tuple[list[Label], list[Missing]]:
    """Those of `labels` that have so many validation patches, and what `figures` of others need."""
    dataset = study.dataset
    held = {label: len(of_label(dataset, dataset.validation, label)) for label in labels}
    needs = f"{least} validation {'patch' if least == 1 else 'patches'} or more"
    return (
        [label for label in labels if held[label] >= least],
        [
            Missing(f"{figures} of {label.name}", f"{needs}, there are {held[label]}")
            for label in labels
            if held[label] < least
        ],
    )
