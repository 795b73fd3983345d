"""`pathar pull`: the data set of a recipe into a folder, from a service or drawn in this process.

Both give the same bytes for the same model version and numerics. Knows no Redis and no formats.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pathar.client import Client, shown
from pathar.contract import LARGEST_SIDE
from pathar.dataset_folder import DatasetFolder, is_complete, opened, refuse
from pathar.errors import CommandError, UsageError
from pathar.following import Progress
from pathar.local_engine import local_engine
from pathar.manifest import check, read_manifest
from pathar.pairs import Label
from pathar.pulling import models_of
from pathar.recipe import ModelRef, Plan, PlannedJob, Recipe
from pathar.spool import write_job

if TYPE_CHECKING:
    from model.request import GenerationRequest, ImageRequest

PATIENCE_S = 3600.0
"""For how long a service may be away."""
SAMPLE = 16
"""Pairs that a dry run draws."""
LINE_S = 30.0
"""Seconds between the lines that a log gets."""
SUFFIX = ".toml"


def read_recipe(words: Sequence[str], fields: Mapping[str, Any]) -> Recipe:
    """The recipe of the command's words, LABEL=N or one TOML file, and of its options."""
    if not words:
        raise UsageError("recipe: expected LABEL=N ..., or a file that ends with .toml")
    if words[0].endswith(SUFFIX):
        if len(words) > 1:
            raise UsageError(f"recipe: got {words[1]!r} beside {words[0]}, expected one file")
        return Recipe.of(words[0], fields)
    labels: dict[str, int] = {}
    for word in words:
        label, _, count = word.rpartition("=")
        if not label or not (count.isascii() and count.isdigit()):
            raise UsageError(f"recipe: got {word!r}, expected LABEL=N such as histology=2500")
        if label in labels:
            raise UsageError(f"recipe: got {label!r} twice, expected each label once")
        labels[label] = int(count[:20])
    return Recipe.of(labels, fields)


def pull(recipe: Recipe, out: Path, url: str | None) -> int:
    """Pull into `out`: 0 when the data set is complete, 130 when Ctrl-C ended it before."""
    refuse(out, recipe)
    if is_complete(out, recipe):
        _say(f"{recipe.pairs:,} pairs are in {out}, as they were before")
        return 0
    safe: int | None = None
    dataset = ""
    steps = pull_here(recipe, out) if url is None else pull_from(url, recipe, out)
    try:
        with closing(shown(steps, recipe.pairs, None)) as steps:
            for step in _told(steps, recipe.pairs):
                safe, dataset = step.safe, step.dataset
    except KeyboardInterrupt:
        safe_now = "interrupted" if safe is None else _safe(safe, recipe.pairs, out)
        goes_on = f"; the service goes on with data set {dataset}" if dataset else ""
        _say(f"{safe_now}{goes_on}; run the same command to go on")
        return 130
    except OSError as error:
        told = "" if safe is None else f"; {_safe(safe, recipe.pairs, out)}"
        raise CommandError(f"cannot write to {out}: {error.strerror}{told}") from None
    _say(f"{recipe.pairs:,} pairs are in {out}")
    return 0


def _told(steps: Iterable[Progress], pairs: int) -> Iterator[Progress]:
    """Where nobody watches a bar, print a line now and then, and each trouble."""
    last, trouble = time.monotonic(), ""
    for step in steps:
        if not sys.stderr.isatty():
            now = time.monotonic()
            if step.trouble and step.trouble != trouble:
                _say(step.trouble)
            elif now - last > LINE_S:
                _say(f"{step.safe:,} of {pairs:,} pairs are safe")
                last = now
        trouble = step.trouble
        yield step


def _safe(safe: int, pairs: int, out: Path) -> str:
    return f"{safe:,} of {pairs:,} pairs are safe in {out}"


def pull_from(
    url: str, recipe: Recipe, out: Path, *, follow: bool = True
) -> Generator[Progress, None, None]:
    """Pull from the service at `url`. Without `follow` by jobs alone."""
    with Client(url, patience=PATIENCE_S) as client:
        yield from client.pulling(recipe, out, follow=follow)


def pull_here(recipe: Recipe, out: Path) -> Generator[Progress, None, None]:
    """Draw in this process what is missing of a data set."""
    drawer = _Here(recipe)
    with opened(out):
        folder = DatasetFolder(out, Plan(recipe, drawer.models))
        folder.begin()
        folder.write_shards()
        yield Progress(folder.safe)
        drawn, left = 0, deque(folder.missing())
        while left:
            for job, image in drawer.jobs(_taken(left)):
                drawn += 1
                if image is not None:
                    with folder.keeping(job) as file:
                        drawer.write(file, job, image)
                    if following := folder.following(job):
                        left.appendleft(following)
                    folder.write_shards(job)
                    drawn -= job.n
                yield Progress(folder.safe, drawn)
        folder.finish()


def _taken(left: deque[PlannedJob]) -> Iterator[PlannedJob]:
    """Take the jobs that are left one by one; some may be added meanwhile."""
    while left:
        yield left.popleft()


class _Here:
    """The engine of this process, and what it draws for a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        slots = None if recipe.sides else recipe.pairs * recipe.best_of
        self._engine, self._info = local_engine(os.environ, "pull", slots)
        name, version, numerics = self._info.name, self._info.version, self._info.numerics
        from model.request import Learned

        labels = [
            Label(
                *(each.name, each.kind, name, version, numerics, True, each.mpp or None),
                asdict(self._info.learned.get(each.name, Learned())),
            )
            for each in self._info.labels
        ]
        self.models: dict[str, ModelRef] = models_of(recipe, labels)

    def jobs(
        self, jobs: Iterable[PlannedJob]
    ) -> Iterator[tuple[PlannedJob, list[Mapping[str, bytes]] | None]]:
        """Draw jobs, as many images at once as there are slots. Yields each image's job, and with
        the last image of a job the files of all of them, in order.
        """
        from worker.drawing import draw

        places: list[tuple[PlannedJob, int]] = []
        drawn: dict[str, dict[int, Mapping[str, bytes]]] = {}
        for place, files in draw(self._engine, self._images(jobs, places)):
            job, index = places[place]
            images = drawn.setdefault(job.key, {})
            images[index] = files
            done = len(images) == job.n
            yield job, [images[index] for index in range(job.n)] if done else None
            if done:
                del drawn[job.key]

    def _images(
        self, jobs: Iterable[PlannedJob], places: list[tuple[PlannedJob, int]]
    ) -> Iterator[ImageRequest]:
        """The images of jobs; notes the job and index of each."""
        for job in jobs:
            for index, image in enumerate(self._request(job).images()):
                places.append((job, index))
                yield image

    def write(
        self, file: IO[bytes], job: PlannedJob, images: Sequence[Mapping[str, bytes]]
    ) -> None:
        """Write the archive of a job."""
        settings = asdict(self._request(job).settings[0])
        write_job(file, job, self.models[job.label], settings, images)

    def _request(self, job: PlannedJob) -> GenerationRequest:
        """UsageError on a setting that this model does not take."""
        from model.request import resolve

        try:
            return resolve(job.fields(), self._info, seed=job.seed, max_side=LARGEST_SIDE)
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass(frozen=True)
class Sample:
    """What a dry run drew: pairs, images that were drawn for them, bytes of the pairs' files, and
    seconds."""

    pairs: int
    drawn: int
    size: int
    seconds: float


def dry_run(recipe: Recipe, out: Path, url: str | None) -> None:
    """Print how many jobs and shards a pull has, and from a few pairs about how long it takes."""
    refuse(out, recipe)
    each = -(-SAMPLE // len(recipe.labels))
    fewer = {label: min(each, count) for label, count in recipe.labels.items()}
    sample = _sample(replace(recipe, labels=fewer), url)
    plan = Plan(recipe, {label: ModelRef("", "", "") for label in recipe.labels})
    share = recipe.pairs / sample.pairs
    counts = ", ".join(f"{label} {count:,}" for label, count in recipe.labels.items())
    print(f"{recipe.pairs:,} pairs: {counts}")
    print(f"{len(plan.jobs):,} jobs, {len(plan.shards):,} shards ({recipe.format})")
    if recipe.filtered:
        of_each = sample.drawn / sample.pairs
        print(f"about {recipe.pairs * of_each:,.0f} images, {of_each:.3g} for each pair")
    print(
        f"about {_bytes(sample.size * share)} and {_duration(sample.seconds * share)}, as "
        f"{sample.pairs} pairs took {_bytes(sample.size)} and {_duration(sample.seconds)} just now"
    )


def _sample(recipe: Recipe, url: str | None) -> Sample:
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        out = Path(folder) / "sample"
        steps = pull_here(recipe, out) if url is None else pull_from(url, recipe, out, follow=False)
        next(steps)  # by then the engine is loaded
        begun = time.monotonic()
        for _ in steps:
            pass
        seconds, found = time.monotonic() - begun, read_manifest(out)
        size = sum(file["bytes"] for shard in found["shards"] for file in shard["files"])
        drawn = sum(each["drawn"] for each in found["quality"].values())
        return Sample(recipe.pairs, drawn, size, seconds)


def check_folder(out: Path) -> int:
    """Print what differs from the manifest: 0 when nothing does, else 1."""
    pairs, wrong = check(out)
    for line in wrong:
        print(line)
    if wrong:
        _say(f"{out}: {len(wrong):,} files are not as {out}/manifest.json says")
        return 1
    print(f"{out}: {pairs:,} pairs, all files are as the manifest says")
    return 0


def _say(text: str) -> None:
    print(f"pathar: {text}", file=sys.stderr)


def _bytes(size: float) -> str:
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if size >= u[0]), (1e3, "kB"))
    return f"{size / unit:.3g} {name}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
