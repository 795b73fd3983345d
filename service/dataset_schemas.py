"""The models of recipes and data sets in HTTP, and how they are made from the store's.

`pathar.recipe.Recipe` checks a recipe: DatasetBody describes it in the OpenAPI document and in
answers. Knows neither Redis nor routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field

from pathar.contract import MAX_SEED
from pathar.recipe import FORMATS, JOB_PAIRS, MOST_PAIRS, Format, ModelRef
from service.request_schemas import SIDE, CfgScale, Side, Strict, Temperature, TopK, TopKs, TopP
from store.datasets import Dataset, Shard

MANIFEST = "manifest.json"
CARD = "README.md"
SHEET = "contact_sheet.jpg"

TWO: dict[str, Any] = {"min_length": 2, "max_length": 2}
CfgScaleDrawn = CfgScale | Annotated[list[CfgScale], Field(**TWO)]
TemperatureDrawn = Temperature | Annotated[list[Temperature], Field(**TWO)]
TopPDrawn = TopP | Annotated[list[TopP], Field(**TWO)]


class CfgScalesDrawn(Strict):
    """Guidance of each stream."""

    structure: CfgScaleDrawn
    appearance: CfgScaleDrawn


class TemperaturesDrawn(Strict):
    """The temperature of each stream."""

    structure: TemperatureDrawn
    appearance: TemperatureDrawn


class TopPsDrawn(Strict):
    """The probability of the most likely tokens that each stream is drawn from."""

    structure: TopPDrawn
    appearance: TopPDrawn


class DatasetSettings(Strict):
    """How the pairs of a data set are drawn: a number, or [low, high] to draw one from for each
    job, for both streams or for each. What is left out or null is the label's default."""

    cfg_scale: CfgScaleDrawn | CfgScalesDrawn | None = None
    temperature: TemperatureDrawn | TemperaturesDrawn | None = None
    top_k: TopK | TopKs | None = None
    top_p: TopPDrawn | TopPsDrawn | None = None


class DatasetBody(Strict):
    """A recipe, as `pathar pull` takes it in a file. Only `labels` is required."""

    labels: dict[str, Annotated[int, Field(ge=1, le=MOST_PAIRS)]] = Field(
        min_length=1,
        description="how many pairs of each label, in this order",
        examples=[{"histology": 2500, "cytology": 2500}],
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        default=None, description="the master seed, 0 when left out"
    )
    model: str | None = Field(
        default=None, description="the name of a model; needed when several models have a label"
    )
    settings: DatasetSettings | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="the least agreement of a pair that is kept"
    )
    best_of: Annotated[int, Field(ge=1, le=JOB_PAIRS)] | None = Field(
        default=None,
        description="images drawn for each pair, of which one is kept; 1 when left out",
    )
    format: Format | None = Field(
        default=None, description=f"one of {', '.join(FORMATS)}; the first when left out"
    )
    shard_size: Annotated[int, Field(ge=1, le=MOST_PAIRS)] | None = Field(
        default=None,
        description="pairs of a shard, 1000 when left out; a data set has up to 1000 shards",
    )
    width: Side | None = Field(default=None, description=SIDE)
    height: Side | None = Field(default=None, description=SIDE)


class DatasetModel(BaseModel):
    """The model that draws a label; `mpp` in microns a pixel, null where unknown."""

    name: str
    version: str
    numerics: str
    mpp: float | None
    learned: dict[str, Any]


class ShardState(BaseModel):
    """A shard that is stored. `drawn`: how many pairs were drawn for the jobs whose first pair it
    has. `sha256` is that of its files one after the other: of the one file of WebDataset and
    Parquet. `link` lists its files."""

    number: int
    pairs: int
    drawn: int
    files: int
    bytes: int
    sha256: str
    link: str


class DatasetLinks(BaseModel):
    """The paths of its files: all lie below `files`. They are there once it is finished; the files
    of a shard once that is stored."""

    files: str
    manifest: str
    card: str
    contact_sheet: str


class DatasetSummary(BaseModel):
    """A data set as `GET /datasets` lists it; times are Unix seconds.

    Of its `pairs`, `pairs_kept` are drawn and `pairs_stored` are in stored shards. `pairs_drawn`
    counts all that were drawn for them, also those that a filter did not keep. `rate` in kept pairs
    per second and `seconds_left` are null before they are measured. `trouble` says why nothing
    moves at the moment. `location` is its folder in the storage of results.
    """

    dataset_id: str
    status: Literal["queued", "started", "paused", "finished", "failed", "canceled"]
    recipe: DatasetBody
    models: dict[str, DatasetModel]
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: str | None
    trouble: str | None
    pairs: int
    pairs_kept: int
    pairs_drawn: int
    pairs_stored: int
    rate: float | None
    seconds_left: float | None
    shards_total: int
    bytes: int
    location: str


class DatasetState(DatasetSummary):
    """A data set as `GET /datasets/{id}` shows it, with the shards that are stored."""

    shards: list[ShardState]
    links: DatasetLinks


class DatasetList(BaseModel):
    """Your data sets, the newest first."""

    datasets: list[DatasetSummary]


class DatasetFile(BaseModel):
    """A file of a shard."""

    path: str
    bytes: int
    sha256: str
    link: str


class ShardFiles(BaseModel):
    """The files of a stored shard. `quality` has, by label, what is counted of its pairs: the
    manifest adds it up."""

    number: int
    pairs: int
    quality: dict[str, Any]
    files: list[DatasetFile]


def dataset_state(dataset: Dataset, location: str, root_path: str) -> DatasetState:
    """The JSON form of a data set; `location` is the URL of the storage. Links begin with
    `root_path`, where the API is mounted."""
    base = f"{root_path}/datasets/{dataset.id}"
    files = f"{base}/files"
    return DatasetState(
        **dict(dataset_summary(dataset, location)),
        shards=[_shard(shard, base) for shard in dataset.shards],
        links=DatasetLinks(
            files=files,
            manifest=f"{files}/{MANIFEST}",
            card=f"{files}/{CARD}",
            contact_sheet=f"{files}/{SHEET}",
        ),
    )


def dataset_summary(dataset: Dataset, location: str) -> DatasetSummary:
    """The JSON form of a data set without its shards."""
    assert dataset.status != "dropped"
    ended = dataset.status in ("finished", "failed", "canceled")
    return DatasetSummary(
        dataset_id=dataset.id,
        status=dataset.status,
        recipe=DatasetBody(**dataset.recipe.to_dict()),
        models={label: _model(ref) for label, ref in dataset.models.items()},
        created_at=dataset.created_at,
        started_at=dataset.started_at,
        ended_at=dataset.ended_at,
        error=dataset.error,
        trouble=dataset.trouble,
        pairs=dataset.recipe.pairs,
        pairs_kept=dataset.kept,
        pairs_drawn=dataset.drawn,
        pairs_stored=dataset.stored,
        rate=dataset.rate,
        seconds_left=0.0 if ended else dataset.seconds_left,
        shards_total=len(dataset.plan.shards),
        bytes=sum(shard.bytes for shard in dataset.shards),
        location=f"{location}/{dataset.folder}",
    )


def shard_files(number: int, record: Mapping[str, Any], base: str) -> ShardFiles:
    """The JSON form of a shard's record; `base` is the path of the data set's files."""
    files = [DatasetFile(**each, link=f"{base}/{quote(each['path'])}") for each in record["files"]]
    return ShardFiles(number=number, pairs=record["pairs"], quality=record["quality"], files=files)


def _shard(shard: Shard, base: str) -> ShardState:
    return ShardState(**vars(shard), link=f"{base}/shards/{shard.number}")


def _model(ref: ModelRef) -> DatasetModel:
    return DatasetModel(**vars(ref))
