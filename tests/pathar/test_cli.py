"""The command line: exit codes, and errors in one line on stderr."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from pathar.cli import main
from tests.conftest import DEADLINE_S
from tests.running import Up, environment, wait_until

pytestmark = pytest.mark.processes


def pathar(
    *words: str, checkpoint: Path = Path("/nowhere"), **settings: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pathar", *words],
        env=environment(checkpoint, **settings),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def called(
    *words: str, checkpoint: Path = Path("/nowhere"), **settings: str
) -> subprocess.CompletedProcess[str]:
    """The same in this process, which saves loading it all: for what starts nothing and ends."""
    said, errors = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(said),
        redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patch,
    ):
        wanted = environment(checkpoint, **settings)
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess(words, code, said.getvalue(), errors.getvalue())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["generate"],
        ["generate", "--label", "blood", "--n", "three"],
        ["generate", "--label", "blood", "--url", "not-a-url"],
        ["generate", "--label", "blood", "--label", "blood"],
        ["generate", "--label", "blood", "--n", "1", "--n", "1"],
        ["generate", "--label", "blood", "--priority", "soon"],
        ["generate", "--lab", "blood"],
        ["demo", "--o", "out"],
        ["keys", "make", "ann", "--rate", "1", "--rate", "2"],
        ["completion", "dos"],
        ["up", "now"],
    ],
)
def test_wrong_usage_ends_with_code_2(words: list[str], tmp_path: Path) -> None:
    done = called(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pathar" in done.stderr


def test_an_option_that_is_given_twice_is_named() -> None:
    done = called("generate", "--label", "blood", "--seed", "1", "--seed", "2")
    assert "argument --seed: given twice" in done.stderr


def test_the_shell_completes_commands_options_and_their_values(tmp_path: Path) -> None:
    script = tmp_path / "pathar.bash"
    script.write_text(called("completion", "bash").stdout)
    assert completed(script, "gen") == ["generate"]
    assert {"--label", "--priority"} <= set(completed(script, "generate", "--"))
    assert completed(script, "generate", "--priority", "b") == ["bulk"]
    assert completed(script, "export", "--to", "g") == ["geojson"]
    (tmp_path / "drawn").mkdir()
    assert completed(script, "generate", "--out", "dra") == ["drawn"]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_complete_too(shell: str) -> None:
    done = called("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "generate" in done.stdout


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(["pathar", *words])
    code = f"""
        source {script}
        COMP_WORDS=({line}) COMP_CWORD={len(words)} COMP_LINE="{line}" COMP_POINT={len(line)}
        function=$(complete -p pathar | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function pathar "{words[-1]}" "{words[-2] if len(words) > 1 else "pathar"}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", code], cwd=script.parent, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_help_ends_with_code_0() -> None:
    done = pathar("--help")
    assert done.returncode == 0
    for command in ("up", "serve", "worker", "generate", "demo"):
        assert command in done.stdout


@pytest.mark.parametrize(("field", "value"), [("--label", "granite"), ("--n", "1001")])
def test_a_request_out_of_range_ends_with_code_2_and_one_line(
    field: str, value: str, stack: Up, tmp_path: Path
) -> None:
    words = ["generate", "--label", "blood", field, value, "--out", str(tmp_path)]
    done = called(*words, "--url", stack.run()["url"])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "expected" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [(), ("--url", "http://127.0.0.1:1")])
def test_more_pairs_than_a_request_has_are_for_pull(where: tuple[str, ...], tmp_path: Path) -> None:
    """Whether or not there is a service or a checkpoint."""
    words = ("generate", "--label", "blood", "--label", "human liver", "--n", "5000", *where)
    done = called(*words, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pathar: n: got 5000, expected an integer from 1 to 1000; "
        "for more: pathar pull blood=5000 'human liver=5000'\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_request_out_of_range_is_refused_without_a_server_too(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["generate", "--label", "granite", "--out", str(tmp_path)]
    done = called(*words, checkpoint=test_checkpoint)
    assert done.returncode == 2
    assert "granite" in done.stderr
    assert "cytology" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperature", "1:2:3"), "got '1:2:3', expected a number, or two as 1:2"),
        (("--top-k", "3:a"), "got '3:a', expected an integer, or two as 1:2"),
    ],
)
def test_a_setting_that_is_no_number_nor_two_is_refused(words: tuple[str, str], said: str) -> None:
    done = called("generate", "--label", "blood", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_missing_checkpoint_ends_with_code_2(tmp_path: Path) -> None:
    done = called("generate", "--label", "blood", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "PATHAR_CHECKPOINT" in done.stderr


def test_a_service_that_is_not_there_ends_with_code_1(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = called("generate", "--label", "blood", "--out", str(tmp_path), "--url", url)
    assert done.returncode == 1
    assert url in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_ends_with_code_1(stack: Up, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    out = str(tmp_path / "out")
    done = called("generate", "--label", "blood", "--out", out, "--url", stack.run()["url"])
    assert done.returncode == 1
    assert out in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_code_130_and_leaves_only_whole_pairs(
    slow_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["generate", "--label", "blood", "--n", "64", "--out", str(tmp_path)]
    env = environment(slow_checkpoint, PATHAR_SLOTS="1")
    with subprocess.Popen(
        [sys.executable, "-m", "pathar", *words], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: list(tmp_path.glob("*_tokens.json")), "the first pair")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_one_part_alone_refuses_a_bad_setting_with_code_2(command: str) -> None:
    done = pathar(command, PATHAR_RESULT_TTL="soon")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
