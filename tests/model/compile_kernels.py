"""Compiles every kernel of a paper-size step for a GPU that need not be there; prints JSON.

`python -m tests.model.compile_kernels 90`: a line a kernel with what the compiled code takes. Run
without TRITON_INTERPRET.
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
from triton.compiler import ASTSource

from model.config import NAMED_SIZES
from model.transformer import Prior
from model.triton_step import Launch, Step

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def main(capability: int) -> None:
    tokenizer, config = NAMED_SIZES["paper"]
    sizes = {"codebook_size": tokenizer.codebook_size, "grid_size": tokenizer.grid_size}
    step = Step(Prior(config, **sizes, labels=5), 64, 128, torch.device("meta"))
    seen = set()
    for launch in step.launches:
        source, options = described(launch)
        if source.hash() not in seen:
            seen.add(source.hash())
            print(json.dumps(compiled(source, options, capability)), flush=True)


def described(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """A launch as Triton would specialise on it: pointers aligned, `rows` any number."""
    names = launch.kernel.arg_names
    given = launch.arguments
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    constants = {n: v for n, v in given.items() if n in names and n not in tensors}
    signature = {name: "constexpr" if name in constants else "i32" for name in names}
    signature |= {name: TYPES[tensor.dtype] for name, tensor in tensors.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in tensors}
    options = {name: value for name, value in given.items() if name not in names}
    return ASTSource(launch.kernel, signature, constants, aligned), options


def compiled(source: ASTSource, options: dict[str, Any], capability: int) -> dict[str, Any]:
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "kernel": source.name,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": made.metadata.shared,
        "warpgroup_products": made.asm["ptx"].count("wgmma.mma_async"),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]))
