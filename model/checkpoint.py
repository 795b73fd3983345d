"""Checkpoints: a folder with `config.json` and `model.safetensors`, loaded strictly.

`config.json` holds the model's configuration and the SHA-256 of the weights. So the SHA-256 of
`config.json` itself is the model's version. The prior's linear layers are stored in 8 bits, other
matrices in bf16; they are read as fp32. Anything that does not fit exactly is rejected with a
CheckpointError. A segmenter may lie beside them (`model/segmenter.py`); it is no part of the
version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.config import ConfigError, ModelConfig, PriorConfig, TokenizerConfig
from model.request import Audit, Label, Learned, SamplingSettings, check_settings
from model.segmenter import FILE as SEGMENTER
from model.segmenter import Segmenter, SegmenterError, read_segmenter
from model.tokenizer import Tokenizer
from model.transformer import Prior

FORMAT = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LARGEST = ".largest"
"""Ends the name of the tensor that holds the largest magnitude of each row of an 8-bit matrix."""
STEPS = 127
"""8-bit weights are -STEPS to STEPS times largest / STEPS, as `model/native/decode.cpp` rounds."""
FACTS = "data.json"
"""What is known of the training's patches: a digest of the groups that it held out, and by label
what they held (`training.overview`) and the audit for copies (`training.evaluate`)."""
DRAWS = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.functional.normalize}
"""What fills fresh weights of the networks; each takes the tensor first and returns it."""


class CheckpointError(ValueError):
    """A folder that is no usable checkpoint; the sentence names the file and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, in eval mode, fp32 on the CPU. `version` is 64 hex digits."""

    config: ModelConfig
    version: str
    tokenizer: Tokenizer
    prior: Prior
    segmenter: Segmenter | None = None
    learned: Mapping[str, Learned] = field(default_factory=dict)


class _WithoutDraws(TorchFunctionMode):
    """Builds networks without drawing the weights that a checkpoint replaces. For such a draw on
    `meta` torch would load its compiler, which takes a second.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if function in DRAWS:
            return next(iter((*args, *given.values())))
        return function(*args, **given)


def build(config: ModelConfig) -> tuple[Tokenizer, Prior]:
    """The two networks of a configuration, with fresh weights."""
    prior = Prior(
        config.prior,
        codebook_size=config.tokenizer.codebook_size,
        grid_size=config.tokenizer.grid_size,
        labels=len(config.labels),
    )
    return Tokenizer(config.tokenizer), prior


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder; CheckpointError on anything missing, altered or misfitting."""
    text = _read(path / CONFIG)
    config, wanted = _parse_config(path / CONFIG, text)
    weights = path / WEIGHTS
    digest = hashlib.sha256(_read(weights)).hexdigest()
    if digest != wanted:
        raise CheckpointError(
            f"{weights}: its SHA-256 is {digest[:12]}..., {CONFIG} expects {wanted[:12]}...; "
            "the file is damaged or not the one that this configuration belongs to"
        )
    try:
        tensors = _restored(weights, load_file(weights))
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: is not a safetensors file ({error})") from error
    with _WithoutDraws():
        with torch.device("meta"):  # sizes alone: nothing is allocated for a misfit
            _refuse_misfit(weights, _parts(*build(config)), tensors)
        tokenizer, prior = build(config)
    _fill(_parts(tokenizer, prior), tensors)
    try:
        segmenter = read_segmenter(path / SEGMENTER)
    except SegmenterError as error:
        raise CheckpointError(str(error)) from error
    version = hashlib.sha256(text).hexdigest()
    learned = read_learned(path / FACTS)
    return Checkpoint(config, version, tokenizer.eval(), prior.eval(), segmenter, learned)


def read_learned(path: Path) -> dict[str, Learned]:
    """By label, from a checkpoint's `data.json`; empty without one. CheckpointError."""
    if not path.exists():
        return {}
    try:
        told = json.loads(_read(path)).get("labels", {})
        return {
            name: Learned(of.get("nuclei_a_patch"), Audit(**of["audit"]) if "audit" in of else None)
            for name, of in told.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not what is known of patches ({error})") from error


def save_checkpoint(path: Path, config: ModelConfig, tokenizer: Tokenizer, prior: Prior) -> Path:
    """Write a checkpoint folder; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {n: stored(n, t) for n, t in _named(_parts(tokenizer, prior)).items()}
    linear = [name for name, module in prior.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        tensors |= _in_8_bits(f"prior.{name}.weight", tensors[f"prior.{name}.weight"])
    save_file(tensors, path / WEIGHTS)
    (path / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()
    document = {"format": FORMAT, "weights_sha256": digest, **config.to_dict()}
    (path / CONFIG).write_text(json.dumps(document, indent=1) + "\n")
    return path


def store_defaults(
    path: Path, settings: SamplingSettings, of_labels: Mapping[str, SamplingSettings] | None = None
) -> str:
    """Make `settings` what the checkpoint folder recommends, and `of_labels` for labels that have
    others; returns its version, which is new.

    Nothing else in `config.json` changes, and it is replaced whole or not at all. RequestError on
    settings out of range, CheckpointError on a configuration that cannot be read or written.
    """
    text = _read(path / CONFIG)
    config, _ = _parse_config(path / CONFIG, text)
    of_labels = of_labels or {}
    for each in (settings, *of_labels.values()):
        check_settings(each, config.tokenizer.codebook_size)
    labels = [replace(label, defaults=of_labels.get(label.name)) for label in config.labels]
    changed = replace(config, defaults=settings, labels=tuple(labels)).to_dict()
    document = json.loads(text) | {name: changed[name] for name in ("defaults", "labels")}
    written = (json.dumps(document, indent=1) + "\n").encode()
    partial = path / f"{CONFIG}.partial"
    try:
        with partial.open("wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path / CONFIG)
    except OSError as error:
        raise CheckpointError(f"{path / CONFIG}: cannot be written ({error.strerror})") from error
    return hashlib.sha256(written).hexdigest()


def create_random_checkpoint(
    path: Path,
    name: str,
    sizes: tuple[TokenizerConfig, PriorConfig],
    *,
    labels: Sequence[Label],
    seed: int = 0,
) -> Path:
    """Write a checkpoint with random weights, for tests and benchmarks."""
    config = ModelConfig(
        name=f"{name}-random",
        size=name,
        tokenizer=sizes[0],
        prior=sizes[1],
        labels=tuple(labels),
        defaults=SamplingSettings(),
        licence="Apache-2.0",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, prior = build(config)
        _spread(prior)
    return save_checkpoint(path, config, tokenizer, prior)


@torch.no_grad()
def _spread(prior: Prior) -> None:
    """Widen fresh weights: as initialised, every token would be about equally likely."""
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.7 * parameter.shape[1] ** -0.5)
    for head in (prior.structure_head, prior.appearance_head):
        head.weight.mul_(3)


def _parts(tokenizer: Tokenizer, prior: Prior) -> dict[str, nn.Module]:
    return {"tokenizer": tokenizer, "prior": prior}


def _named(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def stored(name: str, tensor: Tensor) -> Tensor:
    """Matrices in bf16; vectors and codebooks, which are small and decide much, in fp32."""
    exact = tensor.ndim <= 1 or name.endswith("entries")
    return tensor.detach().to("cpu", torch.float32 if exact else torch.bfloat16).contiguous()


def _in_8_bits(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """A matrix [out, in] as 8-bit integers and the largest magnitude of each row [out].

    Of weights in bf16, the compiled decode step makes the same integers and scales before and
    after: a largest magnitude comes back exactly.
    """
    weights = matrix.float()
    largest = weights.abs().amax(1)
    # Not STEPS / largest, which torch rounds twice, as it takes the reciprocal first.
    steps = torch.where(largest > 0, torch.full_like(largest, STEPS) / largest, 0.0)
    return {name: (weights * steps[:, None]).round().to(torch.int8), name + LARGEST: largest}


def _restored(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by name, those of `_in_8_bits` in fp32. CheckpointError where these do not fit
    each other."""
    restored = {name: tensor for name, tensor in tensors.items() if not name.endswith(LARGEST)}
    for name in restored:
        matrix, largest = restored[name], tensors.get(name + LARGEST)
        if (matrix.dtype == torch.int8) != (largest is not None):
            raise CheckpointError(f"{path}: {name} is in 8 bits without {LARGEST}, or has it alone")
        if largest is not None:
            if matrix.ndim != 2 or largest.shape != matrix.shape[:1]:
                shapes = f"{list(largest.shape)}, expected the rows of {list(matrix.shape)}"
                raise CheckpointError(f"{path}: {name}{LARGEST} has shape {shapes}")
            restored[name] = matrix.float() * largest.float()[:, None] / STEPS
    if lost := sorted(
        n for n in set(tensors) - set(restored) if n[: -len(LARGEST)] not in restored
    ):
        raise CheckpointError(f"{path}: has an unknown tensor {lost[0]} ({len(lost)} in all)")
    return restored


def _refuse_misfit(path: Path, parts: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    """CheckpointError unless every name and shape matches, both ways, and all values are finite."""
    expected = _named(parts)
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{path}: lacks the tensor {missing[0]} ({len(missing)} in all)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{path}: has an unknown tensor {unknown[0]} ({len(unknown)} in all)")
    for name, target in expected.items():
        if target.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(target.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")


@torch.no_grad()
def _fill(parts: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
    for name, target in _named(parts).items():
        target.copy_(tensors[name])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _parse_config(path: Path, text: bytes) -> tuple[ModelConfig, str]:
    try:
        document: dict[str, Any] = json.loads(text)
        form, digest = document.pop("format"), str(document.pop("weights_sha256"))
    except RecursionError as error:
        raise CheckpointError(f"{path}: is nested too deeply") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint configuration ({error})") from error
    if form != FORMAT:
        raise CheckpointError(f"{path}: has format {form!r}, this version reads {FORMAT}")
    try:
        return ModelConfig.from_dict(document), digest
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
