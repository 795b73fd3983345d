"""`pathar generate`: pairs into a folder, drawn in this process or by a service.

Both give the same files for the same model version and numerics. Given again, the command goes on
where it was. Knows no Redis.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pathar.client import Client
from pathar.contract import (
    FILE_NAMES,
    LARGEST_SIDE,
    MASK_NAME,
    MAX_IMAGES,
    MAX_SEED,
    record_of,
    split_scale,
)
from pathar.errors import CommandError, Gone, UsageError
from pathar.local_engine import local_engine
from pathar.pair_files import given_digests, paths_of, stem, write_pair
from pathar.pairs import Job
from pathar.provenance import verify_files

MOST_INTERACTIVE = 16
"""More pairs than these are bulk work, unless the command says otherwise."""
ATTEMPTS = 99
"""How many jobs one command makes in the end, each after the last one failed or was dropped."""

GIVEN = ("structure", "appearance")

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Wanted:
    """What the command asks for: `fields` of a request beside the label, for each of the labels."""

    labels: Sequence[str]
    fields: Mapping[str, Any]
    out: Path
    url: str | None
    drew_seed: bool = False
    command: str = "generate"
    words: Sequence[str] = ()
    """The words of the command that stand for `structure` and `appearance` in `fields`."""
    ome_tiff: bool = False
    """Whether to write each image as an OME-TIFF, too."""

    def __post_init__(self) -> None:
        for label in self.labels:
            if self.labels.count(label) > 1:
                raise UsageError(f"label: got {label!r} twice, expected each label once")
        if (n := self.fields["n"]) > MAX_IMAGES:
            recipe = " ".join(shlex.quote(f"{label}={n}") for label in self.labels)
            more = "another --seed" if self.command != "generate" else f"pathar pull {recipe}"
            raise UsageError(
                f"n: got {n}, expected an integer from 1 to {MAX_IMAGES}; for more: {more}"
            )

    @property
    def total(self) -> int:
        """How many pairs."""
        n: int = self.fields["n"]
        return n * len(self.labels)

    @property
    def slots(self) -> int | None:
        """The slots that an engine here needs; None for as many as it may have."""
        if {"width", "height"} & set(self.fields):
            return None
        return self.total * int(self.fields.get("best_of", 1))

    def tell_command(self) -> None:
        """Print the command that goes on with this one, where nobody knows its seed."""
        if not self.drew_seed:
            return
        words = [("label", label) for label in self.labels] + list(self.fields.items())
        words += [("out", self.out)] + [("url", self.url)] * bool(self.url)
        flag = " --ome-tiff" * self.ome_tiff
        command = " ".join([self.command, *map(shlex.quote, self.words)])
        words = [(name, word) for name, word in words if name not in GIVEN]
        options = (f"--{name.replace('_', '-')} {shlex.quote(str(x))}" for name, x in words)
        _say(f"to go on: pathar {command} {' '.join(options)}{flag}")


def generate(wanted: Wanted) -> None:
    """Draw pairs into a folder. A file that is there is never written over."""
    if "seed" not in wanted.fields:
        fields = {**wanted.fields, "seed": secrets.randbelow(MAX_SEED + 1)}
        wanted = replace(wanted, fields=fields, drew_seed=True)
    pairs = draw_at(wanted.url, wanted) if wanted.url else draw_here(wanted)
    try:
        for done, (name, files) in enumerate(pairs, start=1):
            paths = write_pair(wanted.out, name, files) if files else paths_of(wanted.out, name)
            if wanted.ome_tiff:
                _write_tiff(paths[0])
            _say(f"{done}/{wanted.total} {paths[0]}{_kept(files) if files else ''}")
    except FileExistsError as error:
        raise CommandError(f"{error.filename}: {error.strerror}; choose another --out") from None
    except OSError as error:
        raise CommandError(f"cannot write to {wanted.out}: {error.strerror}") from error


def _write_tiff(image: Path) -> None:
    """Write the image of a pair as an OME-TIFF beside its PNG, unless it is there."""
    from pathar.ome_tiff import write_ome_tiff

    path = image.with_suffix(".ome.tif")
    if not path.exists():
        write_ome_tiff(path, image.read_bytes())


def draw_here(wanted: Wanted) -> Iterator[tuple[str, Files | None]]:
    """The name and files of each pair from an engine in this process, as they are finished; None
    for those in the folder already.
    """
    engine, model = local_engine(os.environ, wanted.command, wanted.slots)
    from model.given import GivenRef, reference
    from model.given_forms import read_given
    from model.request import SIDES, check_best_of, resolve
    from worker.drawing import draw

    others = ("priority", *GIVEN)
    fields = {name: value for name, value in wanted.fields.items() if name not in others}
    try:
        structure, appearance = (wanted.fields.get(name) for name in GIVEN)
        requests = [
            resolve({"label": label, **fields}, model, seed=fields["seed"], max_side=LARGEST_SIDE)
            for label in wanted.labels
        ]
        given = read_given(structure, appearance, model, requests[0].size)
        check_best_of(requests[0].best_of, given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    wanted.tell_command()
    missing = []
    for each in requests:
        refs = asdict(GivenRef() if given is None else reference(given, each.size))
        digests = given_digests(*(refs[name] for name in GIVEN))
        size = dict(zip(SIDES, each.size, strict=True)) if each.size else {}
        best = {} if each.best_of == 1 else {"best_of": each.best_of}
        decides = (
            model.version,
            model.numerics,
            {**asdict(each.settings[0]), **size, **best},
            digests,
        )
        [label] = each.labels
        begins = stem(label, each.seed, *decides)
        for index, image in enumerate(each.images()):
            name = f"{begins}_{index:05d}"
            if _is_written(wanted.out, name):
                yield name, None
            else:
                missing.append((name, replace(image, given=given)))
    for at, files in draw(engine, [image for _, image in missing]):
        yield missing[at][0], files


def _kept(files: Files) -> str:
    """What was kept of what was given, for the end of a line."""
    record = record_of(files[MASK_NAME])
    dice, fit = record.get("mask_dice"), record.get("kept_log_likelihood")
    of_mask = "" if dice is None else f", its mask has a Dice of {dice:.3f} with the given one"
    return of_mask + (
        "" if fit is None else f", what is kept fits with {sum(fit.values()):.1f} nats"
    )


def _is_written(out: Path, name: str) -> bool:
    """Whether all files of a pair are in the folder. CommandError where they were altered."""
    paths = paths_of(out, name)
    if not all(path.exists() for path in paths):
        return False
    verdict = verify_files(
        {file: path.read_bytes() for file, path in zip(FILE_NAMES, paths, strict=True)}
    )
    if verdict.kind != "authentic":
        raise CommandError(f"{out / name}: {verdict.text}; choose another --out")
    return True


def draw_at(url: str, wanted: Wanted) -> Iterator[tuple[str, Files]]:
    """The name and files of each pair from the service at `url`, as they are finished."""
    usual = "bulk" if wanted.total > MOST_INTERACTIVE else "interactive"
    with Client(url) as client:
        names = [label.name for label in client.labels()]
        known = list(dict.fromkeys([*names, *(split_scale(name)[0] for name in names)]))
        for label in wanted.labels:  # before a job of another label is made
            if known and label not in known:
                raise UsageError(f"label: got {label!r}, expected one of {', '.join(known)}")
        jobs = []
        for label in wanted.labels:
            jobs.append(_submit(client, {"priority": usual, **wanted.fields, "label": label}))
            _say(f"job {jobs[-1].id}: {jobs[-1].n} of {label}, {jobs[-1].priority}")
        wanted.tell_command()
        for job in jobs:
            for pair in client.pairs(job.id):
                yield pair.name, pair.files()


def _submit(client: Client, order: dict[str, Any]) -> Job:
    """The job of this order that was made before, or a new one where that failed or is gone."""
    digest = hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:24]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            job = client.submit(job_id=f"generate-{digest}-{attempt}", **order)
        except Gone:
            continue
        if job.status not in ("failed", "canceled"):
            return job
    raise CommandError(f"{ATTEMPTS} jobs of this command have failed, were canceled or are gone")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
