"""A prior trained far into memorising its patches is caught by the audit of a report.

Nothing is planted here: tokenizer, prior, samples and audit are those of training and evaluation.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.checkpoint import Checkpoint
from tests.training.phantoms import write_phantoms
from training import data as patches
from training import prior, tokenizer, tokens
from training.evaluation.chapters import take_audit
from training.evaluation.features import Features
from training.evaluation.study import Study, StudyOptions
from training.run import Schedule

pytestmark = pytest.mark.slow

LEARNT, OTHERS = torch.arange(4), torch.arange(4, 8)
HELD_OUT = torch.arange(8, 120)
STEPS, RATE, DECAY = 450, 3e-3, 0.3
FEATURES = Features("cells", lambda images: F.adaptive_avg_pool2d(images, 16).flatten(1))
OPTIONS = StudyOptions(samples=100, synthetic=1, segmenter_steps=1, seeds=1, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of histology alone, each an original of its own."""
    folder = write_phantoms(tmp_path_factory.mktemp("phantoms"), each=len(HELD_OUT) + 8, a_group=1)
    manifest = folder / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([lines[0], *(line for line in lines if "histology" in line)]))
    return folder


@pytest.fixture(scope="module")
def overfitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tokenizer of all phantoms, and a prior that has seen four of them and nothing else."""
    run = tmp_path_factory.mktemp("run")
    folders = ["--data", str(data), "--workdir", str(run)]
    tokenizer.main([*folders, "--size", "test", "--batch", "4", "--steps", "160"])
    tokens.main(folders)
    few = replace(prior.read_tokens(run), training=LEARNT, validation=HELD_OUT)
    trainer = prior.PriorTrainer(prior.PriorOptions(STEPS, 8, RATE, DECAY, 0), few)
    schedule = Schedule(RATE, STEPS, DECAY)
    while trainer.step < STEPS:
        trainer.train_step(schedule.rate(trainer.step))
    drawing = tokenizer.load_tokenizer(run)[0]
    return Checkpoint(trainer.config, "overfitted", drawing, trainer.average)


def audited(
    checkpoint: Checkpoint, data: Path, training: torch.Tensor
) -> tuple[dict[str, float], str]:
    """Figures and verdict of a report on data with these patches for training."""
    dataset = replace(patches.read_dataset(data, [], 64), training=training, validation=HELD_OUT)
    study = Study(checkpoint, dataset, OPTIONS, [FEATURES], None, None)
    section = take_audit(study)
    return {metric.name: metric.value for metric in section.metrics}, section.findings[0]


def test_a_prior_overfitted_on_purpose_is_caught(overfitted: Checkpoint, data: Path) -> None:
    figures, verdict = audited(overfitted, data, LEARNT)
    assert verdict.startswith("fails: histology by features"), verdict
    assert "histology by tokens" in verdict
    assert figures["memorised_features"] > 0.5
    assert figures["memorised_tokens"] > 0.5


def test_its_samples_are_no_copies_of_patches_that_it_has_not_seen(
    overfitted: Checkpoint, data: Path
) -> None:
    figures, _ = audited(overfitted, data, OTHERS)
    # All of them are four patches over and over, of which chance can put one near another patch.
    assert figures["memorised_features"] < 0.3
    assert figures["memorised_tokens"] < 0.3
    assert figures["memorised_features_caught"] == 1, "the audit would have seen copies"
    assert figures["memorised_tokens_caught"] == 1
