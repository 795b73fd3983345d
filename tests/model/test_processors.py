"""The cores that a process may use, by affinity, control group and OMP_NUM_THREADS."""

import os
from pathlib import Path

import pytest

from model.processors import allowed_cores, default_threads, usable_cores

V1 = "sys/fs/cgroup/cpu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "allowed", "usable"),
    [
        ({}, 8, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 8, 8),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "9900000 100000\n"}, 8, 8),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/y\n",
                f"{V1}/cpu.cfs_quota_us": "300000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3,
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            8,
            8,
        ),
    ],
)
def test_a_control_group_limits_the_cores(
    files: dict[str, str], allowed: float, usable: int, tmp_path: Path
) -> None:
    root = write(tmp_path, files)
    assert allowed_cores(root) == allowed
    assert usable_cores(root) == usable


def test_a_system_without_affinity_or_control_groups_gives_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("asked", "threads"),
    [("", 8), ("2", 2), ("1", 1), ("2,1", 2), (" 3 ", 3), ("64", 8), ("0", 8), ("x", 8), ("²", 8)],
)
def test_omp_num_threads_is_honoured_as_far_as_there_are_cores(
    asked: str, threads: int, tmp_path: Path
) -> None:
    assert default_threads({"OMP_NUM_THREADS": asked}, tmp_path) == threads
    assert default_threads({}, tmp_path) == 8
