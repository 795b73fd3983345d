"""A training run's folder: state that survives a kill, progress lines, schedules.

State is a safetensors file, written beside its target and renamed. So a kill at any moment leaves
either the old or the new state. Knows no network.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import CheckpointError
from model.processors import default_threads
from training.compute import use_threads

WARM_UP_STEPS = 100
FLOOR = 0.03
SAVE_S = 60.0
"""Seconds of training between two saved states: what a kill costs at most."""
SAY_S = 45.0
"""Seconds after which a stage says how far it is, whatever its steps."""
SAY_STEPS = 50
"""Steps after which it says so if that is sooner."""


class StageError(ValueError):
    """What a user can fix: a stage prints it as one line and exits with 1."""


class RunError(StageError):
    """A run folder that a stage cannot go on from; the sentence says why."""


def counted(number: int, what: str) -> str:
    """A number of things, for people: `1 patch`, `2 patches`."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}{'es' if what.endswith('ch') else 's'}"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Run a stage's body on the threads that it may take: exit 1 with one line on a StageError, 130
    when interrupted."""
    use_threads(default_threads())
    try:
        yield
    except StageError as error:
        print(f"training.{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            f"training.{name}: interrupted; run the same command again to resume", file=sys.stderr
        )
        sys.exit(130)


@contextmanager
def option(name: str) -> Iterator[None]:
    """Turn an unusable checkpoint into a StageError that names the option that it came by."""
    try:
        yield
    except CheckpointError as error:
        raise StageError(f"{name}: {error}") from error


def try_to_write(option: str, folder: Path) -> None:
    """StageError unless a file can be written in `folder`, which need not be there yet.

    Hours of training come before what is written last. Leaves nothing behind.
    """
    made: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise StageError(f"{option}: {folder} is a file, expected a folder")
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tried")
    except OSError as error:
        raise StageError(f"{option}: {folder} cannot be written: {error.strerror}") from error
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def check_finite(what: str, value: Tensor | float, step: int, lower: str) -> None:
    """RunError that names the step and what to `lower` where training went astray."""
    number = value.detach().item() if isinstance(value, Tensor) else value
    if not math.isfinite(number):
        raise RunError(
            f"step {step}: the {what} is {number}; lower {lower}. The last saved state is kept"
        )


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
    """Write tensors and JSON-able `meta` as one safetensors file, atomically.

    RunError where a value is not finite; what was there before stays.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if lost := not_finite(contiguous):
        raise RunError(f"{path}: not written: {lost} is not finite; lower the learning rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(contiguous, partial, {"meta": json.dumps(meta)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number."""
    floating = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    return next((name for name, tensor in floating if not tensor.isfinite().all()), None)


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
    """Moments and step counts by flat name."""
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


def adamw(
    parameters: Iterable[nn.Parameter], rate: float, decay: float, beta2: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolutions alone."""
    parameters = list(parameters)
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


def state_beside(path: Path) -> Path:
    """Where a stage that writes `path` at its end keeps what it has until then."""
    return path.with_name(f"{path.name}.state")


def drop_state(path: Path) -> None:
    """Take away a state that is no longer needed, and what a kill left half-written of one."""
    for each in (path, path.with_suffix(".partial")):
        each.unlink(missing_ok=True)


def said_change(path: Path, held: dict[str, Any], now: str) -> None:
    """Say where the steps of a state were made in another precision than those to come."""
    if held["precision"] != now:
        print(
            f"{path}: its steps were made in {held['precision']}, further steps use {now}, "
            "which is faster here; the result mixes both precisions",
            flush=True,
        )


class Saves:
    """Tells when a state is to be saved again."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def due(self) -> bool:
        """Whether SAVE_S have passed since the last state."""
        return time.monotonic() - self.since >= SAVE_S

    def done(self) -> None:
        """A state was saved just now."""
        self.since = time.monotonic()


class ProgressLog:
    """Means of named figures between reports, printed and appended to `progress.jsonl`.

    Without a folder they are printed alone; with `every` 0 no number of steps makes a report due.
    """

    def __init__(self, folder: Path | None, stage: str, every: int = SAY_STEPS) -> None:
        self.path = folder and folder / "progress.jsonl"
        self.stage, self.every = stage, every
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()

    def add(self, figures: dict[str, float]) -> None:
        """Note one step's figures."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def due(self, step: int) -> bool:
        """Whether it is time for a report: `every` steps or SAY_S after the last."""
        by_steps = bool(self.every) and step % self.every == 0
        return by_steps or time.monotonic() - self.since >= SAY_S

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
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"stage": self.stage, **record}) + "\n")
