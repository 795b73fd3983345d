"""Frozen networks over published tensor names, for losses and figures.

Weights come from a file that the user names, never from a hub, and never as code: safetensors
alone. Graphs that no library offers without torchvision (whose registry build does not load beside
torch's CPU build) are spelled out here; the shapes of the tensors give every size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.distributed import training_device
from training.run import StageError

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's, of pixels in 0..1."""


Output = TypeVar("Output")


class FeatureError(StageError):
    """Features that cannot be had as they were asked for; the sentence says what would be right."""


class Weights:
    """Tensors by their published names; remembers which of them a graph has read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        device = training_device()
        self.tensors = {name: tensor.float().to(device) for name, tensor in tensors.items()}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def convolve(
        self, x: Tensor, conv: str, norm: str, eps: float, stride: int = 1, padded: bool = True
    ) -> Tensor:
        """A convolution without bias, centred if `padded`, and its batch normalisation."""
        weight = self[f"{conv}.weight"]
        padding = [size // 2 if padded else 0 for size in weight.shape[2:]]
        scale = self[f"{norm}.weight"] / (self[f"{norm}.running_var"] + eps).sqrt()
        shift = self[f"{norm}.bias"] - self[f"{norm}.running_mean"] * scale
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight * scale[:, None, None, None], shift, stride, padding, 1, groups)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A fully connected layer."""
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def normalise(self, x: Tensor, name: str) -> Tensor:
        """A layer normalisation over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-6)


MOBILENET_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
MOBILENET_STAGES = (3, 6, 13, 17)
"""Blocks whose maps `mobilenet_maps` gives: the last at 1/4, 1/8, 1/16 and 1/32 of the side."""


def mobilenet_maps(weights: Weights, x: Tensor) -> list[Tensor]:
    """MobileNetV2 (Sandler et al. 2018) under torchvision's names: images [B, 3, H, W] -> the maps
    of MOBILENET_STAGES, and its last [B, 1280, h, w]."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.relu6(weights.convolve(x, f"{name}.0", f"{name}.1", 1e-5, stride))

    maps = []
    x = unit(x, "features.0", 2)
    for number, stride in enumerate(MOBILENET_STRIDES, start=1):
        block = f"features.{number}.conv"
        # The first block alone does not widen its input.
        y = x if number == 1 else unit(x, f"{block}.0")
        depthwise = 0 if number == 1 else 1
        y = unit(y, f"{block}.{depthwise}", stride)
        y = weights.convolve(y, f"{block}.{depthwise + 1}", f"{block}.{depthwise + 2}", 1e-5)
        x = x + y if stride == 1 and x.shape == y.shape else y
        if number in MOBILENET_STAGES:
            maps.append(x)
    return [*maps, unit(x, f"features.{len(MOBILENET_STRIDES) + 1}")]


def mobilenet_v2(weights: Weights, x: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> the mean of the last map [B, 1280]."""
    return mobilenet_maps(weights, x)[-1].mean((2, 3))


def inception_v3(weights: Weights, x: Tensor) -> Tensor:
    """The Inception of FID (Heusel et al. 2017): [B, 3, 299, 299] -> pool features [B, 2048].

    Tensor names are those of the PyTorch port of its weights, pt_inception-2015-12-05. It differs
    from torchvision's in its pools: averages leave padding out, the last block takes the maximum.
    """

    def conv(x: Tensor, name: str, stride: int = 1, padded: bool = True) -> Tensor:
        return F.relu(weights.convolve(x, f"{name}.conv", f"{name}.bn", 1e-3, stride, padded))

    def chain(x: Tensor, name: str, count: int, *, halve: bool = False) -> Tensor:
        for number in range(1, count + 1):
            last = halve and number == count
            x = conv(x, f"{name}_{number}", 2 if last else 1, not last)
        return x

    def fork(x: Tensor, name: str) -> Tensor:
        return torch.cat([conv(x, f"{name}a"), conv(x, f"{name}b")], 1)

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    x = conv(x, "Conv2d_1a_3x3", 2, padded=False)
    x = conv(conv(x, "Conv2d_2a_3x3", padded=False), "Conv2d_2b_3x3")
    x = conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1")
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", padded=False), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        branches = [conv(x, f"{block}.branch1x1"), chain(x, f"{block}.branch5x5", 2)]
        branches.append(chain(x, f"{block}.branch3x3dbl", 3))
        x = torch.cat([*branches, conv(average(x), f"{block}.branch_pool")], 1)
    branches = [conv(x, "Mixed_6a.branch3x3", 2, padded=False)]
    branches.append(chain(x, "Mixed_6a.branch3x3dbl", 3, halve=True))
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        branches = [conv(x, f"{block}.branch1x1"), chain(x, f"{block}.branch7x7", 3)]
        branches.append(chain(x, f"{block}.branch7x7dbl", 5))
        x = torch.cat([*branches, conv(average(x), f"{block}.branch_pool")], 1)
    branches = [chain(x, "Mixed_7a.branch3x3", 2, halve=True)]
    branches.append(chain(x, "Mixed_7a.branch7x7x3", 4, halve=True))
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_7b", "Mixed_7c"):
        pooled = average(x) if block == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
        branches = [conv(x, f"{block}.branch1x1")]
        branches.append(fork(chain(x, f"{block}.branch3x3", 1), f"{block}.branch3x3_2"))
        branches.append(fork(chain(x, f"{block}.branch3x3dbl", 2), f"{block}.branch3x3dbl_3"))
        x = torch.cat([*branches, conv(pooled, f"{block}.branch_pool")], 1)
    return x.mean((2, 3))


HEAD = 64
"""Width of an attention head in UNI, as in every ViT of its family."""


def vision_transformer(weights: Weights, x: Tensor) -> Tensor:
    """A ViT with layer scale under timm's names, as UNI is: [B, 3, H, W] -> class token [B, D]."""
    kernel = weights["patch_embed.proj.weight"]
    x = F.conv2d(x, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1) + weights["pos_embed"]
    depth = sum(name.endswith(".attn.qkv.weight") for name in weights.tensors)
    for block in (f"blocks.{number}" for number in range(depth)):
        y = weights.linear(weights.normalise(x, f"{block}.norm1"), f"{block}.attn.qkv")
        query, key, value = y.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + weights[f"{block}.ls1.gamma"] * weights.linear(y, f"{block}.attn.proj")
        y = weights.linear(weights.normalise(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + weights[f"{block}.ls2.gamma"] * weights.linear(F.gelu(y), f"{block}.mlp.fc2")
    return weights.normalise(x, "norm")[:, 0]


def imagenet(images: Tensor) -> Tensor:
    """Images in -1..1 normalised by ImageNet's mean and deviation."""
    mean, deviation = (
        torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, DEVIATION)
    )
    return ((images + 1) / 2 - mean) / deviation


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; FeatureError where it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FeatureError(f"{path}: cannot be read as safetensors ({error})") from error


def read_graph(
    path: Path,
    graph: Callable[[Weights, Tensor], Output],
    size: int,
    spare: tuple[str, ...],
) -> Callable[[Tensor], Output]:
    """`graph` over the file's tensors, tried once: the file holds all that the graph reads, and
    nothing more but what starts with `spare` (heads) or counts batches."""
    weights = Weights(read_tensors(path))
    try:
        with torch.no_grad():
            graph(weights, torch.zeros(1, 3, size, size, device=training_device()))
    except KeyError as error:
        raise FeatureError(f"{path}: does not fit {graph.__name__}, has no {error}") from error
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        raise FeatureError(f"{path}: does not fit {graph.__name__} ({message})") from error
    unread = [
        name
        for name in weights.tensors
        if name not in weights.read
        and not name.startswith(spare)
        and not name.endswith("num_batches_tracked")
    ]
    if unread:
        raise FeatureError(f"{path}: does not fit {graph.__name__}, which has no {unread[0]}")
    return lambda images: graph(weights, images)
