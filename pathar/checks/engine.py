"""What `pathar doctor` looks at with torch: the GPU, the checkpoint, the decoder, the slots.

Runs in a process of its own (`python -m pathar.checks.engine`), which prints a finding a line, as
JSON: a library that does not fit the machine may end a process, or hang it, without a word.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pathar.checks.installation import Finding, Installation, listed

if TYPE_CHECKING:
    import torch

    from model.checkpoint import Checkpoint
    from worker.settings import Settings

ENGINE_S = 120.0
"""Loading torch and a checkpoint from a cold disk takes that long at worst."""
STEPS = 12
"""Decode steps by which the compiled decoder is compared."""
CLOSE = 2e-2
"""How far bf16 moves logits from those in fp32, at most, as a share of their length."""
COMPILERS = ("c++", "g++", "clang++")
GPU = "PATHAR_DEVICE"


def engine(here: Installation) -> Iterator[Finding]:
    """What the process with torch finds, and whether it came to its end."""
    if not here.has("worker"):
        return
    command = [sys.executable, "-P", "-m", "pathar.checks.engine"]
    try:
        done = subprocess.run(
            command, env=dict(here.env), capture_output=True, text=True, timeout=ENGINE_S
        )
    except subprocess.TimeoutExpired:
        found = f"Loading torch and the checkpoint took more than {ENGINE_S:g} s."
        yield Finding("engine", "failed", found, "Look at the disk, or at the GPU's driver.")
        return
    for line in done.stdout.splitlines():
        if line.startswith("{"):  # what else a library says is none of ours
            yield Finding(**json.loads(line))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        how = f"code {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        found = f"The process that loads torch ended with {how}: {last or 'no word'}"
        mend = "Reinstall torch and pathar for this machine: pip install --force-reinstall"
        yield Finding("engine", "failed", found, f"{mend} 'pathar[worker]'")


def look(env: Mapping[str, str]) -> Iterator[Finding]:
    """The findings, in a process that may load torch."""
    from worker.settings import read_settings

    yield from device(env)
    try:
        settings = read_settings(env)
    except ValueError:
        return  # said without torch already
    from model.checkpoint import CheckpointError, load_checkpoint
    from model.engine import choose_device

    try:
        checkpoint = load_checkpoint(settings.checkpoint)
    except CheckpointError as error:
        mend = "Copy the folder again, or set PATHAR_CHECKPOINT to another."
        yield Finding("checkpoint", "failed", f"{error}.", mend)
        return
    yield from contents(checkpoint, settings.checkpoint)
    try:
        on = choose_device(settings.device)
    except ValueError:
        return
    yield from decoder(checkpoint, settings, on)


def device(env: Mapping[str, str]) -> Iterator[Finding]:
    """Which device a worker takes, and whether a GPU is left unused."""
    import torch

    from model.engine import choose_device

    told = env.get(GPU) or "auto"
    nodes = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    build = f"torch {torch.__version__}"
    try:
        chosen = torch.device(choose_device(told))
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"torch sees {torch.cuda.device_count()} GPUs")
    except (ValueError, RuntimeError) as error:
        mend = f"Set {GPU}=auto, or see that torch finds the GPU (nvidia-smi, a CUDA build)."
        yield Finding("device", "failed", f"{GPU}={told} with {build}: {error}.", mend)
        return
    if chosen.type == "cuda":
        yield from gpu(chosen, build)
    elif nodes and told == "auto" and torch.version.cuda is None:
        found = f"There is an NVIDIA GPU ({nodes[0]}), and {build} is made for processors."
        mend = "Install torch from https://download.pytorch.org/whl/cu130, or set"
        yield Finding("device", "warning", found, f"{mend} {GPU}=cpu.")
    elif nodes and told == "auto":
        found = f"There is an NVIDIA GPU ({nodes[0]}), and {build} cannot use it."
        mend = f"Update the driver to one for CUDA {torch.version.cuda}, or set {GPU}=cpu."
        yield Finding("device", "warning", found, mend)
    else:
        yield Finding("device", "ok", f"{build} draws on the processor ({GPU}={told}).")


def gpu(chosen: torch.device, build: str) -> Iterator[Finding]:
    """A GPU that is used: its memory, and what is missing beside it."""
    import torch

    name = torch.cuda.get_device_name(chosen)
    free, total = torch.cuda.mem_get_info(chosen)
    room = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    yield Finding("device", "ok", f"{build} draws on {name}, {room}.")
    if importlib.util.find_spec("pynvml") is None:
        found = "nvidia-ml-py is not installed, so there is no metric of how busy the GPU is."
        yield Finding("device", "warning", found, "pip install nvidia-ml-py")
    ready = any(Path(os.environ.get("TRITON_CACHE_DIR") or "/nowhere").glob("*/cuda_utils*.so"))
    if not ready and not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        found = "There is no C compiler, which Triton needs at its first start on a GPU."
        yield Finding("device", "failed", found, "Install gcc.")


def contents(checkpoint: Checkpoint, folder: Path) -> Iterator[Finding]:
    """What a checkpoint that loads is, and whether its segmenter can be read."""
    from safetensors import SafetensorError, safe_open

    labels = listed([label.name for label in checkpoint.config.labels])
    found = f"{folder}: {checkpoint.config.name} {checkpoint.version[:12]}, whole; draws {labels}."
    yield Finding("checkpoint", "ok", found)
    judge = folder / "segmenter.safetensors"
    if judge.exists():
        try:
            with safe_open(judge, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            mend = "Copy it again; only `python -m training.evaluate` needs it."
            yield Finding("checkpoint", "warning", f"{judge} cannot be read: {error}.", mend)


def decoder(checkpoint: Checkpoint, settings: Settings, on: str) -> Iterator[Finding]:
    """Which decoder runs, whether it draws what it should, and whether the slots fit."""
    import torch

    from model import native_decoder, torch_decoder, triton_decoder
    from model.memory import SlotsError, check_slots, free_memory

    prior, place = checkpoint.prior, torch.device(on)
    if place.type == "cuda":
        fits = triton_decoder.fits(prior, place)
        size = (triton_decoder if fits else torch_decoder).bytes_per_slot(prior)
        if fits:
            yield Finding("decoder", "ok", "Triton's kernels take this GPU and this checkpoint.")
        else:
            found = (
                "Triton's kernels do not run here, and torch decodes at a fraction of the speed."
            )
            mend = "They need triton, a GPU of compute capability 8.0, and widths they can tile."
            yield Finding("decoder", "warning", found, mend)
    else:
        size = (native_decoder if native_decoder.fits(prior) else torch_decoder).bytes_per_slot(
            prior
        )
        yield from compiled(checkpoint)
    try:
        check_slots(settings.slots, size, free_memory(place))
    except SlotsError as error:
        found = f"PATHAR_SLOTS={settings.slots} does not fit beside what runs now: {error.expected}"
        yield Finding("slots", "warning", f"{found}.", "Set PATHAR_SLOTS to that or less.")
    else:
        need = f"{settings.slots * size / 1e9:.2g} GB"
        yield Finding("slots", "ok", f"{settings.slots} slots take {need}, which is free.")


def compiled(checkpoint: Checkpoint) -> Iterator[Finding]:
    """The decode step in C++: whether it was built for this processor, and draws as it should."""
    from model import native_decoder

    built = [name for name in native_decoder.VARIANTS if _is_built(name)]
    try:
        runs = list(native_decoder.libraries())
    except OSError as error:
        mend = "Build it here: pip install --force-reinstall --no-deps pathar, with g++ installed."
        yield Finding("decoder", "failed", f"The compiled decoder does not load: {error}.", mend)
        return
    if not runs:
        here = "for other processors alone" if built else "not built"
        found = f"The compiled decoder is {here}, and torch decodes at a fraction of its speed."
        yield Finding("decoder", "warning", found, _build())
        return
    if not native_decoder.fits(checkpoint.prior):
        found = "The compiled decoder does not take this checkpoint's sizes; torch decodes slowly."
        mend = f"Widths and codebook sizes must be multiples of {native_decoder.MULTIPLE}."
        yield Finding("decoder", "warning", found, mend)
        return
    wrong = compare(checkpoint, runs[0])
    if wrong:
        mend = "Build it again with another compiler, and report it."
        yield Finding("decoder", "failed", f"The compiled decoder ({runs[0]}) {wrong}.", mend)
        return
    better = [n for n in native_decoder.VARIANTS if n not in built and n in _instructions()]
    if better and native_decoder.VARIANTS.index(better[0]) < native_decoder.VARIANTS.index(runs[0]):
        found = f"The decoder was compiled for {runs[0]}, and this processor has {better[0]}."
        yield Finding("decoder", "warning", found, _build())
        return
    found = f"The compiled decoder ({runs[0]}) draws the same on 1 and 2 threads, beside another"
    yield Finding("decoder", "ok", f"{found} row and alone, and what torch does but for rounding.")


def compare(checkpoint: Checkpoint, variant: str) -> str:
    """What is wrong with a compiled variant, "" when nothing: it must give the same bits whatever
    the threads and neighbours, and logits that bf16 alone moves away from torch's in fp32.
    """
    import numpy as np

    from model.decoder import FREE, Decoder, Row
    from model.native_decoder import NativeDecoder
    from model.request import SamplingSettings
    from model.torch_decoder import TorchDecoder

    prior = checkpoint.prior
    free = np.full((prior.layout.locations, 2), FREE)

    def drawn(decoder: Decoder, live: list[int], given: np.ndarray) -> list[np.ndarray]:
        for slot in live:
            decoder.place(slot, Row(0, SamplingSettings(cfg_scale=2.0), slot, given))
        decoder.arrange(live)
        found = []
        for _ in range(min(STEPS, prior.layout.steps)):
            decoder.step()
            found.append(np.stack(decoder.logits())[:, :2])
        return found

    first = NativeDecoder(prior, 1, 1, variant=variant)
    alone = drawn(first, [0], free)
    beside = drawn(NativeDecoder(prior, 2, 2, variant=variant), [0, 1], free)
    if not all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True)):
        return "draws other bits beside another row"
    tokens = np.stack(first.tokens(0), axis=1)
    tokens[STEPS - 1 :] = 0
    plain = drawn(TorchDecoder(prior, 1), [0], tokens)
    for ours, theirs in zip(alone, plain, strict=True):
        if not np.linalg.norm(ours - theirs) <= CLOSE * np.linalg.norm(theirs):  # nor NaN
            return "gives logits that are far from torch's"
    return ""


def _is_built(variant: str) -> bool:
    from model import native_decoder

    folder = Path(native_decoder.__file__).with_name("native")
    return any(folder.glob(f"_decode_{variant}.*"))


def _instructions() -> list[str]:
    """The variants that this processor has instructions for."""
    import torch

    found = ["avx2"] if torch.backends.cpu.get_cpu_capability().startswith("AVX") else []
    return ["avx512_bf16", *found] if torch.cpu._is_avx512_bf16_supported() else found


def _build() -> str:
    rebuild = "pip install --force-reinstall --no-deps pathar"
    if any(map(shutil.which, COMPILERS)):
        return f"There is a C++ compiler: {rebuild}, with -v to see what it says."
    return f"Install a C++ compiler (g++ or clang), then: {rebuild}"


def main() -> int:
    """Print the findings; the exit code."""
    for finding in look(os.environ):
        print(json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
