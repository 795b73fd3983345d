"""`pathar pull` while all is killed: every pair once, and the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S
from tests.pathar.test_cli import called
from tests.running import Up, alive, wait_until

pytestmark = pytest.mark.processes

COUNTS = {"histology": 201, "blood": 101, "cervix": 10}
PAIRS = sum(COUNTS.values())
WORDS = (
    *("pull", *(f"{label}={count}" for label, count in COUNTS.items())),
    *("--seed", "7", "--shard-size", "80"),
)
JOBS = 6
"""Three, two and one: a job has up to 100 pairs."""
KILLED = ("worker", "puller", "service", "worker", "puller")


class Puller:
    """A `pathar pull` that runs, and runs again where it was killed."""

    def __init__(self, up: Up, out: Path) -> None:
        self._up, self._out = up, out
        self._log = out.with_suffix(".log")
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-W", "error", "-m", "pathar", *WORDS, "--out", str(self._out)]
        with self._log.open("a") as log:
            env = {**self._up.env, "PATHAR_URL": self._up.run()["url"]}
            self.process = subprocess.Popen(command, env=env, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._start()

    def safe(self) -> set[str]:
        """What is whole on disk now."""
        assert self.process.poll() in (None, 0), self._log.read_text()
        names = {path.name for path in self._out.rglob("*") if path.name != "writing"}
        return {name for name in names if name.endswith(("zip", "tar", "manifest.json"))}

    def ended(self) -> int:
        code = self.process.wait(DEADLINE_S)
        assert code == 0, self._log.read_text()
        return code


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_whatever_is_killed_the_pairs_are_those_of_an_undisturbed_run(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    up = Up(test_checkpoint, PATHAR_SLOTS="4")
    try:
        up.ready()
        puller = Puller(up, tmp_path / "killed")
        for what in KILLED:
            before = puller.safe()
            wait_until(lambda before=before: puller.safe() - before, "another job")
            if what == "puller":
                puller.kill()
            else:
                wait_until(lambda what=what: alive(up.pid(what)), f"a {what}")
                os.kill(up.pid(what), signal.SIGKILL)
        puller.ended()
        listed = up.http.get("/jobs").json()["jobs"]
        assert [job["status"] for job in listed] == ["finished"] * JOBS, "none was drawn twice"
        assert sum(job["settings"]["n"] for job in listed) == PAIRS
        for job in listed:
            assert up.http.get(f"/jobs/{job['job_id']}/images/0/image.png").status_code == 404
    finally:
        up.close()
    alone = tmp_path / "alone"
    done = called(*WORDS, "--out", str(alone), checkpoint=test_checkpoint)
    assert done.returncode == 0, done.stderr
    killed = contents(tmp_path / "killed")
    assert killed == contents(alone)
    manifest = json.loads(killed["manifest.json"])
    tokens = []
    for shard in manifest["shards"]:
        for facts in shard["files"]:
            content = killed[facts["path"]]
            assert hashlib.sha256(content).hexdigest() == facts["sha256"]
            with tarfile.open(tmp_path / "killed" / facts["path"]) as archive:
                members = [m for m in archive if m.name.endswith(".tokens.json")]
                tokens += [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert len(tokens) == len(set(tokens)) == manifest["pairs"] == PAIRS
