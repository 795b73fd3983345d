"""`pathar generate`: the same files here and through a service, nothing drawn or written twice."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pathar import Client
from pathar.contract import FILE_NAMES, image_seed
from tests.conftest import DEADLINE_S
from tests.pathar.test_cli import called, pathar
from tests.running import Up

pytestmark = pytest.mark.processes

SETTINGS = ("--temperature", "1:0.8", "--top-k", "20", "--top-p", "0.9", "--cfg-scale", "2")
WORDS = ("generate", "--label", "histology", "--label", "blood", "--n", "3", "--seed", "9")
NAME = r"(\w+)_9_[0-9a-f]{6}_(\d{5})_(image\.png|mask\.png|instances\.png|tokens\.json)"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def jobs_told(text: str) -> list[str]:
    return re.findall("^job (\\S+):", text, re.MULTILINE)


def test_pairs_drawn_here_and_by_a_service_are_the_same_files(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    words = (*WORDS, *SETTINGS, "--out")
    local = pathar(*words, str(here), checkpoint=test_checkpoint)
    remote = pathar(*words, str(there), "--url", stack.run()["url"])
    assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
    assert contents(here) == contents(there)
    found = {re.fullmatch(NAME, name) for name in contents(here)}
    assert {match.groups() for match in found if match} == {
        (label, f"{index:05d}", name)
        for label in ("histology", "blood")
        for index in range(3)
        for name in FILE_NAMES
    }
    assert len(set(contents(here).values())) == 6 * len(FILE_NAMES)
    assert "6/6" in local.stderr
    assert local.stdout == ""


def test_the_pngs_tell_how_to_draw_them_again(stack: Up, tmp_path: Path) -> None:
    assert called(*WORDS, "--out", str(tmp_path), "--url", stack.run()["url"]).returncode == 0
    [third] = tmp_path.glob("histology_9_*_00002_image.png")
    assert f'"seed":{image_seed(9, 2)}'.encode() in third.read_bytes()


def test_other_settings_and_models_have_other_names(
    stack: Up, test_checkpoint: Path, organ_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("generate", "--label", "histology", "--seed", "9", "--out", str(tmp_path))
    for more in ((), ("--cfg-scale", "3"), ("--top-k", "7")):
        assert called(*words, *more, "--url", stack.run()["url"]).returncode == 0
    assert len(contents(tmp_path)) == 3 * len(FILE_NAMES)
    assert called(*words, checkpoint=organ_checkpoint).returncode == 0
    assert len(contents(tmp_path)) == 4 * len(FILE_NAMES)


def test_a_file_that_is_not_ours_stays_as_it_is(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("generate", "--label", "blood", "--seed", "9", "--out", str(tmp_path))
    assert called(*words, "--url", stack.run()["url"]).returncode == 0
    [mask], [image] = tmp_path.glob("*mask.png"), tmp_path.glob("*image.png")
    mask.write_bytes(b"corrected by hand")
    image.unlink()
    for more in (("--url", stack.run()["url"]), ()):
        done = called(*words, *more, checkpoint=test_checkpoint)
        assert done.returncode == 1
        assert f"{mask}: it is there with other content" in done.stderr.splitlines()[-1]
        assert mask.read_bytes() == b"corrected by hand"
        assert not image.exists()


@pytest.mark.parametrize("name", FILE_NAMES)
def test_files_that_were_altered_are_not_taken_for_drawn(
    test_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    words = ("generate", "--label", "blood", "--seed", "9", "--out", str(tmp_path))
    assert called(*words, checkpoint=test_checkpoint).returncode == 0
    [altered] = tmp_path.glob(f"*{name}")
    altered.write_bytes(b"corrected by hand")
    done = called(*words, checkpoint=test_checkpoint)
    assert done.returncode == 1
    assert name in done.stderr.splitlines()[-1]
    assert altered.read_bytes() == b"corrected by hand"


def test_given_again_here_it_draws_what_is_missing(test_checkpoint: Path, tmp_path: Path) -> None:
    words = (*WORDS, "--out", str(tmp_path))
    assert called(*words, checkpoint=test_checkpoint).returncode == 0
    first = contents(tmp_path)
    for path in tmp_path.glob("blood_*_00001_*"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = called(*words, checkpoint=test_checkpoint)
    assert again.returncode == 0
    assert "6/6" in again.stderr
    assert contents(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_interrupted_and_given_again_it_goes_on_with_its_job(stack: Up, tmp_path: Path) -> None:
    words = ("generate", "--label", "cervix", "--n", "3", "--seed", "11", "--out", str(tmp_path))
    os.kill(stack.pid("worker"), signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "pathar", *words],
            env={**stack.env, "PATHAR_URL": stack.run()["url"]},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            [told] = jobs_told(process.stderr.readline())
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=DEADLINE_S)
    finally:
        os.kill(stack.pid("worker"), signal.SIGCONT)
    assert process.returncode == 130
    assert rest == "pathar: interrupted\n"
    for _ in range(2):
        again = called(*words, PATHAR_URL=stack.run()["url"])
        assert again.returncode == 0
        assert jobs_told(again.stderr) == [told]
    assert len(contents(tmp_path)) == 3 * len(FILE_NAMES)
    with Client(stack.run()["url"]) as client:
        assert [job.id for job in client.jobs(label="cervix") if job.seed == 11] == [told]


def test_a_job_that_was_canceled_is_made_anew(stack: Up, tmp_path: Path) -> None:
    words = ("generate", "--label", "blood", "--n", "2", "--seed", "12", "--out", str(tmp_path))
    url = stack.run()["url"]
    os.kill(stack.pid("worker"), signal.SIGSTOP)
    try:
        with (
            Client(url) as client,
            subprocess.Popen(
                [sys.executable, "-u", "-m", "pathar", *words, "--url", url],
                env=stack.env,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            assert process.stderr is not None
            [first] = jobs_told(process.stderr.readline())
            client.cancel(first)
            _, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        os.kill(stack.pid("worker"), signal.SIGCONT)
    assert process.returncode == 1
    assert errors == f"pathar: job {first} was canceled\n"
    again = called(*words, "--url", url)
    assert again.returncode == 0
    assert jobs_told(again.stderr) != [first]
    assert len(contents(tmp_path)) == 2 * len(FILE_NAMES)


@pytest.mark.parametrize(
    ("more", "expected"),
    [(["--n", "9"], "bulk"), (["--n", "8"], "interactive"), (["--priority", "bulk"], "bulk")],
)
def test_many_pairs_are_bulk_work(
    stack: Up, tmp_path: Path, more: list[str], expected: str
) -> None:
    words = ("generate", "--label", "blood", "--label", "cervix", "--seed", "13", *more)
    done = called(*words, "--out", str(tmp_path), "--url", stack.run()["url"])
    assert done.returncode == 0, done.stderr
    with Client(stack.run()["url"]) as client:
        told = [client.job(job_id) for job_id in jobs_told(done.stderr)]
    assert {job.priority for job in told} == {expected}
    assert [job.labels for job in told] == [("blood",), ("cervix",)]


def test_a_label_that_is_wrong_makes_no_job(stack: Up, tmp_path: Path) -> None:
    url = stack.run()["url"]
    words = ("generate", "--label", "blood", "--label", "granite", "--seed", "14")
    with Client(url) as client:
        before = {job.id for job in client.jobs()}
        done = called(*words, "--out", str(tmp_path), "--url", url)
        assert {job.id for job in client.jobs()} <= before
    assert done.returncode == 2
    assert "granite" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_seed_is_drawn_when_none_is_given_and_told(stack: Up, tmp_path: Path) -> None:
    out = tmp_path / "with space"
    words = ("generate", "--label", "blood", "--out", str(out), "--url", stack.run()["url"])
    first = called(*words)
    assert first.returncode == 0
    assert called(*words).returncode == 0
    drawn = contents(out)
    assert len(drawn) == 2 * len(FILE_NAMES)
    for path in out.glob("*.json"):
        assert json.loads(path.read_text()).keys() == {"structure_tokens", "appearance_tokens"}
    [told] = re.findall("^to go on: pathar (.*)$", first.stderr, re.MULTILINE)
    again = called(*shlex.split(told))
    assert jobs_told(again.stderr) == jobs_told(first.stderr)
    assert "to go on" not in again.stderr
    assert contents(out) == drawn
