"""Starts `pathar up` as a child process, on a free port and with a home folder of its own.

The demo and the benchmarks use it. Knows nothing of what they ask.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pathar.client import Client
from pathar.errors import CommandError
from pathar.processes import ProcessPlan, start, stop
from pathar.run_file import read_run

START_S = 600.0
STOP_S = 60.0
TICK_S = 0.2


@contextmanager
def local_service(settings: Mapping[str, str]) -> Iterator[str]:
    """The URL of a service that runs while the context lasts; see `local_run`."""
    with local_run(settings) as run:
        yield run["url"]


@contextmanager
def local_run(settings: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The content of `run.json` of a service that runs while the context lasts, and its `home`.

    `settings` are PATHAR_ variables beside those of this process. CommandError when it does not
    start.
    """
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        home = Path(folder)
        env = {"PATHAR_HOME": folder, "PATHAR_HOST": "127.0.0.1", "PATHAR_PORT": "0"}
        command = [sys.executable, "-P", "-m", "pathar", "up"]
        plan = ProcessPlan("service", command, {**os.environ, **settings, **env}, home / "up.log")
        with plan.log.open("wb") as output:
            process = start(plan, output)
        try:
            yield {**_wait_until_ready(process, plan), "home": folder}
        finally:
            stop([process], STOP_S, lambda: False)


def _wait_until_ready(process: subprocess.Popen[bytes], plan: ProcessPlan) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = plan.log.read_text(errors="replace").strip().splitlines()
            raise CommandError(f"the service did not start: {' | '.join(lines[-3:])}")
        if run := read_run(plan.log.parent):
            with Client(run["url"]) as client:
                if client.ready():
                    return run
        time.sleep(TICK_S)
    raise CommandError(f"the service was not ready within {START_S:g} s")
