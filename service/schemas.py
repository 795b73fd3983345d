"""The HTTP models: what a request body may hold and what the answers look like.

Types and fixed ranges are checked here, strictly; what depends on the model (labels, top_k's upper
bound) is checked by `model.request.resolve`. Knows neither Redis nor routes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from model.contract import (
    ARCHIVE_NAME,
    IMAGE_NAME,
    JOB_ID,
    JOB_ID_EXPECTED,
    MASK_NAME,
    MAX_SEED,
    STATUSES,
    TOKENS_NAME,
    Priority,
    Status,
)
from model.request import CFG_SCALE_RANGE, MAX_IMAGES, TEMPERATURE_RANGE, GenerationRequest
from store.job import Job, Page, Part, Summary
from store.registry import KnownModel

MAX_WAIT = 300
DEFAULT_WAIT = 25
"""Seconds: less than the 30 and 60 after which load balancers and proxies give up on an answer."""
MOST_EMBEDDED = 64
"""The most pairs that an answer holds in base64; more are fetched as files or as an archive."""
MOST_LISTED = 200
LONGEST_TICKET = 3600


class Strict(BaseModel):
    """Unknown fields forbidden, no coercion, no NaN. A field's description is what is expected."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: object) -> object:
    """JSON has one kind of number: 2.0 is 2."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_SEED:
        return int(value)
    return value


def _flag(value: object) -> object:
    """A query's true and false alone, as the OpenAPI document has it: 1 and yes are no booleans."""
    if not isinstance(value, str):
        return value
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _number(value: object) -> object:
    """A number in a URL as JSON writes it: Python would take 1_0 and digits of any script."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError("a number")
    return value


_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
InUrl = BeforeValidator(_number)
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES), BeforeValidator(_whole)]
TopK = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_whole)]


class GenerateBody(Strict):
    """The body of `POST /generate`; only `label` is required, null means the model's default."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "histology", "n": 4, "seed": 7}]}
    )

    label: str = Field(description="the name of a label, as in GET /labels", examples=["histology"])
    model: str | None = Field(
        default=None,
        description="the name of a model, as in GET /labels; "
        "needed when several models have the label",
        examples=["small"],
    )
    n: Count | None = Field(default=None, description=f"an integer from 1 to {MAX_IMAGES}")
    cfg_scale: float | None = Field(
        default=None,
        ge=CFG_SCALE_RANGE[0],
        le=CFG_SCALE_RANGE[1],
        description="a number from {:g} to {:g}".format(*CFG_SCALE_RANGE),
    )
    temperature: float | None = Field(
        default=None,
        ge=TEMPERATURE_RANGE[0],
        le=TEMPERATURE_RANGE[1],
        description="a number from {:g} to {:g}".format(*TEMPERATURE_RANGE),
    )
    top_k: TopK | None = Field(
        default=None, description="an integer from 0 to the model's codebook size"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="a number above 0 and up to 1"
    )
    seed: Seed | None = Field(default=None, description=f"an integer from 0 to {MAX_SEED}")
    priority: Priority | None = Field(
        default=None,
        description="'interactive' (the default) or 'bulk', which fills what interactive leaves",
    )


class GenerateQuery(BaseModel):
    """The query of `POST /generate`: seconds to wait for the result."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    wait: Annotated[float, Field(ge=0, le=MAX_WAIT), InUrl] | None = Field(
        default=None,
        description=f"a number of seconds from 0 to {MAX_WAIT}; {DEFAULT_WAIT} when left out",
    )


class DeleteQuery(BaseModel):
    """The query of `DELETE /jobs/{id}`: whether its results go too."""

    model_config = ConfigDict(extra="forbid")

    files: Flag = Field(default=False, description="true or false: drop the files too")


class TicketQuery(BaseModel):
    """The query of `POST /jobs/{id}/tickets`: how many seconds the ticket is good for."""

    model_config = ConfigDict(extra="forbid")

    seconds: Annotated[int, Field(ge=1, le=LONGEST_TICKET), InUrl] = Field(
        default=600, description=f"an integer from 1 to {LONGEST_TICKET}"
    )


class PageQuery(BaseModel):
    """The query of `GET /jobs`."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = Field(default=None, description=f"one of {', '.join(STATUSES)}")
    label: str | None = Field(default=None, max_length=100, description="the name of a label")
    cursor: str | None = Field(default=None, max_length=200, description="`next` of a page")
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED), InUrl] = Field(
        default=50, description=f"an integer from 1 to {MOST_LISTED}"
    )


PATHS: Mapping[str, str] = {
    "job_id": f"a job's id: {JOB_ID_EXPECTED}",
    "k": f"an integer from 0 to {MAX_IMAGES - 1}",
}
"""The parameters in paths and what they should be."""
JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$", description=PATHS["job_id"])]
ImageIndex = Annotated[int, Field(ge=0, lt=MAX_IMAGES), InUrl, Path(description=PATHS["k"])]

EXPECTED: Mapping[str, str] = {
    **{
        name: str(info.description)
        for model in (PageQuery, DeleteQuery, TicketQuery, GenerateBody, GenerateQuery)
        for name, info in model.model_fields.items()
    },
    **PATHS,
}


def expected_of(name: str, error: Mapping[str, Any]) -> str:
    """What a field should have been, from its description or pydantic's error."""
    if error["type"] == "extra_forbidden":
        if error["loc"][0] == "query":
            return "a query parameter that this route has; see /docs"
        return f"one of the fields {', '.join(GenerateBody.model_fields)}"
    if error["type"] == "model_type":
        return "a JSON object"
    return EXPECTED.get(name) or str(error["msg"]).removeprefix("Input should be ")


class FieldError(BaseModel):
    """One field that is wrong; `value` is cut when it is long."""

    field: str
    value: str | int | float | bool | None
    expected: str


class Problem(BaseModel):
    """An RFC 9457 problem document; `errors` is there where fields are wrong."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:pathar:invalid-request",
                    "title": "The request is not valid",
                    "status": 422,
                    "detail": "cfg_scale: expected a number from 1 to 10",
                    "errors": [
                        {
                            "field": "cfg_scale",
                            "value": 99,
                            "expected": "a number from 1 to 10",
                        }
                    ],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class ModelRef(BaseModel):
    """Which bits drew a job: the checkpoint's SHA-256 and the numerics of its workers."""

    name: str
    version: str
    numerics: str


class SettledSettings(BaseModel):
    """The settings that a job is drawn with, every default filled in."""

    n: int
    seed: int
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float


class Timing(BaseModel):
    """Seconds of one image; null where a stage has not been reached."""

    queue_s: float | None
    decode_s: float | None
    total_s: float | None


class Links(BaseModel):
    """Where one image's files are, once it is finished."""

    image: str
    mask: str
    tokens: str


class Progress(BaseModel):
    """Decode steps done, over all images of a job."""

    steps: int
    steps_total: int


class ImageState(BaseModel):
    """How far one image of a job is. `seed` with n = 1 draws this image again."""

    index: int
    seed: int
    status: Status
    timing: Timing
    links: Links


class JobSummary(BaseModel):
    """A job as `GET /jobs` lists it; times are Unix seconds.

    `position` is how many images, of everybody, are drawn before the job's next one; null when
    none of its images waits. `seconds_left` is estimated from measured rates; null before one is
    measured.
    """

    job_id: str
    status: Status
    priority: Priority
    model: ModelRef
    label: str
    settings: SettledSettings
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: str | None
    position: int | None
    seconds_left: float | None
    progress: Progress


class JobState(JobSummary):
    """A job as `GET /jobs/{id}` shows it; `zip` is where all its pairs are, once it is finished."""

    images: list[ImageState]
    zip: str


class Ticket(BaseModel):
    """What opens one job to whoever has it, in place of a key: `?ticket=` in a URL of that job.
    `expires_at` in Unix seconds."""

    ticket: str
    expires_at: float


class JobPage(BaseModel):
    """Jobs, the newest first; `next` is the cursor of the page after this one."""

    jobs: list[JobSummary]
    next: str | None


class TokenGrids(BaseModel):
    """The token ids of one image, row-major."""

    structure_tokens: list[list[int]]
    appearance_tokens: list[list[int]]


class DrawnImage(BaseModel):
    """One pair: PNGs in base64 (image RGB, mask L with 0 and 255), token grids row-major."""

    index: int
    seed: int
    image_png: str
    mask_png: str
    structure_tokens: list[list[int]]
    appearance_tokens: list[list[int]]
    timing: Timing


class Generation(BaseModel):
    """A finished job with its pairs."""

    job_id: str
    status: Status
    model: ModelRef
    label: str
    settings: SettledSettings
    images: list[DrawnImage]


class LabelInfo(BaseModel):
    """A label and a model that draws it; `ready` when a warm worker of that model lives."""

    name: str
    kind: Literal["modality", "organ"]
    model: str
    ready: bool


class LabelList(BaseModel):
    """All pairs of label and model that can be asked for."""

    labels: list[LabelInfo]


class Health(BaseModel):
    """The answer of `/healthz` and `/readyz` when all is well."""

    status: Literal["ok"]


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Where the OpenAPI document has the schema of a model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def job_state(job: Job, root_path: str = "") -> JobState:
    """The JSON form of a job; its links begin with where the API is mounted."""
    return JobState(
        **dict(job_summary(job)),
        images=[_image_state(f"{root_path}/jobs/{job.id}", part) for part in job.parts],
        zip=f"{root_path}/jobs/{job.id}/{ARCHIVE_NAME}",
    )


def job_page(page: Page) -> JobPage:
    """The JSON form of a page."""
    return JobPage(jobs=[job_summary(job) for job in page.jobs], next=page.next)


def job_summary(job: Summary) -> JobSummary:
    """The JSON form of a job without its images."""
    return JobSummary(
        job_id=job.id,
        status=job.status,
        priority=job.priority,
        model=_model_ref(job),
        label=job.request.label,
        settings=_settings(job.request),
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        error=job.error,
        position=job.ahead,
        seconds_left=job.seconds_left,
        progress=Progress(steps=job.steps, steps_total=job.steps_total),
    )


def generation(job: Job, files: Sequence[Mapping[str, bytes]]) -> Generation:
    """The JSON form of a finished job; `files` holds each part's files by name."""
    return Generation(
        job_id=job.id,
        status=job.status,
        model=_model_ref(job),
        label=job.request.label,
        settings=_settings(job.request),
        images=[drawn_image(part, of_part) for part, of_part in zip(job.parts, files, strict=True)],
    )


def label_list(models: Sequence[KnownModel]) -> LabelList:
    """Every label of every model."""
    return LabelList(
        labels=[
            LabelInfo(name=label.name, kind=label.kind, model=known.info.name, ready=known.ready)
            for known in models
            for label in known.info.labels
        ]
    )


def _model_ref(job: Summary) -> ModelRef:
    return ModelRef(name=job.model.name, version=job.model.version, numerics=job.model.numerics)


def _settings(request: GenerationRequest) -> SettledSettings:
    fields = request.to_dict()
    fields.pop("label")
    return SettledSettings(**fields)


def _timing(part: Part) -> Timing:
    return Timing(queue_s=part.queue_s, decode_s=part.decode_s, total_s=part.total_s)


def _image_state(job_path: str, part: Part) -> ImageState:
    base = f"{job_path}/images/{part.index}"
    return ImageState(
        index=part.index,
        seed=part.seed,
        status=part.status,
        timing=_timing(part),
        links=Links(
            image=f"{base}/{IMAGE_NAME}", mask=f"{base}/{MASK_NAME}", tokens=f"{base}/{TOKENS_NAME}"
        ),
    )


def drawn_image(part: Part, files: Mapping[str, bytes]) -> DrawnImage:
    """One pair as JSON; `files` holds its files by name."""
    tokens = json.loads(files[TOKENS_NAME])
    return DrawnImage(
        index=part.index,
        seed=part.seed,
        image_png=base64.b64encode(files[IMAGE_NAME]).decode(),
        mask_png=base64.b64encode(files[MASK_NAME]).decode(),
        structure_tokens=tokens["structure_tokens"],
        appearance_tokens=tokens["appearance_tokens"],
        timing=_timing(part),
    )
