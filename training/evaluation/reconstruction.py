"""How much of a patch its tokens keep, and how much of the codebooks the tokens use.

PSNR, SSIM (Wang et al. 2004, by scikit-image), LPIPS and the Dice of the mask decoded from
structure tokens alone, on real validation patches; codebook use and perplexity of both streams
(the paper's Table VIII B gives use over 93%).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from model.tokenizer import Tokenizer
from training import data as patches
from training.codebooks import usage
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import BATCH, Pairs
from training.losses import Lpips, overlap, psnr


@dataclass(frozen=True)
class Fidelity:
    """Figures of M patches: `psnr` in dB, `ssim`, `mask_dice`, and `lpips` where it was taken."""

    psnr: Tensor
    ssim: Tensor
    mask_dice: Tensor
    lpips: Tensor | None


def fidelity(
    drawn: Tensor, found: Tensor, images: Tensor, masks: Tensor, lpips: Lpips | None
) -> Fidelity:
    """Of images `drawn` [M, 3, H, W] and masks `found` bool [M, H, W] against the real ones."""
    return Fidelity(
        psnr(drawn, images),
        ssim(drawn, images),
        overlap(found, masks),
        lpips(drawn, images) if lpips else None,
    )


def ssim(drawn: Tensor, images: Tensor) -> Tensor:
    """Structural similarity [M] of images [M, 3, H, W] in -1..1, with Wang's Gaussian window."""
    scores = [
        structural_similarity(  # type: ignore[no-untyped-call]
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=2.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(drawn, images, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float32)


@torch.no_grad()
def decode(tokenizer: Tokenizer, structure: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [M, N] of both streams -> images [M, 3, H, W] in -1..1, masks bool [M, H, W], all
    on the CPU.
    """
    side, device = tokenizer.config.grid_size, next(tokenizer.parameters()).device
    images, masks = [], []
    for ids in zip(structure.split(BATCH), appearance.split(BATCH), strict=True):
        image, logits = tokenizer.decode(
            *(stream.to(device).unflatten(1, (side, side)) for stream in ids)
        )
        images.append(image.clamp(-1, 1).cpu())
        masks.append(logits[:, 0].cpu() > 0)
    return torch.cat(images), torch.cat(masks)


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, pairs: Pairs, lpips: Lpips | None) -> Fidelity:
    """Decode the tokens of real patches and compare with the patches."""
    parts = []
    for start in range(0, len(pairs), BATCH):
        chunk = pairs[start : start + BATCH]
        drawn, found = decode(tokenizer, chunk.structure, chunk.appearance)
        parts.append(fidelity(drawn, found, chunk.pixels(), chunk.masks, lpips))
    distances = [part.lpips for part in parts if part.lpips is not None]
    return Fidelity(
        torch.cat([part.psnr for part in parts]),
        torch.cat([part.ssim for part in parts]),
        torch.cat([part.mask_dice for part in parts]),
        torch.cat(distances) if distances else None,
    )


def rows_by_label(dataset: patches.Dataset, indices: Tensor) -> dict[str, Tensor]:
    """Which of `indices` carry each label: bool [M] by name, and "all"."""
    table = dataset.label_table()[indices]
    by_label = {label.name: table[:, i] for i, label in enumerate(dataset.labels)}
    return {"all": torch.ones(len(indices), dtype=torch.bool)} | by_label


def reconstruction_metrics(found: Fidelity, rows: Mapping[str, Tensor]) -> list[Metric]:
    """Means by label of `rows` (bool [M] each); labels without a patch are left out. `n` of a Dice
    counts the patches with nuclei in either mask.
    """
    figures = {
        "reconstruction_psnr": (found.psnr, ""),
        "reconstruction_ssim": (found.ssim, ""),
        "reconstruction_mask_dice": (found.mask_dice, ""),
    }
    if found.lpips is not None:
        figures["reconstruction_lpips"] = found.lpips, "AlexNet"
    return [
        Metric(name, float(known.mean()), None, features, len(known), label)
        for label, chosen in rows.items()
        for name, (values, features) in figures.items()
        if len(known := _known(values[chosen]))
    ]


def _known(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def hardest(found: Fidelity, originals: Sequence[str], count: int = 2) -> tuple[str, str]:
    """A sentence on the `count` originals whose patches lie furthest off, by LPIPS, and their names
    ("" where there are no others).

    `originals` names that of each patch. Few originals stand behind many patches, so that one
    unlike all of training can hold a mean up by itself.
    """
    lpips = found.lpips
    assert lpips is not None
    names = sorted(set(originals))
    of_original = {name: torch.tensor([each == name for each in originals]) for name in names}
    ranked = sorted(names, key=lambda name: -float(lpips[of_original[name]].mean()))
    chosen = torch.stack([of_original[name] for name in ranked[:count]]).any(0)
    if chosen.all():
        return "All patches come from the originals with the highest LPIPS.", ""
    without, psnr_without = lpips[~chosen].mean(), found.psnr[~chosen].mean()
    return (
        f"The {count} originals with the highest LPIPS ({int(chosen.sum())} of {len(chosen)} "
        f"patches) have {lpips[chosen].mean():.3f} and {found.psnr[chosen].mean():.2f} dB; all "
        f"others have {without:.3f} and {psnr_without:.2f} dB."
    ), f"These originals are {', '.join(ranked[:count])}."


@torch.no_grad()
def hardest_sheet(
    tokenizer: Tokenizer, pairs: Pairs, found: Fidelity, count: int = 8
) -> Image.Image:
    """The `count` patches with the highest LPIPS above their reconstructions."""
    assert found.lpips is not None
    worst = pairs[found.lpips.argsort(descending=True)[:count]]
    drawn, _ = decode(tokenizer, worst.structure, worst.appearance)
    rows = [torch.cat(list(images), 2) for images in (worst.pixels(), drawn)]
    sheet = ((torch.cat(rows, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def codebook_metrics(pairs: Pairs, size: int, label: str, suffix: str = "") -> list[Metric]:
    """Share of a codebook of `size` entries in use, 0..1, and perplexity, for both streams.

    Named `structure_use`, `structure_perplexity` and so on, then `suffix`. A few patches cannot
    use every entry: compare labels with the training patches as a whole.
    """
    metrics = []
    for stream, ids in (("structure", pairs.structure), ("appearance", pairs.appearance)):
        figures = zip(("use", "perplexity"), usage(ids, size), strict=True)
        for figure, value in figures:
            name = f"{stream}_{figure}{suffix}"
            metrics.append(Metric(name, value, None, "", len(pairs), label))
    return metrics
