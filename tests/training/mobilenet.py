"""MobileNetV2 with random weights, in a file as torchvision names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from training.networks import MOBILENET_STRIDES

if TYPE_CHECKING:
    from transformers import MobileNetV2Model

NORM = ("weight", "bias", "running_mean", "running_var")


def scrambled(network: nn.Module) -> nn.Module:
    """Its weights and statistics at random, so that no term is one or zero by initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if name.endswith(("var", "weight")) else noise - 0.5)
    return network.eval()


def mobilenet_names() -> list[str]:
    """Torchvision's names of each convolution and its normalisation, in order."""
    names = [("features.0.0", "features.0.1")]
    for number in range(1, len(MOBILENET_STRIDES) + 1):
        block = f"features.{number}.conv"
        widening = [] if number == 1 else [(f"{block}.0.0", f"{block}.0.1")]
        k = len(widening)
        names += widening
        names += [(f"{block}.{k}.0", f"{block}.{k}.1"), (f"{block}.{k + 1}", f"{block}.{k + 2}")]
    names.append(("features.18.0", "features.18.1"))
    return [
        name
        for conv, norm in names
        for name in (f"{conv}.weight", *(f"{norm}.{part}" for part in NORM))
    ]


def write_mobilenet(path: Path, depth: float) -> MobileNetV2Model:
    """Write one with `depth` times the channels, as safetensors or as torchvision does (.pth); the
    same network in another implementation."""
    # Takes seconds.
    from transformers import MobileNetV2Config, MobileNetV2Model

    config = MobileNetV2Config(depth_multiplier=depth, tf_padding=False, layer_norm_eps=1e-5)
    network = MobileNetV2Model(config)
    scrambled(network)
    tensors = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    renamed = dict(zip(mobilenet_names(), tensors.values(), strict=True))
    weights = {**renamed, "classifier.1.weight": torch.zeros(2, 2)}
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    return network
