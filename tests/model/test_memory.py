"""How much is free, how much the slots need, and that they take what was said, at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model import engine as engine_module
from model import native_decoder, torch_decoder
from model.checkpoint import Checkpoint
from model.engine import Engine, Kernel
from model.memory import RESERVE_BYTES, Memory, SlotsError, check_slots, main_memory

GIB = 2**30
BYTES_PER_SLOT = {
    "torch": torch_decoder.bytes_per_slot,
    "native": native_decoder.bytes_per_slot,
}
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
both_decoders = pytest.mark.parametrize("kernel", BYTES_PER_SLOT, indirect=True)


def test_slots_that_fit_are_taken_and_one_more_is_refused() -> None:
    check_slots(10, 1000, RESERVE_BYTES + 10_000)
    with pytest.raises(SlotsError, match="slots: got 11, expected as many as fit, 10"):
        check_slots(11, 1000, RESERVE_BYTES + 10_000)


def test_the_refusal_says_what_is_needed_and_what_is_free() -> None:
    with pytest.raises(SlotsError) as caught:
        check_slots(4096, 17_000_000, 3_000_000_000)
    assert caught.value.expected == (
        "as many as fit, 160: 4096 need 69.90 GB of memory and 3.00 GB are free"
    )


def test_when_not_even_one_fits_none_is_offered() -> None:
    with pytest.raises(SlotsError, match="as many as fit, 0: 1 need"):
        check_slots(1, 1000, RESERVE_BYTES // 2)


def test_nothing_is_refused_where_nothing_tells_what_is_free(tmp_path: Path) -> None:
    assert main_memory(tmp_path) is None
    check_slots(4096, 2**40, None)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000000 kB\nMemFree: 7 kB\nMemAvailable: 8388608 kB\n"}
OF_MACHINE = Memory(8 * GIB, 9_000_000 * 1024)
STAT = "anon 1\ninactive_file 1073741824\ntotal_inactive_file 1073741824\n"


def group_v2(path: str, limit: str) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{path}"
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{2 * GIB}\n",
        f"{folder}memory.stat": STAT,
    }


def test_without_a_limit_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert main_memory(write(tmp_path, MACHINE)) == OF_MACHINE
    files = {"proc/self/cgroup": "0::/a/b\n", **group_v2("a/b/", "max")}
    assert main_memory(write(tmp_path, files)) == OF_MACHINE


@pytest.mark.parametrize("path", ["a/b/", "a/", ""])
def test_a_limit_of_version_2_on_any_level_counts_and_file_caches_do_not(
    path: str, tmp_path: Path
) -> None:
    files = {**MACHINE, "proc/self/cgroup": "0::/a/b\n", **group_v2(path, str(4 * GIB))}
    assert main_memory(write(tmp_path, files)) == Memory(3 * GIB, 4 * GIB)


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    files = {
        **MACHINE,
        "proc/self/cgroup": "5:cpu,memory:/not/seen/in/here\n0::/\n",
        f"{folder}/memory.limit_in_bytes": f"{5 * GIB}\n",
        f"{folder}/memory.usage_in_bytes": f"{2 * GIB}\n",
        f"{folder}/memory.stat": STAT,
    }
    assert main_memory(write(tmp_path, files)) == Memory(4 * GIB, 5 * GIB)


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path: Path) -> None:
    files = {**MACHINE, "proc/self/cgroup": "0::/\n", **group_v2("", str(2**63 - 4096))}
    assert main_memory(write(tmp_path, files)) == OF_MACHINE


@only_linux
def test_this_machine_tells() -> None:
    told = main_memory()
    assert told is not None
    assert 0 < told.free < told.total < 2**60


@both_decoders
def test_an_engine_refuses_slots_that_do_not_fit_before_it_takes_them(
    checkpoint: Checkpoint,
    kernel: Kernel,
    make_engine: Callable[[int], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = RESERVE_BYTES + 5 * BYTES_PER_SLOT[kernel](checkpoint.prior)
    monkeypatch.setattr(engine_module, "free_memory", lambda device: free)
    assert make_engine(5).slots == 5
    with pytest.raises(SlotsError, match="got 6, expected as many as fit, 5"):
        make_engine(6)


MEASURE = """
import re, sys
from pathlib import Path
from model.checkpoint import load_checkpoint
from model.engine import Engine

def resident():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmRSS:\\s+(\\d+) kB$", status, re.M)[1]) * 1024

checkpoint, (kernel, slots) = load_checkpoint(Path(sys.argv[1])), sys.argv[2:]
Engine(checkpoint, device="cpu", slots=1, threads=1, kernel=kernel)
before = resident()
engine = Engine(checkpoint, device="cpu", slots=int(slots), threads=1, kernel=kernel)
print(resident() - before)
"""


@only_linux
@both_decoders
@pytest.mark.processes
def test_the_slots_take_what_was_said_and_take_it_at_start(
    test_checkpoint: Path, checkpoint: Checkpoint, kernel: Kernel
) -> None:
    # In a process of its own: in this one, memory that other tests have freed would be used again.
    command = [sys.executable, "-c", MEASURE, str(test_checkpoint), kernel, "2000"]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    said = 2000 * BYTES_PER_SLOT[kernel](checkpoint.prior)
    assert 0.8 * said < taken < 1.2 * said
