"""The checks of `pathar doctor` that need torch: GPU, checkpoint, decoder.

They run in a process of their own (`python -m pathar.checks.engine`), which prints each finding as
a line of JSON: a library that does not fit the machine may kill or hang its process.
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

from pathar.checks.installation import Finding, Installation, failed, listed, named, ok, warning

if TYPE_CHECKING:
    import torch

    from model.checkpoint import Checkpoint

ENGINE_S = 120.0
"""The time limit: loading torch and a checkpoint from a cold disk can take this long."""
STEPS = 12
"""Decode steps over which the compiled decoder is compared."""
CLOSE = 5e-2
"""The largest relative distance of the compiled decoder's logits, of 8 bits, from those in fp32 (L2
norm)."""
GPU = "PATHAR_DEVICE"


def engine(here: Installation) -> Iterator[Finding]:
    """The findings of the process with torch, and whether it ended normally."""
    if not here.has("worker"):
        return
    command = [sys.executable, "-P", "-m", "pathar.checks.engine"]
    try:
        done = subprocess.run(
            command, env=dict(here.env), capture_output=True, text=True, timeout=ENGINE_S
        )
    except subprocess.TimeoutExpired:
        found = f"Loading torch and the checkpoint took more than {ENGINE_S:g} s."
        yield failed(found, "Look at the disk, or at the GPU's driver.")
        return
    for line in done.stdout.splitlines():
        if line.startswith("{"):  # skip what a library prints
            yield Finding(**json.loads(line))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        code = done.returncode
        how = f"code {code}" if code > 0 else signal.Signals(-code).name
        found = f"The process that loads torch ended with {how}: {last}"
        yield failed(found, "Install torch for this machine: pip install --force-reinstall torch")


def look(env: Mapping[str, str]) -> Iterator[Finding]:
    """The findings. Loads torch."""
    import torch

    from model.checkpoint import CheckpointError, load_checkpoint
    from model.engine import choose_device
    from worker.settings import read_settings

    yield from named("device", device(env))
    try:
        settings = read_settings(env)
        checkpoint = load_checkpoint(settings.checkpoint)
        labels = listed([label.name for label in checkpoint.config.labels])
        what = f"{settings.checkpoint}: {checkpoint.config.name} {checkpoint.version[:12]}"
        yield from named("checkpoint", [ok(f"{what}, whole; draws {labels}.")])
        place = torch.device(choose_device(settings.device))
    except CheckpointError as error:
        fix = "Copy the folder again, or set PATHAR_CHECKPOINT to another."
        yield from named("checkpoint", [failed(f"{error}.", fix)])
    except ValueError:
        return  # `settings` or `device` says so
    else:
        yield from named("decoder", decoder(checkpoint, place))


def device(env: Mapping[str, str]) -> Iterator[Finding]:
    """Which device a worker uses, and whether a GPU stays unused."""
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
        fix = f"Set {GPU}=auto, or see that torch finds the GPU (nvidia-smi, a CUDA build)."
        yield failed(f"{GPU}={told} with {build}: {error}.", fix)
        return
    if chosen.type == "cuda":
        yield from gpu(chosen, build)
    elif nodes and told == "auto":
        why, fix = "cannot use it", f"Update the driver to one for CUDA {torch.version.cuda}"
        if torch.version.cuda is None:
            why, fix = "is made for processors", "Install torch for CUDA (pytorch.org)"
        found = f"There is an NVIDIA GPU ({nodes[0]}), and {build} {why}."
        yield warning(found, f"{fix}, or set {GPU}=cpu.")
    else:
        yield ok(f"{build} draws on the processor ({GPU}={told}).")


def gpu(chosen: torch.device, build: str) -> Iterator[Finding]:
    """The GPU that a worker uses: its memory, and missing tools."""
    import torch

    free, total = torch.cuda.mem_get_info(chosen)
    room = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    yield ok(f"{build} draws on {torch.cuda.get_device_name(chosen)}, {room}.")
    if importlib.util.find_spec("pynvml") is None:
        found = "nvidia-ml-py is not installed, so there is no metric of how busy the GPU is."
        yield warning(found, "pip install nvidia-ml-py")
    ready = any(Path(os.environ.get("TRITON_CACHE_DIR") or "/nowhere").glob("*/cuda_utils*.so"))
    if not ready and not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        found = "There is no C compiler, which Triton needs at its first start on a GPU."
        yield failed(found, "Install gcc.")


def decoder(checkpoint: Checkpoint, place: torch.device) -> Iterator[Finding]:
    """Which decoder runs, and whether the compiled one gives the right results."""
    from model import native_decoder, triton_decoder
    from model.native.build import COMMAND, VARIANTS, built, compiler

    if place.type == "cuda":
        if triton_decoder.fits(checkpoint.prior, place):
            yield ok("Triton's kernels take this GPU and this checkpoint.")
        else:
            found = "Triton's kernels do not run here, and torch decodes at a fraction of the"
            fix = "They need triton, a GPU of compute capability 8.0, and widths they can tile."
            yield warning(f"{found} speed.", fix)
        return
    names, here = list(VARIANTS), built()
    build = f"Build it here: {COMMAND}" if compiler() else f"Install g++ or clang, then: {COMMAND}"
    try:
        runs = list(native_decoder.libraries())
    except OSError as error:
        yield failed(f"The compiled decoder does not load: {error}.", build)
        return
    better = [name for name in _instructions() if name not in here]
    if not runs:
        what = "for other processors alone" if here else "not built"
        found = f"The compiled decoder is {what}, and torch decodes at a fraction of its speed."
        yield warning(found, build)
    elif not native_decoder.fits(checkpoint.prior):
        found = "The compiled decoder does not take this checkpoint's sizes; torch decodes slowly."
        fix = f"Widths and codebook sizes must be multiples of {native_decoder.MULTIPLE}."
        yield warning(found, fix)
    elif wrong := compare(checkpoint, runs[0]):
        fix = "Build it again with another compiler, and report it."
        yield failed(f"The compiled decoder ({runs[0]}) {wrong}.", fix)
    elif better and names.index(better[0]) < names.index(runs[0]):
        found = f"The decoder was compiled for {runs[0]}, and this processor has {better[0]}."
        yield warning(found, build)
    else:
        found = f"The compiled decoder ({runs[0]}) draws the same on 1 and 2 threads"
        yield ok(f"{found}, beside another row and alone, and what torch does but for rounding.")


def compare(checkpoint: Checkpoint, variant: str) -> str:
    """What is wrong with a compiled variant, or "". It must give the same bits for any threads and
    any other rows, and logits that differ from torch's in fp32 by no more than 8 bits explain.
    """
    import numpy as np

    from model.decoder import FREE, Decoder, Row
    from model.native_decoder import NativeDecoder
    from model.request import SamplingSettings
    from model.torch_decoder import TorchDecoder

    prior = checkpoint.prior
    given = np.full((prior.layout.locations, 2), FREE)

    def logits_of(decoder: Decoder, rows: int = 1) -> list[np.ndarray]:
        for slot in range(rows):
            decoder.place(slot, Row(0, SamplingSettings(cfg_scale=2.0), slot, given))
        decoder.arrange(list(range(rows)))
        found = []
        for _ in range(min(STEPS, prior.layout.steps)):
            decoder.step()
            found.append(np.stack(decoder.logits())[:, :2])
        return found

    first = NativeDecoder(prior, 1, 1, variant=variant)
    alone = logits_of(first)
    beside = logits_of(NativeDecoder(prior, 2, 2, variant=variant), rows=2)
    if not np.array_equal(alone, beside):
        return "draws other bits beside another row"
    given = np.stack(first.tokens(0), axis=1)  # torch follows the tokens that were drawn
    given[STEPS - 1 :] = 0
    for ours, theirs in zip(alone, logits_of(TorchDecoder(prior, 1)), strict=True):
        if not np.linalg.norm(ours - theirs) <= CLOSE * np.linalg.norm(theirs):  # nor NaN
            return "gives logits that are far from torch's"
    return ""


def _instructions() -> list[str]:
    """The variants that this processor can run."""
    import torch

    cpu = torch.cpu
    runs = {
        "amx": cpu._is_amx_tile_supported() and cpu._is_vnni_supported(),
        "avx512_vnni": cpu._is_vnni_supported(),
        "avx2": cpu._is_avx2_supported(),
    }
    return [variant for variant, so in runs.items() if so]


def main() -> int:
    """Print the findings; returns the exit code."""
    for finding in look(os.environ):
        print(json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
