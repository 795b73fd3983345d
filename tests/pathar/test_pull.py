"""`pathar pull` and `Client.pull`: the same data set wherever it is drawn, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pathar import AsyncClient, Client
from pathar.contract import image_seed, record_of
from pathar.errors import ConnectionLost, InternalError, UsageError
from pathar.manifest import check
from pathar.pulling import models_of
from pathar.recipe import ModelRef, Plan, PlannedJob, Recipe
from pathar.spool import read_job, write_job
from tests.conftest import DEADLINE_S
from tests.pathar.test_cli import called
from tests.pathar.test_pull_killed import contents
from tests.running import Up, environment, wait_until

WORDS = ("pull", "histology=22", "blood=6", "--seed", "9", "--shard-size", "10")
"""Two jobs of one label, as a small job has up to 20 images, and three shards."""


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathar.recipe.JOB_PAIRS", 20)


@pytest.fixture(scope="module")
def here(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of WORDS in small jobs, drawn without a service."""
    out = tmp_path_factory.mktemp("pulled") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathar.recipe.JOB_PAIRS", 20)
        done = called(*WORDS, "--out", str(out), checkpoint=test_checkpoint)
    assert done.returncode == 0, done.stderr
    assert "28 pairs are in" in done.stderr
    return out


@pytest.mark.usefixtures("small_jobs")
def test_the_command_and_both_clients_pull_the_same_bytes_as_are_drawn_here(
    here: Path, client: Client, stack: Up, tmp_path: Path
) -> None:
    """All under the same ids, so each finds that the one before has dropped its results."""
    url, counts = stack.run()["url"], {"histology": 22, "blood": 6}
    done = called(*WORDS, "--out", str(tmp_path / "command"), PATHAR_URL=url)
    assert done.returncode == 0, done.stderr
    client.pull(counts, out=tmp_path / "client", seed=9, shard_size=10)

    async def pulled() -> None:
        async with AsyncClient(url) as other:
            await other.pull(counts, out=tmp_path / "async", seed=9, shard_size=10)

    asyncio.run(pulled())
    for name in ("command", "client", "async"):
        assert contents(tmp_path / name) == contents(here), name
    assert (
        client.pull(counts, out=tmp_path / "client", seed=9, shard_size=10) == tmp_path / "client"
    )


def test_a_job_that_was_canceled_is_asked_for_under_the_next_id(
    client: Client, tmp_path: Path
) -> None:
    recipe = Recipe.of({"cervix": 3}, {"seed": 4})
    plan = Plan(recipe, models_of(recipe, client.labels()))
    [job] = plan.jobs
    order = {"model": plan.models["cervix"].name, "priority": "bulk", "seed": job.seed}
    client.submit("cervix", 3, job_id=plan.job_id(job), **order)  # type: ignore[arg-type]
    canceled = client.cancel(plan.job_id(job)).status == "canceled"
    client.pull({"cervix": 3}, out=tmp_path / "out", seed=4)
    assert client.job(plan.job_id(job, int(canceled))).status == "finished"


def test_large_images_are_pulled_by_jobs_of_few_and_keep_their_size(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("pull", "blood=5", "--width", "96", "--format", "folder", "--out")
    done = called(*words, str(tmp_path / "there"), "--url", stack.run()["url"])
    assert done.returncode == 0, done.stderr
    done = called(*words, str(tmp_path / "here"), checkpoint=test_checkpoint)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    [first, *_] = images = sorted((tmp_path / "here" / "blood" / "images").iterdir())
    assert len(images) == 5
    record = record_of(first.read_bytes())
    assert (record["width"], record["height"], record["settings"]["cfg_scale"]) == (96, 64, 1.0)
    told = called("verify", str(tmp_path / "here"), "--regenerate", checkpoint=test_checkpoint)
    assert told.stdout.count("drawn again bit for bit") >= 1, told.stdout
    with pytest.raises(UsageError, match="best_of: got 5, expected an integer from 1 to 4"):
        Recipe.of({"blood": 1}, {"width": 96, "best_of": 5})


def test_settings_are_drawn_from_ranges_and_said_with_each_pair(
    client: Client, tmp_path: Path
) -> None:
    out = client.pull({"blood": 3}, out=tmp_path / "a", format="folder", temperature=(0.5, 0.9))
    [job] = Plan(Recipe.of({"blood": 3}, {"temperature": (0.5, 0.9)}), {
        "blood": ModelRef(**json.loads((out / "manifest.json").read_text())["models"]["blood"])
    }).jobs  # fmt: skip
    assert 0.5 <= job.settings["temperature"] <= 0.9
    third = (out / "blood" / "images" / "blood-000002.png").read_bytes()
    assert f'"seed":{image_seed(job.seed, 2)}'.encode() in third
    assert f'"temperature":{job.settings["temperature"]}'.encode() in third


@pytest.mark.processes
@pytest.mark.usefixtures("small_jobs")
def test_a_service_that_went_away_is_named_and_one_that_came_back_is_asked_for_the_rest_alone(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    """And its queue has room for one job alone."""
    recipe, first = Recipe.of({"blood": 44}, {}), Up(test_checkpoint, PATHAR_SLOTS="4")
    second: Up | None = None
    troubles: list[str] = []
    try:
        with Client(first.ready().run()["url"], patience=12) as client:
            steps = client.pulling(recipe, tmp_path / "out")
            next(step for step in steps if step.safe)
            assert first.stop() == 130
            with pytest.raises(ConnectionLost):
                troubles.extend(step.trouble for step in steps)
        assert "does not answer" in troubles[-1]
        second = Up(test_checkpoint, home=first.home, PATHAR_MAX_WAITING="22").ready()
        with Client(second.run()["url"]) as client:
            steps = client.pulling(recipe, tmp_path / "out")
            assert next(steps).safe >= 20
            for _ in steps:
                pass
            assert {job.status for job in client.jobs()} == {"finished"}
            assert sum(job.n for job in client.jobs()) == recipe.pairs
    finally:
        for up in filter(None, (first, second)):
            up.close()
    assert check(tmp_path / "out") == (recipe.pairs, [])


@pytest.fixture
def stopped(slow_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder that Ctrl-C left with one or two of three jobs."""
    out = tmp_path / "stopped"
    command = [sys.executable, "-W", "error", "-m", "pathar", *STOPPED, "--out", str(out)]
    with subprocess.Popen(
        command, env=environment(slow_checkpoint), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: (out / ".partial" / "000001.zip").exists(), "the second job")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    told = rf"pathar: (4|8) of 60 pairs are safe in {out}; run the same command to go on"
    assert re.fullmatch(told, said.splitlines()[-1]), "all that was there at its last step"
    return out


STOPPED = ("pull", "blood=4", "cervix=4", "histology=52", "--seed", "1")


@pytest.mark.processes
def test_what_ctrl_c_stopped_goes_on_with_the_same_command_and_no_other(
    stopped: Path, slow_checkpoint: Path, test_checkpoint: Path
) -> None:
    told = ("--out", str(stopped))
    checked = called("pull", "--check", str(stopped))
    assert checked.returncode == 1
    assert "has no manifest.json, so it is not complete" in checked.stderr

    other = called(*STOPPED, "--top-k", "3", *told, checkpoint=slow_checkpoint)
    assert other.returncode == 2
    assert "begun with settings {}, now it is {'top_k': 3}; take another folder" in other.stderr
    model = called(*STOPPED, *told, checkpoint=test_checkpoint)
    assert model.returncode == 2
    assert "begun with the model test-random" in model.stderr
    assert len(model.stderr.splitlines()) == 1

    done = called(*STOPPED, *told, checkpoint=slow_checkpoint)
    assert done.returncode == 0, done.stderr
    again = called(*STOPPED, *told)
    assert (again.returncode, "as they were before" in again.stderr) == (0, True), again.stderr
    another = called("pull", "blood=191", *told)
    assert another.returncode == 2
    assert "begun with labels" in another.stderr


@pytest.mark.processes
def test_a_check_names_what_is_missing_altered_and_extra(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, content in contents(here).items():
        (out / name).write_bytes(content)
    done = called("pull", "--check", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: 28 pairs, all files are as the manifest says\n"
    shard = out / "pairs-00001.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    (out / "pairs-00002.tar").unlink()
    (out / "notes.txt").write_text("mine")
    done = called("pull", "--check", str(out))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        *("altered: pairs-00001.tar", "missing: pairs-00002.tar", "extra: notes.txt")
    ]


def test_a_dry_run_says_time_and_size_and_writes_nothing(stack: Up, tmp_path: Path) -> None:
    url, out = stack.run()["url"], tmp_path / "out"
    done = called("pull", "blood=5000", "--url", url, "--out", str(out), "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["5,000 pairs: blood 5,000", "50 jobs, 5 shards (webdataset)"]
    assert "as 16 pairs took" in lines[2]
    assert not out.exists()


FILTERED = ("pull", "histology=14", "blood=4", "--min-agreement", "0.467", "--best-of", "2")
"""About a half of the images of the test's checkpoint have that agreement."""


def test_filtered_pairs_are_the_same_wherever_they_are_drawn_and_say_what_they_cost(
    test_checkpoint: Path, stack: Up, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    done = called(*FILTERED, "--out", str(here), checkpoint=test_checkpoint)
    assert done.returncode == 0, done.stderr
    done = called(*FILTERED, "--out", str(there), PATHAR_URL=stack.run()["url"])
    assert done.returncode == 0, done.stderr
    assert contents(there) == contents(here)
    assert check(here) == (18, [])
    told = json.loads((here / "manifest.json").read_text())["quality"]
    assert {label: each["kept"] for label, each in told.items()} == {"histology": 14, "blood": 4}
    assert told["histology"]["drawn"] > 28
    with tarfile.open(here / "pairs-00000.tar") as archive:
        images = [archive.extractfile(m) for m in archive if m.name.endswith(".image.png")]
        records = [record_of(image.read()) for image in images if image]
    assert len({record["seed"] for record in records}) == 18
    assert all(record["agreement"] >= 0.467 for record in records)
    card = (here / "README.md").read_text()
    assert f"| `histology` | {told['histology']['drawn']} | 14 |" in card
    assert "| 12.5 |" in card
    assert "| `histology` | 2026-01-02 | 40 | 90.0% | 80.0% | 2.5% |" in card
    assert (
        "Of each 2 images the one that agrees most. Only pairs with an agreement of 0.467" in card
    )
    done = called(
        *FILTERED, "--out", str(tmp_path / "dry"), "--dry-run", checkpoint=test_checkpoint
    )
    assert "for each pair" in done.stdout.splitlines()[2], done.stderr


def test_what_too_few_pairs_reach_is_said(stack: Up, tmp_path: Path) -> None:
    words = ("pull", "blood=2", "--min-agreement", "0.9", "--out", str(tmp_path / "out"))
    done = called(*words, PATHAR_URL=stack.run()["url"])
    assert done.returncode == 2
    assert "min_agreement: got 0.9, but the image reached it only 0 times of 100" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["granite=3"], "labels: got 'granite', expected one of"),
        (["blood=3", "--format", "zip"], "format: got 'zip'"),
        (["blood=3", "--model", "other"], "got 'blood' of the model 'other'"),
        (["blood=3", "--check", "x"], "--check: got a recipe besides"),
        ([], "expected LABEL=N"),
    ],
)
def test_what_cannot_be_pulled_is_said_in_one_line(
    words: list[str], said: str, stack: Up, tmp_path: Path
) -> None:
    done = called("pull", *words, "--out", str(tmp_path / "out"), PATHAR_URL=stack.run()["url"])
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_other_files_is_left_alone(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files, expected a new folder"):
        client.pull({"blood": 1}, out=tmp_path)
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        client.pull({"blood": 1}, out=tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_run_at_a_time_pulls_into_a_folder(client: Client, tmp_path: Path) -> None:
    steps = client.pulling(Recipe.of({"blood": 1}, {}), tmp_path)
    next(steps)
    with pytest.raises(UsageError, match="another run is pulling into it"):
        client.pull({"blood": 1}, out=tmp_path)
    for _ in steps:
        pass


JOB = PlannedJob(0, 0, "blood", 2, 2, 5, {})
MODEL = ModelRef("small", "ab", "cd")


@pytest.fixture
def archive() -> io.BytesIO:
    file = io.BytesIO()
    write_job(
        file, JOB, MODEL, {"top_k": 1.0, "top_p": 1}, [{"image.png": b"a"}, {"image.png": b"b"}]
    )
    return file


def test_an_archive_is_read_as_it_was_written(archive: io.BytesIO) -> None:
    pairs = list(read_job(archive, JOB, MODEL))
    assert [(pair.name, pair.files) for pair in pairs] == [
        *(("blood-000000", {"image.png": b"a"}), ("blood-000001", {"image.png": b"b"}))
    ]
    assert [type(value) for value in pairs[0].settings.values()] == [int, float]


@pytest.mark.parametrize(
    ("job", "model"),
    [
        (JOB, ModelRef("small", "ab", "ef")),
        (PlannedJob(0, 0, "blood", 2, 2, 6, {}), MODEL),
        (PlannedJob(0, 0, "blood", 3, 3, 5, {}), MODEL),
        (PlannedJob(0, 0, "cervix", 2, 2, 5, {}), MODEL),
    ],
)
def test_an_archive_of_something_else_is_refused(
    job: PlannedJob, model: ModelRef, archive: io.BytesIO
) -> None:
    with pytest.raises(InternalError, match="got others"):
        list(read_job(archive, job, model))


def test_a_damaged_archive_is_refused(archive: io.BytesIO) -> None:
    content = bytearray(archive.getvalue())
    for at in range(0, len(content), 7):
        damaged = content.copy()
        damaged[at] ^= 255
        try:
            found = list(read_job(io.BytesIO(damaged), JOB, MODEL))
        except InternalError:
            continue
        assert found == list(read_job(archive, JOB, MODEL)), "an unused byte"
