"""The engine alone: `python -m benchmarks.decode --size small|paper --batches 1,4,16`.

Seconds an image with guidance, tokens only, on random weights. Variants, interleaved round by
round in one run so that a drifting machine drifts for all:

- `engine`: the pair decode that ships, in the mode that keeps the bits at any load. On a processor
  it has as many slots as a worker has there unless it is told (`default_slots`), and draws larger
  batches one after another;
- `floor`: reads, step by step, as many bytes as the engine must (the prior's matrices once, the
  used part of every sequence's keys and values) from a buffer of that size, and does nothing else:
  the memory roofline of this machine at this moment;
- `amx`, `avx512_vnni`, `avx_vnni`, `avx2`, `dotprod`, `portable`: the same as `engine`, compiled
  for these instructions, where this processor has them;
- `torch`, `torch_bf16`: the same as `engine` on the torch decoder, where `engine` is the compiled
  one, in fp32 and in bf16;
- `sequential`: one query at a time with a cache (`model.reference`);
- `hf`: Hugging Face `generate` on a GPT-2 of the same size with `guidance_scale`, which runs its
  unconditional branch as a second model call;
- `hf_2b`: the same with 2 B plain rows and no guidance, a fairer peer;
- `openvino_int8`, `openvino`, `ctranslate2_int8`, `vllm`: the fastest engines for CPUs, each in a
  process of its own (`benchmarks.peers`). One that is not installed is named and left out;
  `--peer-python` names another Python that has it, and may be repeated.

`--instructions avx2` or `avx512_vnni` holds `engine` and these peers down to such instructions.
With `--device cuda` the table is in milliseconds and says how much GPU memory the engine takes by
batch. `--variants engine,floor,torch` needs no other packages than torch's, NumPy, Pillow and
safetensors.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers import HELD_DOWN, PEERS, ROWS_PER_IMAGE, Peer, PeerError, Shape, start
from model import native_decoder
from model.checkpoint import Checkpoint, create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.engine import Engine, Kernel, choose_device, default_slots
from model.native_decoder import NativeDecoder
from model.processors import usable_cores
from model.reference import sequential
from model.request import ImageRequest, Label, SamplingSettings

CFG_SCALE = 2.0
LABEL = Label("histology", "modality")
BATCHES = {"cpu": "1,4,16", "cuda": "1,8,64,256"}
RATIOS = (
    ("hf", "engine", "ratio_to_hf"),
    ("hf", "torch", "torch_ratio_to_hf"),
    ("hf", "torch_bf16", "torch_bf16_ratio_to_hf"),
    ("floor", "engine", "roofline"),
    ("best_peer", "engine", "ratio_to_best_peer"),
)
"""Which variants' times are divided, and what the quotient is called in the JSON."""
Variant = Callable[[int], None]
"""Draws a batch of that many images."""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--size", choices=NAMED_SIZES, default="small")
    parser.add_argument("--batches", help="images drawn together, such as 1,4,16")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; the median counts")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", default="engine,floor,sequential,hf,hf_2b")
    parser.add_argument(
        "--instructions", choices=HELD_DOWN, default="", help="of `engine` and of peers"
    )
    parser.add_argument("--peer-python", action="append", default=[], help="has packages of peers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    on_gpu = device.startswith("cuda")
    default = BATCHES["cuda" if on_gpu else "cpu"]
    batches = [int(batch) for batch in (args.batches or default).split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = create_random_checkpoint(
            Path(folder), args.size, NAMED_SIZES[args.size], labels=[LABEL]
        )
        checkpoint = load_checkpoint(path)
    slots = max(batches) if on_gpu else min(max(batches), default_slots(device, args.threads))
    memory = gpu_memory(checkpoint, device, batches) if on_gpu else {}
    makers: dict[str, Callable[[], Variant]] = {
        "engine": lambda: engine_variant(checkpoint, device, slots, args.threads, "auto"),
        "torch": lambda: engine_variant(checkpoint, device, slots, args.threads, "torch"),
        "torch_bf16": lambda: engine_variant(checkpoint, device, slots, args.threads, "torch_bf16"),
        "floor": lambda: floor_variant(checkpoint, device),
        "sequential": lambda: sequential_variant(checkpoint),
        "hf": lambda: hugging_face_variant(checkpoint, device, guidance=True),
        "hf_2b": lambda: hugging_face_variant(checkpoint, device, guidance=False),
    }
    for name in native_decoder.libraries():
        makers[name] = partial(compiled_variant, checkpoint, slots, args.threads, name)
    if args.instructions:
        makers["engine"] = makers[args.instructions]
    shape = shape_of_peers(checkpoint, max(batches), args.threads, args.instructions)
    for name in PEERS:
        makers[name] = partial(start, name, shape, [sys.executable, *args.peer_python])
    variants = made(makers, args.variants.split(","))
    try:
        seconds = measure(variants, batches, args.rounds, device)
    finally:
        peers = {name: each for name, each in variants.items() if isinstance(each, Peer)}
        for peer in peers.values():
            peer.close()
    versions = {name: peer.versions for name, peer in peers.items()}
    report(args.size, args.threads, device, seconds, memory, args.instructions, versions)


def made(makers: dict[str, Callable[[], Variant]], names: Sequence[str]) -> dict[str, Variant]:
    """The variants of these names; says which are left out because their packages are missing."""
    variants = {}
    for name in names:
        try:
            variants[name] = makers[name]()
        except PeerError as missing:
            print(f"{name} is left out: {missing}")
    return variants


def measure(
    variants: dict[str, Variant], batches: Sequence[int], rounds: int, device: str
) -> dict[str, dict[int, float]]:
    """Median seconds an image of every variant and batch; one uncounted round first."""
    taken: dict[str, dict[int, list[float]]] = {v: {b: [] for b in batches} for v in variants}
    for batch in batches:
        for number in range(rounds + 1):
            for name, draw in variants.items():
                started = time.perf_counter()
                draw(batch)
                if device != "cpu":
                    torch.cuda.synchronize(device)
                if number:
                    taken[name][batch].append((time.perf_counter() - started) / batch)
    return {
        name: {batch: statistics.median(times) for batch, times in by_batch.items()}
        for name, by_batch in taken.items()
    }


def rows(count: int) -> list[ImageRequest]:
    """`count` guided images with seeds of their own."""
    settings = SamplingSettings(cfg_scale=CFG_SCALE, top_k=100)
    return [ImageRequest(LABEL.name, seed, settings) for seed in range(count)]


def engine_variant(
    checkpoint: Checkpoint, device: str, slots: int, threads: int, kernel: Kernel
) -> Variant:
    """The engine, with as many slots as are worth it for the largest batch."""
    return drawn_by(Engine(checkpoint, device=device, slots=slots, threads=threads, kernel=kernel))


def compiled_variant(checkpoint: Checkpoint, slots: int, threads: int, variant: str) -> Variant:
    """The engine with the decoder that is compiled for given instructions."""
    engine = Engine(checkpoint, device="cpu", slots=slots, threads=threads, kernel="native")
    engine.decoder = NativeDecoder(checkpoint.prior, slots, threads, variant=variant)
    return drawn_by(engine)


def drawn_by(engine: Engine) -> Variant:
    """Batches of an engine."""

    def draw(batch: int) -> None:
        waiting, left = rows(batch), batch
        while left:
            while waiting and engine.free:
                engine.admit(waiting.pop())
            for slot in engine.step():
                engine.retire(slot)
                left -= 1

    return draw


def gpu_memory(checkpoint: Checkpoint, device: str, batches: Sequence[int]) -> dict[int, int]:
    """Bytes of GPU memory at most by batch: an engine of so many slots, drawing in all of them."""
    peaks = {}
    for batch in batches:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        engine_variant(checkpoint, device, batch, torch.get_num_threads(), "auto")(batch)
        peaks[batch] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def bytes_by_step(checkpoint: Checkpoint, device: str, batch: int) -> int:
    """What a step reads on average for `batch` guided images, in the engine's precision."""
    engine = Engine(checkpoint, device=device, slots=1, threads=torch.get_num_threads())
    width = {"int8": 1, "bf16": 2, "fp32": 4}[engine.decoder.facts["precision"]]
    prior = checkpoint.prior
    matrices = sum(p.numel() for layer in prior.layers() for p in layer.parameters())
    matrices += prior.structure_head.weight.numel() + prior.appearance_head.weight.numel()
    # Keys and values of two streams at positions 0..p, for p = 0..N, in two sequences an image.
    positions = (prior.layout.steps + 1) / 2
    cached = 2 * batch * prior.config.layers * 4 * prior.config.width * positions
    return int(width * (matrices + cached))


def floor_variant(checkpoint: Checkpoint, device: str) -> Variant:
    """Reads what the engine must read."""
    steps = checkpoint.prior.layout.steps
    buffers: dict[int, Tensor] = {}

    def read(batch: int) -> None:
        if batch not in buffers:
            size = bytes_by_step(checkpoint, device, batch)
            buffers[batch] = torch.zeros(size // 4, device=device)
        for _ in range(steps):
            buffers[batch].amax()

    return read


def sequential_variant(checkpoint: Checkpoint) -> Variant:
    """One query at a time."""

    def draw(batch: int) -> None:
        sequential(checkpoint.prior, rows(batch), [0] * batch)

    return draw


def shape_of_peers(checkpoint: Checkpoint, images: int, threads: int, instructions: str) -> Shape:
    """What a peer draws with: as many and as long sequences, of a model as large."""
    prior = checkpoint.prior
    return Shape(
        layers=prior.config.layers,
        heads=prior.config.heads,
        width=prior.config.width,
        vocabulary=checkpoint.config.tokenizer.codebook_size,
        tokens=2 * prior.layout.locations,
        rows=ROWS_PER_IMAGE * images,
        threads=threads,
        instructions=instructions,
    )


def hugging_face_variant(checkpoint: Checkpoint, device: str, *, guidance: bool) -> Variant:
    """GPT-2 of the prior's size drawing the same number of tokens."""
    # Only this variant needs the package, and `--variants engine` must run without it.
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    config, layout = checkpoint.config, checkpoint.prior.layout
    length = 2 * layout.locations
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.tokenizer.codebook_size,
            n_positions=length + 1,
            n_embd=config.prior.width,
            n_layer=config.prior.layers,
            n_head=config.prior.heads,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    torch.nn.Module.to(peer, device)
    extra = {"guidance_scale": CFG_SCALE} if guidance else {}

    @torch.inference_mode()
    def draw(batch: int) -> None:
        sequences = batch if guidance else 2 * batch
        prompt = torch.zeros(sequences, 1, dtype=torch.long, device=device)
        peer.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=length,
            max_new_tokens=length,
            do_sample=True,
            top_k=100,
            **extra,
        )

    return draw


def report(
    size: str,
    threads: int,
    device: str,
    seconds: dict[str, dict[int, float]],
    memory: dict[int, int],
    instructions: str,
    versions: dict[str, dict[str, str]],
) -> None:
    """The table, then the line of JSON; `memory` is bytes of GPU memory by batch, if any, and
    `versions` of the packages of each peer."""
    batches = list(next(iter(seconds.values())))
    on_gpu = device.startswith("cuda")
    where = torch.cuda.get_device_name(device) if on_gpu else processor()
    print(f"{size} size, {device}, {threads} threads, torch {torch.__version__}, {where}")
    if instructions:
        print(f"engine and peers held down to {instructions}")
    for name, packages in versions.items():
        print(f"{name}: {', '.join(f'{package} {number}' for package, number in packages.items())}")
    unit, scale = ("milliseconds", 1000) if on_gpu else ("seconds", 1)
    print(f"{unit} an image".ljust(22) + "".join(f"batch {b}".rjust(12) for b in batches))
    for name, by_batch in seconds.items():
        print(name.ljust(22) + "".join(f"{scale * s:.4f}".rjust(12) for s in by_batch.values()))
    result: dict[str, object] = {
        "size": size,
        "device": device,
        "threads": threads,
        "s_per_image": {n: {str(b): s for b, s in by.items()} for n, by in seconds.items()},
        "instructions": instructions,
        "versions": versions,
    }
    if versions:
        best = {b: min(seconds[name][b] for name in versions) for b in batches}
        seconds = {**seconds, "best_peer": best}
    for peer, base, name in RATIOS:
        if {peer, base} <= seconds.keys():
            ratio = {b: seconds[peer][b] / seconds[base][b] for b in batches}
            shown = "".join(f"{r:.2f}".rjust(12) for r in ratio.values())
            print(f"{peer} / {base}".ljust(22) + shown)
            result[name] = {str(batch): value for batch, value in ratio.items()}
    if memory:
        print(
            "GPU memory, GB".ljust(22)
            + "".join(f"{m / 1e9:.2f}".rjust(12) for m in memory.values())
        )
        result["gpu"] = where
        result["gpu_memory_bytes"] = {str(batch): size for batch, size in memory.items()}
    print(json.dumps(result))


def processor() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
