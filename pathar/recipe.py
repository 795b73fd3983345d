"""A recipe says which pairs a data set holds, and its plan which jobs draw them.

    seed = 7
    format = "webdataset"
    [labels]
    histology = 2500
    cytology = 2500
    [settings]
    cfg_scale = [1.0, 2.0]

The plan follows from the recipe and the versions of its models. Where pairs are filtered, further
rounds follow from what passed, which model and numerics decide. Knows no HTTP and no folders.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from pathar.contract import (
    LARGEST_SIDE,
    MAX_SEED,
    SETTING_RANGES,
    SETTINGS,
    STREAMS,
    Setting,
)
from pathar.errors import UsageError
from pathar.quality import Quality, passing

Format = Literal["webdataset", "parquet", "folder", "nnunet"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILTERS = {"min_agreement": None, "best_of": 1}
"""Which pairs are kept, and what keeps all."""
SIDES = ("width", "height")
"""Of images beyond one patch."""
FIELDS = ("labels", "seed", "model", "settings", "format", "shard_size", *FILTERS, *SIDES)
MOST_PAIRS = 1_000_000
JOB_PAIRS, LARGE_JOB_PAIRS = 100, 4
"""Images of a job: of patches, and of large images, of which a request may have no more."""
MOST_DRAWN = 20
"""How many times `best_of` images are drawn for each pair at most, until enough pass."""
SCHEME = "pathar-pull-1"
"""Part of each hash below; another rule has another name."""
DIGITS = 4
"""Decimals of a setting that is drawn from a range."""

Drawn = float | tuple[float, float]
"""A number, or a range (low, high) to draw one from."""
Asked = Drawn | Mapping[str, Drawn]
"""The same for both streams, or for each."""


class RecipeError(UsageError):
    """A field of a recipe that cannot be: its name, its value and what would be right."""

    def __init__(self, where: str, field: str, value: Any, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{where}{field}: got {value!r}, expected {expected}")


@dataclass(frozen=True)
class ModelRef:
    """The model that draws a label: its name, the checkpoint's SHA-256, the numerics of its
    workers. `mpp`: microns a pixel of the patches that it learned the label from, None where
    unknown; the version decides it. `learned`: what else is known of them (`Label.learned`).
    """

    name: str
    version: str
    numerics: str
    mpp: float | None = field(default=None, compare=False)
    learned: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class PlannedJob:
    """One job: `n` images of a label under one seed and fixed settings. They give `pairs` of the
    data set, and `first` is the number of the first of these. Where too few pass, further rounds
    with seeds of their own give the rest.
    """

    number: int
    first: int
    label: str
    pairs: int
    n: int
    seed: int
    settings: Mapping[str, Setting]
    round: int = 0
    sides: Mapping[str, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The number after its last pair."""
        return self.first + self.pairs

    @property
    def key(self) -> str:
        """What tells it from all other jobs and rounds."""
        return f"{self.number}r{self.round}" if self.round else str(self.number)

    def fields(self) -> dict[str, Any]:
        """The request, as in `POST /generate`, without the model."""
        return {"label": self.label, "n": self.n, "seed": self.seed, **self.settings, **self.sides}


@dataclass(frozen=True)
class Recipe:
    """Labels with counts, in order; settings as numbers or ranges (low, high) to draw from, for
    both streams or for each. A side that is None is that of the model's patches."""

    labels: Mapping[str, int]
    seed: int
    model: str | None
    settings: Mapping[str, Asked]
    format: Format
    shard_size: int
    min_agreement: float | None = None
    best_of: int = 1
    width: int | None = None
    height: int | None = None

    @classmethod
    def of(cls, what: Mapping[str, int] | str | PathLike[str], fields: Mapping[str, Any]) -> Recipe:
        """From labels with counts and the other fields, among them settings by name, or from a
        TOML file alone. UsageError names the field, its value and what would be right.
        """
        if isinstance(what, Mapping):
            settings = {name: value for name, value in fields.items() if name in SETTINGS}
            others = {name: value for name, value in fields.items() if name not in SETTINGS}
            return cls._checked({"labels": what, "settings": settings, **others}, "")
        if fields:
            raise UsageError(f"{next(iter(fields))}: write it into {what}, which is the recipe")
        path = Path(what)
        try:
            found = tomllib.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: is not TOML: {error}") from None
        return cls._checked(found, f"{path}: ")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """From JSON, where null means left out. RecipeError."""
        given = {name: value for name, value in fields.items() if value is not None}
        settings = given.get("settings")
        if isinstance(settings, Mapping):
            given["settings"] = {k: value for k, value in settings.items() if value is not None}
        return cls._checked(given, "")

    @classmethod
    def _checked(cls, fields: Mapping[str, Any], where: str) -> Recipe:
        for name in fields:
            if name not in FIELDS:
                known = f"one of the fields {', '.join(FIELDS)}"
                raise RecipeError(where, name, fields[name], known)
        labels = fields.get("labels")
        if not isinstance(labels, Mapping) or not labels:
            expected = "labels with counts, such as histology = 2500"
            raise RecipeError(where, "labels", labels, expected)
        counts = {
            label: _check_integer(where, f"labels.{label}", count, 1, MOST_PAIRS)
            for label, count in labels.items()
        }
        form, model = fields.get("format", FORMATS[0]), fields.get("model")
        if form not in FORMATS:
            raise RecipeError(where, "format", form, f"one of {', '.join(FORMATS)}")
        if model is not None and not isinstance(model, str):
            raise RecipeError(where, "model", model, "the name of a model")
        settings = fields.get("settings", {})
        if not isinstance(settings, Mapping):
            raise RecipeError(where, "settings", settings, f"any of {', '.join(SETTINGS)}")
        sides = {
            name: _check_integer(where, name, fields[name], 1, LARGEST_SIDE)
            for name in SIDES
            if fields.get(name) is not None
        }
        most = LARGE_JOB_PAIRS if sides else JOB_PAIRS
        return cls(
            counts,
            _check_integer(where, "seed", fields.get("seed", 0), 0, MAX_SEED),
            model,
            {name: _setting(where, name, settings[name]) for name in sorted(settings)},
            form,
            _check_integer(where, "shard_size", fields.get("shard_size", 1000), 1, MOST_PAIRS),
            _least(where, fields.get("min_agreement")),
            _check_integer(where, "best_of", fields.get("best_of", 1), 1, most),
            **sides,
        )

    @property
    def sides(self) -> dict[str, int]:
        """Width and height of its images, where it says them."""
        return {name: side for name in SIDES if (side := getattr(self, name)) is not None}

    @property
    def job_pairs(self) -> int:
        """The images of a job."""
        return LARGE_JOB_PAIRS if self.sides else JOB_PAIRS

    @property
    def filtered(self) -> bool:
        """Whether more images are drawn than are kept."""
        return any(getattr(self, name) != value for name, value in FILTERS.items())

    @property
    def pairs(self) -> int:
        """How many pairs there are in all."""
        return sum(self.labels.values())

    def to_dict(self) -> dict[str, Any]:
        """As in a TOML file, with all defaults filled in but the sides; of JSON's types alone."""
        lists = of_settings(
            lambda _, value: list(value) if isinstance(value, tuple) else value, self.settings
        )
        told = {name: value for name, value in vars(self).items() if name not in SIDES}
        return {**told, "labels": dict(self.labels), "settings": lists, **self.sides}


@dataclass(frozen=True)
class Plan:
    """The jobs of a recipe, and its cut into shards. `models` by label."""

    recipe: Recipe
    models: Mapping[str, ModelRef]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what decides the pairs: labels, counts, settings, seed, filters, models and
        versions. Format and shard size are no part of it.
        """
        told = self.recipe.to_dict()
        for name, value in FILTERS.items():
            if told[name] == value:
                del told[name]
        del told["format"], told["shard_size"], told["model"]
        models = {label: [ref.name, ref.version] for label, ref in self.models.items()}
        labels = list(told.pop("labels").items())
        return _sha256(json.dumps([SCHEME, labels, told, models], sort_keys=True)).hex()

    @cached_property
    def jobs(self) -> tuple[PlannedJob, ...]:
        """For each label in the recipe's order, jobs of `job_pairs` images; the last one may be
        smaller. These are the first rounds.
        """
        jobs: list[PlannedJob] = []
        each = self.recipe.job_pairs // self.recipe.best_of
        for label, count in self.recipe.labels.items():
            for k, done in enumerate(range(0, count, each)):
                pairs, first = min(each, count - done), jobs[-1].end if jobs else 0
                seed = self._drawn("seed", label, k)
                draw = partial(self._number, label, k)
                settings = of_settings(draw, self.recipe.settings)
                n = pairs * self.recipe.best_of
                of_job = (len(jobs), first, label, pairs, n, seed, settings)
                jobs.append(PlannedJob(*of_job, sides=self.recipe.sides))
        return tuple(jobs)

    def passing(self, job: PlannedJob, found: Sequence[Quality]) -> Collection[int]:
        """Which of the images of a job the filters keep. UsageError where they cannot tell."""
        recipe = self.recipe
        if not recipe.filtered:
            return range(len(found))
        try:
            return passing(found, recipe.best_of, recipe.min_agreement)
        except ValueError as error:
            name = self.models[job.label].name
            raise UsageError(
                f"min_agreement, best_of: the model {name!r} tells no agreement ({error})"
            ) from None

    def again(self, job: PlannedJob, drawn: int, kept: int) -> PlannedJob | None:
        """The round after `job`, once so many images of all its rounds were drawn and so many kept;
        None when these are enough. UsageError where too many were drawn already.

        It draws about as many as it takes by the share that passed so far.
        """
        missing, best_of = job.pairs - kept, self.recipe.best_of
        if missing <= 0:
            return None
        tried, each = drawn // best_of, self.recipe.job_pairs // best_of
        most = max(MOST_DRAWN * job.pairs, JOB_PAIRS)
        if tried >= most:
            what = f"the best of {best_of} images" if best_of > 1 else "the image"
            raise UsageError(
                f"min_agreement: got {self.recipe.min_agreement}, but {what} reached it only "
                f"{kept:,} times of {tried:,}, where {job.pairs:,} pairs of {job.label!r} were "
                "asked for; take a lower one"
            )
        wanted = -(-missing * tried // kept) if kept else each
        n = min(wanted, each, most - tried) * best_of
        seed = self._drawn(f"seed of round {job.round + 1}", job.label, job.number)
        return replace(job, n=n, seed=seed, round=job.round + 1)

    @cached_property
    def shards(self) -> tuple[range, ...]:
        """The numbers of the pairs of each shard."""
        size, pairs = self.recipe.shard_size, self.recipe.pairs
        return tuple(range(at, min(at + size, pairs)) for at in range(0, pairs, size))

    @cached_property
    def firsts(self) -> tuple[PlannedJob, ...]:
        """The first job of each label, whose pairs go on the contact sheet."""
        first: dict[str, PlannedJob] = {}
        for job in self.jobs:
            first.setdefault(job.label, job)
        return tuple(first.values())

    def shards_of(self, job: PlannedJob) -> range:
        """The numbers of the shards that a job has pairs in."""
        size = self.recipe.shard_size
        return range(job.first // size, (job.end - 1) // size + 1)

    def jobs_of(self, shard: int) -> list[PlannedJob]:
        """The jobs that have pairs in a shard."""
        pairs = self.shards[shard]
        return [job for job in self.jobs if job.first < pairs.stop and pairs.start < job.end]

    @cached_property
    def dataset_id(self) -> str:
        """The id of this data set on a service, which follows from all that decides its bytes."""
        told = self.recipe.to_dict()
        labels = list(told.pop("labels").items())
        models = {label: [m.name, m.version, m.numerics] for label, m in self.models.items()}
        text = json.dumps([SCHEME, labels, told, models], sort_keys=True)
        return f"set-{_sha256(text).hex()[:32]}"

    def job_id(self, job: PlannedJob, attempt: int = 0) -> str:
        """The id under which a service draws a job. Attempts after the first are for a job that
        failed, was canceled, or whose results are gone.
        """
        again = f"-{attempt}" if attempt else ""
        return f"pull-{self.digest[:24]}-{job.key}{again}"

    def _number(self, label: str, k: int, name: str, value: Drawn) -> float:
        """A setting of job `k` of a label."""
        if not isinstance(value, tuple):
            return value
        low, high = value
        drawn = round(low + self._drawn(name, label, k) / MAX_SEED * (high - low), DIGITS)
        return min(max(drawn, low), high)

    def _drawn(self, what: str, label: str, k: int) -> int:
        """53 bits for job `k` of a label."""
        text = json.dumps([SCHEME, self.digest, what, label, k])
        return int.from_bytes(_sha256(text)[:8], "big") >> 11


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def of_settings(
    change: Callable[[str, Drawn], Any], settings: Mapping[str, Asked]
) -> dict[str, Any]:
    """Settings of a recipe with each value changed; of one stream alone it is named by both, as
    `temperature.structure`."""
    return {
        name: {stream: change(f"{name}.{stream}", drawn) for stream, drawn in value.items()}
        if isinstance(value, Mapping)
        else change(name, value)
        for name, value in settings.items()
    }


def _setting(where: str, name: str, value: Any) -> Asked:
    field = f"settings.{name}"
    if name not in SETTINGS:
        raise RecipeError(where, field, value, f"one of {', '.join(SETTINGS)}")
    if not isinstance(value, Mapping):
        return _of_stream(where, field, name, value)
    if set(value) != set(STREAMS):
        raise RecipeError(where, field, dict(value), f"a value for each of {' and '.join(STREAMS)}")
    first, second = (
        _of_stream(where, f"{field}.{stream}", name, value[stream]) for stream in STREAMS
    )
    if first == second and not isinstance(first, tuple):
        return first
    return dict(zip(STREAMS, (first, second), strict=True))


def _of_stream(where: str, field: str, name: str, value: Any) -> Drawn:
    if name == "top_k":
        return _check_integer(where, field, value, 0, 2**31)
    low, high = SETTING_RANGES[name]
    ends = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    numbers = [_number(end) for end in ends]
    fits = all(low <= number <= high for number in numbers) and numbers == sorted(numbers)
    if not fits or (name == "top_p" and numbers[0] == 0):
        span = f"{'above ' if name == 'top_p' else ''}{low:g} to {high:g}"
        raise RecipeError(where, field, value, f"a number from {span}, or [low, high] to draw from")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _least(where: str, value: Any) -> float | None:
    if value is not None and not 0 <= _number(value) <= 1:
        raise RecipeError(where, "min_agreement", value, "a number from 0 to 1")
    return None if value is None else float(value)


def _number(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan


def _check_integer(where: str, field: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_SEED:
        value = int(value)  # JSON has one type of numbers
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RecipeError(where, field, value, f"an integer from {low} to {high}")
    return value
