"""More work than there is room for, on the real scripts with a clock of the test's own: who comes
back when told is let in. Half a minute of arrivals passes in seconds, the same in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

import pytest
import redis

from store.access import ANYBODY
from store.jobs import JobStore, TooMuch
from store.parts import PartStore
from store.registry import Registry, Speed
from tests.store.conftest import FILES, INFO, QUEUE, Clock, ask, take

Kind = Literal["draw", "arrive", "back"]
RATE = 6.0
ARRIVE_S = 30.0
BACK_S = (0.002, 0.03)
"""How much later than told somebody comes back: the way there and back."""


@dataclass
class Overload:
    """Clients at thrice the capacity and a worker that draws `rate(seconds)` images a second."""

    jobs: JobStore
    parts: PartStore
    registry: Registry
    clock: Clock
    rate: Callable[[float], float]
    obeyed: Counter[bool] = field(default_factory=Counter)
    _chance: random.Random = field(default_factory=lambda: random.Random(1))
    _plans: list[tuple[float, int, Kind]] = field(default_factory=list)
    _away: int = 0

    def run(self) -> float:
        """The share of obeyed waits that led to success, once all who came have been let in."""
        start = self.clock.now
        self._plans = [(start, -1, "draw"), (start, 0, "arrive")]
        while self._plans:
            at, number, kind = heappop(self._plans)
            self.clock.forward(at - self.clock.now)
            busy = self._away > 0 or at < start + ARRIVE_S
            if kind == "draw":
                self._draw(self.rate(at - start))
                if busy:
                    heappush(self._plans, (at + 1 / self.rate(at - start), number, kind))
                continue
            self._ask(number, back=kind == "back")
            if kind == "arrive" and at < start + ARRIVE_S:
                gap = self._chance.expovariate(3 * RATE)
                heappush(self._plans, (at + gap, number + 1, kind))
        return self.obeyed[True] / self.obeyed.total()

    def _draw(self, rate: float) -> None:
        self.registry.publish(INFO, "worker-one", 4, Speed(rate, 1.0))
        for held in take(self.parts):
            assert self.parts.finish(held, FILES, 1.0) is not None

    def _ask(self, number: int, *, back: bool) -> None:
        """Every other one asks by an id of its own, the rest all alike and without one."""
        name = f"{number}" if number % 2 else None
        wait = None
        try:
            self.jobs.submit(ask(), INFO, owner=ANYBODY, job_id=name, digest="one")
        except TooMuch as full:
            wait = full.retry_after + self._chance.uniform(*BACK_S)
            heappush(self._plans, (self.clock.now + wait, number, "back"))
        if back:
            self.obeyed[wait is None] += 1
        self._away += (wait is not None) - back


@pytest.mark.parametrize(
    "rate",
    [lambda _: RATE, lambda seconds: RATE if seconds < ARRIVE_S / 2 else 0.7 * RATE],
    ids=["steady", "slower-half-way"],
)
def test_who_comes_back_when_told_is_let_in(
    client: redis.Redis, clock: Clock, rate: Callable[[float], float]
) -> None:
    client.config_set("appendonly", "no")  # nothing dies here, and there is much to write
    overload = Overload(
        JobStore(client, result_ttl=60, max_waiting=50),
        PartStore(client, QUEUE, "worker-one", result_ttl=60),
        Registry(client),
        clock,
        rate,
    )
    assert overload.run() >= 0.9, overload.obeyed
