"""The segmenter of a checkpoint: which pixels of an image are nuclei.

`training/segmenter.py` trains it (MONAI's residual U-Net) on real patches and writes the file. Here
it runs for every image that is drawn, so norms are folded into the convolutions before them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

FILE = "segmenter.safetensors"
"""Its name in a checkpoint."""
LEVELS = 3
"""Each halves height and width."""
EPSILON = 1e-5
"""Of the norms, as in torch."""


class SegmenterError(ValueError):
    """A file that holds no segmenter; the sentence says what is wrong with it."""


@dataclass(frozen=True)
class _Layer:
    """A convolution, or a transposed one that doubles height and width. `slope`: what negative
    values are then multiplied by.
    """

    weight: Tensor
    bias: Tensor
    slope: float
    doubles: bool

    def to(self, device: torch.device, dtype: torch.dtype) -> _Layer:
        weight = self.weight.to(device, dtype, memory_format=torch.channels_last)
        return _Layer(weight, self.bias.to(device, dtype), self.slope, self.doubles)

    def __call__(self, x: Tensor, stride: int = 1) -> Tensor:
        if self.doubles:
            y = F.conv_transpose2d(x, self.weight, self.bias, 2, 1, 1)
        else:
            y = F.conv2d(x, self.weight, self.bias, stride, self.weight.shape[3] // 2)
        return F.leaky_relu(y, self.slope)


@dataclass(frozen=True)
class Segmenter:
    """`downs` and `ups` go from the finest level to the coarsest, with two layers each; the last of
    `downs` changes no size. `digest`: SHA-256 of its file.
    """

    digest: str
    downs: tuple[tuple[_Layer, _Layer], ...]
    ups: tuple[tuple[_Layer, _Layer], ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> Segmenter:
        """The same on a device."""
        both = (self.downs, self.ups)
        moved = (tuple((a.to(device, dtype), b.to(device, dtype)) for a, b in of) for of in both)
        return Segmenter(self.digest, *moved)

    @torch.inference_mode()
    def logits(self, image: NDArray[np.uint8]) -> Tensor:
        """Above 0 in nuclei: [H, W] of an image uint8 [H, W, 3], both sides multiples of 8. It sees
        one image at a time, so that the bits never depend on others."""
        like = self.downs[0][0].weight
        pixels = torch.from_numpy(image).to(like.device).permute(2, 0, 1)[None]
        x = pixels.to(like.dtype, memory_format=torch.channels_last) / 127.5 - 1
        seen: list[Tensor] = []
        for unit, beside in self.downs:
            stride = 2 if len(seen) < LEVELS else 1
            x = unit(x, stride) + beside(x, stride)
            seen.append(x)
        del seen[-1]
        for up, unit in reversed(self.ups):
            x = up(torch.cat([seen.pop(), x], 1))
            x = unit(x) + x
        return x[0, 0]

    def find(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The nuclei [H, W] that it finds in an image uint8 [H, W, 3]."""
        found: NDArray[np.bool_] = (self.logits(image) > 0).cpu().numpy()
        return found


def dice(found: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """How far two masks agree, from 0 to 1: twice what they share by the sum of both. 1 where both
    are empty, so 0 where one is."""
    total = int(found.sum()) + int(mask.sum())
    return 2 * int((found & mask).sum()) / total if total else 1.0


def read_segmenter(path: Path) -> Segmenter | None:
    """The segmenter in a file, on the CPU in fp32; None where there is no file. SegmenterError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SegmenterError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        tensors = _Tensors({name: tensor.float() for name, tensor in load(data).items()})
        levels = ["model" + ".1.submodule" * level for level in range(LEVELS + 1)]
        named = [*(f"{level}.0" for level in levels[:-1]), levels[-1]]
        downs = tuple((tensors.unit(x), tensors.layer(x, "residual")) for x in named)
        ups = tuple(
            (tensors.layer(f"{x}.2.0", doubles=True), tensors.unit(f"{x}.2.1")) for x in levels[:-1]
        )
        segmenter = Segmenter(hashlib.sha256(data).hexdigest(), downs, ups)
        segmenter.logits(np.zeros((2**LEVELS, 2**LEVELS, 3), np.uint8))  # do the shapes fit?
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise SegmenterError(f"{path}: is not a segmenter ({error})") from error
    if tensors.left:
        raise SegmenterError(f"{path}: is not a segmenter (unknown tensor {tensors.left[0]})")
    return segmenter


class _Tensors:
    """The tensors of a file, taken out of it layer by layer. KeyError on a missing one."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        counts = "num_batches_tracked"
        self._tensors = {n: tensor for n, tensor in tensors.items() if not n.endswith(counts)}
        for name, tensor in self._tensors.items():
            if not tensor.isfinite().all():
                raise RuntimeError(f"{name} holds values that are not finite")

    @property
    def left(self) -> list[str]:
        """The names that no layer has taken."""
        return sorted(self._tensors)

    def unit(self, name: str) -> _Layer:
        """The convolution of a residual unit."""
        return self.layer(f"{name}.conv.unit0")

    def layer(self, name: str, conv: str = "conv", *, doubles: bool = False) -> _Layer:
        """A convolution with the norm after it folded in."""
        weight, bias = self._take(f"{name}.{conv}.weight"), self._take(f"{name}.{conv}.bias")
        norm = f"{name}.adn.N"
        if conv != "conv" or f"{norm}.weight" not in self._tensors:
            return _Layer(weight, bias, 1.0, doubles)
        scale = self._take(f"{norm}.weight") / (self._take(f"{norm}.running_var") + EPSILON).sqrt()
        bias = (bias - self._take(f"{norm}.running_mean")) * scale + self._take(f"{norm}.bias")
        outputs = scale[:, None, None] if doubles else scale[:, None, None, None]
        slope = float(self._take(f"{name}.adn.A.weight"))
        return _Layer(weight * outputs, bias, slope, doubles)

    def _take(self, name: str) -> Tensor:
        return self._tensors.pop(name)
