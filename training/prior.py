"""Prior stage: `python -m training.prior --workdir R` trains the autoregressive prior on tokens.

The loss is the cross-entropy of both streams, summed, with label dropout (docs/method.md, section
3). A patch with several labels trains each in turn. The kept weights are the moving average that
was best on validation groups. If the command is killed, run it again: it resumes from the last
state.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import Checkpoint, build, load_checkpoint
from model.config import NAMED_SIZES, ModelConfig
from model.request import ByStream, Label, SamplingSettings
from model.transformer import Prior
from pathar.contract import STREAMS
from training import data as patches
from training.compute import autocast, precision_name
from training.distributed import (
    average_gradients,
    from_first_rank,
    process_group,
    rank,
    share,
    training_device,
)
from training.muon import Muon
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
    option,
    prefixed,
    said_change,
    save_tensors,
    stage,
    try_to_write,
    under,
)
from training.samples import UNSTATED
from training.sheets import sample_sheet
from training.tokenizer import TokenizerOptions, load_tokenizer
from training.tokens import TOKENS

STATE = "prior.safetensors"
LABEL_DROPOUT = 0.1
AVERAGE_LIMIT = 0.999
DECAY = 0.05  # of weights
SHEET_SETTINGS = SamplingSettings(cfg_scale=1.5, temperature=1.0, top_k=100)


@dataclass(frozen=True)
class PriorOptions:
    """What a prior run is made with.

    `started_from` is the version of the checkpoint whose weights it goes on from, `started_licence`
    that checkpoint's; or nothing.
    """

    steps: int
    batch: int
    rate: float
    decay: float
    seed: int
    started_from: str = ""
    started_licence: str = ""


@dataclass(frozen=True)
class TokenData:
    """`structure`, `appearance` int16 [M, 8, N]; `table` bool [M, labels]; index tensors.

    `licences` are those of the patches and of the checkpoint that the tokenizer went on from,
    `held_out` is the digest of the validation groups' names; `facts` say by label what the patches
    hold.
    """

    structure: Tensor
    appearance: Tensor
    table: Tensor
    training: Tensor
    validation: Tensor
    labels: tuple[Label, ...]
    size: str
    licences: tuple[str, ...]
    held_out: str
    facts: dict[str, dict[str, float]]


def read_tokens(run: Path) -> TokenData:
    """What the token stage wrote."""
    tensors, meta = load_tensors(run / TOKENS)
    for fact in ("licences", "held_out_sha256", "facts"):
        if fact not in meta:  # an export that leaves one out would look complete
            raise RunError(f"{run / TOKENS}: tells no {fact}; delete it and make the tokens again")
    options = TokenizerOptions(**meta["options"])
    return TokenData(
        tensors["structure"],
        tensors["appearance"],
        tensors["labels"],
        tensors["training"],
        tensors["validation"],
        tuple(Label(**label) for label in meta["labels"]),
        options.size,
        (*meta["licences"], *inherited(options)),
        meta["held_out_sha256"],
        meta["facts"],
    )


def inherited(options: PriorOptions | TokenizerOptions) -> list[str]:
    """The licence of the checkpoint that a stage went on from; none without one."""
    return [options.started_licence or UNSTATED] if options.started_from else []


def model_config(
    data: TokenData,
    options: PriorOptions,
    name: str,
    usual: SamplingSettings,
    given: Mapping[str, Any],
) -> ModelConfig:
    """The configuration of the model that a run trains. It recommends the `usual` settings, with no
    more `top_k` than the codebook has, and those `given`. ConfigError.

    Its licence names each of all that its weights come from once; a checkpoint's can name several.
    """
    tokenizer, prior = NAMED_SIZES[data.size]
    named = {each for part in (*data.licences, *inherited(options)) for each in part.split(" and ")}
    licence = " and ".join(sorted(named))
    most = tokenizer.codebook_size
    top_k = {stream: min(usual.of_stream(stream)["top_k"], most) for stream in STREAMS}
    settings = replace(usual, **{"top_k": ByStream(**top_k), **given})
    labels = tuple(
        replace(label, mpp=data.facts.get(label.name, {}).get("mpp", 0.0)) for label in data.labels
    )
    return ModelConfig(name, data.size, tokenizer, prior, labels, settings, licence)


def block_matrices(prior: Prior) -> list[tuple[Tensor, int]]:
    """The matrices of all blocks, each with the number of maps that it holds: query, key and value
    are three."""
    return [
        (layer.weight, parts)
        for block in prior.layers()
        for layer, parts in ((block.qkv, 3), (block.out, 1), (block.up, 1), (block.down, 1))
    ]


class PriorTrainer:
    """Everything that one training step changes."""

    def __init__(self, options: PriorOptions, data: TokenData) -> None:
        self.options, self.data = options, data
        self.device = training_device()
        self.precision = precision_name(self.device)
        torch.manual_seed(options.seed)
        self.config = model_config(data, options, "training", SHEET_SETTINGS, {})
        self.prior = build(self.config)[1].to(self.device)
        from_first_rank(self.prior.parameters())
        self.average = copy.deepcopy(self.prior).eval()
        self.best = copy.deepcopy(self.average)
        self.best_loss = float("inf")
        matrices = block_matrices(self.prior)
        chosen = {id(matrix) for matrix, _ in matrices}
        others = [each for each in self.prior.parameters() if id(each) not in chosen]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(matrices, options.rate, DECAY),
            "adamw": adamw(others, options.rate, DECAY, 0.95),
        }
        self.step = 0

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take a trained prior's weights, labels by name; RunError if its sizes are others.

        Worth it where the tokenizer went on from the same checkpoint, so that ids mean nearly the
        same.
        """
        if checkpoint.config.prior != self.config.prior:
            raise RunError(f"the checkpoint's prior is {checkpoint.config.prior}, not of this size")
        self.options = replace(
            self.options,
            started_from=checkpoint.version,
            started_licence=checkpoint.config.licence,
        )
        theirs = checkpoint.prior.state_dict()
        rows = {label: row for row, label in enumerate(checkpoint.config.labels)}
        weights = self.prior.label.weight.detach().clone()
        weights[self.prior.null_label] = theirs["label.weight"][checkpoint.prior.null_label]
        for row, label in enumerate(self.config.labels):
            if label in rows:
                weights[row] = theirs["label.weight"][rows[label]]
        for prior in (self.prior, self.average, self.best):
            prior.load_state_dict(theirs | {"label.weight": weights})

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """This step's labels [B] and ids [B, N] of both streams, a pure function of the step."""
        options, data = self.options, self.data
        chosen, views = patches.draw(data.training, options.seed, self.step, options.batch)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + self.step)
        labels = torch.multinomial(data.table[chosen].float(), 1, generator=generator)[:, 0]
        dropped = torch.rand(len(labels), generator=generator) < LABEL_DROPOUT
        labels[dropped] = self.prior.null_label
        drawn = (labels, data.structure[chosen, views], data.appearance[chosen, views])
        return tuple(share(part).long().to(self.device) for part in drawn)  # type: ignore[return-value]

    def train_step(self, rate: float) -> dict[str, float]:
        """One update; the mean loss of both streams in nats a token."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        labels, structure, appearance = self.draw()
        torch.manual_seed(self.options.seed * 7_368_787 + self.step * 131 + rank())
        self.prior.train()
        with autocast(self.device):
            logits = self.prior(labels, structure, appearance)
        losses = [
            F.cross_entropy(logit.float().flatten(0, 1), ids.flatten())
            for logit, ids in zip(logits, (structure, appearance), strict=True)
        ]
        total = losses[0] + losses[1]
        check_finite("loss", total, self.step, self._rate_to_lower())
        self.prior.zero_grad(set_to_none=True)
        total.backward()
        average_gradients(self.prior)
        norm = torch.nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        check_finite("gradient", norm, self.step, self._rate_to_lower())
        with autocast(self.device):  # for the products of Muon
            for optimizer in self.optimizers.values():
                optimizer.step()
        self.step += 1
        follow(self.average, self.prior, self.step, AVERAGE_LIMIT)
        return {"nll_s": float(losses[0].detach()), "nll_a": float(losses[1].detach())}

    def _rate_to_lower(self) -> str:
        return f"--rate, now {self.options.rate:g} (--prior-rate of training.train)"

    def keep_best(self, loss: float) -> None:
        """Keep the average if it is the best on validation so far; RunError if it is no number."""
        check_finite("validation loss", loss, self.step, self._rate_to_lower())
        if loss < self.best_loss:
            self.best_loss = loss
            self.best.load_state_dict(self.average.state_dict())

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        tensors = prefixed("prior", self.prior.state_dict())
        tensors |= prefixed("average", self.average.state_dict())
        tensors |= prefixed("best", self.best.state_dict())
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(name, optimizer_tensors(optimizer))
        meta = {"step": self.step, "options": asdict(self.options), "best_loss": self.best_loss}
        save_tensors(path, tensors, meta | {"precision": self.precision})

    def load(self, path: Path) -> None:
        """Inverse of `save`."""
        tensors, meta = load_tensors(path)
        try:
            self.prior.load_state_dict(under("prior", tensors))
        except RuntimeError as error:
            raise RunError(f"{path}: holds a prior of other sizes or labels") from error
        said_change(path, meta, self.precision)
        self.average.load_state_dict(under("average", tensors))
        self.best.load_state_dict(under("best", tensors))
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, under(name, tensors))
        self.step, self.best_loss = meta["step"], meta["best_loss"]
        begun = PriorOptions(**meta["options"])
        self.options = replace(
            self.options,
            started_from=begun.started_from,
            started_licence=begun.started_licence,
        )


@torch.no_grad()
def evaluate(prior: Prior, data: TokenData, indices: Tensor) -> dict[str, dict[str, float]]:
    """Mean negative log-likelihood in nats a token, by stream, as a whole and by label.

    Every sample is scored under each of its labels, in its unturned view.
    """
    device = next(prior.parameters()).device
    pairs = data.table[indices].nonzero()
    rows = []
    for chunk in pairs.split(16):
        chosen = indices[chunk[:, 0]]
        structure = data.structure[chosen, 0].long().to(device)
        appearance = data.appearance[chosen, 0].long().to(device)
        with autocast(device):
            logits = prior(chunk[:, 1].to(device), structure, appearance)
        losses = [
            F.cross_entropy(x.float().transpose(1, 2), ids, reduction="none").mean(1)
            for x, ids in zip(logits, (structure, appearance), strict=True)
        ]
        rows.append(torch.stack(losses, 1).cpu())
    scores = torch.cat(rows)
    chosen_rows = {"all": torch.ones(len(pairs), dtype=torch.bool)}
    chosen_rows |= {label.name: pairs[:, 1] == i for i, label in enumerate(data.labels)}
    return {
        name: dict(zip(("nll_s", "nll_a"), scores[of].mean(0).tolist(), strict=True))
        for name, of in chosen_rows.items()
        if of.any()
    }


def train(trainer: PriorTrainer, run: Path, every: int) -> None:
    """Train to the end of the schedule; validates and draws a sheet every `every` steps, and saves
    then and every minute."""
    options = trainer.options
    schedule = Schedule(options.rate, options.steps, options.decay)
    progress, saves = ProgressLog(run, "prior"), Saves()
    tokenizer = load_tokenizer(run)[0]
    while trainer.step < options.steps:
        progress.add(trainer.train_step(schedule.rate(trainer.step)))
        if rank():
            continue
        if progress.due(trainer.step):
            progress.report(trainer.step, options.steps, options.batch)
        reported = trainer.step % every == 0 or trainer.step == options.steps
        if reported:  # before the state, which would lack the score of its own step
            report(trainer, progress)
        if reported or saves.due():
            trainer.save(run / STATE)
            saves.done()
        if reported:
            print("prior: drawing a sheet of samples", flush=True)
            sheet = sample_sheet(trainer.config, tokenizer, trainer.average)
            sheet.save(run / f"prior_{trainer.step:06d}.png")


def report(trainer: PriorTrainer, progress: ProgressLog) -> None:
    """Score the average on validation patches, and keep it if it is the best so far."""
    data = trainer.data
    print(f"prior: scoring {len(data.validation)} validation patches", flush=True)
    figures = evaluate(trainer.average, data, data.validation)
    trainer.keep_best(sum(figures["all"].values()))
    progress.write({"step": trainer.step, "validation": figures})
    for name, values in figures.items():
        print(f"prior validation {name}: {values}", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Parse, resume if the run has a state, train."""
    parser = argparse.ArgumentParser(prog="python -m training.prior", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder of the token stage")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.3, help="share of steps that decay it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between two validations")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose weights to start from")
    args = parser.parse_args(words)
    with stage("prior"), process_group():
        if not rank():
            try_to_write("--workdir", args.workdir)
        data = read_tokens(args.workdir)
        options = PriorOptions(args.steps, args.batch, args.rate, args.decay, args.seed)
        trainer = PriorTrainer(options, data)
        if (args.workdir / STATE).exists():
            trainer.load(args.workdir / STATE)
        elif args.start_from:
            with option("--start-from"):
                trainer.start_from(load_checkpoint(args.start_from))
        parameters = sum(p.numel() for p in trainer.prior.parameters())
        print(
            f"prior {data.size}: {parameters / 1e6:.2f} M parameters, {len(data.training)} "
            f"training patches in {patches.VIEWS} views, from step {trainer.step}",
            flush=True,
        )
        train(trainer, args.workdir, args.every)


if __name__ == "__main__":
    main()
