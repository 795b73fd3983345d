from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S
from tests.system import missing, program, root


@pytest.mark.system
def test_two_hosts_are_measured_beside_two_bare_processes(test_checkpoint: Path) -> None:
    root()
    program("ip")
    command = [sys.executable, "-m", "benchmarks.hosts", "--checkpoint", str(test_checkpoint)]
    command += ["--slots", "2", "--images", "8", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    if "network namespaces cannot be made" in done.stderr:
        missing(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["images_per_s"] > 0
    assert result["engine_share"] == result["images_per_s"] / result["engine_images_per_s"]
