"""Whatever happens in whatever order: every job ends, and every image is drawn once.

PATHAR_TEST_EXAMPLES sets how many random histories there are, other ones each time; without it
there are a few, the same in every run. `make fuzz` asks for 1,000.
"""

from __future__ import annotations

import os

import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.store.conftest import Clock
from tests.store.histories import Histories

EXAMPLES = os.environ.get("PATHAR_TEST_EXAMPLES")


def test_in_any_history_every_job_ends_and_every_image_is_drawn_once(
    client: redis.Redis, clock: Clock
) -> None:
    client.config_set("appendonly", "no")  # nothing dies here, and there is much to write
    run_state_machine_as_test(
        lambda: Histories(client, clock),
        settings=settings(
            max_examples=int(EXAMPLES or 50),
            stateful_step_count=40,
            derandomize=EXAMPLES is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
