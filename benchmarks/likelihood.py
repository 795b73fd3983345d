"""What the precision of a decoder costs in quality: `python -m benchmarks.likelihood --data DATA`.

Encodes validation patches and gives every decoder their tokens. Prints, by stream, the nats per
token in fp32, how much each decoder's mean differs from it in percent, and the mean divergence (KL)
of its next-token distribution from that in fp32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.decode import processor
from model.checkpoint import Checkpoint, load_checkpoint
from model.decoder import Decoder, Row
from model.native_decoder import NativeDecoder
from model.processors import usable_cores
from model.request import SamplingSettings
from model.torch_decoder import TorchDecoder, has_bf16
from pathar.contract import STREAMS
from training import data as patches
from worker.settings import SHIPPED

TOGETHER = 8
"""Images that are decoded at once."""
FP32 = "torch"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likelihood", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--licence", action="append", default=[], help="only of these")
    parser.add_argument("--patches", type=int, default=256, help="at most, evenly spread")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint)
    rows = validation_rows(checkpoint, args.data, args.licence, args.patches)
    prior = checkpoint.prior
    makers: dict[str, Callable[[], Decoder]] = {
        FP32: lambda: TorchDecoder(prior, TOGETHER),
        "native": lambda: NativeDecoder(prior, TOGETHER, args.threads),
    }
    if has_bf16():
        makers["torch_bf16"] = lambda: TorchDecoder(prior, TOGETHER, in_bf16=True)
    report(measure({name: make() for name, make in makers.items()}, rows), len(rows))


def validation_rows(
    checkpoint: Checkpoint, data: Path, licences: Sequence[str], count: int
) -> list[Row]:
    """Validation patches that have a label of the checkpoint, as rows whose tokens are given."""
    tokenizer = checkpoint.tokenizer
    dataset = patches.read_dataset(data, licences, tokenizer.config.image_size)
    names = [label.name for label in checkpoint.config.labels]
    labels = {
        index: names.index(label.name)
        for index in dataset.validation.tolist()
        for label in dataset.samples[index].labels
        if label.name in names
    }
    chosen = list(labels)[:: -(-len(labels) // count)]
    rows = []
    for index in chosen:
        image, mask = patches.batch(
            dataset, torch.tensor([index]), torch.tensor([0]), tokenizer.config.structure_planes
        )
        streams = [ids.flatten().numpy() for ids in tokenizer.encode(image, mask)]
        rows.append(Row(labels[index], SamplingSettings(), index, np.stack(streams, axis=1)))
    return rows


def measure(
    decoders: dict[str, Decoder], rows: Sequence[Row]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """By decoder: `nats` and `kl` to FP32 per token, [streams] each."""
    sums = {name: {"nats": np.zeros(2), "kl": np.zeros(2)} for name in decoders}
    for first in range(0, len(rows), TOGETHER):
        some = rows[first : first + TOGETHER]
        exact = list(steps(decoders[FP32], some))
        for name, decoder in decoders.items():
            for ours, theirs in zip(
                exact if name == FP32 else steps(decoder, some), exact, strict=True
            ):
                divergence = (np.exp(theirs) * (theirs - ours)).sum(-1).sum(-1)
                sums[name]["kl"] += divergence
            for slot in range(len(some)):
                sums[name]["nats"] -= decoder.log_likelihood(slot)
    tokens = sum(len(row.given) for row in rows)
    return {name: {key: of / tokens for key, of in found.items()} for name, found in sums.items()}


def steps(decoder: Decoder, rows: Sequence[Row]) -> Iterator[NDArray[np.float64]]:
    """Log probabilities [streams, rows, K] of each step."""
    for slot, row in enumerate(rows):
        decoder.place(slot, row)
    decoder.arrange(list(range(len(rows))))
    for _ in range(len(rows[0].given) + 1):
        decoder.step()
        logits = torch.from_numpy(np.stack(decoder.logits())).double()
        yield logits.log_softmax(-1).numpy()


def report(found: dict[str, dict[str, NDArray[np.float64]]], count: int) -> None:
    """The table, then the line of JSON."""
    print(f"{count} validation patches, torch {torch.__version__}, {processor()}")
    exact = found[FP32]["nats"]
    print("".ljust(14) + "".join(f"{stream}: nats, change, KL".rjust(36) for stream in STREAMS))
    for name, of in found.items():
        cells = (
            f"{nats:.4f}  {100 * (nats / fp32 - 1):+.4f}%  {kl:.1e}".rjust(36)
            for nats, fp32, kl in zip(of["nats"], exact, of["kl"], strict=True)
        )
        print(name.ljust(14) + "".join(cells))
    lists = {n: {key: of.tolist() for key, of in by.items()} for n, by in found.items()}
    print(json.dumps({"patches": count, "decoders": lists}))


if __name__ == "__main__":
    main()
