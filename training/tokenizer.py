"""Tokenizer stage: `python -m training.tokenizer --data D --workdir R` trains the tokenizer.

The loss (docs/method.md, section 2) is L1 and LPIPS on the image, BCE and Dice on the mask, and the
commitment of both codebooks. A segmenter adds the loss of swapped streams. If the command is
killed, run it again: it resumes from the last state.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.config import NAMED_SIZES
from model.tokenizer import Quantised, Reconstruction, Tokenizer
from training import balance
from training import data as patches
from training.codebooks import CodebookTrainer, usage
from training.compute import autocast, precision_name
from training.distributed import (
    average_gradients,
    from_first_rank,
    process_group,
    rank,
    share,
    training_device,
)
from training.losses import (
    Lpips,
    colour_loss,
    crops,
    looked_at,
    overlap,
    psnr,
    segmentation_loss,
    structure_losses,
)
from training.run import (
    ProgressLog,
    RunError,
    Saves,
    Schedule,
    adamw,
    check_finite,
    follow,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    prefixed,
    said_change,
    save_tensors,
    stage,
    try_to_write,
    under,
)
from training.segmenter import load as load_segmenter
from training.sheets import reconstruction_sheet
from training.warm_start import Start, fits, read_start, warm_start

START_CODEBOOKS = 120
"""The step at which k-means sets the entries; before it, raw latents pass."""
FRESH_STEPS = 200
"""Steps for which layers that begin anew are trained alone, so that they spoil no trained ones."""
LATENT_BATCHES = 8
COMMITMENT = 0.25
LPIPS_WEIGHT = 2.0
SWAP_WEIGHT = 0.2
COLOUR_WEIGHT = 0.1
AVERAGE_LIMIT = 0.998
STATE = "tokenizer.safetensors"


@dataclass(frozen=True)
class TokenizerOptions:
    """What a tokenizer run is made with; all of it stands in the run's state.

    `licences` chose its patches; empty, all of them. `started_from` is the version of the
    checkpoint whose weights it goes on from, `started_licence` that checkpoint's; or nothing.
    """

    size: str
    steps: int
    batch: int
    rate: float
    decay: float
    seed: int
    licences: tuple[str, ...]
    started_from: str = ""
    started_licence: str = ""


class TokenizerTrainer:
    """Everything that one training step changes."""

    def __init__(
        self,
        options: TokenizerOptions,
        perceptual: Path | None = None,
        segmenter: Path | None = None,
    ) -> None:
        self.options = options
        self.device = training_device()
        self.precision = precision_name(self.device)
        torch.manual_seed(options.seed)
        config = NAMED_SIZES[options.size][0]
        self.tokenizer = channels_last(Tokenizer(config), self.device)
        from_first_rank([*self.tokenizer.parameters(), *self.tokenizer.buffers()])
        self.average = copy.deepcopy(self.tokenizer).eval()
        self.optimizer = adamw(self.tokenizer.parameters(), options.rate, 0.01, 0.98)
        self.lpips = Lpips(perceptual).to(self.device) if perceptual else None
        self.segmenter = load_segmenter(segmenter).to(self.device) if segmenter else None
        books = (self.tokenizer.structure_codebook, self.tokenizer.appearance_codebook)
        self.books = tuple(CodebookTrainer(book) for book in books)
        self.latents: list[tuple[Tensor, Tensor]] = []
        self.fresh: list[str] = []
        self.step = 0

    def start_from(self, start: Start) -> None:
        """Take a trained tokenizer's weights and codebooks; RunError if its sizes are others."""
        if not fits(self.tokenizer.config, start.config):
            raise RunError(
                f"the checkpoint's tokenizer is {start.config}, not of {self.options.size}"
            )
        self.options = replace(
            self.options, started_from=start.origin, started_licence=start.licence
        )
        self.fresh = warm_start(self.tokenizer, start.weights)
        self.average.load_state_dict(self.tokenizer.state_dict())
        if self.fresh:
            new = f"{len(self.fresh)} tensors are new and train alone for {FRESH_STEPS} steps"
            print(f"tokenizer: {new}; all others keep their weights", flush=True)
        for book in self.books:
            book.adopt()

    def train_step(self, images: Tensor, masks: Tensor, rate: float) -> dict[str, float]:
        """One update on this rank's images [B, 3, H, W] and masks [B, 1, H, W]."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        started = self._codebooks_started()
        self._hold_trained()
        self.tokenizer.train()
        with autocast(self.device):
            result = self.tokenizer(images, masks, quantise=started)
            distance = self._perceptual(result.image, images, generator)
            swapped = self._swap(result, images, masks, generator)
        losses = reconstruction_losses(result, images, masks) | swapped
        losses["lpips"] = LPIPS_WEIGHT * distance
        if started:
            losses |= {
                "commit_s": COMMITMENT * result.structure.commitment,
                "commit_a": COMMITMENT * result.appearance.commitment,
            }
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", total, self.step, self._rate_to_lower())
        self._descend(total)
        self._train_codebooks(result, generator)
        self.step += 1
        follow(self.average, self.tokenizer, self.step, AVERAGE_LIMIT)
        values = torch.stack([value.detach() for value in losses.values()])
        return dict(zip(losses, values.tolist(), strict=True))

    def _perceptual(self, image: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """LPIPS on one crop of half the side, which costs a quarter of the whole patch."""
        if self.lpips is None:
            return torch.zeros((), device=self.device)
        seen, wanted = crops(image.shape[-1] // 2, generator, image, target)
        return self.lpips(seen, wanted).mean()  # type: ignore[no-any-return]

    def _swap(
        self, result: Reconstruction, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Half of the batch decoded with another patch's structure.

        The segmenter must find that patch's nuclei, in the colours of the appearance's own: what
        makes structure rule, since appearance tokens know where their nuclei were.
        """
        if self.segmenter is None:
            return {}
        half = len(images) // 2
        donors = torch.randperm(len(images), generator=generator)[:half].to(self.device)
        image = self.tokenizer.decode_image(
            result.structure.embeddings[donors], result.appearance.embeddings[:half]
        )
        nuclei = masks[:, :1]
        seen, wanted = crops(image.shape[-1] // 2, generator, image, nuclei[donors])
        found = self.segmenter(looked_at(seen, self.step, generator))
        colours = colour_loss(image.float(), nuclei[donors], images[:half], nuclei[:half])
        return {
            "swap": SWAP_WEIGHT * segmentation_loss(found.float(), wanted),
            "colour": COLOUR_WEIGHT * colours,
        }

    def _hold_trained(self) -> None:
        alone = bool(self.fresh) and self.step < FRESH_STEPS
        for name, parameter in self.tokenizer.named_parameters():
            parameter.requires_grad_(not alone or name in self.fresh)

    def _codebooks_started(self) -> bool:
        return bool(self.options.started_from) or self.step >= START_CODEBOOKS

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.tokenizer)
        norm = torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        check_finite("gradient", norm, self.step, self._rate_to_lower())
        self.optimizer.step()

    def _rate_to_lower(self) -> str:
        return f"--rate, now {self.options.rate:g} (--tokenizer-rate of training.train)"

    def _train_codebooks(self, result: Reconstruction, generator: torch.Generator) -> None:
        streams = (result.structure, result.appearance)
        if self.options.started_from or self.step > START_CODEBOOKS:
            for book, stream in zip(self.books, streams, strict=True):
                book.update(stream.latents, stream.ids.flatten(), generator)
        else:
            self._collect(streams)
            if self.step == START_CODEBOOKS:
                for number, book in enumerate(self.books):
                    book.start(torch.cat([pair[number] for pair in self.latents]), generator)
                self.latents.clear()
        from_first_rank(self._entries())

    def _collect(self, streams: tuple[Quantised, Quantised]) -> None:
        self.latents.append((streams[0].latents, streams[1].latents))
        del self.latents[:-LATENT_BATCHES]

    def _entries(self) -> list[Tensor]:
        return [t for book in self.books for t in (book.codebook.entries, book.counts, book.sums)]

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        tensors = prefixed("tokenizer", self.tokenizer.state_dict())
        tensors |= prefixed("average", self.average.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        for number, book in enumerate(self.books):
            tensors |= prefixed(f"book{number}", book.state())
        for number, pair in enumerate(self.latents):
            tensors |= prefixed(f"latents{number}", {"0": pair[0], "1": pair[1]})
        meta = {
            "step": self.step,
            "fresh": self.fresh,
            "options": asdict(self.options),
            "precision": self.precision,
        }
        save_tensors(path, tensors, meta)

    def load(self, path: Path) -> None:
        """Inverse of `save`."""
        tensors, meta = load_tensors(path)
        if meta["options"]["size"] != self.options.size:
            raise RunError(f"{path}: holds a tokenizer of size {meta['options']['size']}")
        said_change(path, meta, self.precision)
        self.tokenizer.load_state_dict(under("tokenizer", tensors))
        self.average.load_state_dict(under("average", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        for number, book in enumerate(self.books):
            book.load({k: v.to(self.device) for k, v in under(f"book{number}", tensors).items()})
        kept = [under(f"latents{number}", tensors) for number in range(LATENT_BATCHES)]
        self.latents = [(p["0"].to(self.device), p["1"].to(self.device)) for p in kept if p]
        self.step, self.fresh = meta["step"], meta["fresh"]
        begun = TokenizerOptions(**meta["options"])
        self.options = replace(
            self.options,
            started_from=begun.started_from,
            started_licence=begun.started_licence,
        )


def channels_last(tokenizer: Tokenizer, device: torch.device) -> Tokenizer:
    """Move to `device` in the memory layout that its convolutions are fastest in."""
    moved = tokenizer.to(device)
    return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def reconstruction_losses(
    result: Reconstruction, images: Tensor, masks: Tensor
) -> dict[str, Tensor]:
    """The pixel terms: L1 of the image and `structure_losses`; fp32 scalars."""
    l1 = (result.image.float() - images).abs().mean()
    return {"l1": l1, **structure_losses(result.mask_logits.float(), masks)}


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer, lpips: Lpips | None, dataset: patches.Dataset, indices: Tensor
) -> dict[str, dict[str, float]]:
    """PSNR (dB), Dice, LPIPS where given, and codebook usage, as a whole and by label."""
    rows: list[Tensor] = []
    ids: list[Tensor] = []
    for chunk in indices.split(16):
        planes = tokenizer.config.structure_planes
        images, masks = patches.batch(dataset, chunk, torch.zeros_like(chunk), planes)
        structure, appearance = tokenizer.encode(images, masks)
        image, logits = tokenizer.decode(structure, appearance)
        image = image.clamp(-1, 1)
        figures = [psnr(image, images), overlap(logits[:, 0] > 0, masks[:, 0] > 0)]
        if lpips:
            figures.append(lpips(image, images))
        rows.append(torch.stack(figures, 1).cpu())
        ids.append(torch.stack([structure, appearance], 1).cpu())
    return _by_label(tokenizer, dataset, indices, torch.cat(rows), torch.cat(ids))


def _by_label(
    tokenizer: Tokenizer, dataset: patches.Dataset, indices: Tensor, rows: Tensor, ids: Tensor
) -> dict[str, dict[str, float]]:
    table = dataset.label_table()[indices]
    chosen = {"all": torch.ones(len(indices), dtype=torch.bool)}
    chosen |= {label.name: table[:, i] for i, label in enumerate(dataset.labels)}
    size = tokenizer.config.codebook_size
    report = {}
    for name, of_label in chosen.items():
        if of_label.any():
            mean = rows[of_label].nanmean(0).tolist()
            use = [usage(ids[of_label, stream], size) for stream in (0, 1)]
            figures = dict(zip(("psnr", "mask_dice", "lpips"), mean, strict=False))
            if empty := int(rows[of_label, 1].isnan().sum()):
                figures["empty_in_both"] = empty  # masks that Dice says nothing of
            figures |= {"use_s": use[0][0], "perplexity_s": use[0][1]}
            report[name] = figures | {"use_a": use[1][0], "perplexity_a": use[1][1]}
    return report


def load_tokenizer(run: Path) -> tuple[Tokenizer, TokenizerOptions]:
    """The averaged tokenizer of a run, in eval mode on the CPU."""
    tensors, meta = load_tensors(run / STATE)
    options = TokenizerOptions(
        **(meta["options"] | {"licences": tuple(meta["options"]["licences"])})
    )
    tokenizer = Tokenizer(NAMED_SIZES[options.size][0])
    tokenizer.load_state_dict(under("average", tensors))
    return tokenizer.eval(), options


def train(trainer: TokenizerTrainer, dataset: patches.Dataset, run: Path, every: int) -> None:
    """Train to the end of the schedule; validates and draws a sheet every `every` steps, and saves
    then and every minute."""
    options = trainer.options
    schedule = Schedule(options.rate, options.steps, options.decay)
    if not rank():
        run.mkdir(parents=True, exist_ok=True)
    progress, saves = ProgressLog(run, "tokenizer"), Saves()
    chances = balance.chances(dataset, dataset.training)
    while trainer.step < options.steps:
        chosen, views = balance.draw(
            dataset.training, chances, options.seed, trainer.step, options.batch
        )
        planes = trainer.tokenizer.config.structure_planes
        images, masks = patches.batch(dataset, share(chosen), share(views), planes)
        if not schedule.decays(trainer.step):  # codes settle on patches as they are
            draws = patches.generator(options.seed, f"varied for rank {rank()}", trainer.step)
            images, masks = patches.varied(images, masks, draws)
        images = images.contiguous(memory_format=torch.channels_last)
        progress.add(trainer.train_step(images, masks, schedule.rate(trainer.step)))
        if rank():
            continue
        if progress.due(trainer.step):
            progress.report(trainer.step, options.steps, options.batch)
        reported = trainer.step % every == 0 or trainer.step == options.steps
        if reported or saves.due():
            trainer.save(run / STATE)
            saves.done()
        if reported:
            scored = trainer.average, trainer.lpips, trainer.step
            report("tokenizer", *scored, dataset, run, progress)


def report(
    name: str,
    tokenizer: Tokenizer,
    lpips: Lpips | None,
    step: int,
    dataset: patches.Dataset,
    run: Path,
    progress: ProgressLog,
) -> None:
    """Of the stage `name`: figures on validation patches, and a sheet of real beside reconstructed
    ones."""
    print(f"{name}: scoring {len(dataset.validation)} validation patches", flush=True)
    figures = evaluate(tokenizer, lpips, dataset, dataset.validation)
    progress.write({"step": step, "validation": figures})
    for label, values in figures.items():
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{name} validation {label}: {shown}", flush=True)
    sheet = reconstruction_sheet(tokenizer, dataset)
    sheet.save(run / f"{name}_{step:06d}.png")


def main(words: Sequence[str] | None = None) -> None:
    """Parse, resume if the run has a state, train."""
    parser = argparse.ArgumentParser(prog="python -m training.tokenizer", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--workdir", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", choices=NAMED_SIZES, default="small")
    parser.add_argument("--licence", action="append", default=[], help="train only on these")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=6e-4, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.3, help="share of steps that decay it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between two validations")
    parser.add_argument("--perceptual", type=Path, help="AlexNet features, safetensors (LPIPS)")
    parser.add_argument(
        "--segmenter", type=Path, help="from training.segmenter; teaches to follow structure"
    )
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint, or tokenizer file, to start from"
    )
    args = parser.parse_args(words)
    with stage("tokenizer"), process_group():
        options = TokenizerOptions(
            args.size, args.steps, args.batch, args.rate, args.decay, args.seed,
            tuple(args.licence),
        )  # fmt: skip
        if not rank():
            try_to_write("--workdir", args.workdir)
        dataset = patches.read_dataset(
            args.data, options.licences, NAMED_SIZES[options.size][0].image_size
        ).to(training_device())
        trainer = TokenizerTrainer(options, args.perceptual, args.segmenter)
        if (args.workdir / STATE).exists():
            trainer.load(args.workdir / STATE)
        elif args.start_from:
            trainer.start_from(read_start(args.start_from))
        print(
            f"tokenizer {options.size}: {len(dataset.training)} training and "
            f"{len(dataset.validation)} validation patches, from step {trainer.step}",
            flush=True,
        )
        train(trainer, dataset, args.workdir, args.every)


if __name__ == "__main__":
    main()
