"""The objects that a client returns: pairs, jobs, labels and events. Knows no HTTP.

Notebooks show a pair as its image, mask and overlay, and a list of pairs as a contact sheet.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathar.contact_sheet import SheetRow, contact_sheet
from pathar.contract import (
    END_STATES,
    FILE_NAMES,
    Priority,
    Setting,
    Status,
    canonical_json,
)
from pathar.pair_files import given_digests, stem, write_pair
from pathar.pictures import overlay, side_by_side
from pathar.quality import LogLikelihood

SHOWN = 256
"""Width and height of each picture of a pair in a notebook, in pixels."""
SHEET_CELL, SHEET_ROW, SHEET_PAIRS = 128, 8, 24
"""Width and height of a picture on a notebook's contact sheet in pixels; the most pairs in a row,
and on a sheet."""


@dataclass(frozen=True)
class Pair:
    """One image with its mask, instances and tokens.

    Its `seed` with n = 1 gives the same bits again. `name` begins the names of its files: label,
    seed of the job, a digest of model, settings and what was given, index. `nuclei` and `agreement`
    are those of `Quality`; `log_likelihood` is None where all tokens were given.
    """

    job_id: str
    name: str
    label: str
    index: int
    seed: int
    image_png: bytes = field(repr=False)
    mask_png: bytes = field(repr=False)
    instances_png: bytes = field(repr=False)
    structure: tuple[tuple[int, ...], ...] = field(repr=False)
    appearance: tuple[tuple[int, ...], ...] = field(repr=False)
    nuclei: int = field(repr=False)
    agreement: float | None = field(repr=False)
    log_likelihood: LogLikelihood | None = field(repr=False)
    mask_dice: float | None = field(default=None, repr=False)
    """The Dice of the mask that was given and this pair's; None where none was."""
    kept_log_likelihood: LogLikelihood | None = field(default=None, repr=False)
    """That of the tokens that were given, where a stream was given in part: of several pairs, the
    highest has what fits best between them. Else None."""

    @cached_property
    def image(self) -> Image.Image:
        """RGB."""
        return Image.open(io.BytesIO(self.image_png))

    @cached_property
    def mask(self) -> Image.Image:
        """Mode L: 255 in nuclei, 0 elsewhere."""
        return Image.open(io.BytesIO(self.mask_png))

    @cached_property
    def instances(self) -> Image.Image:
        """16 bits: the id of each nucleus, from 1; 0 elsewhere."""
        return Image.open(io.BytesIO(self.instances_png))

    @property
    def structure_tokens(self) -> NDArray[np.int64]:
        """Token ids [rows, columns]."""
        return np.array(self.structure, dtype=np.int64)

    @property
    def appearance_tokens(self) -> NDArray[np.int64]:
        """Token ids [rows, columns]."""
        return np.array(self.appearance, dtype=np.int64)

    def overlay(self) -> Image.Image:
        """The image (RGB) with the outlines of its nuclei in green."""
        return overlay(self.image, self.mask)

    def files(self) -> dict[str, bytes]:
        """Its files by name, with the same bytes as in the service."""
        grids = {"structure_tokens": self.structure, "appearance_tokens": self.appearance}
        tokens = canonical_json(grids).encode()
        contents = (self.image_png, self.mask_png, self.instances_png, tokens)
        return dict(zip(FILE_NAMES, contents, strict=True))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write its files to a folder, as `pathar generate` does; returns their paths.

        FileExistsError where a file has its name and other content.
        """
        return write_pair(Path(folder), self.name, self.files())

    def _repr_png_(self) -> bytes:
        return side_by_side((self.image, self.mask, self.overlay()), SHOWN)

    @classmethod
    def from_answer(cls, job: Job, drawn: Mapping[str, Any]) -> Pair:
        """From one entry of `images` in an answer."""
        return cls(
            job.id,
            job.name(drawn["label"], drawn["index"]),
            drawn["label"],
            drawn["index"],
            drawn["seed"],
            base64.b64decode(drawn["image_png"]),
            base64.b64decode(drawn["mask_png"]),
            base64.b64decode(drawn["instances_png"]),
            tuple(map(tuple, drawn["structure_tokens"])),
            tuple(map(tuple, drawn["appearance_tokens"])),
            drawn["nuclei"],
            drawn["agreement"],
            _likelihood(drawn["log_likelihood"]),
            drawn["mask_dice"],
            _likelihood(drawn["kept_log_likelihood"]),
        )


def _likelihood(told: Mapping[str, float] | None) -> LogLikelihood | None:
    return None if told is None else LogLikelihood(told["structure"], told["appearance"])


class Pairs(list[Pair]):
    """A list of pairs, which a notebook shows as a contact sheet."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> Pair: ...
    @overload
    def __getitem__(self, at: slice) -> Pairs: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Pair | Pairs:
        return Pairs(super().__getitem__(at)) if isinstance(at, slice) else super().__getitem__(at)

    def __repr__(self) -> str:
        names = ", ".join(self._by_label())
        return f"<{len(self)} pair{'s' * (len(self) != 1)}{' of ' * bool(names)}{names}>"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files of each pair to a folder, as `Pair.save` does."""
        for pair in self:
            pair.save(folder)

    def _by_label(self) -> dict[str, list[Pair]]:
        found: dict[str, list[Pair]] = {}
        for pair in self:
            found.setdefault(pair.label, []).append(pair)
        return found

    def _repr_png_(self) -> bytes | None:
        found = list(self._by_label().items())[:SHEET_PAIRS]
        most = SHEET_PAIRS // max(1, len(found))
        most -= most % SHEET_ROW if most > SHEET_ROW else 0
        rows = []
        for label, pairs in found:
            shown = pairs[:most]
            caption = label if len(pairs) <= most else f"{label}, {most} of {len(pairs)}"
            for at in range(0, len(shown), SHEET_ROW):
                files = [pair.files() for pair in shown[at : at + SHEET_ROW]]
                rows.append(SheetRow("" if at else caption, files))
        return contact_sheet(rows, SHEET_CELL) if rows else None


@dataclass(frozen=True)
class Job:
    """A job's state. `position`: how many images are ahead of its next one. `version` is the
    checkpoint's SHA-256, `numerics` what decides the bits besides.
    """

    id: str
    status: Status
    priority: Priority
    labels: tuple[str, ...]
    """What its images show: `n` images of each, those of the first one first."""
    model: str
    version: str
    numerics: str
    n: int
    seed: int
    settings: Mapping[str, Mapping[str, Setting]]
    """All that were used, by label: cfg_scale, temperature, top_k, top_p; of large images their
    size, and best_of where it is more than 1."""
    structure: Mapping[str, str | None] | None
    """`kind`, `sha256` and `keep_sha256` of the structure that was given; None where none was."""
    appearance: Mapping[str, str | None] | None
    """The same of the appearance."""
    position: int | None
    seconds_left: float | None
    steps: int
    steps_total: int
    error: str | None
    finished: frozenset[int] = field(repr=False)
    """Indices of the finished images, where the answer lists them."""

    @property
    def ended(self) -> bool:
        """Whether the job is in an end state."""
        return self.status in END_STATES

    def name(self, label: str, index: int) -> str:
        """What begins the names of an image's files, the same as where its label was asked for
        alone."""
        given = given_digests(self.structure, self.appearance)
        begins = stem(label, self.seed, self.version, self.numerics, self.settings[label], given)
        return f"{begins}_{index % self.n:05d}"

    @classmethod
    def from_answer(cls, state: Mapping[str, Any]) -> Job:
        """From a job's JSON."""
        images = state.get("images", ())
        settings, more = state["settings"], dict(state["size"] or {})
        if settings["best_of"] > 1:
            more["best_of"] = settings["best_of"]
        return cls(
            id=state["job_id"],
            status=state["status"],
            priority=state["priority"],
            labels=tuple(state["labels"]),
            model=state["model"]["name"],
            version=state["model"]["version"],
            numerics=state["model"]["numerics"],
            n=settings["n"],
            seed=settings["seed"],
            settings={
                label: {**of_label, **more} for label, of_label in settings["labels"].items()
            },
            structure=state["structure"],
            appearance=state["appearance"],
            position=state["position"],
            seconds_left=state["seconds_left"],
            steps=state["progress"]["steps"],
            steps_total=state["progress"]["steps_total"],
            error=state["error"],
            finished=frozenset(i["index"] for i in images if i["status"] == "finished"),
        )


@dataclass(frozen=True)
class Label:
    """A label that a model draws. `ready`: a warm worker of that model is alive. `version` and
    `numerics` are those that a new request gets. `mpp`: microns a pixel of the patches that the
    label was learned from, None where unknown. `learned`: what else is known of them, as in the
    answer: `nuclei` in the mean patch, and the `audit` for copies. `scale` is that of its name,
    `scales` are all that the model has of it. `settings`: what it is drawn with unless a request
    says otherwise.
    """

    name: str
    kind: Literal["modality", "organ"]
    model: str
    version: str
    numerics: str
    ready: bool
    mpp: float | None
    learned: Mapping[str, Any] = field(default_factory=dict, compare=False)
    scale: float = 1.0
    scales: tuple[float, ...] = (1.0,)
    settings: Mapping[str, Setting] = field(default_factory=dict, compare=False)

    @classmethod
    def from_answer(cls, label: Mapping[str, Any]) -> Label:
        """From one entry of `labels` in an answer."""
        told = {field.name: label[field.name] for field in fields(cls)}
        return cls(**told | {"scales": tuple(label["scales"])})


@dataclass(frozen=True)
class Event:
    """One event of a job."""

    id: str
    kind: str
    data: Mapping[str, Any]

    @property
    def ends(self) -> bool:
        """Whether it is the job's last one."""
        return self.kind in END_STATES
