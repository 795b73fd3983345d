"""The ablations' configuration: the budget that all rows share, the rows, the paper's figures.

One TOML file says all of it (`training/ablations.toml`). Knows no tensors.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config import STEM, PriorConfig, StructureInput, TokenizerConfig
from model.request import SamplingSettings
from training.run import StageError

SHIPPED = Path(__file__).parent.parent / "ablations.toml"
GRIDS = SHIPPED.with_stem("ablations-256")
"""Table VIII (A) again, on tiles of the paper's size."""

Order = Literal[
    "one", "appearance", "structure_appearance", "appearance_structure", "interleaved", "asymmetric"
]
"""How the prior lines tokens up: the only stream; the appearance stream alone; one whole stream and
then the other, two ways; location by location with plain causal attention; and the full model,
where structure never sees appearance."""

Positions = Literal["grid", "line"]
"""What a plain causal order knows of a token's place: its location in the grid, or only how many
tokens stand before it."""

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Widths = tuple[Count, ...]


class AblationsError(StageError):
    """A configuration that cannot be run; the sentence names the field and what is wrong."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Strict):
    """What every row gets alike. `widths` and `structure_widths` name a tokenizer's channels by
    level for each downsampling factor, as `f16`; a level has one residual block.
    """

    image_size: Count
    codebook_dim: Count
    widths: dict[str, Widths]
    structure_widths: dict[str, Widths]
    tokenizer_steps: Count
    tokenizer_batch: Count
    tokenizer_rate: Rate
    codebook_start: Count
    layers: Count
    heads: Count
    width: Count
    prior_steps: Count
    prior_batch: Count
    prior_rate: Rate
    decay: Rate
    segmenter_steps: Count
    samples: Annotated[int, Field(ge=4)]
    seeds: tuple[int, ...] = Field(min_length=1)

    def prior(self) -> PriorConfig:
        """Sizes of every row's prior."""
        return PriorConfig(self.layers, self.heads, self.width)


class Sampling(_Strict):
    """How every row is sampled."""

    cfg_scale: Annotated[float, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)]
    top_k: Annotated[int, Field(ge=0)]

    def settings(self, codebook_size: int) -> SamplingSettings:
        """For a codebook of that size, which may be smaller than `top_k`."""
        return SamplingSettings(self.cfg_scale, self.temperature, min(self.top_k, codebook_size))


class Variant(_Strict):
    """One variant of the model. What a row does not name is as in the full model."""

    codebooks: Literal["single", "dual"] = "dual"
    order: Order = "asymmetric"
    downsample: Count = 16
    codebook_size: Count = 1024
    structure_input: StructureInput = "mask"
    one_modality: bool = False
    updates: Literal["share", "all"] = "share"
    """Of one modality a model: whether each gets its share of the budget's updates, or all."""
    positions: Positions = "grid"
    restarts: bool = True
    """Whether codebooks start from k-means and dead entries are moved onto badly served latents."""

    @model_validator(mode="after")
    def _one_stream_has_one_order(self) -> Variant:
        if (self.codebooks == "single") != (self.order == "one"):
            raise ValueError("codebooks `single` and order `one` go together")
        if self.positions == "line" and self.order == "asymmetric":
            raise ValueError("positions `line` goes with a plain causal order")
        if self.updates == "all" and not self.one_modality:
            raise ValueError("updates `all` goes with one_modality")
        return self

    def tokenizer(self, budget: Budget) -> TokenizerConfig:
        """Sizes of this row's tokenizer."""
        widths = budget.widths[f"f{self.downsample}"]
        levels = len(widths)
        return TokenizerConfig(
            image_size=budget.image_size,
            codebook_size=self.codebook_size,
            codebook_dim=budget.codebook_dim,
            widths=widths,
            encoder_blocks=(1,) * levels,
            decoder_blocks=(1,) * levels,
            structure_widths=budget.structure_widths[f"f{self.downsample}"],
            structure_blocks=(0,) + (1,) * (levels - 1),
            structure_input=self.structure_input,
        )


class Printed(_Strict):
    """A figure as the paper prints it, by modality and averaged; what it leaves out is None."""

    cytology: float | None = None
    fluorescence: float | None = None
    histology: float | None = None
    average: float | None = None


class TableRow(_Strict):
    """A line of a table: which row of ours it is, and the paper's figures.

    `fid` is FID-DINOv2, `kid` KID-UNI, `use` the shares of the structure and the appearance
    codebook in use, 0..1.
    """

    row: str
    title: str
    fid: Printed = Printed()
    kid: Printed = Printed()
    use: tuple[float, float] | None = None


class Table(_Strict):
    """A table of the paper, or one of ours."""

    title: str
    rows: tuple[TableRow, ...]


class Ablations(_Strict):
    """The whole file."""

    budget: Budget
    sampling: Sampling
    rows: dict[str, Variant]
    tables: tuple[Table, ...]

    @model_validator(mode="after")
    def _rows_can_be_built(self) -> Ablations:
        for table in self.tables:
            for line in table.rows:
                if line.row not in self.rows:
                    raise ValueError(f"{table.title}: row {line.row!r} is not in rows")
        self.budget.prior()
        for name, row in self.rows.items():
            for field in ("widths", "structure_widths"):
                held = getattr(self.budget, field).get(f"f{row.downsample}")
                if held is None:
                    raise ValueError(
                        f"budget.{field}: has no f{row.downsample}, which {name} needs"
                    )
                if STEM * 2 ** (len(held) - 1) != row.downsample:
                    raise ValueError(
                        f"budget.{field}.f{row.downsample}: {len(held)} levels make an f of "
                        f"{STEM * 2 ** (len(held) - 1)}"
                    )
            row.tokenizer(self.budget)
        return self


def read_settings(path: Path) -> Ablations:
    """Read the configuration strictly; AblationsError names the first field that is wrong."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise AblationsError(f"{path}: cannot be read ({error})") from error
    try:
        return Ablations.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "configuration"
        said = first["msg"].removeprefix("Value error, ")
        raise AblationsError(f"{path}: {where}: {said}") from error
