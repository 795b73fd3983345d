"""`pathar up` on a disk that gets full: it goes on, and loses nothing that it acknowledged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import Up, wait_until
from tests.system import missing, program

pytestmark = pytest.mark.system

JOB = {"label": "histology", "n": 1, "seed": 7}
SPACE = "48m"


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class SmallDisk:
    """A tmpfs in a mount namespace of its own; processes are started in it through `before`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = ["--user", "--map-root-user", "--mount", "--kill-child"]
        mount = f"mount -t tmpfs -o size={SPACE},mode=755 tmpfs {folder} && echo there && cat"
        self._holder = subprocess.Popen(
            [program("unshare"), *own, "sh", "-c", mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"there\n":
            missing("this user may not mount a file system in a namespace of its own")
        inside = next(iter(children(self._holder.pid)), self._holder.pid)
        self.before = [program("nsenter"), "--target", str(inside), "--user", "--mount"]
        self.before += ["--preserve-credentials"]
        self._inside = Path(f"/proc/{inside}/root") / folder.relative_to("/")

    @property
    def ballast(self) -> Path:
        """A file that takes the rest of the disk."""
        return self._inside / "ballast"

    def path(self, name: str) -> Path:
        """A file on it, as seen from here."""
        return self._inside / name

    def fill(self) -> None:
        """Take all that is left."""
        with self.ballast.open("ab", buffering=0) as file:
            block = b"x" * 65536
            while block:
                try:
                    file.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def close(self) -> None:
        with self._holder:  # which closes its pipes
            self._holder.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "small"
    folder.mkdir()
    made = SmallDisk(folder)
    yield made
    made.close()


class UpOnSmallDisk(Up):
    """`pathar up` whose home is the small disk; what it prints goes there, too."""

    def __init__(self, checkpoint: Path, disk: SmallDisk) -> None:
        self._disk = disk
        super().__init__(checkpoint, home=disk.folder, before=disk.before)

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._disk.path("run.json").read_text())
        return found


def running(up: Up, word: str) -> list[int]:
    """The children of `pathar up` whose command lines have this word."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(up.process.pid)}
    return [pid for pid, line in lines.items() if word.encode() in line.split(b"\0")]


def put(up: Up, name: str) -> int:
    """Ask for a job; the status, 0 where there was no answer."""
    try:
        return up.http.put(f"/jobs/{name}", json=JOB).status_code
    except httpx.HTTPError:
        return 0


def test_a_full_disk_ends_nothing_and_loses_nothing_that_was_acknowledged(
    disk: SmallDisk, test_checkpoint: Path
) -> None:
    up = UpOnSmallDisk(test_checkpoint, disk)
    try:
        up.ready()
        assert put(up, "before") == 201
        up.ended("before")
        disk.fill()
        tried = {f"full-{number}": put(up, f"full-{number}") for number in range(20)}
        assert 503 in tried.values(), "the disk is full"
        refused = up.http.put("/jobs/one-more", json=JOB)
        assert refused.json()["type"] == "urn:pathar:store-disk"
        assert up.http.get("/jobs/before/images/0/image.png").status_code == 200
        (worker,) = running(up, "worker")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: running(up, "worker") not in ([], [worker]), "a new worker")
        assert up.process.poll() is None
        assert up.http.get("/jobs/before").json()["status"] == "finished"
        os.kill(up.pid("redis"), signal.SIGKILL)
        disk.ballast.unlink()
        wait_until(lambda: put(up, "after") in (200, 201), "an answer with room on the disk")
        wait_until(lambda: worker not in up.run()["pids"].values(), "the new worker in run.json")
        acknowledged = [name for name, status in tried.items() if status == 201]
        for name in ["before", *acknowledged, "after"]:
            assert up.ended(name)["status"] == "finished", name
        assert up.stop() == 130
    finally:
        up.close()
