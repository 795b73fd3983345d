"""Two workers, several keys: whose images are drawn when, as their own times tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import DEADLINE_S
from tests.pathar.test_cli import called
from tests.running import Up

SLOTS = 4
WORKERS = 2
COUNTED = 120


@dataclass(frozen=True)
class Drawn:
    """One image: seconds since 1970 at which it was asked for, got a slot and was finished."""

    owner: str
    asked: float
    started: float
    ended: float


@pytest.fixture(scope="module")
def up(slow_checkpoint: Path) -> Iterator[Up]:
    words = ["--checkpoint", str(slow_checkpoint)] * WORKERS
    running = Up(slow_checkpoint, *words, PATHAR_SLOTS=str(SLOTS))
    try:
        yield running.ready()
    finally:
        running.close()


class Key:
    """An API key, made with `pathar keys`, and what is asked for with it."""

    def __init__(self, up: Up, name: str, weight: float = 1.0) -> None:
        words = ("keys", "make", name, "--weight", str(weight))
        made = called(*words, PATHAR_HOME=str(up.home))
        assert made.returncode == 0, made.stderr
        self.name, self.up = name, up
        self.headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        self.http = httpx.Client(base_url=up.run()["url"], headers=self.headers, timeout=DEADLINE_S)

    def ask(self, n: int, priority: str = "interactive") -> str:
        """A job of that many images."""
        body = {"label": "histology", "n": n, "seed": 1, "priority": priority}
        answer = self.http.post("/generate?wait=0", json=body).raise_for_status()
        job_id: str = answer.json()["job_id"]
        return job_id

    def drawn(self, job_id: str) -> list[Drawn]:
        """The images of a job so far, those that are finished."""
        job = self.state(job_id)
        asked = job["created_at"]
        times = [image["timing"] for image in job["images"] if image["status"] == "finished"]
        return [
            Drawn(self.name, asked, asked + each["queue_s"], asked + each["total_s"])
            for each in times
        ]

    def state(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return found

    def wait_for(self, job_id: str, images: int) -> None:
        """Until that many of its images are finished."""
        with self.http.stream("GET", f"/jobs/{job_id}/events") as events:
            for line in events.iter_lines():
                images -= line == "event: image"
                if images == 0:
                    return
        pytest.fail(f"job {job_id} ended early")

    def cancel(self, job_id: str) -> None:
        self.http.delete(f"/jobs/{job_id}").raise_for_status()


@pytest.fixture
def make_key(up: Up) -> Iterator[Callable[..., Key]]:
    made: list[Key] = []

    def make(name: str, weight: float = 1.0) -> Key:
        made.append(Key(up, name, weight))
        return made[-1]

    yield make
    for key in made:
        key.http.close()


def share(images: list[Drawn], name: str) -> float:
    return sum(image.owner == name for image in images) / len(images)


def test_keys_share_two_workers_by_weight_and_a_late_one_has_its_share_at_once(
    make_key: Callable[..., Key],
) -> None:
    light, heavy = make_key("light", 1), make_key("heavy", 3)
    first = {key: key.ask(500) for key in (light, heavy)}
    heavy.wait_for(first[heavy], COUNTED)  # and so more than that in all
    late = make_key("late", 4)
    third = late.ask(100)
    late.wait_for(third, 40)
    images = [image for key, job in {**first, late: third}.items() for image in key.drawn(job)]
    for key, job in {**first, late: third}.items():
        key.cancel(job)
    images.sort(key=lambda image: image.started)
    light_came, heavy_came, came = (
        next(image.asked for image in images if image.owner == name)
        for name in ("light", "heavy", "late")
    )
    both = max(light_came, heavy_came)
    before = [image for image in images if both < image.started < came][:COUNTED]
    assert len(before) == COUNTED
    assert share(before, "light") == pytest.approx(1 / 4, rel=0.1)
    since = [image for image in images if image.started > came]
    waiting = [image for image in since if image.owner == "late"]
    longest = max(image.ended - image.started for image in images)
    assert waiting[0].started - came <= longest, "it waited for more than one image"
    assert share(since[:64], "late") == pytest.approx(1 / 2, rel=0.1)


def test_one_interactive_image_waits_for_no_more_than_one_image_of_a_bulk_job(
    make_key: Callable[..., Key],
) -> None:
    team = make_key("team")
    bulk = team.ask(500, "bulk")
    team.wait_for(bulk, 20)
    urgent = team.ask(1)
    team.wait_for(urgent, 1)
    team.wait_for(bulk, 20 + 2 * SLOTS * WORKERS)
    [image], others = team.drawn(urgent), team.drawn(bulk)
    team.cancel(bulk)
    longest = max(each.ended - each.started for each in others)
    assert image.started - image.asked <= longest, "it waited for more than the steps of one image"
    # A slot that bulk took after the question was asked would be a slot not given to it: one for
    # each worker may have been claimed already. It then waits for one slot, so for one image.
    jumped = [each for each in others if image.asked < each.started < image.started]
    assert len(jumped) <= SLOTS * WORKERS


def test_bulk_moves_while_interactive_work_never_ends(make_key: Callable[..., Key]) -> None:
    team = make_key("second-team")
    bulk, interactive = team.ask(20, "bulk"), team.ask(300)
    team.wait_for(bulk, 10)
    drawn = len(team.drawn(interactive))
    for job in (bulk, interactive):
        team.cancel(job)
    assert 0 < drawn < 300, "interactive work never ran out"
