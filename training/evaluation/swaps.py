"""Do nuclei follow structure? Streams swapped between real patches (the paper's Fig. 6).

A decode takes its structure tokens from one patch and its appearance tokens from another. If
structure rules, a segmenter trained on real patches finds the structure donor's nuclei in it, as
it does in the donor's unswapped reconstruction, and not the appearance donor's.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs, joined
from training.losses import blurred, overlap
from training.run import StageError
from training.sheets import grey, tile

DONORS = 24
"""Patches of a label that give structure, at most."""
PARTNERS = 3
"""Appearance donors of each, of every label."""
SHEET_DONORS = 2
JPEG_QUALITY = 75
ROUNDS = 2000

Find = Callable[[Tensor], Tensor]
"""The nuclei found in images [M, 3, H, W] in -1..1: bool [M, H, W] (`training.segmenter.find`)."""

Decode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images and masks of structure and appearance ids [M, N] (`reconstruction.decode`)."""


@dataclass(frozen=True)
class Swaps:
    """Dice for D structure donors of one label and their P partners of another (or the same).

    `real` [D] is what is found in a donor's image against its mask, `unswapped` [D] in its
    reconstruction. `swapped` [D, P] is what is found in a swapped decode against the structure
    donor's mask, `followed` [D, P] against the appearance donor's, and `chance` [D, P] the Dice of
    the two real masks, which `followed` has with structure alone.
    """

    structure: str
    appearance: str
    real: Tensor
    unswapped: Tensor
    swapped: Tensor
    followed: Tensor
    chance: Tensor

    @property
    def gap(self) -> Tensor:
        """What swapping costs each structure donor, [D]: unswapped - swapped."""
        return self.unswapped - self.swapped.nanmean(1)


def swap_streams(decode: Decode, find: Find, donors: Mapping[str, Pairs]) -> list[Swaps]:
    """Swap within each label and across every two, both ways; StageError for under two patches.

    `donors` maps labels to real validation pairs; at most 24 of each are taken, spread over them.
    """
    for label, pairs in donors.items():
        if len(pairs) < 2:
            raise StageError(f"swaps, {label}: got {len(pairs)} patches, expected 2 or more")
    chosen = {label: spread(pairs, DONORS) for label, pairs in donors.items()}
    swaps = []
    for a, givers in chosen.items():
        plain, _ = decode(givers.structure, givers.appearance)
        real = overlap(find(givers.pixels()), givers.masks)
        unswapped = overlap(find(plain), givers.masks)
        for b, painters in chosen.items():
            figures = _swap(decode, find, givers, painters)
            swaps.append(Swaps(a, b, real, unswapped, *figures))
    return swaps


def _swap(
    decode: Decode, find: Find, givers: Pairs, painters: Pairs
) -> tuple[Tensor, Tensor, Tensor]:
    columns = []
    for places in partners(len(givers), len(painters)):
        partner = painters[places]
        drawn, _ = decode(givers.structure, partner.appearance)
        found = find(drawn)
        pairs = ((found, givers.masks), (found, partner.masks), (givers.masks, partner.masks))
        columns.append([overlap(ours, theirs) for ours, theirs in pairs])
    swapped, followed, chance = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    return swapped, followed, chance


def partners(givers: int, painters: int) -> list[Tensor]:
    """Whose appearance each structure donor takes, for up to 3 rounds: places [givers] each.

    Within one label nobody is its own partner, and partners stand far apart in the patches' order,
    where those of one original stand together.
    """
    rounds = min(PARTNERS, painters - 1)
    steps = [round(k * painters / (rounds + 1)) for k in range(1, rounds + 1)]
    return [(torch.arange(givers) + step) % painters for step in steps]


def spread(pairs: Pairs, count: int) -> Pairs:
    """Up to `count` pairs, evenly over their order."""
    return pairs[torch.linspace(0, len(pairs) - 1, min(count, len(pairs))).long()]


def through_a_poor_copy(find: Find) -> Find:
    """`find` on copies that are blurred (3 x 3), moved by a pixel and saved as JPEG, as slides are
    that pass through other hands: patterns that only one network takes for nuclei do not last."""

    def found(images: Tensor) -> Tensor:
        moved = F.pad(blurred(images), (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]
        masks = find(torch.stack([_as_jpeg(image) for image in moved]))
        back = F.pad(masks[:, None].float(), (0, 1, 0, 1), mode="replicate")
        return back[:, 0, 1:, 1:] > 0

    return found


def _as_jpeg(image: Tensor) -> Tensor:
    """An image [3, H, W] in -1..1 after JPEG, colours at the full resolution."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    with Image.open(file) as saved:
        copied = torch.from_numpy(np.array(saved))
    return copied.permute(2, 0, 1).float() / 127.5 - 1


def swap_metrics(swaps: list[Swaps], suffix: str = "") -> list[Metric]:
    """Figures by label of the structure donor, and over all; `suffix` ends their names.

    `reconstruction_found_dice`: what the segmenter finds in unswapped reconstructions against the
    real mask; its floor is that of the real images. `swap_<where>_dice`: the same in swapped
    decodes, `where` being `within` a label or `across` labels; its floor is the unswapped figure.
    `swap_<where>_gap`: unswapped - swapped, with a bootstrap interval over structure donors; the
    goal is 0.1 at most. `swap_<where>_appearance_dice`: against the appearance donor's mask; its
    floor is the Dice of the two real masks, which is what a decode free of it reaches.
    """
    labels = list(dict.fromkeys(swap.structure for swap in swaps))
    chosen = {label: [swap for swap in swaps if swap.structure == label] for label in labels}
    metrics = []
    for label, held in ({"all": swaps} | chosen).items():
        within = [swap for swap in held if swap.structure == swap.appearance]
        across = [swap for swap in held if swap.structure != swap.appearance]
        metrics.append(_found(within, label))
        for where, part in (("within", within), ("across", across)):
            metrics += _figures(part, where, label) if part else []
    return [replace(metric, name=metric.name + suffix) for metric in metrics]


def _found(swaps: list[Swaps], label: str) -> Metric:
    unswapped = torch.cat([swap.unswapped for swap in swaps])
    real = float(torch.cat([swap.real for swap in swaps]).nanmean())
    mean = float(unswapped.nanmean())
    return Metric("reconstruction_found_dice", mean, real, "", _counted(unswapped), label)


def _figures(swaps: list[Swaps], where: str, label: str) -> list[Metric]:
    swapped, followed, chance, unswapped = (
        torch.cat([getattr(swap, name).flatten() for swap in swaps])
        for name in ("swapped", "followed", "chance", "unswapped")
    )
    gap = _gaps(swaps)
    values = {
        "dice": (swapped.nanmean(), float(unswapped.nanmean()), None),
        "gap": (gap.nanmean(), None, _interval(gap)),
        "appearance_dice": (followed.nanmean(), float(chance.nanmean()), None),
    }
    count = _counted(swapped)
    return [
        Metric(f"swap_{where}_{name}", float(value), floor, "", count, label, interval)
        for name, (value, floor, interval) in values.items()
    ]


def _gaps(swaps: list[Swaps]) -> Tensor:
    """One gap for each structure donor, over all its partners."""
    labels = dict.fromkeys(swap.structure for swap in swaps)
    by_label = [[swap.gap for swap in swaps if swap.structure == label] for label in labels]
    return torch.cat([torch.stack(gaps).nanmean(0) for gaps in by_label])


def _interval(values: Tensor) -> tuple[float, float]:
    """95% of the mean's bootstrap distribution."""
    known = values[~values.isnan()].numpy()
    # Takes a second.
    from scipy.stats import bootstrap  # type: ignore[import-untyped]

    drawn = bootstrap((known,), np.mean, n_resamples=ROUNDS, method="percentile", rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def agreement_metric(find: Find, drawn: Pairs, real: Pairs, label: str) -> Metric:
    """Mean Dice of what is found in a pair's image against its mask, with a bootstrap interval
    over samples; the floor is that of `real` validation pairs."""
    ours, theirs = (overlap(find(held.pixels()), held.masks) for held in (drawn, real))
    interval = _interval(ours) if _counted(ours) > 1 else None
    means = float(ours.nanmean()), float(theirs.nanmean())
    return Metric("pair_agreement", *means, "", _counted(ours), label, interval)


def _counted(scores: Tensor) -> int:
    """The pairs of masks that are not both empty."""
    return int((~scores.isnan()).sum())


def swap_sheet(decode: Decode, donors: Mapping[str, Pairs]) -> Image.Image:
    """Structure donors down, appearance donors across, two of each label in both.

    Real images and masks stand on the margins, decodes of the swapped streams in the field,
    unswapped reconstructions on its diagonal.
    """
    chosen = joined([spread(pairs, SHEET_DONORS) for pairs in donors.values()])
    images, masks = list(chosen.pixels()), list(grey(chosen.masks[:, None].float()))
    blank = [torch.ones_like(images[0])] * 2
    rows = [[*blank, *images], [*blank, *masks]]
    for number, structure in enumerate(chosen.structure):
        drawn, _ = decode(structure.expand_as(chosen.appearance), chosen.appearance)
        rows.append([images[number], masks[number], *drawn])
    return tile(rows)
