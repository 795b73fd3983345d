"""Train: `python -m training.train --data D --workdir R --out C` makes a checkpoint of patches.

Chooses patches and labels, and lists them in `R/patches`. Then runs the stages on them, and prints
the command of each: a segmenter that teaches the tokenizer, tokenizer, tokens, prior, export, and
the segmenter that ships with the checkpoint, whose size and seed differ from the teacher's. A
setting that is not given here has the stage's own default.

If the command is killed, run it again: it resumes, and does not repeat finished stages. It rejects
settings that differ from those of the run.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from model.checkpoint import CONFIG, load_checkpoint
from model.config import NAMED_SIZES
from training import export, prior, segmenter, tokenizer, tokens
from training.losses import Lpips
from training.overview import write as write_overview
from training.run import StageError, option, stage, try_to_write
from training.samples import said_of_copies
from training.selection import Selection, listed_groups, select

PATCHES = "patches"
RECORD = "train.json"
TEACHER = "teacher.safetensors"
JUDGE = {"--width": ["24"], "--seed": ["1"]}
"""So that who judges samples is not who taught the tokenizer."""

Options = dict[str, list[str]]
"""Values by flag; a flag without any is not given."""
Record = dict[str, dict[str, Any]]
"""By stage, the settings that it was started with and whether it is finished; beside them, under
PATCHES, a digest of the pictures."""


@dataclass(frozen=True)
class Stage:
    """One command that writes `output`. `places` are in the run folder, which can be moved.

    `fixed`: going on from its state, or from what was made of it, with other settings would mix two
    runs. The others can be run again with other settings.
    """

    name: str
    module: ModuleType
    places: Options
    settings: Options
    output: Path
    fixed: bool

    def words(self) -> list[str]:
        """Its options as they are typed."""
        options = self.places | self.settings
        return [word for flag, values in options.items() for v in values for word in (flag, v)]


def stages(args: argparse.Namespace, licences: list[str]) -> list[Stage]:
    """All stages of a run, in order."""
    run, out = args.workdir, args.out.resolve()
    data, workdir = {"--data": [str(run / PATCHES)]}, {"--workdir": [str(run)]}
    teacher, judge = run / TEACHER, out / segmenter.FILE
    states = [run / name for name in (tokenizer.STATE, tokens.TOKENS, prior.STATE)]
    start = {"--start-from": _given(args.start_from and args.start_from.resolve())}
    find: Options = {
        "--image-size": [str(NAMED_SIZES[args.size][0].image_size)],
        "--steps": _given(args.segmenter_steps),
        "--rate": _given(args.segmenter_rate),
    }
    tokenize: Options = {
        "--size": [args.size],
        "--licence": licences,
        "--steps": _given(args.tokenizer_steps),
        "--rate": _given(args.tokenizer_rate),
        "--perceptual": _given(args.perceptual and args.perceptual.resolve()),
    }
    taught = data | workdir | {"--segmenter": [str(teacher)]}
    predict = {"--steps": _given(args.prior_steps), "--rate": _given(args.prior_rate)} | start
    ship = {"--out": [str(out)], "--name": [args.name or out.name]}
    find_too = find | JUDGE | {"--out": [str(judge)]}
    return [
        Stage("teacher", segmenter, data | {"--out": [str(teacher)]}, find, teacher, True),
        Stage("tokenizer", tokenizer, taught, tokenize | start, states[0], True),
        Stage("tokens", tokens, data | workdir, {}, states[1], True),
        Stage("prior", prior, workdir, predict, states[2], False),
        Stage("export", export, workdir, ship, out / CONFIG, False),
        Stage("judge", segmenter, data, find_too, judge, False),
    ]


def unfinished(run: list[Stage], record: Record) -> list[Stage]:
    """The first stage that is not finished with its settings, and all after it."""
    for number, each in enumerate(run):
        done = record.get(each.name) == {"settings": each.settings, "finished": True}
        if not done or not each.output.exists():
            return run[number:]
    return []


def refuse_changes(workdir: Path, run: list[Stage], record: Record) -> None:
    """StageError, where what is in the run folder was started with other settings."""
    for each in run:
        held = record.get(each.name, {}).get("settings", each.settings)
        for flag, values in each.settings.items():
            old, new = (
                " ".join([flag, *v]) if v else f"no {flag}" for v in (held.get(flag, []), values)
            )
            if old != new and each.fixed:
                raise StageError(
                    f"{workdir}: its {each.name} was started with {old}, now it is {new}; "
                    "give the old settings, or another --workdir"
                )


def train(args: argparse.Namespace) -> None:
    """Run what is unfinished."""
    for name, folder in (("--workdir", args.workdir), ("--out", args.out)):
        try_to_write(name, folder)
    selection = select(args.data, args.licence, args.fewest_groups)
    run = stages(args, selection.licences())
    record = _read_record(args)
    refuse_changes(args.workdir, run, record)
    _refuse_unusable(args)
    _keep(selection, args.workdir, record)
    waiting = unfinished(run, record)
    for each in waiting:
        record.get(each.name, {})["finished"] = False
    for each in run:
        state = "" if each in waiting else " is finished"
        command = f"python -m {each.module.__name__} {shlex.join(each.words())}"
        print(f"train: {each.name}{state}: {command}", flush=True)
        if each in waiting:
            _run(each, record, args.workdir / RECORD)
    print(f"train: {args.out} is ready; its patches, for a report: {args.workdir / PATCHES}")


def _run(each: Stage, record: Record, path: Path) -> None:
    """Run a stage and keep the record of it."""
    record[each.name] = {"settings": each.settings, "finished": False}
    _write(path, json.dumps(record, indent=1))
    each.module.main(each.words())
    record[each.name]["finished"] = True
    _write(path, json.dumps(record, indent=1))


def _read_record(args: argparse.Namespace) -> Record:
    """What the run folder says. StageError where another's run or checkpoint would be lost."""
    path, record = args.workdir / RECORD, Record()
    if path.exists():
        record = json.loads(path.read_text())
    elif (args.workdir / tokenizer.STATE).exists():
        raise StageError(f"--workdir: {args.workdir} holds a run that this command did not start")
    written = record.get("export", {}).get("settings", {}).get("--out")
    if (args.out / CONFIG).exists() and written != [str(args.out.resolve())]:
        raise StageError(f"--out: {args.out} holds another checkpoint, expected a new folder")
    return record


def _refuse_unusable(args: argparse.Namespace) -> None:
    """What a later stage would refuse is refused before hours of training."""
    for name in ("tokenizer_steps", "prior_steps", "segmenter_steps"):
        steps = getattr(args, name)
        if steps is not None and steps < 1:
            raise StageError(f"--{name.replace('_', '-')}: got {steps}, expected at least 1")
    if args.perceptual:
        Lpips(args.perceptual)
    if args.start_from:
        with option("--start-from"):
            load_checkpoint(args.start_from)


def _keep(selection: Selection, workdir: Path, record: Record) -> None:
    """Write the selection, or check that it is the one that is there; say what it is."""
    path, text = workdir / PATCHES / "manifest.csv", selection.manifest()
    if record and path.exists() and path.read_text() != text:
        raise StageError(
            f"{path}: lists other patches or labels than those chosen now; give the same --data, "
            "--licence and --fewest-groups as before, or another --workdir"
        )
    files = {"settings": {"sha256": [selection.digest()]}, "finished": True}
    if record.setdefault(PATCHES, files) != files:
        raise StageError(
            f"{path}: the images that it lists are not what they were when this run started; "
            "put the old ones back, or use another --workdir"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, text)
    print(f"train: {len(selection.samples)} patches; groups: {listed_groups(selection.kept)}")
    if selection.copies:
        print(f"train: {said_of_copies(selection.copies)}")
    write_overview(selection.looked_at, path.parent)
    if selection.left_out:
        print(f"train: labels left out for too few groups: {listed_groups(selection.left_out)}")
    if selection.one_sided:
        why = "because they have no group for training or none for validation"
        print(f"train: labels left out {why}: {listed_groups(selection.one_sided)}")


def _given(value: object) -> list[str]:
    return [] if value is None else [str(value)]


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def main(words: Sequence[str] | None = None) -> None:
    """Parse and train."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        help="folder with patches; repeat it for several folders",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run, resumable")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", help="the model's name in responses (default: --out's last part)")
    parser.add_argument("--size", choices=NAMED_SIZES, default="small")
    parser.add_argument("--licence", action="append", default=[], help="train only on these")
    parser.add_argument(
        "--fewest-groups",
        type=int,
        default=2,
        help="leave out labels with fewer; one leaves nothing to validate on (default 2)",
    )
    parser.add_argument("--perceptual", type=Path, help="AlexNet features, safetensors (LPIPS)")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose weights to start from")
    for name in ("tokenizer", "prior", "segmenter"):
        default = f"default: training.{name}'s own"
        parser.add_argument(f"--{name}-steps", type=int, help=default)
        parser.add_argument(f"--{name}-rate", type=float, help=f"peak learning rate; {default}")
    with stage("train"):
        train(parser.parse_args(words))


if __name__ == "__main__":
    main()
