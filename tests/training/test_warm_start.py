from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import NAMED_SIZES
from model.tokenizer import Tokenizer
from training.run import StageError
from training.tokenizer import Options, TokenizerTrainer
from training.warm_start import fits, read_start, save_start, warm_start

PLAIN = NAMED_SIZES["test"][0]
FINE = replace(PLAIN, structure_input="mask_borders", fine_widths=(6, 4))


def tokenizers() -> tuple[Tokenizer, Tokenizer, list[str]]:
    torch.manual_seed(0)
    trained, started = Tokenizer(PLAIN).eval(), Tokenizer(FINE).eval()
    return trained, started, warm_start(started, trained.state_dict())


def test_the_same_configuration_takes_everything() -> None:
    torch.manual_seed(0)
    trained, other = Tokenizer(PLAIN), Tokenizer(PLAIN)
    assert warm_start(other, trained.state_dict()) == []
    for ours, theirs in zip(
        trained.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_tokens_stay_and_borders_begin_without_effect() -> None:
    trained, started, _ = tokenizers()
    image, mask = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.5).float()
    for between in (torch.zeros_like(mask), mask):
        ours = started.encode(image, torch.cat([mask, between], 1))
        for ids, theirs in zip(ours, trained.encode(image, mask), strict=True):
            assert torch.equal(ids, theirs)


def test_the_mask_is_decoded_as_before() -> None:
    trained, started, _ = tokenizers()
    ids = torch.randint(64, (2, 8, 8))
    with torch.no_grad():
        logits = started.decode(ids, ids)[1]
        assert torch.allclose(logits[:, :1], trained.decode(ids, ids)[1], atol=1e-6)


def test_only_the_finest_layers_and_those_of_borders_begin_anew() -> None:
    _, started, fresh = tokenizers()
    finest = [name for name in fresh if name.startswith("image_decoder.")]
    names = [name for name in started.state_dict() if name.startswith("image_decoder.")]
    assert finest == names[-len(finest) :]
    others = [name for name in fresh if name not in finest]
    assert [name.split(".")[0] for name in others] == ["structure_encoder", *["mask_decoder"] * 2]


def test_a_tokenizer_alone_is_written_and_started_from(tmp_path: Path) -> None:
    tokenizer = Tokenizer(PLAIN).eval()
    path = tmp_path / "tokenizer.safetensors"
    save_start(path, tokenizer, "test", 7, "MIT")
    start = read_start(path)
    assert (start.config, start.licence) == (PLAIN, "MIT")
    assert start.origin == "tokenizer.safetensors of 7 steps"
    other = Tokenizer(PLAIN).eval()
    assert warm_start(other, start.weights) == []
    image, mask = torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    for ours, theirs in zip(other.encode(image, mask), tokenizer.encode(image, mask), strict=True):
        assert float((ours == theirs).float().mean()) > 0.9


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(
        StageError, match=r"--start-from: .*broken\.safetensors: is not a tokenizer"
    ):
        read_start(broken)
    with pytest.raises(StageError, match=r"--start-from: .*nowhere"):
        read_start(tmp_path / "nowhere")


def test_only_structure_and_enlarging_may_differ() -> None:
    assert fits(FINE, PLAIN)
    assert fits(PLAIN, FINE)
    assert not fits(replace(FINE, codebook_size=32), PLAIN)


def test_what_begins_anew_is_trained_alone_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume; then everything is."""
    monkeypatch.setitem(NAMED_SIZES, "test", (FINE, NAMED_SIZES["test"][1]))
    monkeypatch.setattr("training.tokenizer.FRESH_STEPS", 2)
    save_start(tmp_path / "t.safetensors", Tokenizer(PLAIN), "test", 7, "MIT")
    start = replace(read_start(tmp_path / "t.safetensors"), config=PLAIN)
    options = Options("test", 9, 4, 1e-3, 0.3, 0, ())
    trainer = TokenizerTrainer(options)
    trainer.start_from(start)
    images, masks = torch.rand(4, 3, 64, 64), torch.ones(4, 2, 64, 64)
    moved = []
    for step in range(3):
        before = {n: p.detach().clone() for n, p in trainer.tokenizer.named_parameters()}
        trainer.train_step(images, masks, 1e-3)
        after = dict(trainer.tokenizer.named_parameters())
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
        if step == 0:
            trainer.save(tmp_path / "state.safetensors")
            trainer = TokenizerTrainer(options)
            trainer.load(tmp_path / "state.safetensors")
    assert moved[0] == moved[1] == set(trainer.fresh)
    assert "appearance_encoder.1.weight" in moved[2]
