"""The bodies, queries and path parameters of requests, with the valid values of each.

Checks types and fixed ranges strictly. `model.request.resolve` checks what depends on the model:
labels, and the upper bound of top_k. Knows no Redis and no routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationInfo,
)

from model.request import RequestError
from pathar.contract import (
    JOB_ID,
    JOB_ID_EXPECTED,
    MAX_BEST_OF,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE,
    MOST_IMAGE_PIXELS,
    SCALE_RANGE,
    SETTING_RANGES,
    SETTINGS,
    STATUSES,
    STREAMS,
    Priority,
    Status,
    most_image_bytes,
    most_mask_bytes,
)

MAX_WAIT_S = 300
DEFAULT_WAIT_S = 25
"""Seconds: less than the 30 and 60 after which load balancers and proxies give up on an answer."""
MOST_EMBEDDED = 64
"""The most pairs in base64 in one answer. Clients fetch more as files or as an archive."""
MOST_LISTED = 200
MOST_URL = 2048
LONGEST_TICKET_S = 3600


class Strict(BaseModel):
    """Allows no unknown fields, coercion or NaN. A field's description is what is expected."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    FILES: ClassVar[tuple[str, ...]] = ()
    """The fields that may come as files in a form, where this is a body."""


def _whole(value: object) -> object:
    """2.0 counts as 2, because JSON has only one type of number."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_SEED:
        return int(value)
    return value


def _flag(value: object) -> object:
    """Only true and false are booleans in a query, as the OpenAPI document says: not 1 or yes."""
    if not isinstance(value, str):
        return value
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _number(value: object) -> object:
    """A number in a URL must be as in JSON: Python also accepts 1_0 and digits of other scripts."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError("a number")
    return value


def _receiver(url: str) -> str:
    """A URL that may receive webhooks, as far as its text shows."""
    if not re.fullmatch(f"https?://{_RECEIVER}", url):
        raise ValueError("an https URL")
    return url


_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_RECEIVER = rf"[A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?(:({_PORT}))?([/?][!-~]*)?"
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")
InUrl = BeforeValidator(_number)
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES), BeforeValidator(_whole)]
BestOf = Annotated[int, Field(ge=1, le=MAX_BEST_OF), BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_whole)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE), BeforeValidator(_whole)]
SIDE = (
    f"an integer up to {MAX_SIDE}: pixels, a multiple of the model's step (16 in `small`) and at "
    "least the side of its patches, which is the default"
)

MOST_SIDE = 256
"""The largest latent grid: of 1024 pixels at 4 a location."""
Token = Annotated[int, Field(ge=0, lt=1 << 16), BeforeValidator(_whole)]
TokenRow = Annotated[list[Token], Field(min_length=1, max_length=MOST_SIDE), FailFast()]
OpenRow = Annotated[list[Token | None], Field(min_length=1, max_length=MOST_SIDE), FailFast()]
"""A row of given tokens; null where a token is drawn."""
Grid = Annotated[list[TokenRow], Field(min_length=1, max_length=MOST_SIDE), FailFast()]
OpenGrid = Annotated[list[OpenRow], Field(min_length=1, max_length=MOST_SIDE), FailFast()]

MASK = (
    "a PNG in base64 of the size of the images, that of the model's patches unless width and "
    "height say another, grey with 1 or 8 bits: 0 is ground, and one other value is nuclei"
)
IMAGE = (
    "a PNG in base64 of the size of the images as of a mask, up to "
    f"{MOST_IMAGE_PIXELS} pixels, RGB with 8 bits, without transparent pixels"
)
KEEP = (
    "a PNG in base64 as of a mask: 0 is drawn anew, and one other value is kept; null keeps all. "
    "A location of the grid is kept where all of its pixels are"
)


def _png(most: int) -> dict[str, Any]:
    """The limits of a PNG of so many bytes, in base64."""
    return {
        "min_length": 1,
        "max_length": most * 4 // 3 + 4,
        "json_schema_extra": {"contentEncoding": "base64", "contentMediaType": "image/png"},
    }


MaskPng = Annotated[str, Field(description=MASK, **_png(most_mask_bytes(MAX_SIDE, MAX_SIDE)))]
ImagePng = Annotated[str, Field(description=IMAGE, **_png(most_image_bytes(MOST_IMAGE_PIXELS, 1)))]


class Kept(Strict):
    """What may be kept in part."""

    keep_png: Annotated[str, Field(**_png(most_mask_bytes(MAX_SIDE, MAX_SIDE)))] | None = Field(
        default=None, description=KEEP
    )


class GivenMask(Kept):
    """A nuclear mask."""

    mask_png: MaskPng = Field(description=MASK)


class GivenImage(Kept):
    """An image, for its appearance."""

    image_png: ImagePng = Field(description=IMAGE)


class Segmented(Kept):
    """The nuclei that the checkpoint's segmenter finds in the image that gives the appearance."""

    segmented: Literal[True] = Field(description="true, with `appearance.image_png` beside it")


class GivenTokens(Strict):
    """Tokens, as an answer has them; null where a token is drawn."""

    tokens: OpenGrid = Field(
        description="the grid of tokens of an image: rows of ids, null where one is drawn"
    )


class EarlierPair(Kept):
    """The tokens of one of your pairs, of the same model version."""

    job_id: str = Field(pattern=f"^{JOB_ID}$", description=f"a job's id: {JOB_ID_EXPECTED}")
    index: Annotated[int, Field(ge=0, lt=MAX_IMAGES), BeforeValidator(_whole)] = Field(
        default=0, description=f"an integer from 0 to {MAX_IMAGES - 1}"
    )


OF_BOTH: Mapping[str, type[Strict]] = {"tokens": GivenTokens, "job_id": EarlierPair}
FORMS: Mapping[str, Mapping[str, type[Strict]]] = {
    "structure": {"mask_png": GivenMask, "segmented": Segmented, **OF_BOTH},
    "appearance": {"image_png": GivenImage, **OF_BOTH},
}
"""By field, the forms of what is given, by the field of theirs that tells them apart."""


def _form_of(name: str) -> Callable[[object], str | None]:
    """What tells the form of a value of this field; None for none of them, or several."""

    def form(value: object) -> str | None:
        has: Collection[str] = value if isinstance(value, dict) else ()
        has = vars(value) if isinstance(value, Strict) else has
        found = [each for each in FORMS[name] if each in has]
        return found[0] if len(found) == 1 else None

    return form


GivenStructure = Annotated[
    Annotated[GivenMask, Tag("mask_png")]
    | Annotated[Segmented, Tag("segmented")]
    | Annotated[GivenTokens, Tag("tokens")]
    | Annotated[EarlierPair, Tag("job_id")],
    Discriminator(_form_of("structure")),
]
GivenAppearance = Annotated[
    Annotated[GivenImage, Tag("image_png")]
    | Annotated[GivenTokens, Tag("tokens")]
    | Annotated[EarlierPair, Tag("job_id")],
    Discriminator(_form_of("appearance")),
]


def _form_of_setting(value: object) -> str:
    """What tells a setting of both streams from one of each."""
    return BY_STREAM if isinstance(value, dict | Strict) else "number"


BY_STREAM = "by_stream"
NUMBERS = {
    "cfg_scale": "a number from {:g} to {:g}".format(*SETTING_RANGES["cfg_scale"]),
    "temperature": "a number from {:g} to {:g}".format(*SETTING_RANGES["temperature"]),
    "top_k": "an integer from 0 to the model's codebook size",
    "top_p": "a number above 0 and up to 1",
}
"""What each setting may be."""
OR_BY_STREAM = ', or {"structure": ..., "appearance": ...} with one for each stream'
CfgScale = Annotated[
    float, Field(ge=SETTING_RANGES["cfg_scale"][0], le=SETTING_RANGES["cfg_scale"][1])
]
Temperature = Annotated[
    float, Field(ge=SETTING_RANGES["temperature"][0], le=SETTING_RANGES["temperature"][1])
]
TopK = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
TopP = Annotated[float, Field(gt=0, le=1)]
Number = TypeVar("Number")
ForEach = TypeVar("ForEach")
Either = Annotated[
    Annotated[Number, Tag("number")] | Annotated[ForEach, Tag(BY_STREAM)],
    Discriminator(_form_of_setting),
]


class CfgScales(Strict):
    """Guidance of each stream."""

    structure: CfgScale = Field(description=NUMBERS["cfg_scale"])
    appearance: CfgScale = Field(description=NUMBERS["cfg_scale"])


class Temperatures(Strict):
    """The temperature of each stream."""

    structure: Temperature = Field(description=NUMBERS["temperature"])
    appearance: Temperature = Field(description=NUMBERS["temperature"])


class TopKs(Strict):
    """The most likely tokens that each stream is drawn from."""

    structure: TopK = Field(description=NUMBERS["top_k"])
    appearance: TopK = Field(description=NUMBERS["top_k"])


class TopPs(Strict):
    """The probability of the most likely tokens that each stream is drawn from."""

    structure: TopP = Field(description=NUMBERS["top_p"])
    appearance: TopP = Field(description=NUMBERS["top_p"])


def _https_alone(schema: dict[str, Any]) -> None:
    """Document only https: it is accepted with any settings."""
    schema["anyOf"][0]["pattern"] = f"^https://{_RECEIVER}$"


LABEL = "the name of a label, as in GET /labels"


def _one_of_two(label: str | None, info: ValidationInfo) -> str | None:
    """The label, which there is unless there are labels."""
    if label is None and info.data.get("labels", ()) is None:
        raise ValueError(LABEL)
    return label


class Ordered(Strict):
    """What every request for pairs has."""

    model: str | None = Field(
        default=None,
        description="the name of a model, as in GET /labels; "
        "needed when several models have the label",
        examples=["small"],
    )
    priority: Priority | None = Field(
        default=None,
        description="'interactive' (the default) or 'bulk', which fills what interactive leaves",
    )
    notify: Annotated[str, Field(max_length=MOST_URL), AfterValidator(_receiver)] | None = Field(
        default=None,
        description="an https URL that the end of the job is sent to, up to 2048 characters; http "
        "only in a network that PATHAR_NOTIFY_NETWORKS names",
        examples=["https://lab.example/hooks/pathar"],
        json_schema_extra=_https_alone,
    )


class GenerateBody(Ordered):
    """The body of `POST /generate`. Only `label` or `labels` is required; null means the model's
    default."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "histology", "n": 4, "seed": 7}]}
    )
    FILES: ClassVar[tuple[str, ...]] = (
        *("structure.mask_png", "structure.keep_png"),
        *("appearance.image_png", "appearance.keep_png"),
    )

    labels: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] | None = Field(
        default=None,
        description="in place of label, the names of several labels of one model, each once",
        examples=[["histology", "blood"]],
    )
    label: Annotated[str | None, AfterValidator(_one_of_two)] = Field(
        default=None, validate_default=True, description=LABEL, examples=["histology"]
    )
    scale: float | None = Field(
        default=None,
        ge=SCALE_RANGE[0],
        le=SCALE_RANGE[1],
        description="a scale of the labels, as in GET /labels: 0.5 shows them at half of their "
        "magnification; 1 when left out",
    )
    n: Count | None = Field(
        default=None, description=f"an integer from 1 to {MAX_IMAGES}: images of each label"
    )
    cfg_scale: Either[CfgScale, CfgScales] | None = Field(
        default=None, description=NUMBERS["cfg_scale"] + OR_BY_STREAM
    )
    temperature: Either[Temperature, Temperatures] | None = Field(
        default=None, description=NUMBERS["temperature"] + OR_BY_STREAM
    )
    top_k: Either[TopK, TopKs] | None = Field(
        default=None, description=NUMBERS["top_k"] + OR_BY_STREAM
    )
    top_p: Either[TopP, TopPs] | None = Field(
        default=None, description=NUMBERS["top_p"] + OR_BY_STREAM
    )
    seed: Seed | None = Field(default=None, description=f"an integer from 0 to {MAX_SEED}")
    best_of: BestOf | None = Field(
        default=None,
        description=f"an integer from 1 to {MAX_BEST_OF}: draws of which each image is the one "
        "that what is kept fits best",
    )
    width: Side | None = Field(default=None, description=SIDE)
    height: Side | None = Field(default=None, description=SIDE)
    structure: GivenStructure | None = Field(
        default=None,
        description='one of {"mask_png": base64}, {"segmented": true}, {"tokens": [[...]]} and '
        '{"job_id", "index"}: the structure of all images; {"keep_png": base64} beside it draws '
        "the rest anew",
    )
    appearance: GivenAppearance | None = Field(
        default=None,
        description='one of {"image_png": base64}, {"tokens": [[...]]} and {"job_id", "index"}: '
        "the appearance of all images, likewise",
    )


class OfPair(Ordered):
    """What requests for one pair have that is given."""

    label: str = Field(description=LABEL, examples=["histology"])
    width: Side | None = Field(default=None, description=SIDE)
    height: Side | None = Field(default=None, description=SIDE)

    def _request(self, **given: Any) -> GenerateBody:
        """One pair that is given this, with a fixed seed: most often nothing is drawn."""
        own = {name: getattr(self, name) for name in OfPair.model_fields}
        return GenerateBody(**own, **given, n=1, seed=0)


class EncodeBody(OfPair):
    """The body of `POST /encode`: an image, a mask, or both."""

    FILES: ClassVar[tuple[str, ...]] = ("image_png", "mask_png")

    image_png: ImagePng | None = Field(default=None, description=IMAGE)
    mask_png: MaskPng | None = Field(default=None, description=MASK)

    def request(self) -> GenerateBody:
        """The same as a request for a pair. RequestError without image and mask."""
        image = self.image_png and GivenImage(image_png=self.image_png)
        if self.mask_png is not None:
            structure: GivenMask | Segmented = GivenMask(mask_png=self.mask_png)
        elif image:
            structure = Segmented(segmented=True)
        else:
            raise RequestError("image_png", None, "an image, or mask_png, or both")
        return self._request(structure=structure, appearance=image or None)


class DecodeBody(OfPair):
    """The body of `POST /decode`: tokens of both streams, as an answer has them."""

    structure_tokens: Grid = Field(description="the image's grid of structure tokens: rows of ids")
    appearance_tokens: Grid = Field(
        description="the image's grid of appearance tokens: rows of ids"
    )

    def request(self) -> GenerateBody:
        """The same as a request for a pair."""
        structure, appearance = (
            GivenTokens(tokens=[list(row) for row in grid])
            for grid in (self.structure_tokens, self.appearance_tokens)
        )
        return self._request(structure=structure, appearance=appearance)


class GenerateQuery(BaseModel):
    """The query of `POST /generate`: seconds to wait for the result."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_S), InUrl] | None = Field(
        default=None,
        description=f"a number of seconds from 0 to {MAX_WAIT_S}; {DEFAULT_WAIT_S} when left out",
    )


class DeleteQuery(BaseModel):
    """The query of `DELETE /jobs/{id}`: whether to delete the results too."""

    model_config = ConfigDict(extra="forbid")

    files: Flag = Field(default=False, description="true or false: drop the files too")


class TicketQuery(BaseModel):
    """The query of `POST /jobs/{id}/tickets`: how many seconds the ticket is valid."""

    model_config = ConfigDict(extra="forbid")

    seconds: Annotated[int, Field(ge=1, le=LONGEST_TICKET_S), InUrl] = Field(
        default=600, description=f"an integer from 1 to {LONGEST_TICKET_S}"
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
    "dataset_id": f"a data set's id: {JOB_ID_EXPECTED}",
    "shard": "the number of a stored shard, from 0",
    "path": "the path of a file, as in the manifest",
    "k": f"an integer from 0 to {MAX_IMAGES - 1}",
}
"""The path parameters and their valid values."""
JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$", description=PATHS["job_id"])]
DatasetId = Annotated[str, Path(pattern=f"^{JOB_ID}$", description=PATHS["dataset_id"])]
ImageIndex = Annotated[int, Field(ge=0, lt=MAX_IMAGES), InUrl, Path(description=PATHS["k"])]

EXPECTED: Mapping[str, str] = {
    **{
        name: str(info.description)
        for model in (
            *(PageQuery, DeleteQuery, TicketQuery, GenerateQuery),
            *(GenerateBody, EncodeBody, DecodeBody),
        )
        for name, info in model.model_fields.items()
    },
    **{
        f"{field}.{name}": str(info.description)
        for field, forms in FORMS.items()
        for form in forms.values()
        for name, info in form.model_fields.items()
    },
    **{f"{name}.{stream}": NUMBERS[name] for name in SETTINGS for stream in STREAMS},
    **PATHS,
}


def expected_of(name: str, error: Mapping[str, Any], body: type[Strict] = GenerateBody) -> str:
    """The valid values of a field of a `body`, from its description or pydantic's error."""
    if error["type"] == "extra_forbidden":
        if error["loc"][0] == "query":
            return "a query parameter that this route has; see /docs"
        *_, field, form, _ = ("", "", *map(str, error["loc"]))
        if form == BY_STREAM:
            return f"one of the fields {', '.join(STREAMS)}"
        fields = FORMS.get(field, {}).get(form, body).model_fields
        return f"one of the fields {', '.join(fields)}"
    if error["type"] == "model_type":
        return "a JSON object"
    of_list = re.sub(r"(\.[0-9]+)+$", "", name)
    return EXPECTED.get(of_list) or str(error["msg"]).removeprefix("Input should be ")
