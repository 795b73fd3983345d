"""Utilization of a worker's device, as the GPU driver or the kernel reports it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import torch

WINDOW_S = 1.0
"""The shortest interval to measure over. Scrapes that come faster share its start."""


def use_of(device: torch.device) -> Callable[[], float]:
    """A function that returns the device's recent utilization, 0 to 1. It raises where neither
    driver nor kernel reports one.

    The GPU driver is read through nvidia-ml-py.
    """
    if device.type == "cuda":
        return lambda: torch.cuda.utilization(device) / 100
    return Cores(Path("/proc/stat")).use


class Cores:
    """Utilization of the machine's cores between two calls of `use`.

    `use` raises OSError where `stat` (/proc/stat) does not exist: on systems other than Linux.
    """

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self._lock = Lock()  # each scrape runs in its own thread
        self._window = WINDOW_S * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        self._before = self._read() if stat.exists() else (0, 0)

    def use(self) -> float:
        """Utilization, 0 to 1, since a call at least WINDOW_S ago; at first, since the start."""
        with self._lock:
            idle, total = self._read()
            idle_before, total_before = self._before
            passed = total - total_before
            if passed >= self._window:
                self._before = idle, total
        return 1 - (idle - idle_before) / passed if passed > 0 else 0.0

    def _read(self) -> tuple[int, int]:
        """Idle ticks and all ticks since boot, summed over all cores.

        The columns after `cpu` are user, nice, system, idle, iowait, irq, softirq, steal. The guest
        columns after them are already part of user.
        """
        with self._stat.open() as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
