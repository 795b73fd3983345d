"""What workers measure: quantiles that can be read, a bounded number of series, the device."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar, get_args

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from model.memory import Memory
from pathar.contract import PRIORITIES
from pathar.readings import Reading, quantile
from service.metrics import SECONDS as OF_HTTP
from service.metrics import ApiMetrics
from store.statistics import ENDINGS, Statistics, Use
from tests.test_packaging import ROOT
from worker.metrics import SECONDS, Outcome, PartKind, Stage, WorkerMetrics

T = TypeVar("T")
BLOOD = PartKind("blood", "interactive")
NORMAL = {0.5: 0.0, 0.9: 1.2816, 0.99: 2.3263}
"""Quantiles of the normal distribution."""


def reading(metrics: WorkerMetrics) -> Reading:
    text = generate_latest(metrics.registry).decode()
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            samples.setdefault(sample.name, {})[labels] = sample.value
    return Reading(time.monotonic(), samples)


def estimated(share: float, seconds: list[float]) -> float:
    metrics = WorkerMetrics("m", {})
    nothing = reading(metrics)
    for each in seconds:
        metrics.seconds("total", BLOOD, each)
    found = quantile(share, reading(metrics), nothing, "pathar_image_seconds", stage="total")
    assert found is not None
    return found


@pytest.mark.parametrize("bounds", [SECONDS, OF_HTTP])
def test_bounds_stand_about_one_and_a_half_apart(bounds: tuple[float, ...]) -> None:
    assert bounds[0] == 0.001
    assert all(1.4 < b / a < 1.51 for a, b in pairwise(bounds))
    assert {0.01, 0.1, 1.0, 10.0, 100.0} <= set(bounds)


@pytest.mark.parametrize("median", [0.0017, 0.004, 0.05, 0.17, 0.9, 7.0, 40.0, 200.0])
@pytest.mark.parametrize("spread", [0.25, 0.6])
def test_quantiles_are_near_the_truth_from_a_millisecond_to_minutes(
    median: float, spread: float
) -> None:
    """Of times as machines take them: log-normal, the 99th percentile 1.8 or 4 times the median."""
    drawn = random.Random(7)
    seconds = [drawn.lognormvariate(math.log(median), spread) for _ in range(4000)]
    for share, z in NORMAL.items():
        truth = median * math.exp(z * spread)
        if truth < SECONDS[-1]:
            assert estimated(share, seconds) == pytest.approx(truth, rel=0.25), share


def test_a_median_of_times_all_alike_is_a_quarter_off_at_most() -> None:
    drawn = random.Random(7)
    for _ in range(40):
        seconds = 10 ** drawn.uniform(-3, 3)
        assert estimated(0.5, [seconds] * 100) == pytest.approx(seconds, rel=0.26)


def series(metrics: WorkerMetrics | ApiMetrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


def test_the_document_says_how_many_series_there_are() -> None:
    document = (ROOT / "docs" / "operate.md").read_text()
    [line] = re.findall(r"\*\*The number of series\*\*.*", document)
    metrics = WorkerMetrics("m", {"version": "1"})
    metrics.device(lambda: Memory(1, 2), lambda: 0.5)
    metrics.slots(1, 2)
    besides = series(metrics)
    for number in range(5):
        for priority in PRIORITIES:
            kind = PartKind(str(number), priority)
            for stage in get_args(Stage):
                metrics.seconds(stage, kind, 1.0)
            for outcome in get_args(Outcome):
                metrics.image(outcome, kind)
    assert f"at most {(series(metrics) - besides) // 5} for each label" in line
    assert f"{series(metrics):,} in all for the 5 labels" in line
    assert f"{len(ENDINGS) * len(PRIORITIES)} for each label of each model" in line
    used: list[Use] = []
    api = ApiMetrics(
        "1",
        lambda: Statistics((), {}, {}, (), tuple(used)),
        lambda: (0, 0),
        lambda: {"full": False},
    )
    empty = series(api)
    used.append(Use("ann", dict.fromkeys(PRIORITIES, 1), 1))
    api.accepted("ann", 1)
    none = series(api)
    assert f"{none - empty} for each key" in line
    api.observe("/healthz", "GET", 200, 0.001)
    one = series(api)
    api.observe("/healthz", "GET", 503, 0.001)
    status = series(api) - one
    assert f"{one - none - status} for each route in use" in line
    assert f"{status} more for each method and status" in line


def test_the_first_image_that_is_lost_is_an_increase() -> None:
    metrics = WorkerMetrics("m", {})
    metrics.expect(["blood"])
    before = reading(metrics).samples["pathar_images_total"]
    metrics.image("lost", BLOOD)
    after = reading(metrics).samples["pathar_images_total"]
    assert len(before) == len(get_args(Outcome)) * len(PRIORITIES)
    assert set(before.values()) == {0}
    [lost] = [labels for labels in after if after[labels] > before[labels]]
    assert {("status", "lost"), ("label", "blood")} <= lost


def shown(metrics: WorkerMetrics) -> set[str]:
    return {name for name in reading(metrics).samples if name.startswith("pathar_device")}


def test_a_device_is_told_of_as_long_as_it_answers() -> None:
    metrics = WorkerMetrics("m", {})
    assert shown(metrics) == set()
    there = True

    def read(value: T) -> Callable[[], T]:
        def now() -> T:
            if not there:
                raise RuntimeError("the GPU has fallen off the bus")
            return value

        return now

    metrics.device(read(Memory(30, 100)), read(0.7))
    found = reading(metrics)
    assert found.sum("pathar_device_memory_bytes", state="free", model="m") == 30
    assert found.sum("pathar_device_memory_bytes", state="used", model="m") == 70
    assert found.sum("pathar_device_use_ratio", model="m") == 0.7
    there = False
    assert shown(metrics) == set()
    assert reading(metrics).values("pathar_steps_total", "model") == ["m"], "and all else is"


def test_without_nvidias_library_memory_is_told_and_use_is_not() -> None:
    def missing() -> float:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    metrics = WorkerMetrics("m", {})
    metrics.device(lambda: Memory(30, 100), missing)
    assert shown(metrics) == {"pathar_device_memory_bytes"}
