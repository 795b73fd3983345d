"""The share of time in which a worker's device has work: a GPU's driver or the kernel tells."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import torch

WINDOW_S = 1.0
"""Scrapes that follow each other faster than this share one beginning."""


def use_of(device: torch.device) -> Callable[[], float]:
    """A function that returns the share, 0 to 1, of the last moment; it raises where nothing tells.

    The driver is asked through nvidia-ml-py.
    """
    if device.type == "cuda":
        return lambda: torch.cuda.utilization(device) / 100
    return Cores(Path("/proc/stat")).use


class Cores:
    """The share of their time that the machine's cores had work, between one question and the next.

    Where the kernel tells nothing (no Linux), asking raises OSError.
    """

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self._lock = Lock()  # each scrape has a thread of its own
        self._window = WINDOW_S * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        self._before = self._read() if stat.exists() else (0, 0)

    def use(self) -> float:
        """0 to 1, since a question at least a second ago or, at first, since the start."""
        with self._lock:
            idle, total = self._read()
            idle_before, total_before = self._before
            passed = total - total_before
            if passed >= self._window:
                self._before = idle, total
        return 1 - (idle - idle_before) / passed if passed > 0 else 0.0

    def _read(self) -> tuple[int, int]:
        """Ticks that all cores together idled, and ticks in all, since boot.

        The columns after `cpu` are user, nice, system, idle, iowait, irq, softirq, steal; guests'
        come after them and are in user already.
        """
        with self._stat.open() as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
