"""Says whether the files of a pair are still those that a model drew.

Without a model the digests in the records are compared. With one the pair is drawn again, and every
pixel compared. Knows neither folders nor where a model comes from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pathar.contract import FILE_NAMES, IMAGE_NAME, TOKENS_NAME
from pathar.credentials import credentials
from pathar.records import OF_FILE, OF_GIVEN, PIXELS_ALTERED, Png, read_png

Kind = Literal["authentic", "other-numerics", "altered", "unknown-model", "not-pathar"]
PNG_NAMES = tuple(name for name in FILE_NAMES if name.endswith(".png"))
NO_RECORD = "has no record of PathAR"
CONSISTENT = "consistent: its digests agree. Only --regenerate shows whether a model draws it"
NOT_CHECKED = "its content credentials were not checked: pip install 'pathar[sign]'"
LEVELS = 3
"""Other numerics move a value of an image by this much at most, of 256. Seen: 1, and 2 with random
weights."""
MASK_SHARE = 0.005
"""The share of a mask's pixels that other numerics change at most. Seen: 0.0001, and 0.0034 with
random weights."""


@dataclass(frozen=True)
class Change:
    """What is wrong with one file. `pixels` differ, all of them inside `box`: left, top, right and
    bottom, the last two exclusive. Both are None where that is not known.
    """

    file: str
    what: str
    pixels: int | None = None
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """What is known of a pair or of a lone PNG; `text` says it in words. `signed_by`: whose content
    credentials fit, by file.
    """

    kind: Kind
    text: str
    changes: tuple[Change, ...] = ()
    signed_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """A record whose digests agree, and the token ids [2, rows, columns], known from an image."""

    record: Mapping[str, Any]
    tokens: NDArray[np.int64] | None


class Model(Protocol):
    """What draws pairs again."""

    @property
    def ahead(self) -> int:
        """How many it draws at once."""

    def draw(self, origins: Sequence[Origin]) -> Sequence[Mapping[str, bytes] | Verdict]:
        """The files that the model draws of each origin, or the verdict where it draws none."""

    def render(self, origin: Origin) -> Mapping[str, bytes] | None:
        """The files of an origin's own tokens; None where they cannot be rendered."""


def verify_png(data: bytes, model: Model | None = None) -> Verdict:
    """The verdict on a lone PNG, whichever file of a pair it is."""
    return verify_files({role_of(data): data}, model)


def role_of(data: bytes) -> str:
    """Which file of a pair a PNG is by its record; IMAGE_NAME where it has no whole one."""
    fitting = (name for name in PNG_NAMES if read_png(name, data).record)
    return next(fitting, IMAGE_NAME)


def verify_files(files: Mapping[str, bytes], model: Model | None = None) -> Verdict:
    """The verdict on the files of one pair, named as in FILE_NAMES; some may be missing.

    With a `model` the pair is drawn again.
    """
    ((_, verdict),) = verify_all([("", files)], model)
    return verdict


def verify_all(
    pairs: Iterable[tuple[str, Mapping[str, bytes]]], model: Model | None = None
) -> Iterator[tuple[str, Verdict]]:
    """Names with their verdicts, in order; a model draws several pairs at once."""
    waiting = iter(pairs)
    while some := list(islice(waiting, model.ahead if model else 1)):
        checked = [_Checked(files) for _, files in some]
        origins = [each.origin for each in checked if each.origin]
        drawn = iter(model.draw(origins) if model and origins else ())
        for (name, _), each in zip(some, checked, strict=True):
            if model and each.origin:
                yield name, each.compared(each.origin, next(drawn), model)
            else:
                yield name, each.verdict()


class _Checked:
    """The files of a pair, whose digests were compared."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._pngs = [read_png(name, files[name]) for name in PNG_NAMES if name in files]
        self._changes = [Change(png.name, what) for png in self._pngs for what in png.wrong]
        self._changes += [
            Change(png.name, NO_RECORD) for png in self._pngs if not (png.ours or png.wrong)
        ]
        self._signed_by: dict[str, str] = {}
        for png in self._pngs:
            if png.signed and find_spec("c2pa"):
                self._check_signature(png.name, files[png.name])
        self.origin: Origin | None = None
        intact = [png for png in self._pngs if png.record]
        for png in intact[1:]:
            self._changes += [Change(png.name, what) for what in _contradictions(intact[0], png)]
        if intact:
            self.origin = Origin(intact[0].record, intact[0].tokens)
            tokens = files.get(TOKENS_NAME)
            wanted = self.origin.record["tokens_sha256"]
            if tokens is not None and hashlib.sha256(tokens).hexdigest() != wanted:
                self._changes.append(Change(TOKENS_NAME, "is not the one that the record names"))

    def verdict(self) -> Verdict:
        """By the digests alone."""
        if not any(png.ours for png in self._pngs):
            why = "; ".join(dict.fromkeys(what for png in self._pngs for what in png.wrong))
            return Verdict("not-pathar", f"{NO_RECORD}{f' ({why})' if why else ''}")
        return self._unless_changed("authentic", CONSISTENT)

    def compared(
        self, origin: Origin, drawn: Mapping[str, bytes] | Verdict, model: Model
    ) -> Verdict:
        """By the digests and by what the model draws."""
        if isinstance(drawn, Verdict):
            return self._unless_changed(drawn.kind, drawn.text)
        expected = self._expected(drawn)
        here = expected[IMAGE_NAME].record
        same_numerics = here["numerics"] == origin.record["numerics"]
        same_tokens = here["tokens_sha256"] == origin.record["tokens_sha256"]
        others = _differing_facts(origin.record["made_with"], here["made_with"])
        if not same_tokens and same_numerics:
            what = "its label, seed and settings give other tokens"
            self._changes.append(Change(str(origin.record["file"]), what))
        if not same_tokens:
            rendered = model.render(origin)
            if rendered is None:
                text = f"other tokens are drawn here, so its pixels cannot be compared ({others})"
                return self._unless_changed("other-numerics", text)
            expected = self._expected(rendered)
        identical = self._compare_pixels(expected, exact=same_numerics)
        if same_numerics and same_tokens:
            self._compare_records(expected)
        if identical and same_tokens:
            how = "" if same_numerics else f", with other numerics ({others})"
            return self._unless_changed("authentic", f"drawn again bit for bit{how}")
        first = "the same tokens" if same_tokens else "other tokens are drawn here; its own"
        rest = "give the same pixels" if identical else "give pixels that differ as numerics differ"
        return self._unless_changed("other-numerics", f"{first} {rest} ({others})")

    def _unless_changed(self, kind: Kind, text: str) -> Verdict:
        if not self._changes:
            return Verdict(kind, text + self._signatures(), signed_by=self._signed_by)
        changes = tuple(dict.fromkeys(self._changes))
        told = "; ".join(f"{change.file} {change.what}" for change in changes)
        return Verdict("altered", told, changes)

    def _signatures(self) -> str:
        """What is known of signatures, for the end of a sentence."""
        if not any(png.signed for png in self._pngs):
            return ""
        if not self._signed_by:
            return f"; {NOT_CHECKED}"
        signers = dict.fromkeys(self._signed_by.values())
        files = {each: [f for f, by in self._signed_by.items() if by == each] for each in signers}
        return "".join(f"; {', '.join(names)} signed by {by}" for by, names in files.items())

    def _check_signature(self, name: str, data: bytes) -> None:
        found = credentials(data)
        if found.valid:
            self._signed_by[name] = found.signer
        else:
            what = f"has content credentials that do not fit it (of {found.signer})"
            self._changes.append(Change(name, what))

    def _expected(self, files: Mapping[str, bytes]) -> dict[str, Png]:
        names = {IMAGE_NAME, *(png.name for png in self._pngs)}
        return {name: read_png(name, files[name]) for name in names}

    def _compare_pixels(self, expected: Mapping[str, Png], *, exact: bool) -> bool:
        """Note where pixels differ, unless `exact` by more than numerics do; whether all are the
        same.
        """
        identical = True
        for png in self._pngs:
            there, here = png.pixels, expected[png.name].pixels
            if there is None or here is None:
                continue
            if there.shape != here.shape:
                self._changes.append(
                    Change(png.name, f"has {_size(there)}, drawn are {_size(here)}")
                )
                continue
            identical = identical and bool(np.array_equal(there, here))
            off = _off(there, here, exact=exact)
            if count := int(off.sum()):
                named = Change(png.name, PIXELS_ALTERED)
                self._changes = [change for change in self._changes if change != named]
                box = _box(off)
                what = f"has {count} other pixel{'s' * (count > 1)} in {box}"
                self._changes.append(Change(png.name, what, count, box))
        return identical

    def _compare_records(self, expected: Mapping[str, Png]) -> None:
        for png in self._pngs:
            names = _differing(expected[png.name].record, png.record) - OF_FILE - OF_GIVEN
            if png.record and names:
                what = f"has a record that is not the model's in {', '.join(sorted(names))}"
                self._changes.append(Change(png.name, what))


def _contradictions(first: Png, png: Png) -> Iterator[str]:
    """How an intact record contradicts that of the first file of its pair."""
    ours, theirs = first.record, png.record
    image = ours["pixels_sha256" if first.name == IMAGE_NAME else "image_sha256"]
    names = _differing(ours, theirs) - OF_FILE
    if theirs["image_sha256"] != image:
        yield f"belongs to another image (label {theirs['label']}, seed {theirs['seed']})"
    elif names:
        yield f"has another {', '.join(sorted(names))} in its record than {first.name}"


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> set[str]:
    return {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}


def _differing_facts(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    told = [
        f"{name} {there.get(name, 'any')}, here {here.get(name, 'any')}"
        for name in sorted(_differing(there, here))
    ]
    return f"made with {'; '.join(told)}"


def _off(there: NDArray[Any], here: NDArray[Any], *, exact: bool) -> NDArray[np.bool_]:
    """Which pixels [H, W] differ; unless `exact`, by more than numerics do."""
    if exact:
        differ: NDArray[np.bool_] = there != here
        return np.asarray(differ.any(2)) if differ.ndim == 3 else differ
    if there.ndim == 3:
        moved = np.abs(there.astype(np.int32) - here.astype(np.int32))
        return np.asarray((moved > LEVELS).any(2))
    # Ids of nuclei may be numbered otherwise: what is nucleus counts.
    crossed: NDArray[np.bool_] = (there > 0) != (here > 0)
    return crossed if crossed.mean() > MASK_SHARE else np.zeros_like(crossed)


def _box(off: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(off.any(1)), np.flatnonzero(off.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _size(pixels: NDArray[Any]) -> str:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels of {channels} channels"
