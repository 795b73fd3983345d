from __future__ import annotations

import pytest

from worker.pace import MEMORY_S, Pace


def test_nothing_is_said_before_the_first_image() -> None:
    pace = Pace()
    assert pace.speed() is None
    pace.busy(3.0)
    assert pace.speed() is None


def test_a_steady_worker_measures_its_rate_and_its_latency() -> None:
    pace = Pace()
    for _ in range(500):
        pace.busy(0.25)
        pace.image(2.0)
    speed = pace.speed()
    assert speed is not None
    assert speed.images_per_s == pytest.approx(4.0, rel=0.05)
    assert speed.image_s == pytest.approx(2.0, rel=0.01)


def test_the_past_fades() -> None:
    pace = Pace()
    for _ in range(100):
        pace.busy(0.1)
        pace.image(1.0)
    for _ in range(int(5 * MEMORY_S)):
        pace.busy(1.0)
        pace.image(8.0)
    speed = pace.speed()
    assert speed is not None
    assert speed.images_per_s == pytest.approx(1.0, rel=0.1)
    assert speed.image_s == pytest.approx(8.0, rel=0.1)
