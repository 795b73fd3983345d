from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import identity
from benchmarks.identity import Hashes, Setup, draw_after_restart, report
from tests.conftest import DEADLINE_S

pytestmark = pytest.mark.processes

NOT_NEEDED = ("redis", "rq", "fastapi", "httpx", "pydantic", "prometheus_client", "transformers")
"""What a machine with a GPU need not have."""


def test_it_ends_with_code_0_and_a_line_of_json_without_what_only_a_server_needs() -> None:
    words = ["--size", "test", "--requests", "4", "--slots", "2", "--threads", "1"]
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))
sys.argv[1:] = {words!r}
runpy.run_module("benchmarks.identity", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["identical"] is True
    assert (result["size"], result["requests"], result["threads"]) == ("test", 4, 1)
    names = {"alone", "2 slots", "2 slots, random order", "2 slots, restarted"}
    assert result["replays"].keys() == names
    assert all(row["differing"] == 0 for row in result["replays"].values())


def test_a_difference_ends_it_with_code_1_and_is_shown(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(setup: Setup, requests: int, slots: int) -> list[Hashes]:
        drawn = draw_after_restart(setup, requests, slots)
        return [{**drawn[0], "mask.png": "another"}, *drawn[1:]]

    monkeypatch.setattr(identity, "draw_after_restart", spoilt)
    setup = Setup(test_checkpoint, "cpu", threads=1, kernel="auto")
    assert report(setup, "test", 3, [2]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["identical"] is False
    differing = {name: row["differing"] for name, row in result["replays"].items()}
    assert differing.pop("2 slots, restarted") == 1
    assert set(differing.values()) == {0}
