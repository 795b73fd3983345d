"""The stage of the image decoder: it changes, tokens and the prior stay."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.request import Label
from tests.training.phantoms import write_phantoms
from training import data as patches
from training import image_decoder, image_decoder_trainer
from training.run import load_tensors
from training.warm_start import read_start, save_start

STEPS = 6
Words = list[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "c"
    labels = [Label("histology", "modality")]
    create_random_checkpoint(folder, "test", NAMED_SIZES["test"], labels=labels)
    (folder / patches.FACTS).write_text('{"held_out_sha256": "0"}')
    return folder


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is saved."""
    monkeypatch.setattr("training.run.SAVE_S", 0.0)


def words(data: Path, begun: Path, folder: Path, out: Path) -> Words:
    named = {"data": data, "start-from": begun, "workdir": folder, "out": out}
    given = [word for name, path in named.items() for word in (f"--{name}", str(path))]
    return [*given, "--steps", str(STEPS), "--batch", "4"]


def differing(one: Checkpoint, other: Checkpoint) -> set[str]:
    """The parts of two tokenizers in which weights differ."""
    ours, theirs = one.tokenizer.state_dict(), other.tokenizer.state_dict()
    return {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}


def test_the_decoder_alone_changes_and_every_token_stays(
    data: Path, begun: Path, tmp_path: Path
) -> None:
    image_decoder.main(words(data, begun, tmp_path / "run", tmp_path / "out"))
    before, after = load_checkpoint(begun), load_checkpoint(tmp_path / "out")
    changed = differing(before, after)
    assert "image_decoder" in changed
    assert not changed & {
        "appearance_encoder", "structure_encoder", "mask_decoder", "structure_codebook",
        "appearance_codebook",
    }  # fmt: skip
    dataset = patches.read_dataset(data, [], 64)
    images, masks = patches.batch(dataset, torch.arange(8), torch.arange(8))
    encoded = (c.tokenizer.encode(images, masks) for c in (before, after))
    for old, new in zip(*encoded, strict=True):
        assert torch.equal(old, new)
    for old, new in zip(before.prior.parameters(), after.prior.parameters(), strict=True):
        assert torch.equal(old, new)
    assert (tmp_path / "out" / patches.FACTS).exists()


def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    data: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_decoder.main(words(data, begun, tmp_path / "whole", tmp_path / "one"))
    step = image_decoder_trainer.DecoderTrainer.train_step

    def interrupted(trainer: image_decoder_trainer.DecoderTrainer, *batch: torch.Tensor) -> object:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    again = words(data, begun, tmp_path / "cut", tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(image_decoder_trainer.DecoderTrainer, "train_step", interrupted)
        with pytest.raises(SystemExit):
            image_decoder.main(again)
    assert load_tensors(tmp_path / "cut" / image_decoder.STATE)[1]["step"] == 3
    image_decoder.main(again)
    assert not differing(load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "other"))


def test_a_run_begun_in_another_way_is_refused(
    data: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(data, begun, tmp_path / "run", tmp_path / "out")
    image_decoder.main(given)
    for more, said in (
        (["--rate", "1"], "was started with rate 0.0003, now it is 1.0"),
        (["--steps", "0"], "--steps: got 0, expected at least 1"),
        (["--batch", "1"], "--batch: got 1, expected at least 2"),
        (["--out", str(begun)], "which is --start-from, expected another path"),
    ):
        with pytest.raises(SystemExit):
            image_decoder.main([*given, *more])
        assert said in capsys.readouterr().err


def test_a_file_of_a_tokenizer_becomes_such_a_file(data: Path, begun: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "tokenizer.safetensors", tmp_path / "sharp.safetensors"
    save_start(path, load_checkpoint(begun).tokenizer, "test", 9, "MIT")
    image_decoder.main(words(data, path, tmp_path / "run", out))
    assert read_start(out).licence == "MIT"
