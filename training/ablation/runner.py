"""Runs rows in a folder where nothing finished is done twice.

`tokenizers/` holds each tokenizer that rows share, `rows/` each row's samples by seed, the sheet of
them and the figures as JSON. A row whose figures are there is read, not run; one killed in the
middle starts again from its tokenizer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model.config import ModelConfig
from training import data as patches
from training.ablation import scoring
from training.ablation.learning import (
    PriorTraining,
    TokenizerTraining,
    channels_last,
    codebook_use,
    ids_of,
    reconstruction,
)
from training.ablation.priors import StreamPrior
from training.ablation.settings import Row, Settings
from training.ablation.tiles import Part, parts
from training.ablation.tokenizers import StreamTokenizer, build_tokenizer, likeliest_structure
from training.compute import precision_name
from training.distributed import training_device
from training.evaluation.features import Features
from training.evaluation.pairs import Pairs
from training.losses import Lpips
from training.run import Progress, StageError, load_tensors, prefixed, save_tensors, under
from training.sheets import grey, tile

SHEET_COLUMNS = 8
BATCH = 32
SEEDS_APART = 1_000_000
"""Image seeds between two runs' seeds."""


@dataclass(frozen=True)
class Instruments:
    """What samples are measured with; without `lpips` tokenizers train on L1 alone."""

    features: tuple[Features, ...]
    lpips: Lpips | None


@dataclass(frozen=True)
class Result:
    """A finished row, as its JSON holds it.

    `figures` are of training, means over the row's parts. `scores` is FID and KID by network and
    modality. `agreement` and `diversity` are by modality, the latter empty without LPIPS.
    """

    row: str
    seed: int
    settings: dict[str, Any]
    figures: dict[str, float]
    scores: dict[str, scoring.Figures]
    agreement: dict[str, float]
    diversity: dict[str, float]


class Runner:
    """The rows of one configuration on one set of tiles, kept in the folder `work`."""

    def __init__(
        self, settings: Settings, tiles: patches.Dataset, work: Path, instruments: Instruments
    ) -> None:
        self.settings, self.tiles, self.work = settings, tiles, work
        self.instruments = instruments
        (work / "rows").mkdir(parents=True, exist_ok=True)
        self._same_as_before()
        self.real = {
            network.name: scoring.real_features(network, tiles, work)
            for network in instruments.features
        }

    def _same_as_before(self) -> None:
        """Refuse a folder whose rows were run at another budget or on other tiles."""
        budget = self.settings.budget.model_dump(mode="json", exclude={"seeds"})
        facts = {
            **{f"budget.{name}": value for name, value in budget.items()},
            **{f"sampling.{k}": v for k, v in self.settings.sampling.model_dump().items()},
            "training tiles": len(self.tiles.training),
            "validation tiles": len(self.tiles.validation),
            "precision": precision_name(training_device()),
            "perceptual loss": self.instruments.lpips is not None,
        }
        path = self.work / "budget.json"
        if not path.exists():
            _write(path, facts)
        _check_same(path, json.loads(path.read_text()), facts)

    def run(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Every row named, for each seed, but those that are finished."""
        wanted = [(seed, name) for seed in seeds for name in names]
        for number, (seed, name) in enumerate(wanted, start=1):
            where = f"ablate: {number} of {len(wanted)}: {name}, seed {seed}"
            print(where, flush=True)
            started = time.monotonic()
            self._row(name, seed)
            print(f"{where}: {time.monotonic() - started:.0f} s", flush=True)

    def finished(self) -> list[Result]:
        """Every row that the folder holds, scored on all that scores now."""
        held = [
            json.loads(path.read_text()) for path in sorted((self.work / "rows").glob("*.json"))
        ]
        return [Result(**one) for one in held if set(self.real) <= set(one["scores"])]

    def floor(self) -> dict[str, scoring.Figures]:
        """By network: what held-out tiles score against training tiles."""
        count = self.settings.budget.samples
        return {name: scoring.floor(real, self.tiles, count) for name, real in self.real.items()}

    def _row(self, name: str, seed: int) -> None:
        path = self.work / "rows" / f"{name}-seed{seed}.json"
        wanted = self.settings.rows[name].model_dump(mode="json")
        held = json.loads(path.read_text()) if path.exists() else {}
        if held:
            _check_same(path, _settings(held["settings"]), wanted)
        missing = set(self.real) - set(held.get("scores", {}))
        if held and not missing:
            return
        drawn, figures = self._samples(name, seed, wanted)
        scores = {
            network.name: scoring.distances(network, drawn, self.real[network.name], self.tiles)
            for network in self.instruments.features
            if network.name in missing
        }
        if held:
            _write(path, {**held, "scores": {**held["scores"], **scores}})
            return
        lpips = self.instruments.lpips
        result = Result(
            row=name,
            seed=seed,
            settings=wanted,
            figures=figures,
            scores=scores,
            agreement=scoring.agreement(self._segmenter(), drawn),
            diversity=scoring.diversity(lpips, drawn) if lpips else {},
        )
        _write(path, vars(result))

    def _segmenter(self) -> torch.nn.Module:
        steps = self.settings.budget.segmenter_steps
        return scoring.segmenter(self.tiles, steps, self.work / "segmenter.safetensors")

    def _samples(
        self, name: str, seed: int, wanted: dict[str, Any]
    ) -> tuple[dict[str, Pairs], dict[str, float]]:
        """The row's samples by modality and its figures of training, trained for if need be."""
        path = self.work / "rows" / f"{name}-seed{seed}.safetensors"
        if not path.exists():
            row = self.settings.rows[name]
            trained: dict[str, Pairs] = {}
            figures: list[dict[str, float]] = []
            for part in parts(self.tiles, one_modality=row.one_modality):
                samples, of_part = self._part(row, part, seed, name)
                trained |= samples
                figures.append(of_part)
            mean = {key: sum(f[key] for f in figures) / len(figures) for key in figures[0]}
            sample_sheet(trained).save(path.with_suffix(".png"))
            save_pairs(path, trained, {"figures": mean, "settings": wanted})
        drawn, meta = load_pairs(path)
        _check_same(path, _settings(meta["settings"]), wanted)
        return drawn, meta["figures"]

    def _part(
        self, row: Row, part: Part, seed: int, name: str
    ) -> tuple[dict[str, Pairs], dict[str, float]]:
        """Train one model, draw every modality that it knows."""
        budget = self.settings.budget
        tokenizer = self._tokenizer(row, part, seed)
        torch.manual_seed(seed)
        config = ModelConfig(
            name="ablation",
            size="ablation",
            tokenizer=row.tokenizer(budget),
            prior=budget.prior(),
            labels=part.labels,
            defaults=self.settings.sampling.settings(row.codebook_size),
            licence="",
        )
        training = PriorTraining(config, row, budget, tokenizer, self.tiles, part)
        prior = training.train(seed, Progress(self.work, f"{name} {part.name}".strip()))
        figures = training.likelihood()
        ids = ids_of(tokenizer, self.tiles, part.training)
        figures |= codebook_use(ids, row.codebook_size)
        figures |= reconstruction(tokenizer, self.tiles, part.validation, self.instruments.lpips)
        structure = (
            likeliest_structure(ids, row.codebook_size) if row.order == "appearance" else None
        )
        seeds = range(seed * SEEDS_APART, seed * SEEDS_APART + budget.samples)
        drawn = {
            label.name: draw_pairs(prior, tokenizer, label.name, seeds, structure)
            for label in part.labels
        }
        return drawn, figures

    def _tokenizer(self, row: Row, part: Part, seed: int) -> StreamTokenizer:
        """The tokenizer of a row, shared by all rows with the same one."""
        kind = [row.codebooks, f"f{row.downsample}", f"k{row.codebook_size}", row.structure_input]
        kind += [] if row.restarts else ["plain"]
        kind += ["all"] if row.updates == "all" else []
        name = "-".join([*kind, *([part.name] if part.name else []), f"seed{seed}"])
        path = self.work / "tokenizers" / f"{name}.safetensors"
        budget = self.settings.budget
        if not path.exists():
            torch.manual_seed(seed)
            training = TokenizerTraining(row, budget, self.tiles, part, self.instruments.lpips)
            trained = training.train(seed, Progress(self.work, f"tokenizer {name}"))
            save_tensors(path, trained.state_dict(), {})
        tokenizer = build_tokenizer(row.codebooks, row.tokenizer(budget))
        tokenizer.load_state_dict(load_tensors(path)[0])
        return channels_last(tokenizer, training_device()).eval()


@torch.no_grad()
def draw_pairs(
    prior: StreamPrior,
    tokenizer: StreamTokenizer,
    label: str,
    seeds: Sequence[int],
    structure: Tensor | None,
) -> Pairs:
    """Samples of one label, one a seed. `structure` [K] gives each appearance token its structure
    token where the prior models appearance alone.
    """
    ids = prior.draw(label, seeds)
    if structure is not None:
        ids[:, 0] = structure[ids[:, 1]]
    images, masks = [], []
    for chunk in ids.to(training_device()).split(BATCH):
        image, logits = tokenizer.decode(chunk)
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte()
        images.append(pixels.permute(0, 2, 3, 1).cpu())
        masks.append(logits[:, 0].cpu() > 0)
    return Pairs(torch.cat(images), torch.cat(masks), ids[:, 0].clone(), ids[:, -1].clone())


def sample_sheet(drawn: dict[str, Pairs]) -> Image.Image:
    """Two rows a modality, images above their masks."""
    rows = []
    for pairs in drawn.values():
        some = pairs[:SHEET_COLUMNS]
        rows += [list(some.pixels()), list(grey(some.masks[:, None].float()))]
    return tile(rows)


def save_pairs(path: Path, drawn: dict[str, Pairs], meta: dict[str, Any]) -> None:
    """Write samples by modality, with what is known of the model that drew them."""
    tensors: dict[str, Tensor] = {}
    for name, pairs in drawn.items():
        tensors |= prefixed(name, dict(vars(pairs)))
    save_tensors(path, tensors, {"modalities": list(drawn), **meta})


def load_pairs(path: Path) -> tuple[dict[str, Pairs], dict[str, Any]]:
    """Inverse of `save_pairs`."""
    tensors, meta = load_tensors(path)
    return {name: Pairs(**under(name, tensors)) for name in meta["modalities"]}, meta


def _settings(held: dict[str, Any]) -> dict[str, Any]:
    """A row's settings as it was run; one that came later was at its default."""
    return Row.model_validate(held).model_dump(mode="json")


def _check_same(path: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse what was run with other settings of its row."""
    for name, value in wanted.items():
        if held.get(name) != value:
            raise StageError(
                f"{path}: was run with {name} {held.get(name)}, now {value}; use another --workdir"
            )


def _write(path: Path, document: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)
