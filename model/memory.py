"""Whether the requested slots fit into memory, checked before they are allocated.

Knows bytes and limits, not what is stored in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

RESERVE_BYTES = 256 * 2**20
"""Bytes left free beside the slots: packed weights, one image's pixels, files, Python's own.
Measured at 40 to 100 MB (`benchmarks.memory`)."""


class Memory(NamedTuple):
    """Bytes of a device that may still be taken, and all there are."""

    free: int
    total: int


class SlotsError(ValueError):
    """More slots than fit into memory. `expected` names how many would, and why."""

    def __init__(self, slots: int, expected: str) -> None:
        self.expected = expected
        super().__init__(f"slots: got {slots}, expected {expected}")


def check_slots(slots: int, bytes_per_slot: int, free: int | None) -> None:
    """SlotsError when the slots do not fit into `free` bytes; None is unknown, so no check."""
    need = slots * bytes_per_slot + RESERVE_BYTES
    if free is not None and need > free:
        fit = max(0, (free - RESERVE_BYTES) // bytes_per_slot)
        raise SlotsError(
            slots,
            f"as many as fit, {fit}: {slots} need {need / 1e9:.2f} GB of memory "
            f"and {free / 1e9:.2f} GB are free",
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where nothing tells."""
    told = memory(device)
    return told.free if told else None


def memory(device: torch.device) -> Memory | None:
    """A device's memory; None where nothing tells."""
    if device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(device))
    return main_memory()


def main_memory(root: Path = Path("/")) -> Memory | None:
    """The machine's or, where less of it is free, that of one of the process's control groups.

    `root` is where `/proc` and `/sys` are.
    """
    return min((*_of_machine(root / "proc/meminfo"), *_of_groups(root)), default=None)


def _of_machine(path: Path) -> Iterator[Memory]:
    """MemAvailable counts caches that the kernel would give up."""
    rows = dict(line.split(":", 1) for line in _lines(path))
    if {"MemAvailable", "MemTotal"} <= set(rows):
        free, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
        yield Memory(free, total)


def _of_groups(root: Path) -> Iterator[Memory]:
    """What each control group above this process has and leaves, in version 2 and version 1.

    A container may not see its own group's path, but then its root is that group.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        for inner in (group, *group.parents):
            yield from _left(root / base / inner, *names)


def _left(group: Path, limit: str, usage: str, cached: str) -> Iterator[Memory]:
    """The limit less what is used, file caches that the kernel would give up not counted."""
    words = [line.split() for name in (limit, usage) for line in _lines(group / name)]
    if len(words) == 2 and all(word[0].isdigit() for word in words):
        counts = dict(line.split() for line in _lines(group / "memory.stat"))
        total, used = int(words[0][0]), int(words[1][0]) - int(counts.get(cached, 0))
        yield Memory(total - used, total)


def _lines(path: Path) -> list[str]:
    """A small file's lines; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
