"""Where a command is to write is tried before anything else, and the trial leaves nothing."""

import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from training.run import StageError, try_to_write

WORDS = {
    "train": "--data D --workdir W --out O",
    "segmenter": "--data D --out O/s.safetensors",
    "tokenizer": "--data D --workdir W",
    "tokens": "--data D --workdir W",
    "prior": "--workdir W",
    "export": "--workdir D --out O",
    "evaluate": "--checkpoint D --data D --out O",
    "sweep": "--checkpoint D --data D --out O",
    "ablate": "--data D --workdir W",
}
OPTIONS = [(command, option) for command in WORDS for option in ("--workdir", "--out")
           if {"--workdir": "W", "--out": "O"}[option] in WORDS[command]]  # fmt: skip


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing stands at D, which every command would find next."""
    (tmp_path / "file").write_text("")
    bad, good = str(tmp_path / "file" / "made"), str(tmp_path / "good" / "made")
    places = {"W": good, "O": good, "D": str(tmp_path / "nowhere")}
    places["W" if option == "--workdir" else "O"] = bad
    words = ["".join(places.get(c, c) for c in word) for word in WORDS[command].split()]
    monkeypatch.setattr(sys, "argv", [command, *words])
    with pytest.raises(SystemExit) as ended:
        import_module(f"training.{command}").main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"training.{command}: {option}: {tmp_path / 'file'}" in said
    assert "cannot be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_trial_leaves_neither_file_nor_folder(tmp_path: Path) -> None:
    try_to_write("--out", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").write_text("kept")
    try_to_write("--out", tmp_path / "a")
    try_to_write("--out", tmp_path / "a" / "b" / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_a_folder_that_takes_no_file_is_refused_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk: folders may still be made, or seem to."""

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StageError, match=r"--out: .*/c cannot be written: No space left on device"):
        try_to_write("--out", tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_a_folder_and_the_reverse_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="file is a file, expected a folder"):
        try_to_write("--out", tmp_path / "file")
    with pytest.raises(SystemExit):
        import_module("training.segmenter").main(["--data", "nowhere", "--out", str(tmp_path)])
    assert "is a folder, expected a file to write" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tokenizer", "prior"])
def test_only_the_first_process_of_a_group_makes_the_run_folder(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trial of the first removes what it made: another process that makes it too can fail."""
    module = import_module(f"training.{command}")
    monkeypatch.setattr(module, "rank", lambda: 1)
    words = WORDS[command].replace("D", str(tmp_path / "nowhere")).split()
    with pytest.raises(SystemExit):
        module.main([str(tmp_path / "made") if word == "W" else word for word in words])
    assert "nowhere" in capsys.readouterr().err or command == "prior"
    assert not list(tmp_path.iterdir())
