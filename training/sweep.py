"""Sweep guidance and temperature: `python -m training.sweep --checkpoint C --data D --out DIR`.

For every pair of values it draws samples of each modality with the same seeds (the paper's Fig. 7
e, f). It measures FID and KID against real validation patches, the number of nuclei, and Dice: the
nuclei that the checkpoint's segmenter finds in a sample's image against the sample's mask. DIR gets
`sweep.json` and `README.md`, which has tables, curves, the rule and the chosen point. `--store`
makes that point the checkpoint's defaults. Give the data and licences of the training. If the
command is killed, run it again: it resumes after the last finished point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import CONFIG, Checkpoint, load_checkpoint, store_defaults
from model.processors import default_threads
from model.request import Label, RequestError, SamplingSettings, check_settings
from training import data as patches
from training import segmenter as segmenters
from training.compute import use_threads
from training.evaluation import nuclei
from training.evaluation.choice import ALL, NORMAL, Point, choose, scores, with_means
from training.evaluation.distances import FEWEST, distribution_metrics
from training.evaluation.features import NETWORKS, Features, parse_features
from training.evaluation.metric import Metric
from training.evaluation.pairs import Pairs, draw_pairs, of_label
from training.evaluation.report import Section, part
from training.evaluation.study import Options, Study
from training.evaluation.swaps import agreement_metric
from training.evaluation.sweep_page import Results, described
from training.run import StageError, option, stage, try_to_write

FLAGS = {"cfg_scale": "--guidance", "temperature": "--temperature", "top_k": "--top-k"}

Facts = dict[str, object]


@dataclass(frozen=True)
class Real:
    """Real patches of a label, measured once for all points: `features` of validation and of
    training patches by network, `nuclei` the mean number in a patch of both together."""

    validation: Pairs
    features: dict[str, tuple[Tensor, Tensor]]
    nuclei: float


class Instrument:
    """Draws and measures points; real patches are measured when the first point is."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.samples = study.options.samples
        wanted = study.modalities or study.labels
        self.few = {label.name: count for label in wanted if (count := self._held(label)) < FEWEST}
        self.labels = [label.name for label in wanted if label.name not in self.few]
        if not self.labels:
            raise StageError(
                f"--data: every label has fewer than {FEWEST} validation or training patches: "
                + ", ".join(f"{name} {count}" for name, count in self.few.items())
            )

    def _held(self, label: Label) -> int:
        dataset = self.study.dataset
        sides = dataset.training, dataset.validation
        return min(len(of_label(dataset, side, label)) for side in sides)

    @cached_property
    def real(self) -> dict[str, Real]:
        """The real patches of every label."""
        return {
            label.name: self._real(label)
            for label in self.study.labels
            if label.name in self.labels
        }

    def _real(self, label: Label) -> Real:
        study = self.study
        validation, training = study.validation(label), study.training(label, self.samples)
        features = {each.name: (each.of(validation), each.of(training)) for each in study.features}
        dataset = study.dataset
        everything = of_label(dataset, torch.arange(len(dataset.samples)), label)
        count = float(counts(dataset.masks[everything]).mean())
        if not count:
            raise StageError(f"--data: masks of {label.name} hold no nuclei")
        print(f"{label.name}: {len(validation)} real validation patches measured", flush=True)
        return Real(validation, features, count)

    def take(self, settings: SamplingSettings) -> Section:
        """All figures of one point, by label."""
        metrics = []
        for name, real in self.real.items():
            drawn = draw_pairs(self.study.engine, name, range(self.samples), settings)
            for network in self.study.features:
                sets = network.of(drawn), *real.features[network.name]
                metrics += distribution_metrics(*sets, network.name, name)
            metrics.append(agreement_metric(self.study.found, drawn, real.validation, name))
            metrics.append(nuclei_metric(drawn, real, name))
        return Section(metrics)


def counts(masks: Tensor) -> nuclei.Values:
    """Nuclei in each of masks bool [M, H, W]."""
    return np.concatenate([shapes.count for shapes in nuclei.measure(masks)])


def nuclei_metric(drawn: Pairs, real: Real, label: str) -> Metric:
    """`nuclei_ratio`: nuclei a sample over nuclei a real patch, training and validation together;
    the floor is that of validation patches alone."""
    found = counts(drawn.masks) / real.nuclei
    mean, noise = float(found.mean()), NORMAL * float(found.std()) / math.sqrt(len(found))
    floor = float(counts(real.validation.masks).mean()) / real.nuclei
    interval = (mean - noise, mean + noise)
    return Metric("nuclei_ratio", mean, floor, "", len(found), label, interval)


def grid(args: argparse.Namespace, checkpoint: Checkpoint) -> list[SamplingSettings]:
    """Every pair of guidance and temperature; StageError on what is no list or out of range."""
    config = checkpoint.config
    top_k = config.defaults.top_k if args.top_k is None else args.top_k
    common = replace(config.defaults, top_k=top_k)
    points = [
        replace(common, cfg_scale=guidance, temperature=temperature)
        for guidance in _numbers("--guidance", args.guidance)
        for temperature in _numbers("--temperature", args.temperature)
    ]
    for settings in points:
        try:
            check_settings(settings, config.tokenizer.codebook_size)
        except RequestError as wrong:
            flag = FLAGS.get(wrong.field, wrong.field)
            raise StageError(f"{flag}: got {wrong.value!r}, expected {wrong.expected}") from wrong
    return points


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return sorted({float(word) for word in text.split(",")})
    except ValueError as wrong:
        raise StageError(f"{flag}: got {text!r}, expected numbers such as 1,1.5,2") from wrong


def networks(asked: Sequence[str]) -> list[Features]:
    """The networks of `--features`, in their order; StageError on one that cannot be had."""
    loaded = []
    for word in asked:
        features, missing = parse_features([word])
        if not features:
            name = NETWORKS[word.partition("=")[0]].name
            needs = next(each.needs for each in missing if name in each.name)
            raise StageError(f"--features {word}: needs {needs}")
        loaded += features
    return loaded


def drawn_by(path: Path) -> str:
    """SHA-256 of all in a checkpoint that decides what named settings draw: its configuration,
    which holds the weights' SHA-256, but for its defaults. Storing others makes no point stale."""
    document = json.loads((path / CONFIG).read_text())
    del document["defaults"]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def prepared(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Instrument, Facts]:
    """What points are measured with, and the facts that make a finished point still good."""
    path = args.checkpoint / segmenters.FILE
    if not path.exists():
        raise StageError(
            f"{path}: not there; python -m training.segmenter --data {args.data} --out {path} "
            "trains one"
        )
    features = networks(args.features or ["efficientnet-lite0"])
    size = checkpoint.config.tokenizer.image_size
    dataset = patches.read_dataset(args.data, args.licence, size)
    # No segmenter is trained here.
    options = Options(args.samples, synthetic=0, segmenter_steps=0, seeds=0, threads=args.threads)
    segmenter = segmenters.load(path)
    instrument = Instrument(Study(checkpoint, dataset, options, features, None, segmenter))
    return instrument, {
        "model": checkpoint.config.name,
        "drawn by": drawn_by(args.checkpoint),
        "segmenter": segmenters.digest(path),
        "training patches": len(dataset.training),
        "validation patches": len(dataset.validation),
        "validation groups": patches.compared_split(args.checkpoint, dataset),
        "patches": dataset.digest(),
        "licences": args.licence,
        "labels": instrument.labels,
        "samples a label": args.samples,
        "features": [each.name for each in features],
    }


def sweep(args: argparse.Namespace) -> None:
    """Take the points that are not there, choose, store if asked to, write the page."""
    for name, fewest in (("samples", FEWEST), ("threads", 1)):
        if getattr(args, name) < fewest:
            raise StageError(f"--{name}: got {getattr(args, name)}, expected at least {fewest}")
    try_to_write("--out", args.out)
    if args.store:
        try_to_write("--checkpoint", args.checkpoint)
    use_threads(args.threads)
    with option("--checkpoint"):
        checkpoint = load_checkpoint(args.checkpoint)
    settings = grid(args, checkpoint)
    instrument, facts = prepared(args, checkpoint)
    points = take_points(args.out, facts, instrument, settings)
    network, labels = instrument.study.features[0].name, instrument.labels
    real = points[0].of(ALL)["pair_agreement", ""].floor
    assert real is not None
    choice = choose([scores(point, network, labels) for point in points], real)
    best = settings[choice.best]
    stored = store(args.checkpoint, facts, best) if args.store else None
    facts = {"version": checkpoint.version, **facts}
    Results(facts, network, labels, instrument.few, points, choice, stored).write(args.out)
    verdict = choice.verdicts[choice.best]
    print(f"{described(best)}: {verdict}; {args.out / 'README.md'} says why", flush=True)


def take_points(
    out: Path, facts: Facts, instrument: Instrument, points: list[SamplingSettings]
) -> list[Point]:
    """Every point, read from `out` where it is there under the same facts; says how far it is."""
    taken, spent = [], []
    for number, settings in enumerate(points, start=1):
        print(f"sweep {number}/{len(points)}: {described(settings)}", flush=True)

        def take(settings: SamplingSettings = settings) -> Section:
            started = time.monotonic()
            section = instrument.take(settings)
            spent.append(time.monotonic() - started)
            return section

        name = f"guidance_{settings.cfg_scale:g}_temperature_{settings.temperature:g}"
        held = part(out, {**facts, "settings": asdict(settings)}, name, take)
        if spent:
            left = sum(spent) / len(spent) * (len(points) - number) / 60
            print(f"sweep {number}/{len(points)}: {left:.0f} min left", flush=True)
        taken.append(Point(settings, with_means([Metric(**each) for each in held["metrics"]])))
    return taken


def store(path: Path, facts: Facts, settings: SamplingSettings) -> str:
    """Make them the defaults of the checkpoint, if it is still the one that was measured; its
    version then."""
    if drawn_by(path) != facts["drawn by"]:
        raise StageError(f"{path}: was replaced during the sweep; nothing is stored")
    with option("--store"):
        version = store_defaults(path, settings)
    print(f"{path}: its defaults are now {described(settings)}; version {version[:12]}", flush=True)
    return version


def main(words: Sequence[str] | None = None) -> None:
    """Parse and sweep."""
    parser = argparse.ArgumentParser(prog="python -m training.sweep", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--licence", action="append", default=[], help="as in training")
    parser.add_argument("--guidance", default="1,1.5,2,3", help="values of cfg_scale; 1 is off")
    parser.add_argument("--temperature", default="0.9,1.0,1.1")
    parser.add_argument("--top-k", type=int, help="for all points; default the checkpoint's own")
    parser.add_argument("--samples", type=int, default=200, help="samples per label at a point")
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="frozen network; the first decides; default efficientnet-lite0, from its package",
    )
    parser.add_argument("--store", action="store_true", help="make the best point the defaults")
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args(words)
    with stage("sweep"):
        sweep(args)


if __name__ == "__main__":
    main()
