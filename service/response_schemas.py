"""The models of HTTP answers, and how they are made from jobs.

Knows neither Redis nor routes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from model.given import GivenRef, StreamKind, StreamRef
from model.request import GenerationRequest, Learned, SamplingSettings
from pathar.contract import (
    ARCHIVE_NAME,
    IMAGE_NAME,
    INSTANCES_NAME,
    MASK_NAME,
    TOKENS_NAME,
    Priority,
    Status,
    record_of,
    split_scale,
)
from store.job import Job, ModelRef, Notification, Page, Part, Summary
from store.registry import KnownModel


class FieldError(BaseModel):
    """One invalid field; a long `value` is shortened."""

    field: str
    value: str | int | float | bool | None
    expected: str


class Problem(BaseModel):
    """An RFC 9457 problem document; `errors` lists invalid fields."""

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


class NumberByStream(BaseModel):
    """A number for each stream."""

    structure: float
    appearance: float


class IntegerByStream(BaseModel):
    """An integer for each stream."""

    structure: int
    appearance: int


class LabelSettings(BaseModel):
    """How the images of a label are drawn: a number for both streams, or one for each."""

    cfg_scale: float | NumberByStream
    temperature: float | NumberByStream
    top_k: int | IntegerByStream
    top_p: float | NumberByStream


class SettledSettings(BaseModel):
    """The settings of a job, with all defaults filled in; `n` images of each of its labels,
    each the best of `best_of` draws."""

    n: int
    seed: int
    best_of: int
    labels: dict[str, LabelSettings]


class ImageSize(BaseModel):
    """The pixels of each image."""

    width: int
    height: int


class StreamGiven(BaseModel):
    """What a job was given of one stream. `sha256` of a mask or an image is that of its pixels, as
    in the records of PNGs, of what was segmented that of the image; of tokens, of the ids as 16
    bits each, little endian. `keep_sha256`: of the bits of the locations that are kept; null where
    all are."""

    kind: StreamKind
    sha256: str
    keep_sha256: str | None


class Timing(BaseModel):
    """Times of one image in seconds; null for a stage that it has not reached."""

    queue_s: float | None
    decode_s: float | None
    total_s: float | None


class Links(BaseModel):
    """The paths of one image's files, which exist once it is finished."""

    image: str
    mask: str
    instances: str
    tokens: str


class Progress(BaseModel):
    """Decode steps done and in all, over all images of a job."""

    steps: int
    steps_total: int


class ImageState(BaseModel):
    """The state of one image of a job. `seed` with n = 1 draws this image again; of several draws
    it is the seed of the first, and the finished pair says its own."""

    index: int
    label: str
    seed: int
    status: Status
    timing: Timing
    links: Links


class JobSummary(BaseModel):
    """A job as `GET /jobs` lists it; times are Unix seconds.

    `position` is the number of images, of all clients, that are drawn before the job's next one;
    null when none of its images waits. `seconds_left` is estimated from measured rates; null before
    one is measured. `structure` and `appearance` are null unless they were given, `size` for
    patches.
    """

    job_id: str
    status: Status
    priority: Priority
    model: ModelRef
    labels: list[str]
    settings: SettledSettings
    size: ImageSize | None
    structure: StreamGiven | None
    appearance: StreamGiven | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: str | None
    position: int | None
    seconds_left: float | None
    progress: Progress


class JobState(JobSummary):
    """A job as `GET /jobs/{id}` shows it. `zip` is the path of all its pairs, once it is finished.
    `notify` is null for a job without a webhook."""

    images: list[ImageState]
    zip: str
    notify: Notification | None


class WebhookSecret(BaseModel):
    """The secret that signs webhooks of this API key, in the format of Standard Webhooks."""

    secret: str


class Ticket(BaseModel):
    """A ticket that gives access to one job without a key: `?ticket=` in a URL of that job.
    `expires_at` in Unix seconds."""

    ticket: str
    expires_at: float


class JobPage(BaseModel):
    """Jobs, newest first; `next` is the cursor of the next page."""

    jobs: list[JobSummary]
    next: str | None


class TokenGrids(BaseModel):
    """The token ids of one image, row-major."""

    structure_tokens: list[list[int]]
    appearance_tokens: list[list[int]]


class LogLikelihood(BaseModel):
    """Of an image's tokens by the prior, in nats, for each stream."""

    structure: float
    appearance: float


class DrawnImage(BaseModel):
    """One pair: PNGs in base64 (image RGB; mask 8 bits, 0 and 255; instances 16 bits, ids of nuclei
    from 1, 0 elsewhere), token grids row-major.

    `nuclei`: how many there are. `agreement`: Dice of the mask and what the checkpoint's segmenter
    finds in the image, 1 where both are empty; null where the checkpoint has no segmenter.
    `log_likelihood` is null where all tokens were given. `kept_log_likelihood`: that of the tokens
    that were given, where a stream was given in part: the higher, the better they fit what was
    drawn between them; else null. `mask_dice`: the Dice of the mask that was
    given and this one, in the locations that it keeps; null where none was.
    """

    index: int
    label: str
    seed: int
    image_png: str
    mask_png: str
    instances_png: str
    structure_tokens: list[list[int]]
    appearance_tokens: list[list[int]]
    nuclei: int
    agreement: float | None
    log_likelihood: LogLikelihood | None
    kept_log_likelihood: LogLikelihood | None
    mask_dice: float | None
    timing: Timing


class Generation(BaseModel):
    """A finished job with its pairs."""

    job_id: str
    status: Status
    model: ModelRef
    labels: list[str]
    settings: SettledSettings
    size: ImageSize | None
    structure: StreamGiven | None
    appearance: StreamGiven | None
    images: list[DrawnImage]


class LabelInfo(BaseModel):
    """A label and a model that draws it; `ready` when a warm worker of this model is alive. A new
    request gets this `version` (the checkpoint's SHA-256) and these `numerics`. `mpp`: microns a
    pixel of the patches that the model learned the label from, null where unknown. `learned`: what
    else is known of those patches. `scale` is that of this name, `scales` are all that the model
    has of its label. `settings`: what a patch is drawn with unless a request says otherwise."""

    name: str
    kind: Literal["modality", "organ"]
    model: str
    version: str
    numerics: str
    ready: bool
    mpp: float | None
    learned: Learned
    scale: float
    scales: list[float]
    settings: LabelSettings


class LabelList(BaseModel):
    """All pairs of label and model that can be requested."""

    labels: list[LabelInfo]


class Health(BaseModel):
    """The answer of `/healthz` and `/readyz` when all is well."""

    status: Literal["ok"]


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A reference to the schema of a model in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def job_state(job: Job, root_path: str = "") -> JobState:
    """The JSON form of a job; its links begin with `root_path`, where the API is mounted."""
    return JobState(
        **dict(job_summary(job)),
        images=[_image_state(f"{root_path}/jobs/{job.id}", part) for part in job.parts],
        zip=f"{root_path}/jobs/{job.id}/{ARCHIVE_NAME}",
        notify=job.notify,
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
        model=job.model,
        labels=list(job.request.labels),
        settings=_settings(job.request),
        size=_size(job.request),
        **_given(job.request),
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
        model=job.model,
        labels=list(job.request.labels),
        settings=_settings(job.request),
        size=_size(job.request),
        **_given(job.request),
        images=[drawn_image(part, of_part) for part, of_part in zip(job.parts, files, strict=True)],
    )


def label_list(models: Sequence[KnownModel]) -> LabelList:
    """Every label of every model."""
    return LabelList(
        labels=[
            LabelInfo(
                name=label.name,
                kind=label.kind,
                model=known.info.name,
                version=known.info.version,
                numerics=known.info.numerics,
                ready=known.ready,
                mpp=label.mpp or None,
                learned=known.info.learned.get(label.name, Learned()),
                scale=split_scale(label.name)[1],
                scales=list(known.info.scales(split_scale(label.name)[0])),
                settings=_of_label(known.info.settings(label.name)),
            )
            for known in models
            for label in known.info.labels
        ]
    )


def _settings(request: GenerationRequest) -> SettledSettings:
    named = {"n": request.n, "seed": request.seed, "best_of": request.best_of}
    labels = {
        label: _of_label(settings)
        for label, settings in zip(request.labels, request.settings, strict=True)
    }
    return SettledSettings(**named, labels=labels)


def _of_label(settings: SamplingSettings) -> LabelSettings:
    return LabelSettings(**asdict(settings))


def _size(request: GenerationRequest) -> ImageSize | None:
    return ImageSize(width=request.size[0], height=request.size[1]) if request.size else None


def _given(request: GenerationRequest) -> dict[str, StreamGiven | None]:
    given = request.given or GivenRef()
    return {"structure": _stream(given.structure), "appearance": _stream(given.appearance)}


def _stream(ref: StreamRef | None) -> StreamGiven | None:
    if ref is None:
        return None
    return StreamGiven(kind=ref.kind, sha256=ref.sha256, keep_sha256=ref.keep_sha256)


def _timing(part: Part) -> Timing:
    return Timing(queue_s=part.queue_s, decode_s=part.decode_s, total_s=part.total_s)


def _image_state(job_path: str, part: Part) -> ImageState:
    base = f"{job_path}/images/{part.index}"
    return ImageState(
        index=part.index,
        label=part.label,
        seed=part.seed,
        status=part.status,
        timing=_timing(part),
        links=Links(
            image=f"{base}/{IMAGE_NAME}",
            mask=f"{base}/{MASK_NAME}",
            instances=f"{base}/{INSTANCES_NAME}",
            tokens=f"{base}/{TOKENS_NAME}",
        ),
    )


def drawn_image(part: Part, files: Mapping[str, bytes]) -> DrawnImage:
    """One pair as JSON; `files` holds its files by name."""
    tokens, record = json.loads(files[TOKENS_NAME]), record_of(files[IMAGE_NAME])
    return DrawnImage(
        index=part.index,
        label=part.label,
        seed=record.get("seed", part.seed),
        image_png=base64.b64encode(files[IMAGE_NAME]).decode(),
        mask_png=base64.b64encode(files[MASK_NAME]).decode(),
        instances_png=base64.b64encode(files[INSTANCES_NAME]).decode(),
        structure_tokens=tokens["structure_tokens"],
        appearance_tokens=tokens["appearance_tokens"],
        nuclei=record["nuclei"],
        agreement=record.get("agreement"),
        log_likelihood=record.get("log_likelihood"),
        kept_log_likelihood=record.get("kept_log_likelihood"),
        mask_dice=record.get("mask_dice"),
        timing=_timing(part),
    )
