"""Trains the variants: the same losses, optimiser and draws for every row. Knows no files.

The losses are those of the product's stages (`training.tokenizer`, `training.prior`). Tokens are
encoded as they are trained on: at these budgets fewer views are drawn than there are.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.tokenizer import Quantised
from training import data as patches
from training.ablation.priors import StreamPrior, build_prior
from training.ablation.settings import Budget, Variant
from training.ablation.tile_sets import TileSet
from training.ablation.tokenizers import StreamTokenizer, build_tokenizer
from training.codebooks import CodebookTrainer, usage
from training.compute import autocast
from training.distributed import training_device
from training.losses import Lpips, dice_loss, overlap, psnr
from training.prior import AVERAGE_LIMIT as PRIOR_AVERAGE
from training.prior import LABEL_DROPOUT
from training.run import ProgressLog, Schedule, adamw, check_finite, follow
from training.tokenizer import AVERAGE_LIMIT as TOKENIZER_AVERAGE
from training.tokenizer import COMMITMENT, LATENT_BATCHES

BATCH = 32


def updates_of(row: Variant, steps: int, tiles: patches.Dataset, part: TileSet) -> int:
    """The updates that a part gets of a row's: all, or by its tiles, so that each is seen as often
    as in a model of everything.
    """
    if row.updates == "all":
        return steps
    return max(1, round(steps * len(part.training) / len(tiles.training)))


class TokenizerTraining:
    """One tokenizer's training on one part of the tiles, by the plain recipe."""

    def __init__(
        self,
        row: Variant,
        budget: Budget,
        tiles: patches.Dataset,
        part: TileSet,
        lpips: Lpips | None,
    ) -> None:
        self.budget, self.tiles, self.part = budget, tiles, part
        self.device = training_device()
        self.lpips = lpips.to(self.device) if lpips else None
        self.steps = updates_of(row, budget.tokenizer_steps, tiles, part)
        # A small share of few steps still leaves half of them to the codebooks.
        self.start = min(budget.codebook_start, self.steps // 2)
        tokenizer = build_tokenizer(row.codebooks, row.tokenizer(budget))
        self.tokenizer = channels_last(tokenizer, self.device)
        self.optimizer = adamw(self.tokenizer.parameters(), budget.tokenizer_rate, 0.01, 0.98)
        self.books = [CodebookTrainer(book) for book in self.tokenizer.codebooks()]
        self.restarts = row.restarts
        self.latents: list[list[Tensor]] = []

    def train(self, seed: int, progress: ProgressLog) -> StreamTokenizer:
        """The averaged tokenizer, in eval mode."""
        budget = self.budget
        schedule = Schedule(budget.tokenizer_rate, self.steps, budget.decay)
        average = copy.deepcopy(self.tokenizer).eval()
        self.tokenizer.train()
        for step in range(self.steps):
            chosen = patches.draw(self.part.training, seed, step, budget.tokenizer_batch)
            images, masks = patches.batch(self.tiles, *chosen)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            figures = self._update(images, masks, step, schedule.rate(step), generator)
            follow(average, self.tokenizer, step + 1, TOKENIZER_AVERAGE)
            _note(progress, figures, step + 1, self.steps, budget.tokenizer_batch)
        return average

    def _update(
        self, images: Tensor, masks: Tensor, step: int, rate: float, generator: torch.Generator
    ) -> dict[str, float]:
        images, masks = images.to(self.device), masks.to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.device):
            result = self.tokenizer.run(images, masks, quantise=step >= self.start)
            losses = {"lpips": self._perceptual(result.image, images, generator)}
        logits = result.mask_logits.float()
        losses["l1"] = (result.image.float() - images).abs().mean()
        losses["bce"] = F.binary_cross_entropy_with_logits(logits, masks)
        losses["dice"] = dice_loss(logits.sigmoid(), masks)
        if step >= self.start:
            commitments = torch.stack([stream.commitment for stream in result.streams])
            losses["commit"] = COMMITMENT * commitments.sum()
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", total, step, "tokenizer_rate of the budget")
        _descend(self.tokenizer, self.optimizer, total, rate)
        self._train_codebooks(result.streams, step, generator)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _perceptual(self, image: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """LPIPS on one crop of half the side, as the product's stage takes it."""
        if self.lpips is None:
            return torch.zeros((), device=self.device)
        half = image.shape[-1] // 2
        y, x = torch.randint(half + 1, (2,), generator=generator).tolist()
        window = (..., slice(y, y + half), slice(x, x + half))
        return self.lpips(image[window], target[window]).mean()  # type: ignore[no-any-return]

    def _train_codebooks(
        self, streams: tuple[Quantised, ...], step: int, generator: torch.Generator
    ) -> None:
        """k-means over the latest latents when the raw ones have passed long enough, then moving
        averages; without restarts these alone.
        """
        if step >= self.start:
            for book, stream in zip(self.books, streams, strict=True):
                if self.restarts:
                    book.update(stream.latents, stream.ids.flatten(), generator)
                else:
                    book.follow(stream.latents, stream.ids.flatten())
            return
        if not self.restarts:
            return
        kept = [stream.latents for stream in streams]
        self.latents = [*self.latents[1 - LATENT_BATCHES :], kept]
        if step + 1 == self.start:
            for number, book in enumerate(self.books):
                book.start(torch.cat([kept[number] for kept in self.latents]), generator)
            self.latents.clear()


class PriorTraining:
    """One prior's training on the tokens that a frozen tokenizer gives one part of the tiles."""

    def __init__(
        self,
        config: ModelConfig,
        row: Variant,
        budget: Budget,
        tokenizer: StreamTokenizer,
        tiles: patches.Dataset,
        part: TileSet,
    ) -> None:
        self.budget, self.tokenizer, self.tiles, self.part = budget, tokenizer, tiles, part
        self.steps = updates_of(row, budget.prior_steps, tiles, part)
        self.device = training_device()
        self.prior = build_prior(row.order, config, row.positions).to(self.device)
        self.optimizer = adamw(self.prior.parameters(), budget.prior_rate, 0.05, 0.95)
        columns = [tiles.labels.index(label) for label in part.labels]
        self.of_tile = tiles.label_table()[:, columns].float().argmax(1)

    def train(self, seed: int, progress: ProgressLog) -> StreamPrior:
        """The averaged prior, in eval mode."""
        budget = self.budget
        schedule = Schedule(budget.prior_rate, self.steps, budget.decay)
        average = copy.deepcopy(self.prior).eval()
        self.prior.train()
        for step in range(self.steps):
            chosen, views = patches.draw(self.part.training, seed, step, budget.prior_batch)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            labels = self.of_tile[chosen]
            labels[torch.rand(len(labels), generator=generator) < LABEL_DROPOUT] = (
                self.prior.null_label
            )
            losses = self._losses(labels, self._ids(chosen, views))
            check_finite("loss", losses.sum(), step, "prior_rate of the budget")
            _descend(self.prior, self.optimizer, losses.mean(1).sum(), schedule.rate(step))
            follow(average, self.prior, step + 1, PRIOR_AVERAGE)
            figures = dict(zip(self._names(), losses.detach().mean(1).tolist(), strict=True))
            _note(progress, figures, step + 1, self.steps, budget.prior_batch)
        self.prior = average
        return average

    @torch.no_grad()
    def likelihood(self) -> dict[str, float]:
        """Mean negative log-likelihood of validation tiles in nats a token, by stream.

        `coupling` is what appearance costs more when the structure before it is the next tile's:
        how much an order's appearance follows the structure it stands on.
        """
        chunks = self.part.validation.split(BATCH)
        rows, strange = [], []
        for chunk in chunks:
            labels, ids = self.of_tile[chunk], self._ids(chunk, torch.zeros_like(chunk))
            rows.append(self._losses(labels, ids))
            if len(self.prior.streams) == 2:
                swapped = torch.stack([ids[:, 0].roll(-1, 0), ids[:, 1]], 1)
                strange.append(self._losses(labels, swapped)[1] - rows[-1][1])
        figures = dict(zip(self._names(), torch.cat(rows, 1).mean(1).tolist(), strict=True))
        return {**figures, **({"coupling": float(torch.cat(strange).mean())} if strange else {})}

    def _ids(self, chosen: Tensor, views: Tensor) -> Tensor:
        """Ids [B, S, N] of tiles, on the training device."""
        images, masks = patches.batch(self.tiles, chosen, views)
        return self.tokenizer.encode(images.to(self.device), masks.to(self.device))

    def _losses(self, labels: Tensor, ids: Tensor) -> Tensor:
        """Nats a token of each modelled stream and tile, [S, B]."""
        with autocast(self.device):
            logits = self.prior.logits(labels.to(self.device), ids)
        losses = [
            F.cross_entropy(of_stream.float().transpose(1, 2), ids[:, stream], reduction="none")
            for stream, of_stream in zip(self.prior.streams, logits, strict=True)
        ]
        return torch.stack(losses).mean(2)

    def _names(self) -> list[str]:
        if self.tokenizer.streams == 1:
            return ["nll"]
        return [("nll_s", "nll_a")[stream] for stream in self.prior.streams]


@torch.no_grad()
def ids_of(tokenizer: StreamTokenizer, tiles: patches.Dataset, indices: Tensor) -> Tensor:
    """Ids [M, S, N] of unturned tiles, on the CPU."""
    device = training_device()
    ids = []
    for chunk in indices.split(BATCH):
        images, masks = patches.batch(tiles, chunk, torch.zeros_like(chunk))
        ids.append(tokenizer.encode(images.to(device), masks.to(device)).cpu())
    return torch.cat(ids)


@torch.no_grad()
def reconstruction(
    tokenizer: StreamTokenizer, tiles: patches.Dataset, indices: Tensor, lpips: Lpips | None
) -> dict[str, float]:
    """PSNR (dB), mask Dice and, where given, LPIPS of tiles through their tokens."""
    device = training_device()
    lpips = lpips.to(device) if lpips else None
    rows = []
    for chunk in indices.split(BATCH):
        real, masks = (p.to(device) for p in patches.batch(tiles, chunk, torch.zeros_like(chunk)))
        image, logits = tokenizer.decode(tokenizer.encode(real, masks))
        image = image.clamp(-1, 1)
        figures = [psnr(image, real), overlap(logits[:, 0] > 0, masks[:, 0] > 0)]
        rows.append(torch.stack([*figures, lpips(image, real)] if lpips else figures, 1).cpu())
    mean = torch.cat(rows).nanmean(0).tolist()
    return dict(zip(("psnr", "mask_dice", "lpips"), mean, strict=False))


def codebook_use(ids: Tensor, codebook_size: int) -> dict[str, float]:
    """Share in use (0..1) and perplexity of each stream of ids [M, S, N]."""
    figures: dict[str, float] = {}
    names = ("s", "a") if ids.shape[1] > 1 else ("one",)
    for stream, name in enumerate(names):
        share, perplexity = usage(ids[:, stream], codebook_size)
        figures |= {f"use_{name}": share, f"perplexity_{name}": perplexity}
    return figures


def _descend(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _note(
    progress: ProgressLog, figures: dict[str, float], step: int, steps: int, batch: int
) -> None:
    progress.add(figures)
    if progress.due(step) or step == steps:
        progress.report(step, steps, batch)


def channels_last(tokenizer: StreamTokenizer, device: torch.device) -> StreamTokenizer:
    """Move to `device` in the memory layout that its convolutions are fastest in."""
    return tokenizer.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
