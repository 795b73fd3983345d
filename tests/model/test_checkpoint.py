import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, store_defaults
from model.config import NAMED_SIZES, ConfigError, ModelConfig, PriorConfig
from model.decoder import FREE, Row
from model.native_decoder import NativeDecoder
from model.request import ByStream, RequestError, SamplingSettings
from model.transformer import Prior


@pytest.fixture
def folder(test_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(test_checkpoint, tmp_path / "checkpoint"))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights and put their true hash into the configuration."""
    import hashlib

    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config | {"weights_sha256": digest}))


def test_a_checkpoint_loads_with_its_configuration_and_version(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.size == "test"
    assert len(checkpoint.version) == 64
    assert load_checkpoint(folder).version == checkpoint.version


@pytest.mark.processes
def test_an_engine_starts_without_the_compiler_of_torch(folder: Path) -> None:
    """Loading it takes a second more than all the rest; a draw on `meta` would be enough."""
    code = "import sys; from pathlib import Path; from model.engine import load_engine\n"
    code += "load_engine(Path(sys.argv[1]), device='cpu', slots=1, threads=1).warm_up()\n"
    code += "sys.exit('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_other_defaults_make_another_version(folder: Path) -> None:
    before = load_checkpoint(folder).version
    config = json.loads((folder / "config.json").read_text())
    config["defaults"]["cfg_scale"] = 3.0
    (folder / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(folder).version != before


def test_stored_defaults_are_loaded_and_nothing_else_changes(folder: Path) -> None:
    before = load_checkpoint(folder)
    settings = SamplingSettings(cfg_scale=2.5, temperature=0.9, top_k=10, top_p=0.8)
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    version = store_defaults(folder, settings)
    after = load_checkpoint(folder)
    assert after.version == version != before.version
    assert after.config == replace(before.config, defaults=settings)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name in files if files[name] != held.get(name)] == ["config.json"]
    of_blood = replace(settings, top_k=ByStream(0, 5))
    store_defaults(folder, settings, {"blood": of_blood})
    config = load_checkpoint(folder).config
    assert (config.settings("blood"), config.settings("histology")) == (of_blood, settings)
    assert store_defaults(folder, before.config.defaults) == before.version


def test_defaults_out_of_range_are_refused_and_nothing_is_written(folder: Path) -> None:
    before = load_checkpoint(folder).version
    with pytest.raises(RequestError, match=r"cfg_scale: got 0\.5, expected a number from 1 to 10"):
        store_defaults(folder, SamplingSettings(cfg_scale=0.5))
    with pytest.raises(RequestError, match="top_k: got 65, expected an integer from 0 to 64"):
        store_defaults(folder, SamplingSettings(top_k=65))
    assert load_checkpoint(folder).version == before


def test_a_flipped_byte_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(folder)


def test_a_pickle_is_refused_unread(folder: Path) -> None:
    import hashlib

    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config | {"weights_sha256": digest}))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_tensors_must_fit_both_ways(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "prior.norm.weight"
    rewrite(folder, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(CheckpointError, match=f"lacks the tensor {name}"):
        load_checkpoint(folder)
    rewrite(folder, tensors | {"prior.extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unknown tensor prior\.extra"):
        load_checkpoint(folder)
    rewrite(folder, tensors | {name: torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"shape \[3\]"):
        load_checkpoint(folder)
    rewrite(folder, tensors | {name: torch.full_like(tensors[name], torch.nan)})
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(folder)


def test_matrices_in_8_bits_must_have_the_largest_of_each_row(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "prior.structure_head.weight"
    largest = f"{name}.largest"
    rewrite(folder, {k: v for k, v in tensors.items() if k != largest})
    with pytest.raises(CheckpointError, match=f"{name} is in 8 bits without .largest"):
        load_checkpoint(folder)
    rewrite(folder, tensors | {largest: torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"largest has shape \[3\], expected the rows of"):
        load_checkpoint(folder)
    rewrite(folder, tensors | {"prior.extra.largest": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"unknown tensor prior\.extra\.largest"):
        load_checkpoint(folder)


def test_the_compiled_decoder_rounds_stored_weights_as_it_rounds_those_in_bf16(
    folder: Path,
) -> None:
    trained = load_checkpoint(folder)
    for name, parameter in trained.prior.named_parameters():
        if parameter.ndim == 2:  # anything that the store has not rounded yet
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
            parameter.data = parameter.data.bfloat16().float()
    before = first_logits(trained.prior)
    save_checkpoint(folder, trained.config, trained.tokenizer, trained.prior)
    after = first_logits(load_checkpoint(folder).prior)
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def first_logits(prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    decoder = NativeDecoder(prior, slots=1, threads=1)
    free = np.full((prior.layout.locations, 2), FREE, np.int64)
    decoder.place(0, Row(0, SamplingSettings(), 0, free))
    decoder.arrange([0])
    decoder.step()
    return decoder.logits()


def test_weights_come_back_as_they_were_rounded(folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(folder)
    again = load_checkpoint(
        save_checkpoint(tmp_path / "again", first.config, first.tokenizer, first.prior)
    )
    assert again.version == first.version
    for name, tensor in first.prior.state_dict().items():
        assert torch.equal(tensor, again.prior.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 1}, "format 1"),
        ({"colour": 1}, "colour"),
        ({"labels": []}, "labels"),
        ({"labels": [{"name": "a", "kind": "x"}]}, r"labels\.kind: got 'x', expected one of"),
        ({"labels": [{"name": 7, "kind": "organ"}]}, r"labels\.name: got 7, expected a text"),
        ({"labels": [{"name": n, "kind": "organ"} for n in "aA"]}, "labels: expected distinct"),
        ({"labels": [{"name": "a ", "kind": "organ"}]}, "labels: got 'a ', expected 1 to 100"),
        ({"labels": [{"name": "a", "kind": "organ", "mpp": -1}]}, "labels: a has mpp -1, expected"),
        ({"labels": {"a": "organ"}}, r"labels: got .*, expected a list"),
        ({"name": 7}, "name: got 7, expected a text"),
        ({"name": ""}, "name: got '', expected 1 to 100"),
        ({"licence": None}, "licence: got None, expected a text"),
        ({"weights_sha256": 7}, "expects"),
        ({"prior": {"layers": 1}}, "prior"),
        ({"tokenizer": None}, "tokenizer"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    folder: Path, change: dict[str, object], named: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("prior", "heads", 0, "got 0, expected 1 to 256"),
        ("prior", "heads", True, "got True, expected an integer"),
        ("prior", "layers", "2", "got '2', expected an integer"),
        ("prior", "layers", 10**9, "got 1000000000, expected 1 to 256"),
        ("prior", "width", 2.0, r"got 2\.0, expected an integer"),
        ("prior", "dropout", 7, "got 7, expected from 0 to below 1"),
        ("prior", "dropout", "0", "got '0', expected a number"),
        ("tokenizer", "codebook_size", -1, "got -1, expected 2 to 65536"),
        ("tokenizer", "codebook_dim", 10**12, "got 1000000000000, expected 1 to 65536"),
        ("tokenizer", "image_size", 0, "got 0, expected 1 to 1024"),
        ("tokenizer", "image_size", 2**30, "got 1073741824, expected 1 to 1024"),
        ("tokenizer", "widths", [], "got 0, expected 1 to 6 entries"),
        ("tokenizer", "widths", [16, 0], "got 0, expected 1 to 65536"),
        ("tokenizer", "widths", [16, 65536], r"model\.safetensors: \S+ has shape"),
        ("tokenizer", "widths", 16, "got 16, expected a list"),
        ("tokenizer", "encoder_blocks", [1, -1], "got -1, expected 0 to 256"),
        ("tokenizer", "structure_input", ["mask"], r"got \['mask'\], expected one of mask"),
        ("defaults", "temperature", -1, "got -1, expected a number from 0 to 2"),
        ("defaults", "temperature", float("nan"), "got nan, expected a number"),
        ("defaults", "top_k", 65, "got 65, expected an integer from 0 to 64"),
        ("defaults", "cfg_scale", True, "got True, expected a number"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(
    folder: Path, part: str, field: str, value: object, named: str
) -> None:
    """Before anything is built, in one sentence that names it."""
    config = json.loads((folder / "config.json").read_text())
    config[part][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    expected = named if "safetensors" in named else rf"{part}\.{field}: {named}"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "7", '"a"', "\udcff"])
def test_broken_json_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


def test_the_named_sizes_are_what_the_documents_say() -> None:
    tokenizer, prior = NAMED_SIZES["paper"]
    assert (tokenizer.image_size, tokenizer.downsample, tokenizer.codebook_size) == (256, 16, 1024)
    assert (tokenizer.codebook_dim, prior.layers, prior.heads, prior.width) == (256, 8, 8, 512)
    assert NAMED_SIZES["small"][0].downsample == 16
    assert set(NAMED_SIZES) == {"test", "small", "paper"}


def test_a_head_width_that_rope_cannot_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        PriorConfig(layers=1, heads=2, width=12)


def test_configurations_come_back_whole(test_checkpoint: Path) -> None:
    config = load_checkpoint(test_checkpoint).config
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert [label.mpp for label in again.labels] == [0, 0, 0.25, 0, 0]
