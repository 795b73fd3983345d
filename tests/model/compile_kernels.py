"""Compiles the kernels of paper-size steps for a GPU that need not be there; prints JSON.

`python -m tests.model.compile_kernels 90`: what the code of each takes, a line for every one that
steps of several numbers of slots and sequences would launch. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from model.config import NAMED_SIZES
from model.transformer import Prior
from model.triton_step import Step

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentGPU:
    """What Triton asks of a driver before it launches anything."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int) -> None:
    driver.set_active(AbsentGPU(capability))
    tokenizer, config = NAMED_SIZES["paper"]
    sizes = {"codebook_size": tokenizer.codebook_size, "grid_size": tokenizer.grid_size}
    prior = Prior(config, **sizes, labels=5)
    compiled = {}
    for slots in (1, 16, 100):
        step = Step(prior, slots, 2 * slots, torch.device("meta"), overlap=capability >= 90)
        for sequences in (1, 2, 5, 64, 192):
            for launch in step.launches:
                rows = {"rows": 2 * sequences} if "rows" in launch.kernel.arg_names else {}
                grid = launch.grid(sequences)
                made = launch.kernel.warmup(**rows, **launch.arguments, grid=grid)
                compiled[made.hash] = made
    for made in compiled.values():
        print(json.dumps(described(made)))


def described(made: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "kernel": made.metadata.name,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": made.metadata.shared,
        "warpgroup_products": made.asm["ptx"].count("wgmma.mma_async"),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]))
