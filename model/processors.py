"""How many of the machine's cores this process may use. Standard library alone, on any system.

A worker's bits can depend on the count (`Engine.facts`). So it must not vary while the
machine and its limits stay the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

OMP_NUM_THREADS = "OMP_NUM_THREADS"


def allowed_cores(root: Path = Path("/")) -> float:
    """The cores that affinity and control groups allow; a control group can allow half a core.

    `root` is where `/proc` and `/sys` are. A system without either is taken to allow all its cores.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # neither macOS nor Windows has one
    seen = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min([seen, *_quotas(root)])


def usable_cores(root: Path = Path("/")) -> int:
    """The whole cores of `allowed_cores`, at least 1."""
    return max(1, int(allowed_cores(root)))


def default_threads(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """The threads that offline work takes unless told: `usable_cores`, or OMP_NUM_THREADS where
    that is fewer. OpenMP allows a list by nesting level, of which the first counts."""
    first = env.get(OMP_NUM_THREADS, "").partition(",")[0].strip()
    asked = int(first) if first.isascii() and first.isdigit() else 0
    return min(asked or usable_cores(root), usable_cores(root))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group above this process allows, in version 2 and version 1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for inner in (group, *group.parents):
            if not controllers:
                words = [w for each in _lines(root / "sys/fs/cgroup" / inner / "cpu.max")
                         for w in each.split()]  # fmt: skip
            elif "cpu" in controllers.split(","):
                base = root / "sys/fs/cgroup/cpu" / inner
                words = [*_lines(base / "cpu.cfs_quota_us"), *_lines(base / "cpu.cfs_period_us")]
            else:
                continue
            if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
                yield int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
