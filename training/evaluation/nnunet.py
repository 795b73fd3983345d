"""The segmenter of the groups as nnU-Net itself (Isensee et al. 2021), by its package nnunetv2.

nnU-Net plans a 2D U-Net and its batch from the training pairs, augments, weighs its loss and lets
its learning rate fall as it always does, but stops after as many updates as asked for: its own
schedule, 1000 epochs of 250 updates, is days on a processor. A network as large as this wants a
GPU, which is taken where there is one.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.evaluation.metric import Missing
from training.evaluation.pair_tensors import Pairs
from training.evaluation.segmentation import Network
from training.losses import overlap

NAME = "Dataset001_pairs"
EPOCHS = 10
"""The learning rate falls this often, and nnU-Net draws a curve as often."""
INTENSITIES = 10**6
"""Pixels of nuclei that nnU-Net's statistics are taken of, in place of 10**8: patches are scaled
one by one, so nothing rests on them."""
RAW, READY, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
PROCESSES, COMPILE = "nnUNet_n_proc_DA", "nnUNet_compile"
"""What nnU-Net reads from the environment."""
MISSING = Missing("Dice of nnU-Net", "the package nnunetv2, by pip install -e '.[nnunet]'")


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("nnunetv2") is not None


def score(pairs: Pairs, weights: Tensor, validation: Pairs, steps: int, seed: int) -> Tensor:
    """Dice [M] on validation patches of nnU-Net trained on pairs drawn by `weights`.

    Weights are kept by naming a pair more than once, to whole numbers. `steps` is rounded up to a
    multiple of ten epochs.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet-") as folder, _settings(Path(folder)):
        names = _write(Path(folder) / RAW / NAME, pairs)
        _plan()
        _split(Path(folder) / READY / NAME, names, weights)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        trainer = _trained(steps)
        found = _found(trainer, validation)
    return overlap(found, validation.masks)


NNUNET = Network("nnU-Net", score)


@contextmanager
def _settings(root: Path) -> Iterator[None]:
    """nnU-Net's folders under `root` while it runs, and its talk nowhere. It is not compiled: a
    short training would not earn that back."""
    before = os.environ.copy()
    for name in (RAW, READY, RESULTS):
        (root / name).mkdir()
        os.environ[name] = str(root / name)
    os.environ[COMPILE] = "false"
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        for name in (RAW, READY, RESULTS, PROCESSES, COMPILE):
            os.environ.pop(name, None)
        os.environ.update(before)


def _write(root: Path, pairs: Pairs) -> list[str]:
    """The pairs as a raw dataset of nnU-Net; their names."""
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    names = [f"pair{number:04d}" for number in range(len(pairs))]
    for name, image, mask in zip(names, pairs.images, pairs.masks, strict=True):
        Image.fromarray(image.numpy()).save(root / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(mask.byte().numpy()).save(root / "labelsTr" / f"{name}.png")
    described = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "nucleus": 1},
        "numTraining": len(pairs),
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return names


def _plan() -> None:
    """Fingerprint, plan and preprocessing of the 2D configuration."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments, preprocess

    extractor = DatasetFingerprintExtractor(1, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = INTENSITIES
    extractor.show_progress_bar = False
    extractor.run()
    os.environ[PROCESSES] = "1"
    plan_experiments([1])
    preprocess([1], configurations=["2d"], num_processes=[1], show_progress_bar=False)


def _split(root: Path, names: list[str], weights: Tensor) -> None:
    """Whom to train on, by weight; nnU-Net wants some to validate on too, and only logs that."""
    times = (weights / weights.min()).round().int().tolist()
    training = [name for name, count in zip(names, times, strict=True) for _ in range(count)]
    split = {"train": training, "val": names[:1]}
    (root / "splits_final.json").write_text(json.dumps([split]))


def _trained(steps: int) -> Any:
    """nnU-Net's own trainer after `steps` updates."""
    from nnunetv2.run.run_training import get_trainer_from_args

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ[PROCESSES] = "0"  # augments here, so that a seed decides what is drawn
    trainer = get_trainer_from_args("1", "2d", 0, device=device)
    trainer.num_epochs = min(EPOCHS, steps)
    trainer.num_iterations_per_epoch = math.ceil(steps / trainer.num_epochs)
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.run_training()
    return trainer


def _found(trainer: Any, validation: Pairs) -> Tensor:
    """The nuclei that it finds, bool [M, H, W], with nnU-Net's mirrored views averaged."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    spacing = {"spacing": (999, 1, 1)}  # what its reader gives a picture
    found = [
        predictor.predict_single_npy_array(
            image.permute(2, 0, 1)[:, None].float().numpy(), dict(spacing)
        )
        for image in validation.images
    ]
    return torch.from_numpy(np.concatenate(found)) > 0
