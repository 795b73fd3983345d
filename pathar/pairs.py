"""The objects that a client returns: pairs, jobs, labels and events. Knows no HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathar.contract import END_STATES, Priority, Status


@dataclass(frozen=True)
class Pair:
    """One image with its mask, instances and tokens. Its `seed` with n = 1 gives the same bits
    again."""

    job_id: str
    index: int
    seed: int
    image_png: bytes
    mask_png: bytes
    instances_png: bytes
    structure: tuple[tuple[int, ...], ...]
    appearance: tuple[tuple[int, ...], ...]

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
        """Token ids [grid_size, grid_size]."""
        return np.array(self.structure, dtype=np.int64)

    @property
    def appearance_tokens(self) -> NDArray[np.int64]:
        """Token ids [grid_size, grid_size]."""
        return np.array(self.appearance, dtype=np.int64)

    @classmethod
    def from_answer(cls, job_id: str, drawn: Mapping[str, Any]) -> Pair:
        """Of one entry of `images` in an answer."""
        return cls(
            job_id,
            drawn["index"],
            drawn["seed"],
            base64.b64decode(drawn["image_png"]),
            base64.b64decode(drawn["mask_png"]),
            base64.b64decode(drawn["instances_png"]),
            tuple(map(tuple, drawn["structure_tokens"])),
            tuple(map(tuple, drawn["appearance_tokens"])),
        )


@dataclass(frozen=True)
class Job:
    """A job's state. `position`: how many images are ahead of its next one."""

    id: str
    status: Status
    priority: Priority
    label: str
    model: str
    n: int
    seed: int
    position: int | None
    seconds_left: float | None
    steps: int
    steps_total: int
    error: str | None
    finished: frozenset[int]
    """Indices of the finished images, where the answer lists them."""

    @property
    def ended(self) -> bool:
        """Whether the job is in an end state."""
        return self.status in END_STATES

    @classmethod
    def from_answer(cls, state: Mapping[str, Any]) -> Job:
        """Of a job's JSON."""
        images = state.get("images", ())
        return cls(
            id=state["job_id"],
            status=state["status"],
            priority=state["priority"],
            label=state["label"],
            model=state["model"]["name"],
            n=state["settings"]["n"],
            seed=state["settings"]["seed"],
            position=state["position"],
            seconds_left=state["seconds_left"],
            steps=state["progress"]["steps"],
            steps_total=state["progress"]["steps_total"],
            error=state["error"],
            finished=frozenset(i["index"] for i in images if i["status"] == "finished"),
        )


@dataclass(frozen=True)
class Label:
    """A label that a model draws. `ready`: a warm worker of that model is alive. `mpp`: microns a
    pixel of the patches that it was learned from, None where unknown."""

    name: str
    kind: Literal["modality", "organ"]
    model: str
    ready: bool
    mpp: float | None

    @classmethod
    def from_answer(cls, label: Mapping[str, Any]) -> Label:
        """Of one entry of `labels` in an answer."""
        return cls(label["name"], label["kind"], label["model"], label["ready"], label["mpp"])


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
