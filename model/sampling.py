"""Per-row sampling: guidance, temperature, top-k, top-p and counter-based noise.

Every function works row by row: a row's token never depends on other rows (docs/method.md, sections
3 and 4). Knows no slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.request import SamplingSettings
from pathar.contract import StreamName

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
ROUNDS = 10


@dataclass(frozen=True)
class SamplingRows:
    """One value a row, [R] each: `temperature` (0 = greedy), `top_k` (0 = off), `top_p`. A row is
    one stream of an image."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @classmethod
    def of(
        cls, settings: Sequence[SamplingSettings], stream: StreamName, device: torch.device
    ) -> SamplingRows:
        """Stack what several images have for one stream."""
        rows = [of_image.of_stream(stream) for of_image in settings]
        return cls(
            *(
                torch.tensor([row[name] for row in rows], device=device)
                for name in ("temperature", "top_k", "top_p")
            )
        )


def guide(label: Tensor, null: Tensor, cfg_scale: Tensor) -> Tensor:
    """Classifier-free guidance: l_null + cfg_scale * (l_label - l_null); [R, K], [R, K], [R]."""
    return null + cfg_scale[:, None] * (label - null)


def sample(logits: Tensor, rows: SamplingRows, uniform: Tensor) -> Tensor:
    """One token a row by inverse CDF over the ranked entries: logits [R, K] -> ids [R].

    `uniform` [R] in (0, 1). Temperature first, then top-k, then top-p (the fewest entries whose
    probability reaches top_p). Equal logits rank by id, lowest first.
    """
    ranked, order = logits.float().sort(dim=-1, descending=True, stable=True)
    greedy = rows.temperature == 0
    scaled = (ranked - ranked[:, :1]) / rows.temperature.masked_fill(greedy, 1.0)[:, None]
    rank = torch.arange(logits.shape[-1], device=logits.device)
    limit = torch.where(rows.top_k == 0, logits.shape[-1], rows.top_k)
    scaled = scaled.masked_fill(rank >= limit[:, None], float("-inf"))
    probability = scaled.softmax(-1)
    reached = probability.cumsum(-1) - probability
    kept = (reached < rows.top_p[:, None]) | (rows.top_p[:, None] >= 1)
    kept = (kept | (rank == 0)) & (rank < limit[:, None])  # the least top_p are 0 in fp32
    cumulative = (probability * kept).cumsum(-1)
    passed = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    chosen = torch.minimum(passed, kept.sum(-1) - 1).masked_fill(greedy, 0)
    return order.gather(-1, chosen[:, None])[:, 0]


def noise_table(seed: int, locations: int) -> Tensor:
    """Uniforms (0, 1) for one image, [locations, 2]: a pure function of (seed, location, stream).

    Philox4x32-10 (Salmon et al. 2011) with the seed as key and (location, stream) as counter; the
    top 23 bits of its first word. With one bit more, the half would round the largest up to 1.
    """
    location = torch.arange(locations)[:, None].expand(locations, 2)
    stream = torch.arange(2)[None].expand(locations, 2)
    zero = torch.zeros_like(location)
    word = philox(seed, (location, stream, zero, zero))[0]
    return ((word >> 9).float() + 0.5) * 2.0**-23


def philox(key: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: a 64-bit key and four words of counter (int64 tensors) -> four words."""
    k0, k1 = key & WORD, key >> 32 & WORD
    x0, x1, x2, x3 = counter
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], x0)
        high1, low1 = _multiply(MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return x0, x1, x2, x3


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, by halves since int64 would overflow."""
    low, high = (factor & 0xFFFF) * word, (factor >> 16) * word
    low = low + ((high & 0xFFFF) << 16)
    return ((high >> 16) + (low >> 32)) & WORD, low & WORD
