"""Processes of ours, forked from one that has loaded their modules: loading torch takes longer than
most of what tests do with a worker.

They run what `python -m MODULE` runs, with an environment, a log and an end of their own. Where the
system tells no ends of processes to others than parents, they are started as usual.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOADED = {
    "worker": ("worker.serve",),
    "service": ("service.app", "uvicorn"),
}
"""What the processes of a module load before they do anything."""


class Forked:
    """The part of `subprocess.Popen` that tests use."""

    def __init__(self, parent: _Parent, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._parent, self._lock = parent, threading.Lock()
        self._ended = os.pidfd_open(pid)

    returncode: int | None

    def poll(self) -> int | None:
        """The exit code, minus a signal's number; None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
                self.returncode = self._parent.ask(wait=self.pid)
                os.close(self._ended)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended. TimeoutExpired."""
        if self.poll() is None:
            select.select([self._ended], [], [], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    module: str,
    environment: Mapping[str, str],
    log: Path,
    *,
    program: str | None = None,
    warnings_as_errors: bool = False,
    fresh: bool = False,
) -> Forked | subprocess.Popen[bytes]:
    """`python -m MODULE`, or a program that loads the same, with what it writes in `log`; with
    `fresh`, one that has loaded nothing yet."""
    log.write_bytes(b"")
    if fresh or not hasattr(os, "pidfd_open"):
        how = ["-m", module] if program is None else ["-c", program]
        strict = ["-W", "error"] if warnings_as_errors else []
        with log.open("ab") as file:
            words = [sys.executable, *strict, *how]
            return subprocess.Popen(words, env=environment, stdout=file, stderr=file)
    sys.audit("os.fork")
    told = {"module": module, "program": program, "strict": warnings_as_errors}
    place = {"environment": dict(environment), "log": str(log), "folder": str(Path.cwd())}
    parent = _parent(module)
    return Forked(parent, parent.ask(**told, **place))


@functools.cache
def _parent(module: str) -> _Parent:
    return _Parent(module)


class _Parent:
    """What they are forked from; it does nothing but fork, and wait for one that has ended."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", *LOADED[module]],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        atexit.register(self._process.communicate)

    def ask(self, **what: Any) -> int:
        """A pid, or the exit code of the process with the pid `wait`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


def _asked() -> dict[str, Any] | None:
    """What to become, in a process that was forked for it; None in the parent at the end."""
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            return asked
        print(answer, flush=True)
    return None


def _become(asked: Mapping[str, Any]) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    log, nothing = (
        os.open(asked["log"], os.O_WRONLY | os.O_APPEND),
        os.open(os.devnull, os.O_RDONLY),
    )
    for end, file in ((0, nothing), (1, log), (2, log)):
        os.dup2(file, end)
    os.close(log)
    os.close(nothing)
    if asked["strict"]:
        warnings.simplefilter("error")
    sys.argv = [asked["module"]]
    if asked["program"] is None:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    else:
        exec(asked["program"], {"__name__": "__main__"})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if wanted := _asked():
        _become(wanted)
