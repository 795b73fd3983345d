"""A training run's folder: state that survives a kill, progress lines, schedules.

State is safetensors written beside its target and renamed, so a kill at any moment leaves either
the old or the new one. Knows no network.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import CheckpointError

WARM_UP_STEPS = 100
FLOOR = 0.03


class StageError(ValueError):
    """What a user can mend: a stage prints it as one line and exits with 1."""


class RunError(StageError):
    """A run folder that a stage cannot go on from; the sentence says why."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Run a stage's body: exit 1 with one line on a StageError, 130 when interrupted."""
    try:
        yield
    except StageError as error:
        print(f"training.{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"training.{name}: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


@contextmanager
def option(name: str) -> Iterator[None]:
    """Turn an unusable checkpoint into a StageError that names the option that it came by."""
    try:
        yield
    except CheckpointError as error:
        raise StageError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a short warm-up, a plateau, then `decay` of the steps down to 3%."""

    peak: float
    steps: int
    decay: float

    def rate(self, step: int) -> float:
        """The learning rate of `step` (0-based)."""
        left = 1 - step / self.steps
        return self.peak * min(1.0, (step + 1) / WARM_UP_STEPS, max(FLOOR, left / self.decay))

    def decays(self, step: int) -> bool:
        """Whether `step` is in the last part, where the rate falls."""
        return 1 - step / self.steps < self.decay


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON-able `meta` as one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, {"meta": json.dumps(meta)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_tensors`; RunError if the file is not there."""
    if not path.exists():
        raise RunError(f"{path}: not there; run the stage that writes it first")
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each name with `prefix.` before it."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `prefixed`: the tensors of that prefix, with it taken off."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts by flat name."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def adamw(module: nn.Module, rate: float, decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolutions alone."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, rate, betas=(0.9, beta2))


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, step: int, limit: float) -> None:
    """Move `average`'s weights toward `module`'s; buffers are copied."""
    rate = 1 - min(limit, (step + 1) / (step + 20))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), rate)
    for ours, theirs in zip(average.buffers(), module.buffers(), strict=True):
        ours.copy_(theirs)


class Progress:
    """Means of named figures between reports, printed and appended to `progress.jsonl`."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / "progress.jsonl"
        self.stage = stage
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()

    def add(self, figures: dict[str, float]) -> None:
        """Note one step's figures."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def report(self, step: int, steps: int, batch: int) -> None:
        """Print the means since the last report, of steps of `batch` images."""
        seconds = time.monotonic() - self.since
        means = {name: value / max(1, self.count) for name, value in self.sums.items()}
        means["images_per_s"] = self.count * batch / seconds
        left = (steps - step) * seconds / max(1, self.count)
        self.write({"step": step, **means})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"{self.stage} {step}/{steps}  {shown}  {left / 60:.0f} min left", flush=True)
        self.sums, self.count, self.since = {}, 0, time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record to the run's progress file."""
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, **record}) + "\n")
