"""One client in several processes: each has connections of its own, whichever way it got there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pathar import Client
from tests.running import Up


@pytest.mark.parametrize("how", ["DataLoader", "fork", "spawn", "stream"])
def test_no_process_gets_the_answer_to_anothers_question(how: str, stack: Up) -> None:
    url = stack.run()["url"]
    job_ids = [f"read-{at}" for at in range(5)]
    with Client(url) as client:
        for seed, job_id in enumerate(job_ids):
            client.submit("blood", job_id=job_id, seed=seed)
        for job_id in job_ids:
            stack.ended(job_id)
    words = [sys.executable, "-m", "tests.pathar.reading_jobs", how, url, *job_ids]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
