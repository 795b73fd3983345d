"""`pathar up` as tests run it: real processes in a home of their own, on a free port."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pathar.contract import FILE_NAMES
from tests.conftest import DEADLINE_S

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}


def wait_until(true: Callable[[], object], what: str = "it") -> None:
    """Asks often at first, and then less, as questions cost the processes that are waited for."""
    begin = time.monotonic()
    while not true():
        waited = time.monotonic() - begin
        assert waited < DEADLINE_S, f"{what} did not happen"
        time.sleep(min(0.01 + waited / 20, 0.05))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def environment(checkpoint: Path, **settings: str) -> dict[str, str]:
    """Settings for processes whose bits equal those of a local engine on one thread."""
    fixed = {"PATHAR_CHECKPOINT": str(checkpoint), "PATHAR_DEVICE": "cpu", "PATHAR_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PATHAR_")}
    return {**kept, **fixed, **settings}


def painted(side: int) -> np.ndarray:
    """A mask of three nuclei, [side, side] of 0 and 255."""
    rows, columns = np.mgrid[:side, :side] * 64 / side
    nuclei = [(20, 15, 9), (40, 40, 12), (12, 50, 6)]
    inside = [(rows - y) ** 2 + (columns - x) ** 2 < r * r for y, x, r in nuclei]
    return np.any(inside, axis=0) * np.uint8(255)


def png_text(mask: np.ndarray) -> str:
    """A mask as the API takes it: a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Up:
    """A running `pathar up` with a home of its own on a free port.

    It serves `checkpoint`, by the setting; with `words`, whatever they ask for. It is started in
    `folder`, as the installed command would be, by `before` where that sets something up.
    """

    def __init__(
        self,
        checkpoint: Path,
        *words: str,
        folder: Path | None = None,
        home: Path | None = None,
        before: Sequence[str] = (),
        **settings: str,
    ) -> None:
        self.home = home or Path(tempfile.mkdtemp(prefix="pathar-"))
        self.home.chmod(0o755)  # as somebody made it who did not think of others
        settings = {"PATHAR_HOME": str(self.home), "PATHAR_PORT": "0", **settings}
        self.env = environment(checkpoint, **settings)
        self._log = self.home / "up.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-P", "-W", "error", "-m", "pathar", "up", *words],
                env=self.env,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> Up:
        wait_until(lambda: "ready at" in self.log() or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.log()
        self.http = httpx.Client(base_url=self.run()["url"], timeout=DEADLINE_S)
        return self

    def log(self) -> str:
        return self._log.read_text()

    def run(self) -> dict[str, Any]:
        """What run.json says now."""
        run: dict[str, Any] = json.loads((self.home / "run.json").read_text())
        return run

    def pid(self, name: str) -> int:
        pid: int = self.run()["pids"][name]
        return pid

    def kill_child(self, name: str) -> None:
        """kill -9 a child and wait until it has been started again and all is well."""
        old = self.pid(name)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: self.pid(name) != old, f"a new {name}")
        wait_until(self.serves, "readiness")

    def serves(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        job: dict[str, Any] = {}

        def has_ended() -> bool:
            job.update(self.http.get(f"/jobs/{job_id}").raise_for_status().json())
            return job["status"] in ("finished", "failed", "canceled")

        wait_until(has_ended, f"the end of job {job_id}")
        return job

    def files(self, job_id: str, index: int) -> dict[str, bytes]:
        """The files of one image, by name."""
        base = f"/jobs/{job_id}/images/{index}"
        return {
            name: self.http.get(f"{base}/{name}").raise_for_status().content for name in FILE_NAMES
        }

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if hasattr(self, "http"):
            self.http.close()
        shutil.rmtree(self.home, ignore_errors=True)
