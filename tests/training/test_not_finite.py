"""A loss that is no number ends a stage, and weights without a finite score are not exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import DEADLINE_S
from tests.training.phantoms import write_phantoms
from tests.training.test_stages import run, start
from training import export
from training.prior import Options as PriorOptions
from training.prior import PriorTrainer, read_tokens
from training.run import RunError, load_tensors, save_tensors
from training.segmenter import Options, SegmenterTrainer

pytestmark = pytest.mark.processes

TOKENIZER = ("--size", "test", "--batch", 2, "--steps")
PRIOR = ("--batch", 2, "--steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=4)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run("tokenizer", *TOKENIZER, 2, "--data", data, "--workdir", folder)
    run("tokens", "--data", data, "--workdir", folder)
    run("prior", *PRIOR, 2, "--workdir", folder)
    return folder


def fails(*words: object) -> str:
    """What a command says that ends with 1."""
    process = start(*words)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_stage_stops_at_the_step_says_what_to_lower_and_keeps_the_state_of_before(
    stage: str, data: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    state = tmp_path / f"{stage}.safetensors"
    words = (*TOKENIZER, 60, "--data", data) if stage == "tokenizer" else (*PRIOR, 60)
    said = fails(stage, *words, "--rate", "1e36", "--workdir", tmp_path)
    assert f"training.{stage}: step " in said
    assert f"lower --rate, now 1e+36 (--{stage}-rate of training.train)" in said
    assert state.read_bytes() == (whole / state.name).read_bytes()
    assert f"from step {load_tensors(state)[1]['step']}" in run(
        stage, *words[:-1], *(("4",) if stage == "prior" else (data,)), "--workdir", tmp_path
    )


def test_a_segmenter_stops_at_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = torch.zeros(4, 64, 64, 3).byte(), torch.zeros(4, 64, 64).bool()
    trainer = SegmenterTrainer(Options(steps=3, seed=0), images, masks)
    trainer.train_step()
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    monkeypatch.setattr(
        "training.segmenter.segmentation_loss", lambda found, _: found.mean() * float("nan")
    )
    with pytest.raises(RunError, match=r"step 1: the loss is nan; lower --rate, now 0\.002"):
        trainer.train_step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.network.named_parameters())


def test_a_gradient_that_is_not_finite_moves_no_weight(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = PriorTrainer(PriorOptions(4, 2, 1e-3, 0.3, 0), read_tokens(whole))
    parameter = next(trainer.prior.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = parameter.detach().clone()
    with pytest.raises(RunError, match="step 0: the gradient is"):
        trainer.train_step(1e-3)
    assert torch.equal(parameter, before)


def test_a_score_that_is_no_number_ends_the_prior(whole: Path) -> None:
    trainer = PriorTrainer(PriorOptions(4, 2, 1e-3, 0.3, 0), read_tokens(whole))
    with pytest.raises(RunError, match="step 0: the validation loss is nan"):
        trainer.keep_best(float("nan"))


def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"weight": torch.ones(2)}, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(RunError, match="not written: weight is not finite"):
        save_tensors(path, {"weight": torch.tensor([1.0, float("nan")])}, {"step": 2})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ("score", "its prior has no finite validation loss after 2 steps"),
        ("prior", "cannot be exported: label.weight is not finite"),
        ("tokenizer", "is not finite; train it again"),
    ],
)
def test_what_is_not_finite_is_not_exported(
    spoilt: str, says: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / ("tokenizer.safetensors" if spoilt == "tokenizer" else "prior.safetensors")
    tensors, meta = load_tensors(path)
    if spoilt == "score":
        meta["best_loss"] = float("inf")
    prefix = {"prior": "best.label.weight", "tokenizer": "average."}.get(spoilt, "none")
    for name, tensor in tensors.items():
        if name.startswith(prefix) and tensor.is_floating_point():
            tensor.view(-1)[0] = float("nan")
    save_file(tensors, path, {"meta": json.dumps(meta)})
    with pytest.raises(SystemExit) as ended:
        export.main(["--workdir", str(folder), "--out", str(tmp_path / "made")])
    assert ended.value.code == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
