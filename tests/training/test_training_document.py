"""docs/training.md, followed to the letter: its commands run, in its order, on 60 phantoms.

They run as a reader types them, with the names in capitals filled in, on the smallest model and
with as few steps as there can be. What is served in the end answers over HTTP. A command that this
test does not know how to run fails it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.request import Label
from tests.deploy.test_containers import free_port
from tests.running import Up
from tests.training.commands import run
from tests.training.layouts import outlined
from tests.training.layouts.test_imagescope import annotation, write_monuseg
from tests.training.mobilenet import write_mobilenet
from tests.training.phantoms import write_phantoms
from tests.training.test_ablate import TINY
from training.ablation.settings import SHIPPED
from training.losses import CONVOLUTIONS

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("small_features")]

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "training.md"
INSTALLATION = (
    "make .venv/ready",
    ".venv/bin/pip install -c constraints.txt -e '.[embedded,training,features]'",
    ".venv/bin/pip install --no-deps lpips==0.1.4",
    "curl --create-dirs -o runs/alexnet.pth "
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "curl --create-dirs -o runs/mobilenet.pth "
    "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
)
"""What fetches something, and was done before any test could run. Not run here."""
NAMES = {"LAYOUT": "nuinsseg", "SOURCE": "source", "PATCHES": "patches", "MONUSEG": "monuseg"}
TRAINING = "--size test --tokenizer-steps 3 --prior-steps 2 --segmenter-steps 2"
SMALLEST = {
    "import_patches": "--size 64",
    "train": TRAINING,
    "segmenter": "--image-size 64 --steps 2",
    "tokenizer": "--size test --steps 3",
    "weights": "",
    "image_decoder": "--steps 2 --batch 2",
    "tokens": "",
    "prior": "--steps 2",
    "export": "",
    "evaluate": "--samples 8 --sections samples,reconstruction,swaps,distances",
    "sweep": "--samples 8 --guidance 1,1:2 --temperature 1 --top-k 0",
    "ablate": "--config tiny.toml --rows full",
}
"""By stage, what is given besides; of an option given twice the last counts."""
ORGANS = ("breast", "kidney", "lung")
PATIENCE_S = 900.0
"""For one command. The slowest takes some 20 s on an idle core."""
EXAMPLE_URL = "http://127.0.0.1:8000"


def commands(text: str) -> list[str]:
    """All that is to be typed, in order: the lines of indented blocks."""
    return re.findall(r"(?m)^    (?! )(.+)$", text)


def write_source(root: Path) -> None:
    """NuInsSeg's layout: five originals an organ, of four patches each."""
    drawn = write_phantoms(root / "drawn", each=5, size=128)
    for modality, organ in zip(("cytology", "fluorescence", "histology"), ORGANS, strict=True):
        for kind, name in (("images", "tissue images"), ("masks", "mask binary")):
            folder = root / f"human {organ}" / name
            folder.mkdir(parents=True)
            for picture in (drawn / modality / kind).iterdir():
                picture.rename(folder / f"{organ}_{picture.name}")


def write_data_of_small(root: Path) -> None:
    """The originals of the shipped checkpoint, as their sources lay them out."""
    lists = (ROOT / "docs" / "small" / "originals").glob("*.txt")
    ids = sorted(name for path in lists for name in path.read_text().split())
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    for number, name in enumerate(ids):
        picture = Image.fromarray(image)
        picture.putpixel((number % 64, number // 64), (0, 0, 0))
        nucleus = Image.new("L", (64, 64))
        nucleus.paste(255, (9, 9, 20, 20))
        for kind, pixels in (("images", picture), ("masks", nucleus)):
            folder = root / "BBBC038" / name / kind
            folder.mkdir(parents=True)
            pixels.save(folder / f"{name}.png" if kind == "images" else folder / f"a{number}.png")
    for kind, pixels in (("images", picture), ("masks", nucleus)):
        (root / "BCCD" / kind).mkdir(parents=True)
        pixels.save(root / "BCCD" / kind / "BloodImage_00000.png")


def write_monuseg_source(root: Path) -> None:
    """MoNuSeg's layout: five originals of breast and two of bladder, by TCGA's sites."""
    for number, site in enumerate(["A7", "AC", "AO", "AR", "E2", "DK", "G2"]):
        name = f"TCGA-{site}-{number:04}-01Z-00-DX1"
        nuclei = [(3, 5, 20, 30), (70, 40, 99, 60), (10, 110, 40, 140)]
        write_monuseg(root, name, annotation([("", [outlined.pixels(box) for box in nuclei])]))
        image = np.random.default_rng(number).integers(200, 256, (150, 150, 3), dtype=np.uint8)
        for top, left, bottom, right in nuclei:
            image[top:bottom, left:right] -= 150
        Image.fromarray(image).save(root / "Tissue Images" / f"{name}.tif")


def write_tiny_ablations(path: Path) -> None:
    """The shipped configuration at a budget of next to nothing."""
    text = SHIPPED.read_text()
    for name, value in TINY.items():
        if isinstance(value, int):
            text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
    path.write_text(text.replace("seeds = [0, 1]", "seeds = [0]"))


def write_alexnet(path: Path) -> None:
    """Random weights under the names of torchvision's file, which also holds a classifier."""
    torch.manual_seed(0)
    weights = {"classifier.1.weight": torch.zeros(2, 2)}
    for index, inputs, outputs, kernel, *_ in CONVOLUTIONS:
        weights[f"features.{index}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / 30
        weights[f"features.{index}.bias"] = torch.zeros(outputs)
    torch.save(weights, path)


def write_checkout(root: Path) -> None:
    """What a reader has in the project's folder before the first command."""
    (root / ".venv").symlink_to(sys.prefix)
    (root / "docs").symlink_to(ROOT / "docs")
    (root / "runs").mkdir()
    labels = [Label("histology", "modality")]
    shipped = root / "checkpoints" / "small"
    create_random_checkpoint(shipped, "test", NAMED_SIZES["test"], labels=labels)


def typed(command: str, folder: Path) -> str:
    """Run a command line; what it prints. What loads torch runs in this process: each takes as
    long as it has to do, not to load torch."""
    program, *words = shlex.split(command)
    if program == ".venv/bin/torchrun":
        return alone_of_its_group(words)
    if program == ".venv/bin/python":
        kind, what, *words = words
        if kind == "-c":
            exec(what, {})
            return ""
        if what.startswith("training."):
            return run(what.removeprefix("training."), *words)
    return typed_in_a_shell(command, folder)


def alone_of_its_group(words: list[str]) -> str:
    """What torchrun would run in several processes, as the only one. It knows the options; that
    several train one model, test_stages shows."""
    asked = get_args_parser().parse_args(words)
    assert asked.module
    assert asked.standalone
    assert asked.nproc_per_node == "2"
    group = {"WORLD_SIZE": 1, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in group.items():
            patch.setenv(name, str(value))
        return run(asked.training_script.removeprefix("training."), *asked.training_script_args)


def typed_in_a_shell(command: str, folder: Path) -> str:
    """The same in a process of its own."""
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@dataclass
class Reader:
    """Follows the document in a folder; `said` is what each command printed, `up` what serves."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    up: Up | None = None

    def follow(self, command: str) -> None:
        """Run a command of the document; fails on one that it does not know how to run."""
        for name, value in NAMES.items():
            command = re.sub(rf"\b{name}\b", value, command)
        stage = re.search(r"-m training\.(\w+)", command)
        if "--look" in command:
            self.said[command] = typed(command, self.folder)
        elif stage and stage[1] in SMALLEST:
            self.said[command] = typed(f"{command} {SMALLEST[stage[1]]}", self.folder)
        elif command.startswith(".venv/bin/pathar up "):
            words = shlex.split(command)[2:]
            self.up = Up(Path("/nowhere"), *words, PYTHONPATH=str(ROOT)).ready()
        elif command.startswith(".venv/bin/pathar generate ") and self.up:
            assert EXAMPLE_URL in command
            typed(command.replace(EXAMPLE_URL, self.up.run()["url"]), self.folder)
        elif command.startswith(".venv/bin/python -c "):
            typed(command, self.folder)
        else:
            pytest.fail(f"docs/training.md has a command that this test does not run: {command}")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Who has followed the whole document, with the service still up."""
    folder = tmp_path_factory.mktemp("checkout")
    write_checkout(folder)
    write_source(folder / "source")
    write_monuseg_source(folder / "monuseg")
    write_data_of_small(folder)
    write_alexnet(folder / "runs" / "alexnet.pth")
    write_mobilenet(folder / "runs" / "mobilenet.pth", 0.25)
    write_tiny_ablations(folder / "tiny.toml")
    follower = Reader(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            for command in commands(DOCUMENT.read_text()):
                if command not in INSTALLATION:
                    follower.follow(command)
            yield follower
        finally:
            if follower.up:
                follower.up.close()


def test_every_command_stands_where_this_test_finds_it() -> None:
    text = DOCUMENT.read_text()
    found = commands(text)
    assert set(INSTALLATION) <= set(found)
    stages = {match for line in found for match in re.findall(r"-m training\.(\w+)", line)}
    assert stages == SMALLEST.keys()
    in_a_sentence = re.findall(r"`[^`\n]*(?:\.venv/|python |pip |torchrun )[^`\n]*`", text)
    assert not in_a_sentence
    assert set(re.findall(r"(?m)^```(.*)$", text)) <= {"text", ""}


def test_sixty_patches_become_a_checkpoint_that_answers_over_http(reader: Reader) -> None:
    [imported] = [said for c, said in reader.said.items() if "import_patches nuinsseg" in c]
    assert "15 originals, 60 tiles" in imported
    assert reader.up is not None
    listed = reader.up.http.get("/labels").json()["labels"]
    names = ("histology", *ORGANS)
    assert [(label["name"], label["model"]) for label in listed] == [(n, "mine") for n in names]
    for label in names:
        answer = reader.up.http.post("/generate?wait=60", json={"label": label, "seed": 7})
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert_is_a_pair(job["images"][0])
        version = load_checkpoint(reader.folder / "checkpoints" / "mine").version
        assert (job["model"]["name"], job["model"]["version"]) == ("mine", version)


def assert_is_a_pair(pair: dict[str, Any]) -> None:
    image, mask = (
        Image.open(io.BytesIO(base64.b64decode(pair[name]))) for name in ("image_png", "mask_png")
    )
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert (mask.mode, mask.size) == ("L", (64, 64))
    assert set(np.unique(np.array(mask)).tolist()) <= {0, 255}
    for stream in ("structure_tokens", "appearance_tokens"):
        ids = np.array(pair[stream])
        assert ids.size == 64
        assert ((ids >= 0) & (ids < 64)).all()


def test_the_command_line_draws_what_http_answers(reader: Reader) -> None:
    assert reader.up is not None
    images = sorted((reader.folder / "out").glob("*_image.png"))
    assert len(images) == 4
    answer = reader.up.http.post("/generate?wait=60", json={"label": "histology", "seed": 7})
    served = base64.b64decode(answer.json()["images"][0]["image_png"])
    assert served in [path.read_bytes() for path in images]


def test_the_stages_by_hand_make_the_very_model_that_the_command_makes(reader: Reader) -> None:
    by_hand, by_command = (reader.folder / "checkpoints" / name for name in ("stages", "mine"))
    for name in ("model.safetensors", "segmenter.safetensors"):
        assert (by_hand / name).read_bytes() == (by_command / name).read_bytes()
    for made in (by_hand, by_command):
        assert load_checkpoint(made).config.licence == "CC-BY-4.0"


def test_the_example_trains_an_organ_of_five_groups_and_leaves_out_one_of_two(
    reader: Reader,
) -> None:
    [said] = [said for command, said in reader.said.items() if "--fewest-groups" in command]
    assert "labels left out for too few groups: bladder (2)" in said
    config = load_checkpoint(reader.folder / "checkpoints" / "organs").config
    assert [label.name for label in config.labels] == ["histology", "breast"]
    assert config.licence == "Apache-2.0 and CC-BY-NC-SA-4.0"  # small's here, and the data's


def test_reports_tables_and_a_second_round_are_there(reader: Reader) -> None:
    mine = reader.folder / "runs" / "mine"
    metrics = json.loads((mine / "report" / "report.json").read_text())["metrics"]
    assert {"reconstruction_lpips", "fid", "pair_agreement"} <= {m["name"] for m in metrics}
    assert "histology" in (mine / "sweep" / "README.md").read_text()
    assert "| full" in (reader.folder / "runs" / "ablations" / "tables.md").read_text().lower()
    started = json.loads((reader.folder / "runs" / "onward" / "train.json").read_text())
    assert started["prior"]["settings"]["--start-from"][0].endswith("checkpoints/small")
    assert (reader.folder / "runs" / "gpus" / "tokenizer.safetensors").exists()


def test_plain_folders_train_without_alexnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path / "patches", each=20)
    (tmp_path / "patches" / "manifest.csv").unlink()
    write_checkout(tmp_path)
    [command] = [
        line.replace("PATCHES", "patches").replace("--perceptual runs/alexnet.safetensors", "")
        for line in commands(DOCUMENT.read_text())
        if "-m training.train" in line and "--start-from" not in line
    ]
    monkeypatch.chdir(tmp_path)
    said = typed(f"{command} {TRAINING}", tmp_path)
    assert "cytology (20), fluorescence (20), histology (20)" in said
    config = load_checkpoint(tmp_path / "checkpoints" / "mine").config
    assert [label.name for label in config.labels] == ["cytology", "fluorescence", "histology"]
