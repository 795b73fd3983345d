"""Starts, restarts and stops child processes. They end with their parent.

Knows nothing of what the children do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_S = 0.05
FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
STEADY_S = 30.0
"""A child that lived this long is started again at the first backoff when it dies."""
LOG_BYTES = 16 * 2**20
"""A larger log is set aside when its child starts, in place of the one set aside before."""


@dataclass(frozen=True)
class ProcessPlan:
    """One child: its name, command, environment, and the file that its output is added to."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    log: Path


def start(plan: ProcessPlan) -> subprocess.Popen[bytes]:
    """Start a child.

    Ctrl-C in the terminal reaches only the parent, since the child has its own session. On Linux
    the kernel kills the child when the parent dies, in whatever way.
    """
    with plan.log.open("ab") as output:
        return subprocess.Popen(
            plan.command,
            env=dict(plan.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )


def stop(
    processes: Sequence[subprocess.Popen[bytes]], seconds: float, hurry: Callable[[], bool]
) -> None:
    """Ask all children to end. After `seconds`, or when `hurry()` is true, kill those that still
    run, with their own children.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or hurry():
            break
        time.sleep(POLL_S)
    for process in processes:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and its own children. Does nothing when it has ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Child:
    """A child that is restarted when it dies, with a growing back-off."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        log = self.plan.log
        self._log_from = log.stat().st_size if log.exists() else 0
        if self._log_from > LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
            self._log_from = 0
        self.process = start(self.plan)
        self._started = time.monotonic()
        self._due: float | None = None

    def tend(self) -> str | None:
        """Restart the child when it has died and the back-off is over. Returns a message when
        something changed.
        """
        now = time.monotonic()
        if self.process.poll() is None:
            return None
        if self._due is not None:
            if now >= self._due:
                self._start()
            return None
        self.deaths = 1 if now - self._started > STEADY_S else self.deaths + 1
        wait = min(FIRST_BACKOFF * 2 ** (self.deaths - 1), LONGEST_BACKOFF)
        self._due = now + wait
        code = self.process.returncode
        return f"the {self.plan.name} ended (code {code}); starting it again in {wait:g} s"

    def said(self, words: str) -> bool:
        """Whether its log since its last start contains `words`."""
        with self.plan.log.open("rb") as log:
            log.seek(self._log_from)
            return words.encode() in log.read()

    def last_words(self) -> str:
        """The last lines of the log, on one line."""
        lines = self.plan.log.read_text(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:] if line.strip())


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def arm() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return arm
