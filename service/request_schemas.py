"""What may be asked over HTTP: bodies, queries and parameters of paths, and what each should be.

Types and fixed ranges are checked here, strictly; what depends on the model (labels, top_k's upper
bound) is checked by `model.request.resolve`. Knows neither Redis nor routes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from model.request import MAX_IMAGES
from pathar.contract import (
    CFG_SCALE_RANGE,
    JOB_ID,
    JOB_ID_EXPECTED,
    MAX_SEED,
    STATUSES,
    TEMPERATURE_RANGE,
    Priority,
    Status,
)

MAX_WAIT = 300
DEFAULT_WAIT = 25
"""Seconds: less than the 30 and 60 after which load balancers and proxies give up on an answer."""
MOST_EMBEDDED = 64
"""The most pairs that an answer holds in base64; more are fetched as files or as an archive."""
MOST_LISTED = 200
MOST_URL = 2048
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


def _receiver(url: str) -> str:
    """A URL that a webhook may be sent to, as far as it shows by itself."""
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


def _https_alone(schema: dict[str, Any]) -> None:
    """What is accepted whatever the settings."""
    schema["anyOf"][0]["pattern"] = f"^https://{_RECEIVER}$"


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
