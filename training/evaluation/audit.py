"""Are samples copies? The nearest training patch of each, beside the same for real patches.

A sample counts as a copy when it lies nearer to a training patch than all but 1% of held-out real
patches do. Three measures of near: frozen features, LPIPS, and the share of locations where the
tokens of both streams agree. Training saw every patch in eight views, so all are looked at.

Real patches are compared as the tokenizer draws them, from their tokens. Samples are drawn by it
too, and it leaves marks: to a network's features a patch and its reconstruction can be further
apart than two patches that have nothing to do with each other, and copies would pass unseen.

Held-out patches are the validation ones and, since a label may have only a few dozen of those, cut
from two or three originals, training patches too, each measured against the other originals alone.
An audit can be blind, for example where any two patches are alike. So copies are put to it as
well, and the share of them that it catches stands in the report: training patches decoded from
their own tokens, but for a tenth of them, since who draws what was learnt by heart errs in places
too. Copies without an error would lie at no distance at all and be caught by any measure. A copy is
found where any measure finds it, so measures that see others than the rest are worth having.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from model.request import Label
from model.tokenizer import Tokenizer
from training import data as patches
from training.evaluation.features import Features
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import BATCH, Pairs, encode, joined, of_label, real_pairs
from training.evaluation.reconstruction import decode
from training.run import StageError
from training.sheets import tile

PERCENTILE = 0.01
"""Share of held-out patches that lie nearer to training than the threshold."""
LIMIT = 0.03
"""The largest share of samples nearer than that which passes."""
CHANGED = 0.1
"""Share of the locations at which a copy that is put to the audit has another patch's tokens."""
SEEING = 0.5
"""Share of such copies that the best measure must catch for the audit's silence to mean
something."""
CANDIDATES = 4
"""Patches by features, and views by tokens, that LPIPS is taken of."""
MOST_REAL = 200
"""Held-out patches of a label, unless it has more validation patches than that."""
LEARNT = 40
"""Training patches of a label that are put to the audit as copies, at most."""
ROUNDS = 500

MEASURES = {"features": "features", "lpips": "LPIPS", "tokens": "tokens"}
CLOSEST = 4
TILE = 128
GAP = 4
CAPTION = 20

Distance = Callable[[Tensor, Tensor], Tensor]
"""Distances [K] of one image [1, 3, H, W] to others [K, 3, H, W] (`training.losses.Lpips`)."""


@dataclass(frozen=True)
class Seen:
    """What training saw, T patches in eight views. `images` uint8 [T, H, W, 3] are the patches and
    `decoded` the same from their tokens, unturned; `structure` and `appearance` are token ids
    int16 [T, 8, N], and `features` [T, 8, D] those of the images that they decode to; `groups`
    int64 [T] numbers the originals that patches were cut from. A place is patch * 8 + view."""

    images: Tensor
    decoded: Tensor
    structure: Tensor
    appearance: Tensor
    features: Tensor
    groups: Tensor

    def original(self, place: int) -> Tensor:
        """The patch at a place, [3, H, W] in -1..1."""
        return _turned(self.images, place)

    def view(self, place: int) -> Tensor:
        """The same as the tokenizer draws it."""
        return _turned(self.decoded, place)


def _turned(images: Tensor, place: int) -> Tensor:
    pixels = images[place // patches.VIEWS].permute(2, 0, 1)
    return patches.dihedral(pixels, place % patches.VIEWS).float() / 127.5 - 1


@dataclass(frozen=True)
class Case:
    """One label: M samples `drawn`, R real patches `held_out` and L copies `learnt` by heart, but
    for a tenth of their tokens.

    All of them as the tokenizer draws them. `groups` [R] numbers the originals of `held_out` as
    `Seen` does; `validation` bool [R] says which of them training never saw. Without a training
    patch among them, each may have a number of its own.
    """

    drawn: Pairs
    held_out: Pairs
    groups: Tensor
    validation: Tensor
    learnt: Pairs


@dataclass(frozen=True)
class Neighbours:
    """By measure, the distance [M] of M patches to the nearest place that training saw, and that
    place [M]."""

    distances: dict[str, Tensor]
    places: dict[str, Tensor]


@dataclass(frozen=True)
class CopyFinding:
    """One label by one measure: distances of samples `drawn` [M], of `held_out` patches [R] and of
    copies `learnt` [L]. `threshold` is the 1st percentile of `held_out`; under it lie `share`
    of the samples, with a 95% `interval`, `floor` of the validation patches, `caught` of the
    copies."""

    label: str
    measure: str
    features: str
    drawn: Tensor
    held_out: Tensor
    learnt: Tensor
    threshold: float
    share: float
    interval: tuple[float, float]
    floor: float
    caught: float

    @property
    def passes(self) -> bool:
        """Whether no more samples are near than the limit allows."""
        return self.share <= LIMIT

    def metrics(self) -> list[Metric]:
        """`memorised_<measure>`, the share; `nearest_<measure>`, the median distance, its floor
        that of held-out patches; `memorised_<measure>_caught`, the share of copies."""
        name, features, label = f"memorised_{self.measure}", self.features, self.label
        ours, theirs = float(self.drawn.median()), float(self.held_out.median())
        count = len(self.drawn)
        return [
            Metric(name, self.share, self.floor, features, count, label, self.interval),
            Metric(f"nearest_{self.measure}", ours, theirs, features, count, label),
            Metric(f"{name}_caught", self.caught, None, features, len(self.learnt), label),
        ]


@dataclass(frozen=True)
class Audit:
    """What was found for every label and measure, and the `sheet` of the closest pairs."""

    findings: tuple[CopyFinding, ...]
    sheet: Image.Image

    @property
    def passes(self) -> bool:
        """Whether every label passes by every measure."""
        return all(finding.passes for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence for the report."""
        near = [f"{_named(f)} {f.share:.1%}" for f in self.findings if not f.passes]
        best = {f.label: 0.0 for f in self.findings}
        for finding in self.findings:
            best[finding.label] = max(best[finding.label], finding.caught)
        blind = [f"{label} {caught:.0%}" for label, caught in best.items() if caught < SEEING]
        said = f"fails: {', '.join(near)} of the samples" if near else "passes: no more than 3%"
        said += " lie nearer to training than 99% of held-out patches do"
        if blind:
            said += f"; hardly sees: of copies the best measure catches {', '.join(blind)}"
        return said

    def metrics(self) -> list[Metric]:
        """Three figures a finding (`CopyFinding.metrics`)."""
        return [metric for finding in self.findings for metric in finding.metrics()]


def _named(finding: CopyFinding) -> str:
    return f"{finding.label} by {MEASURES[finding.measure]}"


@torch.no_grad()
def seen_in_training(dataset: patches.Dataset, tokenizer: Tokenizer, features: Features) -> Seen:
    """Tokens and features of all views of the training patches; says how far it is."""
    views = []
    for view in range(patches.VIEWS):
        parts = [_encoded(dataset, c, view, tokenizer) for c in dataset.training.split(BATCH)]
        structure, appearance = (torch.cat(ids) for ids in zip(*parts, strict=True))
        images = redrawn(structure, appearance, tokenizer)
        views.append((structure, appearance, features.of(images)))
        if view == 0:
            decoded = images.images
        print(f"audit: training view {view + 1}/{patches.VIEWS}", flush=True)
    structure, appearance, known = (torch.stack(part, 1) for part in zip(*views, strict=True))
    real, groups = dataset.images[dataset.training], _groups(dataset)[dataset.training]
    return Seen(real, decoded, structure, appearance, known, groups)


def _encoded(
    dataset: patches.Dataset, chosen: Tensor, view: int, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Ids int16 [B, N] of both streams of one view."""
    structure, appearance = encode(dataset, chosen, torch.full_like(chosen, view), tokenizer)
    return structure.short(), appearance.short()


def redrawn(structure: Tensor, appearance: Tensor, tokenizer: Tokenizer) -> Pairs:
    """The pairs that token ids [M, N] decode to."""
    parts = []
    for ids in zip(structure.long().split(BATCH), appearance.long().split(BATCH), strict=True):
        images, masks = decode(tokenizer, *ids)
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        parts.append(Pairs(pixels, masks, *ids))
    return joined(parts)


def _groups(dataset: patches.Dataset) -> Tensor:
    """The number [samples] of every sample's group."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(s.group, len(numbers)) for s in dataset.samples])


def case(
    dataset: patches.Dataset, label: Label, drawn: Pairs, seen: Seen, tokenizer: Tokenizer
) -> Case:
    """The case of `drawn` samples of one label of the dataset that `seen` was made of."""
    validation = of_label(dataset, dataset.validation, label)
    order = torch.randperm(len(dataset.training), generator=torch.Generator().manual_seed(0))
    training = of_label(dataset, dataset.training[order], label)
    spare = max(0, MOST_REAL - len(validation))
    held_out = torch.cat([validation, training[:spare]])
    real = real_pairs(dataset, held_out, tokenizer)
    return Case(
        drawn,
        redrawn(real.structure, real.appearance, tokenizer),
        _groups(dataset)[held_out],
        torch.arange(len(held_out)) < len(validation),
        by_heart(seen, torch.searchsorted(dataset.training, training[:LEARNT]), tokenizer),
    )


def by_heart(seen: Seen, chosen: Tensor, tokenizer: Tokenizer) -> Pairs:
    """What a prior draws that has learnt `chosen` training patches [L], each in another of its
    views: their tokens, with the next one's at a tenth of the locations."""
    views = torch.arange(len(chosen)) % patches.VIEWS
    structure, appearance = seen.structure[chosen, views], seen.appearance[chosen, views]
    ranks = torch.rand(structure.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    changed = ranks < round(CHANGED * ranks.shape[1])

    def with_errors(ids: Tensor) -> Tensor:
        return torch.where(changed, ids.roll(-1, 0), ids)

    return redrawn(with_errors(structure), with_errors(appearance), tokenizer)


@torch.no_grad()
def nearest(
    pairs: Pairs,
    seen: Seen,
    features: Features,
    perceptual: Distance | None,
    groups: Tensor | None = None,
) -> Neighbours:
    """The nearest place to each of M pairs by every measure; LPIPS is left out without its network.

    By features it is the Euclidean distance; by tokens the share of locations where a stream
    differs; by LPIPS the least over four patches nearest by features, each in the view with most
    tokens in common, and over four views nearest by tokens. Patches of the same one of `groups`
    [M] do not count.
    """
    known = features.of(pairs)
    rows = []
    for number in range(len(pairs)):
        by_features = _euclidean(known[number], seen.features)
        by_tokens = _differing(pairs, number, seen)
        if groups is not None:
            own = seen.groups == groups[number]
            by_features[own], by_tokens[own] = torch.inf, torch.inf
            if own.all():
                raise StageError("audit: training patches are all of one original, expected two")
        found = {"features": _least(by_features), "tokens": _least(by_tokens)}
        if perceptual:
            image = pairs[number : number + 1].pixels()
            places = _candidates(by_features, by_tokens)
            away = perceptual(image, torch.stack([seen.view(place) for place in places]))
            found["lpips"] = float(away.min()), places[int(away.argmin())]
        rows.append(found)
    measures = [measure for measure in MEASURES if measure in rows[0]]
    return Neighbours(
        {m: torch.tensor([row[m][0] for row in rows]) for m in measures},
        {m: torch.tensor([row[m][1] for row in rows]) for m in measures},
    )


def _euclidean(features: Tensor, known: Tensor) -> Tensor:
    """Distances [T, 8] of features [D] to [T, 8, D], without rounding the small ones away."""
    mode = "donot_use_mm_for_euclid_dist"
    away = torch.cdist(features[None], known.flatten(0, 1), compute_mode=mode)
    return away.view(known.shape[:2])


def _differing(pairs: Pairs, number: int, seen: Seen) -> Tensor:
    """Share of locations [T, 8] where one pair's tokens differ in either stream."""
    structure, appearance = pairs.structure[number].short(), pairs.appearance[number].short()
    same = (seen.structure == structure) & (seen.appearance == appearance)
    return 1 - same.float().mean(2)


def _least(distances: Tensor) -> tuple[float, int]:
    return float(distances.min()), int(distances.argmin())


def _candidates(by_features: Tensor, by_tokens: Tensor) -> list[int]:
    """Places that may be the nearest to the eye, from distances [T, 8] each."""
    alike = by_features.min(1).values.topk(min(CANDIDATES, len(by_features)), largest=False).indices
    turned = alike * patches.VIEWS + by_tokens[alike].argmin(1)
    shared = by_tokens.flatten().topk(min(CANDIDATES, by_tokens.numel()), largest=False).indices
    places = torch.cat([turned, shared]).unique()
    return [place for place in places.tolist() if by_tokens.flatten()[place].isfinite()]


def threshold(distances: np.ndarray) -> float:
    """The 1st percentile of held-out distances [R].

    Interpolated at p (R + 1), so that one more held-out patch lies under it with a chance of 1%
    from 99 patches on. Fewer give their least, and chance alone puts 1 / (R + 1) under that.
    """
    return float(np.quantile(distances, PERCENTILE, method="weibull"))


def audit(
    cases: Mapping[str, Case], seen: Seen, features: Features, perceptual: Distance | None
) -> Audit:
    """Put every label's samples, held-out patches and copies to the same search."""
    findings, rows = [], []
    for label, held in cases.items():
        for name, pairs in (
            ("drawn", held.drawn),
            ("held_out", held.held_out),
            ("learnt", held.learnt),
        ):
            if not len(pairs):
                raise StageError(f"audit, {label}: {name}: got 0 patches, expected at least 1")
        drawn = nearest(held.drawn, seen, features, perceptual)
        real = nearest(held.held_out, seen, features, perceptual, held.groups)
        learnt = nearest(held.learnt, seen, features, perceptual)
        for measure in drawn.distances:
            distances = [found.distances[measure] for found in (drawn, real, learnt)]
            name = {"features": features.name, "lpips": "AlexNet"}.get(measure, "")
            finding = _finding(label, measure, name, held, *distances)
            findings.append(finding)
            rows.append((finding, held.drawn, drawn.places[measure]))
        print(f"audit: {label} done", flush=True)
    return Audit(tuple(findings), _sheet(rows, seen))


def _finding(
    label: str,
    measure: str,
    features: str,
    held: Case,
    drawn: Tensor,
    real: Tensor,
    learnt: Tensor,
) -> CopyFinding:
    limit = threshold(real.numpy())
    return CopyFinding(
        label,
        measure,
        features,
        drawn,
        real,
        learnt,
        limit,
        _share(drawn, limit),
        _interval(drawn.numpy(), real.numpy(), held.groups.numpy()),
        _share(real[held.validation], limit),
        _share(learnt, limit),
    )


def _share(distances: Tensor, limit: float) -> float:
    return float((distances < limit).float().mean())


def _interval(drawn: np.ndarray, real: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95% of the share's bootstrap distribution, over samples and over held-out originals: patches
    of one original are alike, and do not count as many."""
    random = np.random.default_rng(0)
    originals = [real[groups == group] for group in np.unique(groups)]
    shares = []
    for _ in range(ROUNDS):
        chosen = random.integers(len(originals), size=len(originals))
        limit = threshold(np.concatenate([originals[i] for i in chosen]))
        shares.append((random.choice(drawn, len(drawn)) < limit).mean())
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def _sheet(rows: list[tuple[CopyFinding, Pairs, Tensor]], seen: Seen) -> Image.Image:
    """A row a finding: its four closest samples, each beside the nearest training view."""
    height = TILE + 2 * CAPTION
    sheet = Image.new("RGB", (2 * CLOSEST * TILE, height * len(rows)), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (finding, drawn, places) in enumerate(rows):
        top = number * height
        said = (
            f"{_named(finding)}: {finding.share:.1%} of {len(finding.drawn)} samples nearer than "
            f"{finding.threshold:.3g} (1% of {len(finding.held_out)} held-out patches are); "
            f"copies caught: {finding.caught:.0%}"
        )
        canvas.text((4, top + 2), said, fill="black", font=font)
        for column, closest in enumerate(finding.drawn.argsort()[:CLOSEST].tolist()):
            x, y = column * 2 * TILE, top + CAPTION
            pair = drawn[closest : closest + 1].pixels()[0], seen.original(int(places[closest]))
            for side, image in enumerate(pair):
                shown = tile([[image]]).resize((TILE - GAP, TILE - GAP))
                sheet.paste(shown, (x + side * TILE, y))
            caption = f"sample | training: {float(finding.drawn[closest]):.3g}"
            canvas.text((x + 4, y + TILE + 2), caption, fill="black", font=font)
    return sheet
