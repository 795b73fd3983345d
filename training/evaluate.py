"""Measure a checkpoint: `python -m training.evaluate --checkpoint C --data D --out DIR`.

Writes a report with images (`README.md`) and `report.json` into DIR. The report says how much
tokens preserve, how close samples are to real validation patches, whether samples are copies of
training patches, and how much they help to train a segmenter. Give the data and licences of the
training, so that the validation groups are those that training never saw. If the command is killed,
run it again: it resumes after the last finished section. If a network's weights are missing, its
metrics name the file that they need.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from model.checkpoint import load_checkpoint, read_learned
from model.processors import default_threads
from model.request import Audit
from training import data as patches
from training import segmenter as segmenters
from training.compute import precision_name, use_threads
from training.distributed import training_device
from training.evaluation import nnunet, segmentation
from training.evaluation.chapters import CHAPTERS, chapters
from training.evaluation.features import parse_features
from training.evaluation.report import Chapter, Section, replace, write
from training.evaluation.settings_text import defaults_described
from training.evaluation.study import Study, StudyOptions
from training.losses import Lpips
from training.run import StageError, option, stage, try_to_write

NETWORKS = {"monai": segmentation.MONAI, "nnunet": nnunet.NNUNET}


def write_report(args: argparse.Namespace) -> None:
    """All sections into `args.out`."""
    for name in ("samples", "synthetic", "segmenter_steps", "seeds", "threads"):
        if getattr(args, name) < 1:
            raise StageError(f"--{name}: got {getattr(args, name)}, expected at least 1")
    known = [name for name, *_ in CHAPTERS]
    wanted = args.sections.split(",") if args.sections else known
    if unknown := sorted(set(wanted) - set(known)):
        raise StageError(f"--sections: got {unknown[0]}, expected some of {','.join(known)}")
    try_to_write("--out", args.out)
    use_threads(args.threads)
    with option("--checkpoint"):
        checkpoint = load_checkpoint(args.checkpoint)
    dataset = patches.read_dataset(args.data, args.licence, checkpoint.config.tokenizer.image_size)
    if not len(dataset.validation):
        raise StageError(f"--data: {args.data}: no label has two groups, so none is held out")
    features, missing = parse_features(args.features)
    segmenter = args.segmenter or args.checkpoint / segmenters.FILE
    options = StudyOptions(
        args.samples, args.synthetic, args.segmenter_steps, args.seeds, args.threads,
        NETWORKS[args.segmentation_network],
    )  # fmt: skip
    study = Study(
        checkpoint,
        dataset,
        options,
        features,
        Lpips(args.perceptual) if args.perceptual else None,
        segmenters.load(segmenter) if segmenter.exists() else None,
    )
    config = checkpoint.config
    facts: dict[str, object] = {
        "model": config.name,
        "version": checkpoint.version,
        "settings": defaults_described(config),
        "training patches": len(dataset.training),
        "validation patches": len(dataset.validation),
        "validation groups": patches.compared_split(args.checkpoint, dataset),
        "patches": dataset.digest()[:12],
        "samples a label": options.samples,
        "synthetic pairs": options.synthetic,
        "segmenter updates": options.segmenter_steps,
        "segmenter of the groups": options.network.name,
        "precision of the segmenters": precision_name(training_device()),
        "seeds": options.seeds,
        "features": [each.name for each in features],
        "perceptual": study.perceptual is not None,
        "segmenter": segmenters.digest(segmenter)[:12] if segmenter.exists() else None,
    }
    absent = Chapter(
        "Not measured here", "Figures whose networks had no weights here.",
        {"missing": lambda: Section(missing=missing)},
    )  # fmt: skip
    title = f"Evaluation of {config.name}"
    taken = [*chapters(study, wanted), absent]
    write(args.out, title, facts, taken, not args.no_real_pictures)
    if args.store:
        store_audit(args.checkpoint, args.out, date.today())


def store_audit(checkpoint: Path, report: Path, day: date) -> None:
    """Put the report's audit by tokens into the checkpoint's `data.json`, where the cards of data
    sets find it. StageError where the report has none."""
    metrics = json.loads((report / "report.json").read_text())["metrics"]
    found = {(each["name"], each["label"]): each for each in metrics}
    audited = {label: each for (name, label), each in found.items() if name == "nearest_tokens"}
    if not audited:
        raise StageError(f"--store: {report} has no audit; take the section audit too")
    path = checkpoint / patches.FACTS
    facts = json.loads(path.read_text()) if path.exists() else {}
    labels = facts.setdefault("labels", {})
    for label, each in audited.items():
        copies = found["memorised_tokens", label]["value"]
        audit = Audit(day.isoformat(), each["n"], each["value"], each["floor"], copies)
        labels.setdefault(label, {})["audit"] = asdict(audit)
    replace(path, json.dumps(facts, indent=1) + "\n")
    read_learned(path)


def main(words: Sequence[str] | None = None) -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with real patches")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--licence", action="append", default=[], help="as in training")
    parser.add_argument("--perceptual", type=Path, help="AlexNet features, safetensors (LPIPS)")
    parser.add_argument(
        "--features", action="append", default=[], help="NAME or NAME=PATH of a frozen network"
    )
    parser.add_argument("--segmenter", type=Path, help="instead of the checkpoint's")
    parser.add_argument("--samples", type=int, default=200, help="samples per label")
    parser.add_argument("--synthetic", type=int, default=400, help="most synthetic pairs")
    parser.add_argument("--segmenter-steps", type=int, default=400)
    parser.add_argument(
        "--segmentation-network", choices=NETWORKS, default="monai", help="what a group trains"
    )
    parser.add_argument("--seeds", type=int, default=3, help="segmenters trained per group")
    parser.add_argument(
        "--no-real-pictures", action="store_true", help="no sheet that shows real patches"
    )
    parser.add_argument("--sections", help="only these, such as samples,reconstruction,audit")
    parser.add_argument(
        "--store", action="store_true", help="put the audit into the checkpoint's data.json"
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args(words)
    with stage("evaluate"):
        write_report(args)


if __name__ == "__main__":
    main()
