"""A segmenter with random weights, in a file as `training.segmenter` writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.segmenter import FILE, LEVELS


def write_segmenter(checkpoint: Path, *, width: int = 4, seed: int = 0) -> Path:
    """Put one into a checkpoint; of a random image it takes about a half for nuclei."""
    widths = [width * 2**level for level in range(LEVELS + 1)]
    draws = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def weights(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def conv(name: str, *shape: int, outputs: int, norm: bool = True) -> None:
        tensors[f"{name}.conv.weight"] = weights(*shape)
        tensors[f"{name}.conv.bias"] = torch.randn(outputs, generator=draws) * 0.1
        if norm:
            for key, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
                noise = torch.randn(outputs, generator=draws) * 0.1
                tensors[f"{name}.adn.N.{key}"] = value + noise
            tensors[f"{name}.adn.N.running_var"] = torch.full((outputs,), 0.5)
            tensors[f"{name}.adn.N.num_batches_tracked"] = torch.tensor(3)
            tensors[f"{name}.adn.A.weight"] = torch.tensor([0.25])

    def down(name: str, inputs: int, outputs: int, side: int) -> None:
        conv(f"{name}.conv.unit0", outputs, inputs, 3, 3, outputs=outputs)
        tensors[f"{name}.residual.weight"] = weights(outputs, inputs, side, side)
        tensors[f"{name}.residual.bias"] = torch.zeros(outputs)

    for level, inputs in enumerate([3, *widths[:-2]]):
        name, outputs = "model" + ".1.submodule" * level, widths[level]
        down(f"{name}.0", inputs, outputs, 3)
        above = widths[level - 1] if level else 1
        below = 2 * outputs if level < LEVELS - 1 else outputs + widths[-1]
        conv(f"{name}.2.0", below, above, 3, 3, outputs=above)
        conv(f"{name}.2.1.conv.unit0", above, above, 3, 3, outputs=above, norm=level > 0)
    down("model" + ".1.submodule" * LEVELS, widths[-2], widths[-1], 1)
    path = checkpoint / FILE
    save_file(tensors, path, {"meta": f'{{"width": {width}}}'})
    path.chmod(0o644)  # safetensors leaves it readable by its owner alone
    return path
