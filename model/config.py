"""Frozen configurations and the table of named sizes.

A configuration is stored as JSON inside the checkpoint and the model is built from it alone, so
nothing elsewhere may assume 256 pixels, f = 16 or K = 1024. Knows no tensors and no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from model.request import Label, RequestError, SamplingSettings, check_settings, defaults_of
from pathar.contract import LEAST_MPP, MOST_MPP

StructureInput = Literal["mask", "image_mask", "mask_borders"]
STEM = 4
"""Pixels a side that the tokenizer's stem folds into channels before any convolution."""
FINE_LEVELS = 2
"""Levels finer than the stem's: 1/2 of the patch's side, and the whole."""

LARGEST_IMAGE = 1024
LARGEST_WIDTH = 2**16
"""Of channels and codebooks. A checkpoint's own tensors say sooner what does not fit."""
MOST_LAYERS = 256
MOST_LEVELS = 6
LONGEST_NAME = 100


class ConfigError(ValueError):
    """A configuration that no model can be built from; the sentence names the field."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of the Dual-VQ tokenizer (docs/method.md, section 2).

    `widths[i]` channels work at 1 / (4 * 2^i) of the patch's side; the last level is the latent
    grid, so `downsample` is 4 * 2^(levels - 1). `structure_*` sizes the lighter structure path.

    `fine_widths` holds the image decoder's channels at 1/2 and at the full side of the patch, which
    it then reaches by doublings that are smoothed; empty, by pixel shuffles alone.
    """

    image_size: int
    codebook_size: int
    codebook_dim: int
    widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    structure_widths: tuple[int, ...]
    structure_blocks: tuple[int, ...]
    structure_input: StructureInput = "mask"
    fine_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        levels = len(self.widths)
        _check_range("tokenizer.widths", levels, 1, MOST_LEVELS, "entries")
        _check_range("tokenizer.image_size", self.image_size, 1, LARGEST_IMAGE)
        _check_range("tokenizer.codebook_size", self.codebook_size, 2, LARGEST_WIDTH)
        _check_range("tokenizer.codebook_dim", self.codebook_dim, 1, LARGEST_WIDTH)
        for name in ("widths", "structure_widths", "fine_widths"):
            for width in getattr(self, name):
                _check_range(f"tokenizer.{name}", width, 1, LARGEST_WIDTH)
        for name in ("encoder_blocks", "decoder_blocks", "structure_blocks"):
            for blocks in getattr(self, name):
                _check_range(f"tokenizer.{name}", blocks, 0, MOST_LAYERS)
        for name in ("encoder_blocks", "decoder_blocks", "structure_widths", "structure_blocks"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"tokenizer.{name}: expected {levels} entries, one per level")
        if self.image_size % self.downsample:
            raise ConfigError(
                f"tokenizer.image_size: {self.image_size} is not a multiple of {self.downsample}"
            )
        if len(self.fine_widths) not in (0, FINE_LEVELS):
            raise ConfigError(
                f"tokenizer.fine_widths: got {list(self.fine_widths)}, expected {FINE_LEVELS} "
                "entries, or none"
            )

    @property
    def structure_planes(self) -> int:
        """Planes that structure keeps: 2 with borders (the mask, then borders), else 1."""
        return 2 if self.structure_input == "mask_borders" else 1

    @property
    def downsample(self) -> int:
        """Pixels a side that one latent location covers (the paper's f)."""
        return int(STEM * 2 ** (len(self.widths) - 1))

    @property
    def grid_size(self) -> int:
        """Latent locations a side (the paper's h = w)."""
        return self.image_size // self.downsample


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the interleaved autoregressive prior (docs/method.md, section 3)."""

    layers: int
    heads: int
    width: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_range("prior.layers", self.layers, 1, MOST_LAYERS)
        _check_range("prior.heads", self.heads, 1, MOST_LAYERS)
        _check_range("prior.width", self.width, 1, LARGEST_WIDTH)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"prior.dropout: got {self.dropout}, expected from 0 to below 1")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ConfigError(
                f"prior.width: {self.width} over {self.heads} heads must give a head width that "
                "is a multiple of 4 (2D RoPE rotates pairs, half of them by row, half by column)"
            )


@dataclass(frozen=True)
class ModelConfig:
    """All of a checkpoint but its weights."""

    name: str
    size: str
    tokenizer: TokenizerConfig
    prior: PriorConfig
    labels: tuple[Label, ...]
    defaults: SamplingSettings
    licence: str

    def __post_init__(self) -> None:
        names = [label.name for label in self.labels]
        if not names or len({name.casefold() for name in names}) != len(names):
            raise ConfigError(f"labels: expected distinct names, at least one, got {names}")
        _check_name("name", self.name)
        for label in self.labels:
            _check_name("labels", label.name)
            if label.mpp and not LEAST_MPP <= label.mpp <= MOST_MPP:
                raise ConfigError(
                    f"labels: {label.name} has mpp {label.mpp}, expected {LEAST_MPP} to {MOST_MPP} "
                    "microns a pixel, or 0 where it is unknown"
                )
        self._check_defaults("", self.defaults)
        for label in self.labels:
            if label.defaults is not None:
                self._check_defaults(f"labels: {label.name}: ", label.defaults)

    def _check_defaults(self, where: str, settings: SamplingSettings) -> None:
        try:
            check_settings(settings, self.tokenizer.codebook_size)
        except RequestError as error:
            raise ConfigError(f"{where}defaults.{error}") from error

    def label_index(self, name: str) -> int:
        """The label's row in the prior's label embedding; ValueError if unknown."""
        return [label.name for label in self.labels].index(name)

    def settings(self, label: str) -> SamplingSettings:
        """See `defaults_of`."""
        return defaults_of(label, self.labels, self.defaults)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Build strictly: a missing or unknown key, a value of another type or out of its range is
        a ConfigError that names it.
        """
        return _build(cls, data, "")


Section = TypeVar("Section")


def _build(cls: type[Section], data: object, where: str) -> Section:
    """A dataclass from a JSON object, with keys checked both ways and values by their type."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'config'}: got {data!r}, expected an object")
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - names):
        raise ConfigError(f"{where or 'config'}: unknown key {unknown[0]!r}")
    hints = get_type_hints(cls)
    inside = f"{where}." if where else ""
    values = {name: _typed(value, hints[name], inside + name) for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _typed(value: object, hint: Any, where: str) -> Any:
    """A JSON value as what a field is declared to be; whole numbers are numbers, too."""
    if get_origin(hint) is UnionType:
        hint = _one_of(get_args(hint), value)
    if hint is NoneType and value is None:
        return None
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: got {value!r}, expected a list")
        return tuple(_typed(each, get_args(hint)[0], where) for each in value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(
                f"{where}: got {value!r}, expected one of {', '.join(get_args(hint))}"
            )
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return value
    if type(value) is not hint or hint is float:
        kinds = {int: "an integer", float: "a number", str: "a text"}
        raise ConfigError(f"{where}: got {value!r}, expected {kinds[hint]}")
    return value


def _one_of(hints: Sequence[Any], value: object) -> Any:
    """Which of several declared types a JSON value is meant to be: an object is a dataclass."""
    if value is None:
        return NoneType if NoneType in hints else hints[0]
    made = [isinstance(hint, type) and is_dataclass(hint) for hint in hints]
    return hints[made.index(isinstance(value, Mapping))] if any(made) else hints[0]


def _check_range(where: str, value: int, low: int, high: int, what: str = "") -> None:
    if not low <= value <= high:
        raise ConfigError(f"{where}: got {value}, expected {low} to {high} {what}".rstrip())


def _check_name(where: str, name: str) -> None:
    if (
        not 0 < len(name) <= LONGEST_NAME
        or name != " ".join(name.split())
        or not name.isprintable()
    ):
        raise ConfigError(
            f"{where}: got {name[:LONGEST_NAME]!r}, expected 1 to {LONGEST_NAME} printable "
            "characters without blanks around them"
        )


NAMED_SIZES: dict[str, tuple[TokenizerConfig, PriorConfig]] = {
    # Seconds to train and decode: for tests.
    "test": (
        TokenizerConfig(
            image_size=64,
            codebook_size=64,
            codebook_dim=8,
            widths=(16, 32),
            encoder_blocks=(1, 1),
            decoder_blocks=(1, 1),
            structure_widths=(8, 16),
            structure_blocks=(0, 1),
        ),
        PriorConfig(layers=2, heads=2, width=32),
    ),
    # Ships: fits 32 MB in 8 bits and draws on a laptop.
    "small": (
        TokenizerConfig(
            image_size=256,
            codebook_size=1024,
            codebook_dim=32,
            widths=(32, 128, 192),
            encoder_blocks=(1, 1, 2),
            decoder_blocks=(1, 2, 2),
            structure_widths=(32, 64, 128),
            structure_blocks=(0, 1, 1),
            structure_input="mask_borders",
            fine_widths=(16, 8),
        ),
        PriorConfig(layers=6, heads=5, width=320, dropout=0.1),
    ),
    # The paper's sizes.
    "paper": (
        TokenizerConfig(
            image_size=256,
            codebook_size=1024,
            codebook_dim=256,
            widths=(128, 256, 512),
            encoder_blocks=(2, 2, 2),
            decoder_blocks=(2, 2, 2),
            structure_widths=(64, 128, 256),
            structure_blocks=(1, 1, 1),
        ),
        PriorConfig(layers=8, heads=8, width=512, dropout=0.1),
    ),
}
