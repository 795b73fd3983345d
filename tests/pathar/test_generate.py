"""`pathar generate`: the same files here and through a service."""

from __future__ import annotations

import json
from pathlib import Path

from model.request import image_seed
from pathar.contract import FILE_NAMES
from tests.pathar.test_cli import pathar
from tests.running import Up

WORDS = (
    *("generate", "--label", "histology", "--n", "3", "--seed", "9", "--cfg-scale", "2"),
    *("--temperature", "0.8", "--top-k", "20", "--top-p", "0.9"),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_drawn_here_and_by_a_service_are_the_same_bytes(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    local = pathar(*WORDS, "--out", str(here), checkpoint=test_checkpoint)
    remote = pathar(*WORDS, "--out", str(there), "--url", stack.run()["url"])
    assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
    assert contents(here) == contents(there)
    assert set(contents(here)) == {
        f"histology_9_{index:05d}_{name}" for index in range(3) for name in FILE_NAMES
    }
    assert len(set(contents(here).values())) == 3 * len(FILE_NAMES)
    assert "3/3" in local.stderr
    assert local.stdout == ""


def test_the_pngs_tell_how_to_draw_them_again(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    url = stack.run()["url"]
    assert pathar(*WORDS, "--out", str(tmp_path), "--url", url).returncode == 0
    third = (tmp_path / "histology_9_00002_image.png").read_bytes()
    assert f'"seed":{image_seed(9, 2)}'.encode() in third


def test_a_seed_is_drawn_when_none_is_given(stack: Up, tmp_path: Path) -> None:
    words = ("generate", "--label", "blood", "--out", str(tmp_path), "--url", stack.run()["url"])
    assert pathar(*words).returncode == 0
    assert pathar(*words).returncode == 0
    assert len(contents(tmp_path)) == 2 * len(FILE_NAMES)
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text()).keys() == {"structure_tokens", "appearance_tokens"}
