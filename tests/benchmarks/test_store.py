import json
import subprocess
import sys

import pytest

from tests.conftest import DEADLINE_S

pytestmark = pytest.mark.processes


def test_the_last_line_is_json_with_what_each_act_costs() -> None:
    command = [sys.executable, "-m", "benchmarks.store", "--waiting", "5,20"]
    command += ["--images", "3", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["us"].keys() == result["images_per_s"].keys() == {"5", "20"}
    for costs in result["us"].values():
        assert costs.keys() == {"submit", "claim and start", "finish", "cancel"}
        assert all(cost > 0 for cost in costs.values())
