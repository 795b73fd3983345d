"""What training uses of this machine: its threads, and the precision that is fast there.

bf16 halves the time of a step on a CPU with bf16 instructions. Elsewhere a step takes ten times as
long. The name of the instruction set does not tell, because libraries and emulation decide too. So
both precisions are timed once, at start.
"""

from __future__ import annotations

import functools
import time
from contextlib import suppress

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from training.distributed import from_first_rank, rank

TRIES = 5
"""The least of them counts: whatever else runs can only add."""
CLEAR = 4.0
"""One try is enough where one precision takes so many times as long as the other."""
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def use_threads(count: int) -> None:
    """Take `count` threads in torch and in every OpenMP and BLAS library that is loaded."""
    torch.set_num_threads(count)
    with suppress(RuntimeError):  # torch lets this be set once, before its first use
        torch.set_num_interop_threads(count)
    threadpool_limits(count)


@functools.cache
def precision(device: torch.device) -> torch.dtype:
    """bf16 where `device` multiplies it fast, else fp32; chosen once in a process, and said.

    Several processes that train together take the first one's choice.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"of {torch.cuda.get_device_name(device)}"
    else:
        seconds = tried()
        choice = torch.tensor(float(seconds[torch.bfloat16] < seconds[torch.float32]))
        from_first_rank([choice])
        fast = bool(choice)
        shown = ", ".join(f"{NAMES[dtype]} {1000 * s:.0f} ms" for dtype, s in seconds.items())
        reason = f"on {torch.get_num_threads()} threads, the faster in a trial ({shown})"
    chosen = torch.bfloat16 if fast else torch.float32
    if not rank():
        print(f"precision: {NAMES[chosen]} {reason}", flush=True)
    return chosen


def precision_name(device: torch.device) -> str:
    """`bf16` or `fp32`, as states and reports hold it."""
    return NAMES[precision(device)]


def autocast(device: torch.device) -> torch.autocast:
    """Runs matrix products and convolutions in `precision(device)`."""
    in_bf16 = precision(device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16)


def tried() -> dict[torch.dtype, float]:
    """Processor seconds of a small training step in each precision.

    On one thread: several wait for each other, and longer where something else runs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _tried()
    finally:
        torch.set_num_threads(threads)


def _tried() -> dict[torch.dtype, float]:
    generator = torch.Generator().manual_seed(0)  # leaves the draws of training alone
    drawn = functools.partial(torch.randn, generator=generator)
    images = drawn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = drawn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    tensors = [images, kernel, drawn(512, 384), drawn(1152, 384)]
    for tensor in tensors:
        tensor.requires_grad_()
    _step(tensors, torch.bfloat16), _step(tensors, torch.float32)  # what is made once is not timed
    seconds = dict.fromkeys(NAMES, float("inf"))
    for _ in range(TRIES):
        for dtype in NAMES:
            seconds[dtype] = min(seconds[dtype], _step(tensors, dtype))
        if max(seconds.values()) > CLEAR * min(seconds.values()):
            break
    return seconds


def _step(tensors: list[Tensor], dtype: torch.dtype) -> float:
    """A convolution and a matrix product, forward and backward."""
    images, kernel, rows, matrix = tensors
    started = time.process_time()
    with torch.enable_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            made = F.conv2d(images, kernel, padding=1), F.linear(rows, matrix)
        torch.autograd.grad(made[0].float().sum() + made[1].float().sum(), tensors)
    return time.process_time() - started
