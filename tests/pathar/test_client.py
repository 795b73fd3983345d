"""The Python client against a real service, whole and in trouble."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathar import AsyncClient, Client
from pathar.errors import (
    ConnectionLost,
    InvalidRequest,
    JobCanceled,
    NotFound,
    OtherJob,
    TooManyRequests,
    Unauthorized,
    UsageError,
)
from pathar.pairs import Pair
from tests.pathar.test_cli import called
from tests.running import Up, alive, wait_until
from tests.service.conftest import LoneService

ROOT = Path(__file__).parents[2]


def bytes_of(pairs: list[Pair]) -> list[tuple[bytes, ...]]:
    return [(pair.image_png, pair.mask_png, pair.instances_png) for pair in pairs]


def test_pairs_come_as_pillow_images_and_numpy_tokens(client: Client) -> None:
    pairs = client.generate("histology", n=3, seed=7, cfg_scale=2.0)
    assert [pair.index for pair in pairs] == [0, 1, 2]
    assert pairs[0].seed == 7
    for pair in pairs:
        assert pair.image.mode == "RGB"
        assert pair.mask.mode == "L"
        assert pair.image.size == pair.mask.size
        assert set(np.unique(np.asarray(pair.mask))) <= {0, 255}
        ids = np.asarray(pair.instances)
        assert ids.dtype == np.uint16
        assert np.array_equal(ids > 0, np.asarray(pair.mask) > 0)
        assert pair.structure_tokens.shape == pair.appearance_tokens.shape
        assert pair.structure_tokens.dtype == np.int64
    again = client.generate("histology", seed=pairs[2].seed, cfg_scale=2.0)
    assert bytes_of(again) == bytes_of(pairs[2:])


def test_what_somebody_else_saves_is_what_was_drawn(client: Client, tmp_path: Path) -> None:
    [pair] = client.generate("blood", seed=1)
    pair.image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.tobytes() == pair.image.tobytes()


def test_both_clients_draw_the_same(client: Client, stack: Up) -> None:
    async def drawn() -> list[list[Pair]]:
        async with AsyncClient(stack.run()["url"]) as other:
            found = await asyncio.gather(
                other.generate("blood", n=2, seed=3), other.generate("cervix", n=2, seed=3)
            )
            assert {label.name for label in await other.labels()} >= {"blood", "cervix"}
            job = await other.submit("blood", seed=1, job_id="from-async")
            kinds = [event.kind async for event in other.events(job.id)]
            assert kinds[0] == "queued"
            assert kinds[-1] == "finished"
            assert (await other.job(job.id)).ended
            assert (await other.cancel(job.id)).status == "finished"
            assert job.id in {found.id async for found in other.jobs(label="blood")}
            return list(found)

    blood, cervix = asyncio.run(drawn())
    assert bytes_of(blood) == bytes_of(client.generate("blood", n=2, seed=3))
    assert bytes_of(cervix) == bytes_of(client.generate("cervix", n=2, seed=3))


def test_a_job_of_ones_own_is_followed_listed_and_found_again(client: Client) -> None:
    job = client.submit("blood", n=2, seed=1, job_id="mine-1")
    again = client.submit("blood", n=2, seed=1, job_id="mine-1")
    assert (job.id, again.id) == ("mine-1", "mine-1")
    events = list(client.events("mine-1"))
    assert [event.kind for event in events if event.kind != "progress"].count("image") == 2
    assert events[-1].kind == "finished"
    replayed = client.events("mine-1", after=events[0].id)  # of progress, the latest alone may come
    kept = [[e.id for e in seen if e.kind != "progress"] for seen in (replayed, events[1:])]
    assert kept[0] == kept[1]
    done = client.job("mine-1")
    assert (done.status, done.steps) == ("finished", done.steps_total)
    assert done.finished == {0, 1}
    assert "mine-1" in {job.id for job in client.jobs(status="finished", label="blood")}
    assert len(client.generate("blood", n=2, seed=1, job_id="mine-1")) == 2
    with pytest.raises(OtherJob, match="mine-1"):
        client.submit("blood", n=3, seed=1, job_id="mine-1")


@pytest.mark.parametrize("job_id", ["a?b", "a/b", "..", ".", "", "a/events", "a#b", "é", "a" * 65])
def test_what_cannot_be_an_id_makes_no_other_route(client: Client, job_id: str) -> None:
    for call in (client.job, client.cancel, lambda x: client.submit("blood", job_id=x)):
        with pytest.raises(UsageError, match="job_id"):
            call(job_id)
    for each in (client.events, client.pairs, lambda x: client.stream("blood", job_id=x)):
        with pytest.raises(UsageError, match="job_id"):
            list(each(job_id))
    with pytest.raises(UsageError, match="job_id"):
        client.archive(job_id, "never")
    assert not Path("never").exists()


@pytest.mark.parametrize("after", ["soon", "1\n", "é", ""])
def test_what_cannot_be_an_event_is_refused(client: Client, after: str) -> None:
    with pytest.raises(UsageError, match="after"):
        list(client.events("a", after=after))


@pytest.mark.parametrize("url", ["ftp://nowhere", "http://", "http://[::1", "http://a:b", "here"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="url"):
        Client(url)


KEYS = ["pathar_1\nx", "schlüssel", "'pathar_1'", '"pathar_1"', "Bearer pathar_1", "a key"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError) as refused:
        AsyncClient(key=key)
    assert key.strip() not in str(refused.value)


def test_pairs_of_a_job_and_its_archive_are_fetched_by_its_id(
    client: Client, stack: Up, tmp_path: Path
) -> None:
    async def fetched() -> list[Pair]:
        async with AsyncClient(stack.run()["url"]) as other:
            assert await other.ready()
            await other.archive("by-id", tmp_path / "async.zip")
            async with aclosing(other.pairs("by-id")) as pairs:
                return [pair async for pair in pairs]

    job = client.submit("blood", n=3, seed=5, job_id="by-id")
    pairs = sorted(client.pairs(job.id), key=lambda pair: pair.index)
    assert bytes_of(pairs) == bytes_of(client.generate("blood", n=3, seed=5))
    client.archive(job.id, str(tmp_path / "sync.zip"))
    assert bytes_of(asyncio.run(fetched())) == bytes_of(pairs)
    assert (tmp_path / "sync.zip").read_bytes() == (tmp_path / "async.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "sync.zip") as archive:
        assert archive.read("0002/mask.png") == pairs[2].mask_png
    with pytest.raises(NotFound):
        list(client.pairs("nobody"))
    with pytest.raises(NotFound):
        client.archive("nobody", tmp_path / "none.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["async.zip", "sync.zip"]


def test_nobody_is_not_ready() -> None:
    async def ready() -> bool:
        async with AsyncClient("http://127.0.0.1:9") as client:
            return await client.ready()

    assert not asyncio.run(ready())


def test_errors_are_classes_that_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.generate("blood", cfg_scale=99)
    assert refused.value.status == 422
    assert refused.value.errors[0]["field"] == "cfg_scale"
    assert refused.value.errors[0]["value"] == 99
    with pytest.raises(NotFound):
        client.job("nobody")
    with pytest.raises(NotFound):
        list(client.events("nobody"))
    with pytest.raises(UsageError, match="ftp"):
        Client("ftp://nowhere")


@pytest.mark.processes
def test_a_key_is_sent_from_the_environment(
    lone: LoneService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.publish()
    made = called("keys", "make", "ann", PATHAR_REDIS_URL=lone.redis_server.url)
    monkeypatch.setenv("PATHAR_URL", lone.url)
    with Client() as nobody, pytest.raises(Unauthorized):
        nobody.labels()
    monkeypatch.setenv("PATHAR_API_KEY", f" {made.stdout.strip()}\r\n")  # as files have it
    with Client() as ann:
        assert ann.labels()


def test_a_queue_that_is_full_is_waited_for(up: Up) -> None:
    url = up.run()["url"]
    os.kill(up.pid("worker"), signal.SIGSTOP)
    with Client(url, patience=0.0) as hasty, Client(url) as patient:
        first = hasty.submit("blood", n=20, job_id="first")
        with pytest.raises(TooManyRequests) as refused:
            hasty.submit("blood", n=20, job_id="second")
        assert refused.value.retry_after is not None
        os.kill(up.pid("worker"), signal.SIGCONT)
        assert len(patient.generate("blood", n=20, job_id="third", seed=4)) == 20
        assert patient.job(first.id).ended


def test_an_api_that_dies_in_the_middle_costs_time_and_nothing_else(up: Up) -> None:
    with Client(up.run()["url"]) as client:
        expected = bytes_of(client.generate("blood", n=12, seed=9))
        killer = threading.Thread(target=lambda: up.kill_child("service"))
        found: list[Pair] = []
        for pair in client.stream("blood", n=12, seed=9, job_id="again"):
            if not found:
                killer.start()
            found.append(pair)
        killer.join()
        found.sort(key=lambda pair: pair.index)
        assert bytes_of(found) == expected
        assert len([job for job in client.jobs() if job.id == "again"]) == 1


def test_nobody_there_is_an_error_once_patience_ends() -> None:
    with Client("http://127.0.0.1:9", patience=0.2) as client:
        started = time.monotonic()
        with pytest.raises(ConnectionLost):
            client.labels()
        assert time.monotonic() - started >= 0.1, "it tried more than once"


def test_a_canceled_job_is_an_error_to_who_waits_for_it(up: Up) -> None:
    os.kill(up.pid("worker"), signal.SIGSTOP)
    with Client(up.run()["url"]) as client:
        client.submit("blood", n=2, job_id="doomed", seed=1)
        assert client.cancel("doomed").status == "canceled"
        assert client.cancel("doomed").status == "canceled"
        with pytest.raises(JobCanceled, match="doomed"):
            client.generate("blood", n=2, job_id="doomed", seed=1)
    os.kill(up.pid("worker"), signal.SIGCONT)


SCRIPT = """
import sys
from pathar import Client
with Client() as client:
    client.generate("blood", n=2, progress={progress})
"""


@pytest.mark.parametrize("progress", [True, None])
def test_the_bar_is_shown_where_it_was_asked_for_or_somebody_looks(
    stack: Up, progress: bool | None
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(progress=progress)],
        env={**stack.env, "PATHAR_URL": stack.run()["url"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("2/2" in done.stderr) is bool(progress)
    assert done.stdout == ""


@pytest.mark.processes
def test_the_client_needs_no_torch_and_no_server() -> None:
    code = (
        "import sys, pathar, pathar.client\n"
        "banned = {'torch', 'fastapi', 'redis', 'rq', 'uvicorn'}\n"
        "banned |= {'model', 'worker', 'runtime', 'store', 'service'}\n"
        "print(*sorted(banned & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_interrupting_a_download_leaves_the_service_as_it_was(up: Up) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(progress=False).replace("n=2", "n=24, job_id='cut'")],
        env={**up.env, "PATHAR_URL": up.run()["url"]},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: up.http.get("/jobs/cut").status_code == 200, "the job")
    process.kill()
    process.wait()
    assert not alive(process.pid)
    assert up.ended("cut")["status"] == "finished"
