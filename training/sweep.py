"""Sweep sampling settings: `python -m training.sweep --checkpoint C --data D --out DIR`.

At every point of a grid of guidance, temperature and top-k, each for both streams or by stream, it
draws samples of each label with the same seeds (the paper's Fig. 7 e, f). It measures FID, KID and
recall against real validation patches, the number of nuclei and their area, and Dice: the nuclei
that the checkpoint's segmenter finds in a sample's image against the sample's mask. DIR gets
`sweep.json` and `README.md`, which has tables, pictures, the rule and the settings chosen for each
label. `--store` makes them the checkpoint's defaults. Give the data and licences of the training.
If the command is killed, run it again: it resumes after the last finished label of a point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import CONFIG, Checkpoint, load_checkpoint, store_defaults
from model.processors import default_threads
from model.request import ByStream, Label, RequestError, SamplingSettings, check_settings
from pathar.contract import setting_of
from training import data as patches
from training import segmenter as segmenters
from training.compute import use_threads
from training.evaluation import nuclei
from training.evaluation.choice import ALL, NORMAL, Point, choose_of, with_means
from training.evaluation.distances import FEWEST, distribution_metrics
from training.evaluation.features import NETWORKS, Features, parse_features
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs, draw_pairs, of_label
from training.evaluation.report import Section, part
from training.evaluation.settings_text import described, typed
from training.evaluation.study import Study, StudyOptions
from training.evaluation.swaps import agreement_metric
from training.evaluation.sweep_page import Results
from training.run import StageError, option, stage, try_to_write

FLAGS = {"cfg_scale": "--guidance", "temperature": "--temperature", "top_k": "--top-k"}
PARTS = {"cfg_scale": "guidance", "temperature": "temperature", "top_k": "top_k"}
"""What names the file of a finished part; its facts have all settings."""

Facts = dict[str, object]


@dataclass(frozen=True)
class Real:
    """Real patches of a label, measured once for all points: `features` of validation and of
    training patches by network; `nuclei`, what each of RATIOS is in both together, and `floors`,
    that of validation patches alone over it."""

    validation: Pairs
    features: dict[str, tuple[Tensor, Tensor]]
    nuclei: dict[str, float]
    floors: dict[str, float]


class Instrument:
    """Draws and measures points; the real patches of a label are measured when it first is.

    `labels` are those that can be measured; `unmeasured` says of the checkpoint's others why not.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.samples = study.options.samples
        wanted = study.checkpoint.config.labels
        lacks = {label.name: self._lacks(label) for label in wanted}
        self.unmeasured = {name: lack for name, lack in lacks.items() if lack}
        self.labels = [label for label in wanted if label.name not in self.unmeasured]
        if not self.labels:
            told = "; ".join(f"{name}: {lack}" for name, lack in self.unmeasured.items())
            raise StageError(f"--data: no label can be measured: {told}")
        self._real: dict[str, Real] = {}

    def _lacks(self, label: Label) -> str:
        """Why a label cannot be measured; empty where it can."""
        dataset = self.study.dataset
        if label not in dataset.labels:
            return "no patches"
        for name, side in (("validation", dataset.validation), ("training", dataset.training)):
            held = of_label(dataset, side, label)
            if len(held) < FEWEST:
                return f"{len(held)} {name} patches, under {FEWEST}"
            if not dataset.masks[held].any():
                return f"no nuclei in masks of {name} patches"
        return ""

    def real(self, label: Label) -> Real:
        """The real patches of a label."""
        if label.name not in self._real:
            self._real[label.name] = self._measured(label)
        return self._real[label.name]

    def _measured(self, label: Label) -> Real:
        study = self.study
        validation, training = study.validation(label), study.training(label, self.samples)
        features = {each.name: (each.of(validation), each.of(training)) for each in study.features}
        dataset = study.dataset
        everything = of_label(dataset, torch.arange(len(dataset.samples)), label)
        both, held = nuclei.measure(dataset.masks[everything]), nuclei.measure(validation.masks)
        units = {name: take(both).mean for name, take in RATIOS.items()}
        floors = {name: take(held).mean / units[name] for name, take in RATIOS.items()}
        print(f"{label.name}: {len(validation)} real validation patches measured", flush=True)
        return Real(validation, features, units, floors)

    def take(self, label: Label, settings: SamplingSettings) -> Section:
        """All figures of one label at one point."""
        name, real = label.name, self.real(label)
        drawn = draw_pairs(self.study.engine, name, range(self.samples), settings)
        metrics = []
        for network in self.study.features:
            sets = network.of(drawn), *real.features[network.name]
            metrics += distribution_metrics(*sets, network.name, name)
        metrics.append(agreement_metric(self.study.found, drawn, real.validation, name))
        return Section([*metrics, *nuclei_metrics(drawn, real, name)])


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error."""

    mean: float
    error: float


def number(patches: Sequence[nuclei.Shapes]) -> Mean:
    """Nuclei a patch."""
    found = nuclei.pooled(patches, "count")
    return Mean(float(found.mean()), float(found.std()) / math.sqrt(len(found)))


def size(patches: Sequence[nuclei.Shapes]) -> Mean:
    """Area of a nucleus in pixels, 0 without any. Its error is that of a ratio of two means over
    patches, as nuclei of a patch are alike."""
    counts = nuclei.pooled(patches, "count")
    areas = np.array([patch.area.sum() for patch in patches])
    if not counts.any():
        return Mean(0.0, 0.0)
    mean = areas.sum() / counts.sum()
    return Mean(float(mean), float(np.linalg.norm(areas - mean * counts) / counts.sum()))


RATIOS = {"nuclei_ratio": number, "area_ratio": size}


def nuclei_metrics(drawn: Pairs, real: Real, label: str) -> list[Metric]:
    """Nuclei a sample and the mean area of a nucleus, each over that of real patches."""
    shapes, metrics = nuclei.measure(drawn.masks), []
    for name, take in RATIOS.items():
        found, unit = take(shapes), real.nuclei[name]
        value, noise = found.mean / unit, NORMAL * found.error / unit
        interval = (value - noise, value + noise)
        metrics.append(Metric(name, value, real.floors[name], "", len(shapes), label, interval))
    return metrics


def grid(args: argparse.Namespace, checkpoint: Checkpoint) -> list[SamplingSettings]:
    """Every combination of the values asked for; StageError on what is no list or out of range."""
    config = checkpoint.config
    top_k = typed(config.defaults.top_k) if args.top_k is None else args.top_k
    asked = {
        "cfg_scale": values("--guidance", args.guidance, float),
        "temperature": values("--temperature", args.temperature, float),
        "top_k": values("--top-k", top_k, int),
    }
    combined = [dict(zip(asked, each, strict=True)) for each in product(*asked.values())]
    points = list(dict.fromkeys(replace(config.defaults, **each) for each in combined))
    for settings in points:
        try:
            check_settings(settings, config.tokenizer.codebook_size)
        except RequestError as wrong:
            name, _, stream = wrong.field.partition(".")
            flag = FLAGS.get(name, name) + (f", {stream}" if stream else "")
            raise StageError(f"{flag}: got {wrong.value!r}, expected {wrong.expected}") from wrong
    return points


def values(flag: str, text: str, kind: Callable[[str], float]) -> list[float | ByStream]:
    """The values of a list such as 1,1:1.5, where 1:1.5 is 1 for structure and 1.5 for
    appearance."""
    try:
        told = [setting_of(word, kind) for word in text.split(",")]
    except ValueError as wrong:
        kinds = "integers such as 0,50,0:100" if kind is int else "numbers such as 1,1.5,1:2"
        raise StageError(f"{flag}: got {text!r}, expected {kinds}") from wrong
    return [each if isinstance(each, float | int) else ByStream(**each) for each in told]


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
    which holds the weights' SHA-256, but for its defaults and those of its labels. Storing others
    makes no point stale."""
    document = json.loads((path / CONFIG).read_text())
    for each in (document, *document["labels"]):
        each.pop("defaults", None)
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
    options = StudyOptions(
        args.samples, synthetic=0, segmenter_steps=0, seeds=0, threads=args.threads
    )
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
    network, labels = instrument.study.features[0].name, [each.name for each in instrument.labels]
    choices = {label: choose_of(points, network, label) for label in (ALL, *labels)}
    told = {"version": checkpoint.version, **facts, "labels": labels}
    results = Results(told, network, instrument.unmeasured, points, choices, None)
    if args.store:
        version = store(args.checkpoint, facts, results.overall, results.of_labels)
        results = replace(results, stored=version)
    results.write(args.out)
    for label, choice in choices.items():
        print(f"{label}: {described(results.best(label).settings)}: {choice.verdicts[choice.best]}")
    print(f"{args.out / 'README.md'} says why", flush=True)


def take_points(
    out: Path, facts: Facts, instrument: Instrument, points: list[SamplingSettings]
) -> list[Point]:
    """Every point, label by label, read from `out` where it is there under the same facts; says how
    far it is."""
    taken: list[list[Metric]] = [[] for _ in points]
    spent: list[float] = []
    left = len(points) * len(instrument.labels)
    for at, (settings, metrics) in enumerate(zip(points, taken, strict=True), start=1):
        print(f"sweep {at}/{len(points)}: {described(settings)}", flush=True)
        for label in instrument.labels:
            before = len(spent)
            metrics += take_label(out, facts, instrument, label, settings, spent)
            left -= 1
            if len(spent) > before:
                minutes = sum(spent) / len(spent) * left / 60
                print(f"sweep {at}/{len(points)}: {minutes:.0f} min left", flush=True)
    return [
        Point(settings, with_means(metrics))
        for settings, metrics in zip(points, taken, strict=True)
    ]


def take_label(
    out: Path,
    facts: Facts,
    instrument: Instrument,
    label: Label,
    settings: SamplingSettings,
    spent: list[float],
) -> list[Metric]:
    """One label at one point. `spent` gets the seconds that it took, if it was not there."""

    def take() -> Section:
        started = time.monotonic()
        section = instrument.take(label, settings)
        spent.append(time.monotonic() - started)
        return section

    named = {word: getattr(settings, name) for name, word in PARTS.items()}
    words = [f"{word}_{typed(value).replace(':', '-')}" for word, value in named.items()]
    name = "_".join([*words, label.name])
    held = part(out, {**facts, "settings": asdict(settings), "label": label.name}, name, take)
    return [Metric(**each | {"value": _number(each["value"])}) for each in held["metrics"]]


def _number(told: float | None) -> float:
    """A figure as it was before it was written; JSON has no other numbers than finite ones."""
    return math.nan if told is None else told


def store(
    path: Path,
    facts: Facts,
    settings: SamplingSettings,
    of_labels: Mapping[str, SamplingSettings],
) -> str:
    """Make them the defaults of the checkpoint and of its labels, if it is still the one that was
    measured; its version then."""
    if drawn_by(path) != facts["drawn by"]:
        raise StageError(f"{path}: was replaced during the sweep; nothing is stored")
    with option("--store"):
        version = store_defaults(path, settings, of_labels)
    print(f"{path}: these are now its defaults; version {version[:12]}", flush=True)
    return version


def main(words: Sequence[str] | None = None) -> None:
    """Parse and sweep."""
    parser = argparse.ArgumentParser(prog="python -m training.sweep", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--licence", action="append", default=[], help="as in training")
    apart = "1:2 is 1 for structure and 2 for appearance, here and below"
    parser.add_argument(
        "--guidance", default="1,1.5,2,3", help=f"values of cfg_scale; 1 is off; {apart}"
    )
    parser.add_argument("--temperature", default="0.9,1.0,1.1", help="values")
    parser.add_argument("--top-k", help="values; 0 is off; default the checkpoint's own")
    parser.add_argument("--samples", type=int, default=200, help="samples per label at a point")
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="frozen network; the first decides; default efficientnet-lite0, from its package",
    )
    parser.add_argument("--store", action="store_true", help="make what is chosen the defaults")
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args(words)
    with stage("sweep"):
        sweep(args)


if __name__ == "__main__":
    main()
