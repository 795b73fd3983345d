"""`pathar top`: figures from real metrics, and what it says when nobody answers."""

from __future__ import annotations

import math
import re

import pytest

from pathar.readings import Reading, quantile, rate
from tests.pathar.test_cli import called, pathar
from tests.running import Up

pytestmark = pytest.mark.processes


def reading(at: float, counts: dict[float, float], total: float = 0.0) -> Reading:
    buckets = {
        frozenset({"le": str(bound), "stage": "png"}.items()): n for bound, n in counts.items()
    }
    totals = {frozenset({"status": "finished"}.items()): total}
    return Reading(at, {"t_seconds_bucket": buckets, "t_images_total": totals})


NOTHING = reading(0, {0.1: 0, 0.2: 0, 0.4: 0, math.inf: 0})


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, {0.1: 0, 0.2: 10, 0.4: 10, math.inf: 10}, 0.15),
        (0.5, {0.1: 4, 0.2: 4, 0.4: 8, math.inf: 8}, 0.1),
        (0.75, {0.1: 4, 0.2: 4, 0.4: 8, math.inf: 8}, 0.3),
        (0.99, {0.1: 0, 0.2: 0, 0.4: 0, math.inf: 5}, 0.4),
    ],
)
def test_quantiles_lie_between_bounds_as_prometheus_has_them(
    share: float, counts: dict[float, float], expected: float
) -> None:
    found = quantile(share, reading(1, counts), NOTHING, "t_seconds", stage="png")
    assert found == pytest.approx(expected)


def test_a_quantile_is_of_lately_and_else_of_all_there_ever_was() -> None:
    before = reading(1, {0.1: 100, 0.2: 100, 0.4: 100, math.inf: 100})
    after = reading(2, {0.1: 100, 0.2: 100, 0.4: 110, math.inf: 110})
    assert quantile(0.5, after, before, "t_seconds") == pytest.approx(0.3)
    assert quantile(0.5, before, before, "t_seconds") == pytest.approx(0.05)
    assert quantile(0.5, NOTHING, NOTHING, "t_seconds") is None


def test_a_rate_is_growth_over_time_and_never_negative() -> None:
    before, after = reading(1, {}, total=10), reading(5, {}, total=18)
    assert rate(after, before, "t_images_total", status="finished") == 2
    assert rate(before, after, "t_images_total") == 0


def test_what_every_api_process_tells_alike_counts_once() -> None:
    samples = {
        frozenset({"instance": url, "model": "small", "priority": p}.items()): count
        for url, counts in (("a", (3, 5)), ("b", (3, 4)), ("late", (0, 0)))
        for p, count in zip(("interactive", "bulk"), counts, strict=True)
    }
    now = Reading(1, {"pathar_queue_images": samples})
    assert now.largest("pathar_queue_images", model="small") == 8
    assert now.largest("pathar_queue_images", priority="bulk") == 5
    assert now.largest("pathar_queue_images", model="other") == 0
    assert now.largest("pathar_started_images") == 0


def test_a_second_api_process_changes_no_figure(stack: Up) -> None:
    run = stack.run()
    words = ("top", "--once", run["url"], run["url"].replace("127.0.0.1", "localhost"))
    shown = called(*words, *run["metrics"], COLUMNS="120")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"test-random\D+4\D+0\D+0\D+0", shown.stdout), "slots, drawing, waiting"


def test_one_look_at_a_running_service(stack: Up) -> None:
    stack.http.post("/generate", json={"label": "blood", "n": 3}).raise_for_status()
    shown = pathar("top", "--once", PATHAR_HOME=str(stack.home), COLUMNS="120")
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    assert "Redis up" in text
    assert re.search(r"test-random\D+4\D+0\D+0\D+0", text), "slots, drawing, waiting"
    for word in ("decode", "vq_decode", "half within", "rows a step", "127.0.0.1"):
        assert word in text
    assert re.search(r"half within.*\d (ms|s)", text)


def test_nobody_there_is_one_line_and_code_1() -> None:
    done = called("top", "--once", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("pathar: http://127.0.0.1:9/metrics: no answer")


@pytest.mark.parametrize("words", [["ftp://x"], []])
def test_a_wrong_place_is_said_with_code_2(words: list[str]) -> None:
    done = called("top", "--once", *words, PATHAR_HOME="/nowhere")
    assert done.returncode == 2
    assert "http://" in done.stderr
