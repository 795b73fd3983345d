"""Training on a processor: `python -m benchmarks.training` times steps of tokenizer and prior.

Images a second of whole updates (forward, backward, clipping, AdamW) of the bare networks on random
input, without LPIPS, segmenter and data. Variants, interleaved round by round in one run, so that a
drifting machine drifts for all:

- `shipped`: what training does here: the faster of bf16 and fp32, convolutions channels-last;
- `fp32`, `bf16`: the same in this precision;
- `contiguous`: as shipped without channels-last (tokenizer);
- `fused`: as shipped with torch's fused attention (prior);
- `compiled`: as shipped, by `torch.compile` (prior). The first step, which compiles, is left out.
  It does not compile the tokenizer: torch 2.13 takes the gradient of its padding, channels-last,
  for one of another layout, and stops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.decode import processor
from model import transformer
from model.checkpoint import build
from model.config import NAMED_SIZES, ModelConfig
from model.request import Label, SamplingSettings
from model.tokenizer import Reconstruction, Tokenizer
from model.transformer import Prior
from training.compute import precision

VARIANTS = {
    "tokenizer": ("shipped", "fp32", "bf16", "contiguous"),
    "prior": ("shipped", "fp32", "bf16", "fused", "compiled"),
}
Step = Callable[[], None]
Loss = Callable[[], Tensor]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--size", default="small", choices=sorted(NAMED_SIZES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="the median counts")
    parser.add_argument("--variants", default="", help="comma-separated; all without it")
    args = parser.parse_args()
    wanted = args.variants.split(",") if args.variants else None
    print(f"{args.size}, batches of {args.batch}, {torch.get_num_threads()} threads, {processor()}")
    result = {}
    for stage, variants in VARIANTS.items():
        chosen = [name for name in variants if wanted is None or name in wanted]
        rates = measure(stage, chosen, args.size, args.batch, args.rounds)
        result[stage] = rates
        shown = (f"{name} {rate:.2f}" for name, rate in rates.items())
        print(f"{stage}, images a second: {', '.join(shown)}", flush=True)
    print(json.dumps({"size": args.size, "batch": args.batch, "images_per_s": result}))


def measure(
    stage: str, variants: Sequence[str], size: str, batch: int, rounds: int
) -> dict[str, float]:
    """Images a second by variant, medians of the rounds."""
    made = {name: prepared(stage, name, size, batch) for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, step in made.items():
            started = time.perf_counter()
            step()
            if number:  # the first one warms up, and compiles
                seconds[name].append(time.perf_counter() - started)
    return {name: batch / statistics.median(times) for name, times in seconds.items()}


def prepared(stage: str, variant: str, size: str, batch: int) -> Step:
    """One update of a stage's network in this variant."""
    torch.manual_seed(0)
    tokenizer, prior = build(
        ModelConfig(
            name=size,
            size=size,
            tokenizer=NAMED_SIZES[size][0],
            prior=NAMED_SIZES[size][1],
            labels=(Label("histology", "modality"),),
            defaults=SamplingSettings(),
            licence="",
        )
    )
    network: nn.Module = tokenizer if stage == "tokenizer" else prior
    if stage == "tokenizer" and variant != "contiguous":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    called = torch.compile(network.train()) if variant == "compiled" else network.train()
    loss = (
        tokenizer_loss(tokenizer, called, batch)
        if stage == "tokenizer"
        else (prior_loss(prior, called, batch))
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    of_variant = {"fp32": torch.float32, "bf16": torch.bfloat16}
    dtype = of_variant.get(variant, precision(torch.device("cpu")))

    def step() -> None:
        with ExitStack() as stack:
            if variant == "fused":
                stack.enter_context(mock.patch.object(transformer, "attention", fused))
            stack.enter_context(
                torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
            )
            total = loss()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def tokenizer_loss(tokenizer: Tokenizer, called: Callable[..., Any], batch: int) -> Loss:
    """The loss of a reconstruction of random patches."""
    side = tokenizer.config.image_size
    images = torch.rand(batch, 3, side, side) * 2 - 1
    masks = torch.randn(batch, tokenizer.config.structure_planes, side, side).sign()

    def loss() -> Tensor:
        result: Reconstruction = called(images, masks, quantise=True)
        found = (result.image.float() - images).abs().mean()
        return found + result.mask_logits.float().mean()

    return loss


def prior_loss(prior: Prior, called: Callable[..., Any], batch: int) -> Loss:
    """The cross-entropy of random tokens."""
    shape = (2, batch, prior.layout.locations)
    structure, appearance = torch.randint(prior.codebook_size, shape)
    labels = torch.zeros(batch, dtype=torch.long)

    def loss() -> Tensor:
        logits = called(labels, structure, appearance)
        losses = [
            F.cross_entropy(x.float().flatten(0, 1), y.flatten())
            for x, y in zip(logits, (structure, appearance), strict=True)
        ]
        return torch.stack(losses).sum()

    return loss


def fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, *, causal: bool = False) -> Tensor:
    """`transformer.attention` by torch's own."""
    mask = None if causal else seen
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


if __name__ == "__main__":
    main()
