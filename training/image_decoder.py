"""The stage of the image decoder: `python -m training.image_decoder --data D --start-from C --out O
--workdir R` trains the image decoder of a finished tokenizer further, for sharper pictures.

L1 and LPIPS favour the mean of everything that a token could stand for, and that mean is soft. This
stage asks for the texture of the patches as well (training/texture_losses.py), in plain decodes and
in decodes of swapped streams. Encoders, codebooks and the mask decoder do not change. So all token
ids stay the same, and the prior stays valid. If the command is killed, run it again: it resumes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.tokenizer import Tokenizer
from training import balance
from training import data as patches
from training import segmenter as segmenters
from training.image_decoder_trainer import DecoderOptions, DecoderTrainer
from training.run import ProgressLog, Saves, StageError, load_tensors, option, stage, try_to_write
from training.tokenizer import report
from training.warm_start import read_start, save_start

STATE = "image_decoder.safetensors"


def train(trainer: DecoderTrainer, dataset: patches.Dataset, run: Path, every: int) -> None:
    """Train to the end of the schedule; saves every minute, and scores and draws a sheet every
    `every` steps."""
    options = trainer.options
    progress, saves = ProgressLog(run, "image_decoder"), Saves()
    chances = balance.chances(dataset, dataset.training)
    planes = trainer.tokenizer.config.structure_planes
    while trainer.step < options.steps:
        chosen, views = balance.draw(
            dataset.training, chances, options.seed, trainer.step, options.batch
        )
        images, masks = patches.batch(dataset, chosen, views, planes)
        images = images.contiguous(memory_format=torch.channels_last)
        progress.add(trainer.train_step(images, masks))
        if progress.due(trainer.step):
            progress.report(trainer.step, options.steps, options.batch)
        done = trainer.step == options.steps
        if done or saves.due():
            trainer.save(run / STATE)
            saves.done()
        if done or trainer.step % every == 0:
            scored = trainer.average, trainer.lpips, trainer.step
            report("image_decoder", *scored, dataset, run, progress)


def write(start: Path, out: Path, tokenizer: Tokenizer, licence: str) -> None:
    """The trained decoder where `start`'s was: a checkpoint of a checkpoint, a file of a file."""
    if not start.is_dir():
        _, meta = load_tensors(start)
        save_start(out, tokenizer, meta["size"], meta["step"], licence)
        return
    checkpoint = load_checkpoint(start)
    save_checkpoint(out, checkpoint.config, tokenizer, checkpoint.prior)
    for name in (patches.FACTS, segmenters.FILE):
        if (start / name).exists():
            shutil.copyfile(start / name, out / name)


def main(words: Sequence[str] | None = None) -> None:
    """Parse, resume if the run has a state, train, write."""
    parser = argparse.ArgumentParser(prog="python -m training.image_decoder", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run, resumable")
    parser.add_argument(
        "--start-from", type=Path, required=True, help="checkpoint, or tokenizer file"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, or file, to write")
    parser.add_argument("--perceptual", type=Path, help="AlexNet features, safetensors (LPIPS)")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, safetensors (feature loss)")
    parser.add_argument("--segmenter", type=Path, help="from training.segmenter; scores swaps")
    parser.add_argument("--licence", action="append", default=[], help="train only on these")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between two validations")
    args = parser.parse_args(words)
    with stage("image_decoder"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """The stage's body."""
    if args.steps < 1:
        raise StageError(f"--steps: got {args.steps}, expected at least 1")
    if args.batch < 2:
        raise StageError(f"--batch: got {args.batch}, expected at least 2, to swap streams")
    if args.out.resolve() == args.start_from.resolve():
        raise StageError(f"--out: got {args.out}, which is --start-from, expected another path")
    try_to_write("--workdir", args.workdir)
    try_to_write("--out", args.out.parent)
    start = read_start(args.start_from)
    options = DecoderOptions(
        start.origin, args.steps, args.batch, args.rate, args.seed, tuple(args.licence)
    )
    dataset = patches.read_dataset(args.data, options.licences, start.config.image_size)
    trainer = DecoderTrainer(options, start, args.perceptual, args.mobilenet, args.segmenter)
    if (args.workdir / STATE).exists():
        trainer.load(args.workdir / STATE)
    args.workdir.mkdir(parents=True, exist_ok=True)
    print(f"image_decoder: from step {trainer.step} of {options.steps}", flush=True)
    train(trainer, dataset.to(trainer.device), args.workdir, args.every)
    with option("--out"):
        write(args.start_from, args.out, trainer.average.cpu(), start.licence)
    print(f"image_decoder: {args.out} is ready; its tokens are those of {args.start_from}")


if __name__ == "__main__":
    main()
