"""From patches to a checkpoint, through the commands that users type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.request import Label
from tests.conftest import DEADLINE_S
from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from training import export, prior, tokenizer, tokens
from training.run import RunError, load_tensors, save_tensors
from training.tokenizer import TokenizerOptions, TokenizerTrainer

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
TOKENIZER = ("tokenizer", "--size", "test", "--batch", "4", "--every", "20", "--steps")
PRIOR = ("prior", "--batch", "4", "--every", "10", "--steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all stages without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run(*TOKENIZER, 160, "--data", data, "--workdir", folder)
    run("tokens", "--data", data, "--workdir", folder)
    run(*PRIOR, 30, "--workdir", folder)
    return folder


def test_patches_become_a_checkpoint_that_loads(whole_run: Path, tmp_path: Path) -> None:
    said = run("export", "--workdir", whole_run, "--out", tmp_path / "c", "--name", "mine")
    checkpoint = load_checkpoint(tmp_path / "c")
    assert checkpoint.version[:12] in said
    assert checkpoint.config.name == "mine"
    assert checkpoint.config.licence == "CC0-1.0"
    labels = [label.name for label in checkpoint.config.labels]
    assert labels == ["cytology", "fluorescence", "histology", "blood"]


def test_training_goes_on_from_a_checkpoint(data: Path, whole_run: Path, tmp_path: Path) -> None:
    """One step of the warm-up moves weights by next to nothing."""
    run("export", "--workdir", whole_run, "--out", tmp_path / "c", "--name", "mine")
    start, folder = ("--start-from", tmp_path / "c"), tmp_path / "run"
    run(*TOKENIZER, 1, "--data", data, "--workdir", folder, *start)
    run("tokens", "--data", data, "--workdir", folder)
    run(*PRIOR, 1, "--workdir", folder, *start)
    run("export", "--workdir", folder, "--out", tmp_path / "next", "--name", "next")
    before, after = load_checkpoint(tmp_path / "c"), load_checkpoint(tmp_path / "next")
    for old, new in ((before.tokenizer, after.tokenizer), (before.prior, after.prior)):
        for name, weight in old.named_parameters():
            assert torch.allclose(weight, new.get_parameter(name), atol=2e-3), name
    meta = load_tensors(folder / "tokenizer.safetensors")[1]
    assert meta["options"]["started_from"] == before.version


def test_training_goes_on_from_a_tokenizer_alone(
    data: Path, whole_run: Path, tmp_path: Path
) -> None:
    kept, folder = tmp_path / "tokenizer.safetensors", tmp_path / "run"
    said = run("weights", "--workdir", whole_run, "--out", kept)
    assert f"{kept}: test, 160 steps" in said
    run(*TOKENIZER, 1, "--data", data, "--workdir", folder, "--start-from", kept)
    before, after = (tokenizer.load_tokenizer(path)[0] for path in (whole_run, folder))
    for name, weight in before.named_parameters():
        assert torch.allclose(weight, after.get_parameter(name), atol=5e-3), name
    meta = load_tensors(folder / "tokenizer.safetensors")[1]
    assert meta["options"]["started_from"] == "tokenizer.safetensors of 160 steps"


@pytest.mark.parametrize(
    ("licence", "stages"),
    [
        ("CC-BY-NC-SA-4.0", ("tokenizer",)),
        ("MIT and CC0-1.0 and CC-BY-4.0", ("prior",)),
        ("", ("tokenizer", "prior")),
    ],
)
def test_the_licence_of_a_checkpoint_stays_with_what_goes_on_from_it(
    licence: str, stages: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    """Whichever stage went on from it, and after a resume, which reads no checkpoint."""
    labels = [Label("histology", "modality")]
    begun = create_random_checkpoint(tmp_path / "c", "test", NAMED_SIZES["test"], labels=labels)
    config = begun / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"licence": licence}))
    folder = tmp_path / "run"
    for steps in ("1", "2"):
        for name, module, words in (
            ("tokenizer", tokenizer, [*TOKENIZER[1:], steps, "--data", str(data)]),
            ("tokens", tokens, ["--data", str(data)]),
            ("prior", prior, [*PRIOR[1:], steps]),
        ):
            first = name in stages and steps == "1"
            more = ["--start-from", str(begun)] if first else []
            module.main([*words, "--workdir", str(folder), *more])
    export.main(["--workdir", str(folder), "--out", str(tmp_path / "next")])
    wanted = sorted({"CC0-1.0", *(licence or "unstated").split(" and ")})
    assert load_checkpoint(tmp_path / "next").config.licence == " and ".join(wanted)


def test_tokens_that_do_not_tell_their_licences_are_to_be_made_again(tmp_path: Path) -> None:
    save_tensors(tmp_path / "tokens.safetensors", {"labels": torch.zeros(1)}, {"labels": []})
    with pytest.raises(RunError, match=r"tokens\.safetensors: tells no licences"):
        prior.read_tokens(tmp_path)


def test_going_on_from_another_size_is_refused(data: Path, tmp_path: Path) -> None:
    create_random_checkpoint(
        tmp_path / "c", "other", NAMED_SIZES["small"], labels=[Label("histology", "modality")]
    )
    words = ("--data", data, "--workdir", tmp_path / "run", "--start-from", tmp_path / "c")
    output = run(*TOKENIZER, 1, *words, code=1)
    assert "the checkpoint's tokenizer is" in output


def test_training_shows_losses_usage_and_sheets(whole_run: Path) -> None:
    lines = (whole_run / "progress.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [r for r in records if r["stage"] == "tokenizer" and "l1" in r]
    assert steps[-1]["l1"] < steps[0]["l1"]
    scores = [r["validation"] for r in records if "validation" in r]
    assert {"psnr", "mask_dice", "use_s", "use_a"} <= scores[0]["all"].keys()
    assert {"cytology", "blood"} <= scores[0].keys()
    for sheet in (*whole_run.glob("tokenizer_*.png"), *whole_run.glob("prior_*.png")):
        with Image.open(sheet) as picture:
            assert picture.width >= 64


def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    """Their codebooks start after 4 steps in place of 120."""
    program = tmp_path / "program.py"
    program.write_text(
        "from training import tokenizer\ntokenizer.START_CODEBOOKS = 4\ntokenizer.main()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*TOKENIZER[1:], "9", "--batch", "2"]
    words += ["--data", str(data), "--workdir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(program), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr
    assert load_tensors(tmp_path / "tokenizer.safetensors")[1]["step"] == 9


def test_a_stage_out_of_order_says_which_comes_first(tmp_path: Path) -> None:
    output = run("prior", "--workdir", tmp_path, code=1)
    assert "run the stage that writes it first" in output


def test_a_loss_that_is_no_number_ends_the_stage_before_it_spoils_the_weights() -> None:
    trainer = TokenizerTrainer(TokenizerOptions("test", 10, 2, 1e-3, 0.3, 0, ()))
    before = {name: t.clone() for name, t in trainer.tokenizer.named_parameters()}
    images, masks = torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="step 0: the loss is nan"):
        trainer.train_step(images, masks, 1e-3)
    after = dict(trainer.tokenizer.named_parameters())
    assert all(torch.equal(after[name], kept) for name, kept in before.items())
