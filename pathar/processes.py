"""Starts, restarts and stops child processes, and keeps their logs. They end with their parent.

Knows nothing of what the children do.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
POLL_S = 0.05
FIRST_RESTART_S = 0.5
LONGEST_RESTART_S = 30.0
STEADY_S = 30.0
"""A child that lived this long is started again at the first backoff when it dies."""
LOG_BYTES, OLD_LOGS = 16 * 2**20, 3
"""The size at which a log is renamed to `.1`, the one before to `.2`, and so on up to OLD_LOGS."""
LONGEST_LINE_BYTES = 1 << 16
REMEMBERED = 1000
"""Lines of a child that are kept in memory."""


@dataclass(frozen=True)
class ProcessPlan:
    """One child: its name, command, environment, and the file that its output is written to."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    log: Path


class _RotatingFile(RotatingFileHandler):
    """A log file that is reopened after an error, for example of a full disk. Only the lines in
    between are lost."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Close the file; the next line opens it again."""
        self.close()

    def close(self) -> None:
        """Close the file. What could not be written is lost."""
        with suppress(OSError, ValueError):
            super().close()


class ChildLog:
    """The output of a child and its successors: a rotating file, and the last lines in memory.

    Children write into a pipe and never to the disk, so a full one does not stop them.
    """

    def __init__(self, path: Path) -> None:
        self._file = _RotatingFile(
            path, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8", delay=True
        )
        self.lines: deque[str] = deque(maxlen=REMEMBERED)

    def follow(self, output: IO[bytes]) -> None:
        """Keep the output of a child that has just been started, until it ends."""
        self.lines.clear()
        threading.Thread(target=self._follow, args=(output,), daemon=True).start()

    def _follow(self, output: IO[bytes]) -> None:
        with output:
            for line in iter(lambda: output.readline(LONGEST_LINE_BYTES), b""):
                text = line.decode(errors="replace").rstrip("\n")
                self.lines.append(text)
                self._file.handle(logging.makeLogRecord({"msg": text}))
        self._file.close()  # a later child's first line opens it again


def start(plan: ProcessPlan, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a child that writes to `output`.

    Ctrl-C in the terminal reaches only the parent, since the child has its own session. On Linux
    the kernel kills the child when the parent dies, in whatever way.
    """
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
        self._log = ChildLog(plan.log)
        self._due: float | None = None
        self._start()

    def _start(self) -> None:
        self.process = start(self.plan, subprocess.PIPE)
        assert self.process.stdout is not None
        self._log.follow(self.process.stdout)
        self._started = time.monotonic()
        self._due = None

    def restart_if_dead(self) -> str | None:
        """Restart the child when it has died and the back-off is over. Returns a message when
        something changed.
        """
        now = time.monotonic()
        if self.process.poll() is None:
            return None
        if self._due is None:
            self.deaths = 1 if now - self._started > STEADY_S else self.deaths + 1
            return self._later(f"ended (code {self.process.returncode})", now)
        if now < self._due:
            return None
        try:
            self._start()
        except OSError as error:
            self.deaths += 1
            return self._later(f"cannot be started ({error.strerror})", now)
        return None

    def _later(self, why: str, now: float) -> str:
        wait = min(FIRST_RESTART_S * 2 ** (self.deaths - 1), LONGEST_RESTART_S)
        self._due = now + wait
        return f"the {self.plan.name} {why}; starting it again in {wait:g} s"

    def said(self, words: str) -> bool:
        """Whether it has written `words` since its last start, within its last REMEMBERED lines."""
        return any(words in line for line in list(self._log.lines))

    def last_lines(self) -> str:
        """The last lines that it has written, on one line."""
        return " | ".join(line.strip() for line in list(self._log.lines)[-3:] if line.strip())


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
