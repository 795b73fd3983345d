"""The domain: what a client may request, and what one image of a request is. Standard library only.

The service imports this part of `model`, so it must never import torch. It knows
no HTTP, no Redis and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from model.given import Given, GivenRef, Size, Stream
from model.token_layout import TokenLayout
from model.windows import cost
from pathar.contract import (
    MAX_BEST_OF,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE,
    SCALE_RANGE,
    SETTING_RANGES,
    SETTINGS,
    SIDE_STEP,
    STREAMS,
    StreamName,
    image_seed,
    scaled_name,
    split_scale,
)

LabelKind = Literal["modality", "organ"]


class RequestError(ValueError):
    """A request that cannot be drawn. Names the field, the value given and what would be right."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{field}: got {value!r}, expected {expected}")


SIDES = ("width", "height")


@dataclass(frozen=True)
class Audit:
    """What `training.evaluate` found when it looked for copies among samples of a label.

    `date` in ISO form. `nearest` is the median share of a sample's locations whose tokens differ
    from those of the nearest training patch, in any of eight views; `nearest_of_real` that of
    held-out real patches. `copies`: the share of the `samples` that lie nearer to a training patch
    than 99% of held-out patches do.
    """

    date: str
    samples: int
    nearest: float
    nearest_of_real: float
    copies: float


@dataclass(frozen=True)
class Learned:
    """What is known of the real patches that a label was learned from, None where it is not:
    `nuclei` in the mean patch, and how near samples lie to them.
    """

    nuclei: float | None = None
    audit: Audit | None = None


@dataclass(frozen=True)
class ByStream:
    """A setting that is not the same for both streams."""

    structure: float
    appearance: float


@dataclass(frozen=True)
class SamplingSettings:
    """How one row is sampled. Rows with different settings share a step.

    `cfg_scale` 1 is no guidance; `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off. A
    number holds for both streams. Two equal ones become one number, so equal settings are equal.
    """

    cfg_scale: float | ByStream = 1.0
    temperature: float | ByStream = 1.0
    top_k: float | ByStream = 0
    top_p: float | ByStream = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, ByStream) and value.structure == value.appearance:
                object.__setattr__(self, name, value.structure)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SamplingSettings:
        """From the JSON form, where a setting is a number or an object of two. TypeError on
        anything else."""
        return cls(**{k: ByStream(**v) if isinstance(v, Mapping) else v for k, v in data.items()})

    def of_stream(self, stream: StreamName) -> dict[str, float]:
        """What one stream is sampled with, by name."""
        return {
            name: getattr(value, stream) if isinstance(value, ByStream) else value
            for name, value in vars(self).items()
        }

    @property
    def guided(self) -> bool:
        """Whether a stream is guided, which takes a second sequence."""
        return any(self.of_stream(stream)["cfg_scale"] != 1 for stream in STREAMS)


@dataclass(frozen=True)
class Label:
    """What a patch can be asked to show, e.g. `histology` (a modality) or `blood` (an organ).
    `histology@0.5` is a label of its own: the same at half of its magnification.

    `mpp`: microns a pixel of the patches that it was trained on, 0 where unknown. `defaults`: what
    it is drawn with unless a request says otherwise, None for what the model has. Neither tells two
    labels apart.
    """

    name: str
    kind: LabelKind
    mpp: float = field(default=0.0, compare=False)
    defaults: SamplingSettings | None = field(default=None, compare=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Label:
        """From the JSON form; TypeError on anything else."""
        told = data.get("defaults")
        return cls(**{**data, "defaults": told and SamplingSettings.from_dict(told)})


def defaults_of(label: str, labels: Iterable[Label], usual: SamplingSettings) -> SamplingSettings:
    """What a label is drawn with unless a request says otherwise: its own, or what the model has.
    KeyError on an unknown label."""
    return {each.name: each.defaults for each in labels}[label] or usual


@dataclass(frozen=True)
class ModelInfo:
    """All that the service needs to know of a model: published by workers, read without torch.

    `version` is the checkpoint's SHA-256; `numerics` a short hash of what decides the bits beside
    it (engine build, torch version, device, precision, ...: docs/method.md, section 4).
    `takes_masks`: whether its structure can be encoded from a mask alone. `segments`: whether its
    checkpoint has a segmenter, which finds the nuclei of an image.
    """

    name: str
    version: str
    numerics: str
    labels: tuple[Label, ...]
    defaults: SamplingSettings
    codebook_size: int
    grid_size: int
    image_size: int
    takes_masks: bool = True
    segments: bool = False
    learned: Mapping[str, Learned] = field(default_factory=dict, compare=False)
    """By label. It says what people may want to know, and decides nothing."""

    @property
    def steps(self) -> int:
        """Decode steps that each image takes."""
        return TokenLayout(self.grid_size).steps

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        """Build from `to_dict`'s form; KeyError or TypeError on anything else."""
        fields = dict(data)
        fields["labels"] = tuple(Label.from_dict(label) for label in fields["labels"])
        fields["defaults"] = SamplingSettings.from_dict(fields["defaults"])
        fields["learned"] = {name: learned(told) for name, told in fields["learned"].items()}
        return cls(**fields)

    @property
    def side_step(self) -> int:
        """Width and height of an image are multiples of this, in pixels."""
        return max(SIDE_STEP, self.image_size // self.grid_size)

    def grid(self, size: Size | None) -> tuple[int, int]:
        """Rows and columns of an image's token grid; None is the size of a patch."""
        width, height = size or (self.image_size, self.image_size)
        downsample = self.image_size // self.grid_size
        return height // downsample, width // downsample

    def cost(self, size: Size | None, given: Given | None = None) -> int:
        """How many patches an image costs that is given this: as many as have its decode steps, and
        no fewer than have its area."""
        if size is None:
            return 1
        rows, columns = self.grid(size)
        whole = None if given is None else given.whole(rows * columns)
        return cost(rows, columns, self.grid_size, whole)

    def settings(self, label: str, size: Size | None = None) -> SamplingSettings:
        """What images of a label and size are drawn with unless a request says otherwise. Beyond
        one patch that is without guidance, which adds up from window to window (docs/method.md,
        section 3). KeyError on an unknown label.
        """
        usual = defaults_of(label, self.labels, self.defaults)
        return usual if size is None else replace(usual, cfg_scale=1.0)

    def label_names(self) -> list[str]:
        """The names that a request may use, in the checkpoint's order."""
        return [label.name for label in self.labels]

    def scales(self, label: str) -> tuple[float, ...]:
        """The scales at which the model knows a label, the largest first; empty where it does
        not."""
        return scales_of(label, self.label_names())

    def mpp(self, name: str) -> float:
        """Microns a pixel of a label's patches, 0 where unknown. KeyError on an unknown label."""
        return {label.name: label.mpp for label in self.labels}[name]


@dataclass(frozen=True)
class GenerationRequest:
    """A request with every field settled: what a job's record holds.

    It has `n` images of each of its labels: the first `n` images are of the first one. `settings`
    has those of each label, in their order. The images
    of a label are those of the same request for that label alone. `given` says what all images are
    given of their tokens, None where nothing is. `size` is None for patches of the model's size.
    Each image is the best of `best_of` draws, which are as many images of the same request for all.
    """

    labels: tuple[str, ...]
    n: int
    seed: int
    settings: tuple[SamplingSettings, ...]
    given: GivenRef | None = None
    size: Size | None = None
    best_of: int = 1

    @property
    def total(self) -> int:
        """How many images it has."""
        return self.n * len(self.labels)

    def label_of(self, index: int) -> str:
        """What an image shows."""
        return self.labels[index // self.n]

    def seed_of(self, index: int) -> int:
        """The row seed of an image, or of the first of its draws."""
        return image_seed(self.seed, index % self.n * self.best_of)

    def cost(self, model: ModelInfo, given: Given | None) -> int:
        """How many patches each image costs that is given this."""
        return model.cost(self.size, given) * self.best_of

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, named as in `POST /generate`; settings by label, in order."""
        given = {} if self.given is None else {"given": asdict(self.given)}
        size = {} if self.size is None else dict(zip(SIDES, self.size, strict=True))
        named = {"labels": list(self.labels), "n": self.n, "seed": self.seed}
        best = {} if self.best_of == 1 else {"best_of": self.best_of}
        settings = [asdict(of_label) for of_label in self.settings]
        return {**named, "settings": settings, **given, **size, **best}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationRequest:
        """Build from `to_dict`'s form; KeyError or TypeError on anything else."""
        fields = dict(data)
        labels, n, seed = tuple(fields.pop("labels")), fields.pop("n"), fields.pop("seed")
        given = fields.pop("given", None)
        ref = None if given is None else GivenRef.from_dict(given)
        size = (fields.pop("width"), fields.pop("height")) if "width" in fields else None
        settings = tuple(SamplingSettings.from_dict(told) for told in fields["settings"])
        return cls(labels, n, seed, settings, ref, size, fields.get("best_of", 1))

    def images(self) -> list[ImageRequest]:
        """The request as its images, one part each."""
        return [self._image(index) for index in range(self.total)]

    def _image(self, index: int) -> ImageRequest:
        first = index % self.n * self.best_of
        seed, *rivals = (image_seed(self.seed, first + k) for k in range(self.best_of))
        label, settings = self.label_of(index), self.settings[index // self.n]
        return ImageRequest(label, seed, settings, self.given, self.size, tuple(rivals))


@dataclass(frozen=True)
class ImageRequest:
    """One image: what a part carries and what the engine admits as a row.

    `given` is what is given of its tokens: only the others are drawn. In a part it is a reference,
    which the worker replaces by what the job keeps. `size`: as in a request. `rivals`: seeds with
    which it is drawn, too; the draw whose kept tokens fit best is the image.
    """

    label: str
    seed: int
    settings: SamplingSettings
    given: Given | GivenRef | None = None
    size: Size | None = None
    rivals: tuple[int, ...] = ()

    def draws(self) -> list[ImageRequest]:
        """What is drawn, of which one is kept."""
        return [replace(self, seed=seed, rivals=()) for seed in (self.seed, *self.rivals)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of a part, whose `given` is a reference."""
        return asdict(self) | {"rivals": list(self.rivals)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageRequest:
        """Build from `to_dict`'s form; KeyError or TypeError on anything else."""
        fields = dict(data)
        fields["settings"] = SamplingSettings.from_dict(fields["settings"])
        given = fields.get("given")
        fields["given"] = None if given is None else GivenRef.from_dict(given)
        if fields.get("size") is not None:
            fields["size"] = tuple(fields["size"])
        fields["rivals"] = tuple(fields.get("rivals", ()))
        return cls(**fields)


def learned(told: Mapping[str, Any]) -> Learned:
    """From the JSON form. KeyError or TypeError on anything else."""
    audit = told.get("audit")
    return Learned(told.get("nuclei"), None if audit is None else Audit(**audit))


def resolve(
    fields: Mapping[str, Any],
    model: ModelInfo,
    *,
    seed: int,
    max_n: int = MAX_IMAGES,
    max_side: int = MAX_SIDE,
) -> GenerationRequest:
    """Settle a request's fields against a model and check every range.

    `fields` holds what the client named (absent or None means `model.settings`); `seed` is used
    where the client named none. It names `label` or `labels`, with up to `max_n` images of all of
    them. `model`, where it is named, must be this one. An image may have `max_side` pixels a side.
    Raises RequestError on an unknown field or a value that is out of
    range, naming it.
    """
    known = ("label", "labels", "scale", "model", "n", "seed", "best_of", *SETTINGS, *SIDES)
    for name, value in fields.items():
        if name not in known:
            raise RequestError(name, value, f"one of the fields {', '.join(known)}")
    given = {name: value for name, value in fields.items() if value is not None}
    if given.get("model", model.name) != model.name:
        raise RequestError("model", given["model"], model.name)
    labels = at_scale(labels_of(given), given.get("scale", 1.0), model.label_names())
    for label in labels:
        if label not in model.label_names():
            field = "labels" if "labels" in given else "label"
            raise RequestError(field, label, f"one of {', '.join(model.label_names())}")
    size = _size(given, model, max_side)
    asked = {name: _by_stream(name, given[name]) for name in SETTINGS if name in given}
    settings = tuple(replace(model.settings(label, size), **asked) for label in labels)
    n, seed, best_of = given.get("n", 1), given.get("seed", seed), given.get("best_of", 1)
    _check_integer("n", n, 1, max_n)
    _check_integer("best_of", best_of, 1, MAX_BEST_OF)
    if n * len(labels) > max_n:
        expected = f"at most {max_n // len(labels)} of each of {len(labels)} labels"
        raise RequestError("n", n, expected)
    _check_integer("seed", seed, 0, MAX_SEED)
    for of_label in settings:
        check_settings(of_label, model.codebook_size)
    return GenerationRequest(labels, n, seed, settings, size=size, best_of=best_of)


def labels_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels that a request's fields name, by `label` or by `labels`. RequestError."""
    label, labels = fields.get("label"), fields.get("labels")
    if label is not None and labels is not None:
        raise RequestError("labels", list(labels), "none beside label")
    if labels is None:
        if label is None:
            raise RequestError("label", None, "the name of a label, or several in labels")
        return (label,)
    if not labels or len(set(labels)) < len(labels):
        raise RequestError("labels", list(labels), "each label once, and at least one")
    return tuple(labels)


def scales_of(label: str, names: Iterable[str]) -> tuple[float, ...]:
    """The scales at which there is a label among the names of labels, the largest first."""
    found = (split_scale(name) for name in names)
    return tuple(sorted({scale for of, scale in found if of == label}, reverse=True))


def at_scale(labels: Sequence[str], scale: object, names: Sequence[str]) -> tuple[str, ...]:
    """The names of labels at a scale. RequestError where `names`, those of all labels, do not have
    one of them at this scale; where they do not have it at all, its name stays as it is."""
    _check_number("scale", scale, *SCALE_RANGE)
    assert isinstance(scale, int | float)
    if scale == 1:
        return tuple(labels)
    for label in labels:
        known = scales_of(label, names)
        if known and scaled_name(label, scale) not in names:
            listed = ", ".join(f"{each:g}" for each in known)
            raise RequestError("scale", scale, f"one of {listed}: the scales of {label}")
        if not known and label in names:
            raise RequestError("scale", scale, f"none beside {label}, which has a scale of its own")
    return tuple(scaled_name(label, scale) if scales_of(label, names) else label
                 for label in labels)  # fmt: skip


def _size(given: Mapping[str, Any], model: ModelInfo, max_side: int) -> Size | None:
    """The size that a request names; None for that of the model's patches."""
    sides = [given.get(name, model.image_size) for name in SIDES]
    step, least = model.side_step, model.image_size
    for name, side in zip(SIDES, sides, strict=True):
        whole = isinstance(side, int) and not isinstance(side, bool) and least <= side <= max_side
        if not whole or (side % step and side != least):
            raise RequestError(name, side, f"a multiple of {step} from {least} to {max_side}")
    return None if sides == [least, least] else (sides[0], sides[1])


def check_given(given: Given, model: ModelInfo, size: Size | None = None) -> None:
    """RequestError where a model does not take what is given of images of this size, naming the
    field."""
    structure, image = given.structure, given.appearance
    for name, stream in (("structure", structure), ("appearance", image)):
        if stream is not None:
            _check_stream(name, stream, model, size)
            _check_keep(name, stream, model, size)
    if structure is None or structure.kind != "segmented":
        return
    if image is None or image.kind != "image":
        expected = "appearance.image_png beside it, the image to segment"
        raise RequestError("structure.segmented", True, expected)
    if not model.segments:
        expected = f"another structure: the checkpoint of {model.name} has no segmenter"
        raise RequestError("structure.segmented", True, expected)


def check_best_of(best_of: int, given: Given | None) -> None:
    """RequestError where nothing says which of several draws is the best."""
    if best_of > 1 and not (given and given.in_part):
        expected = "1 unless a part of structure or appearance is kept, which the best fits best"
        raise RequestError("best_of", best_of, expected)


def _check_stream(name: str, stream: Stream, model: ModelInfo, size: Size | None) -> None:
    content, of_mask = stream.content, stream.kind != "image"
    width, height = size or (model.image_size, model.image_size)
    if isinstance(content, tuple):
        count, ids = math.prod(model.grid(size)), model.codebook_size
        if len(content) != count or not all(type(t) is int and 0 <= t < ids for t in content):
            raise RequestError(
                f"{name}.tokens", f"{len(content)} ids", f"{count} ids from 0 to {ids - 1}"
            )
        return
    field = f"{name}.{stream.kind}{'' if stream.kind == 'segmented' else '_png'}"
    if of_mask and not model.takes_masks:
        expected = f"tokens: {model.name} encodes no mask without its image"
        raise RequestError(field, "a mask", expected)
    pixels = 8 * len(content) if of_mask else len(content) // 3
    if stream.kind != "segmented" and pixels != width * height:
        raise RequestError(field, f"{pixels} pixels", f"{width} x {height} pixels")


def _check_keep(name: str, stream: Stream, model: ModelInfo, size: Size | None) -> None:
    count = math.prod(model.grid(size))
    bits = -(-count // 8)
    if stream.keep is not None and (len(stream.keep) != bits or not any(stream.kept(count))):
        side = model.image_size // model.grid_size
        expected = f"a region that holds a whole location, {side} x {side} pixels of the grid"
        field = "tokens" if stream.kind == "tokens" else "keep_png"
        raise RequestError(f"{name}.{field}", "none", expected)


def check_settings(settings: SamplingSettings, codebook_size: int) -> None:
    """RequestError on a value out of its range, naming it."""
    for name, value in vars(settings).items():
        if isinstance(value, ByStream):
            for stream in STREAMS:
                _check_setting(name, f"{name}.{stream}", getattr(value, stream), codebook_size)
        else:
            _check_setting(name, name, value, codebook_size)


def _by_stream(name: str, value: Any) -> Any:
    """A setting from JSON."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != set(STREAMS):
        raise RequestError(name, dict(value), f"a number, or one each for {' and '.join(STREAMS)}")
    return ByStream(**value)


def _check_setting(name: str, field: str, value: object, codebook_size: int) -> None:
    if name == "top_k":
        _check_integer(field, value, 0, codebook_size)
        return
    _check_number(field, value, *SETTING_RANGES[name])
    if name == "top_p" and value == 0.0:
        raise RequestError(field, value, "a number above 0 and up to 1")


def _check_integer(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(field, value, f"an integer from {low} to {high}")


def _check_number(field: str, value: object, low: float, high: float) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise RequestError(field, value, f"a number from {low:g} to {high:g}")
