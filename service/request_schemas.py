"""The bodies, queries and path parameters of requests, with the valid values of each.

Checks types and fixed ranges strictly. `model.request.resolve` checks what depends on the model:
labels, and the upper bound of top_k. Knows no Redis and no routes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

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
)

from pathar.contract import (
    CFG_SCALE_RANGE,
    JOB_ID,
    JOB_ID_EXPECTED,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE,
    MOST_MASK_BYTES,
    STATUSES,
    TEMPERATURE_RANGE,
    Priority,
    Status,
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
TopK = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
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


class GivenMask(Strict):
    """A nuclear mask."""

    mask_png: str = Field(
        min_length=1,
        max_length=MOST_MASK_BYTES * 4 // 3 + 4,
        description="a PNG in base64 with the side of the model's patches, grey with 1 or 8 bits: "
        "0 is ground, and one other value is nuclei",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )


class GivenTokens(Strict):
    """Structure tokens, as an answer's `structure_tokens` has them."""

    tokens: Annotated[list[TokenRow], Field(min_length=1, max_length=MOST_SIDE), FailFast()] = (
        Field(description="the model's grid of structure tokens: rows of ids")
    )


class EarlierPair(Strict):
    """The structure of one of your pairs, of the same model version."""

    job_id: str = Field(pattern=f"^{JOB_ID}$", description=f"a job's id: {JOB_ID_EXPECTED}")
    index: Annotated[int, Field(ge=0, lt=MAX_IMAGES), BeforeValidator(_whole)] = Field(
        default=0, description=f"an integer from 0 to {MAX_IMAGES - 1}"
    )


FORMS: Mapping[str, type[Strict]] = {
    "mask_png": GivenMask,
    "tokens": GivenTokens,
    "job_id": EarlierPair,
}
"""The forms of a given structure, by the field that tells them apart."""


def _form(value: object) -> str | None:
    """The form of a structure; None for none of them, or several."""
    has: Collection[str] = value if isinstance(value, dict) else ()
    has = vars(value) if isinstance(value, Strict) else has
    found = [name for name in FORMS if name in has]
    return found[0] if len(found) == 1 else None


GivenStructure = Annotated[
    Annotated[GivenMask, Tag("mask_png")]
    | Annotated[GivenTokens, Tag("tokens")]
    | Annotated[EarlierPair, Tag("job_id")],
    Discriminator(_form),
]


def _https_alone(schema: dict[str, Any]) -> None:
    """Document only https: it is accepted with any settings."""
    schema["anyOf"][0]["pattern"] = f"^https://{_RECEIVER}$"


class GenerateBody(Strict):
    """The body of `POST /generate`. Only `label` is required; null means the model's default."""

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
    width: Side | None = Field(default=None, description=SIDE)
    height: Side | None = Field(default=None, description=SIDE)
    structure: GivenStructure | None = Field(
        default=None,
        description='one of {"mask_png": base64}, {"tokens": [[...]]} and {"job_id", "index"}: the '
        "structure of all images, of which only the appearance is drawn",
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
        for model in (PageQuery, DeleteQuery, TicketQuery, GenerateBody, GenerateQuery)
        for name, info in model.model_fields.items()
    },
    **{
        f"structure.{name}": str(info.description)
        for form in FORMS.values()
        for name, info in form.model_fields.items()
    },
    **PATHS,
}


def expected_of(name: str, error: Mapping[str, Any]) -> str:
    """The valid values of a field, from its description or pydantic's error."""
    if error["type"] == "extra_forbidden":
        if error["loc"][0] == "query":
            return "a query parameter that this route has; see /docs"
        inside = error["loc"][-2] if len(error["loc"]) > 1 else ""
        fields = FORMS.get(str(inside), GenerateBody).model_fields
        return f"one of the fields {', '.join(fields)}"
    if error["type"] == "model_type":
        return "a JSON object"
    of_list = re.sub(r"(\.[0-9]+)+$", "", name)
    return EXPECTED.get(of_list) or str(error["msg"]).removeprefix("Input should be ")
