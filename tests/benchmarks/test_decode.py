import json
import subprocess
import sys

import pytest

from model.native_decoder import libraries
from tests.conftest import DEADLINE_S

pytestmark = pytest.mark.processes


@pytest.mark.skipif(not libraries(), reason="the compiled decode step is not built")
def test_the_last_line_is_json_with_what_scripts_rely_on() -> None:
    command = [sys.executable, "-m", "benchmarks.decode", "--size", "test", "--batches", "1,2"]
    command += ["--rounds", "1", "--threads", "1", "--variants", "engine,sequential,portable,vllm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["size"] == "test"
    assert result["threads"] == 1
    for variant in ("engine", "sequential", "portable"):
        assert result["s_per_image"][variant].keys() == {"1", "2"}
        assert all(value > 0 for value in result["s_per_image"][variant].values())
    assert "vllm" in result["s_per_image"] or "vllm is left out: " in done.stdout
