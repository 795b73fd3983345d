"""`pathar up`: Redis, workers and the API as children of one process, on one machine.

Starts them, says when the API is ready, restarts what dies, stops all of it on Ctrl-C or SIGTERM.
`run.json` in PATHAR_HOME says where they are. Knows nothing of what the children do inside.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import redis

from pathar import run_file
from pathar.client import Client
from pathar.embedded_redis import find_redis_server, redis_command, redis_url
from pathar.errors import CommandError, UsageError
from pathar.pair_files import write_atomically
from pathar.processes import Child, ProcessPlan, stop
from pathar.run_file import read_run, url_of

TICK_S = 0.1
PROBE_S = 0.5
REDIS_START_S = 60.0
STOP_S = {"service": 40.0, "worker": 30.0, "redis": 15.0}
"""How long each may take to stop; workers finish or hand back what they hold. A child's name
begins with one of these, and they are stopped in this order.
"""
DEATHS_BEFORE_READY = 3
USAGE_EXIT = 2
METRICS_PORT = "PATHAR_WORKER_METRICS_PORT"
LONGEST_SOCKET_PATH = 100


def up(env: Mapping[str, str], checkpoints: Sequence[Path]) -> int:
    """Run until asked to stop: 130 after Ctrl-C, 0 after SIGTERM. CommandError, UsageError.

    Each of `checkpoints` gets a worker of its own; with none, one serves PATHAR_CHECKPOINT.
    """
    home = run_file.home(env)
    host, port = _address(env)
    with ExitStack() as cleanup:
        cleanup.enter_context(_lock(home))
        port = reserve(host, port, cleanup)
        signals = cleanup.enter_context(_signals())
        stack = Stack(home, cleanup.enter_context(_socket_path(home)), host, port)
        cleanup.callback(stack.stop, signals)
        stack.run(env, worker_settings(env, checkpoints, host, cleanup), signals)
    return 130 if signal.SIGINT in signals.seen else 0


class Signals:
    """The signals seen so far that ask to stop."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.any = threading.Event()

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler."""
        self.seen.append(number)
        self.any.set()


class Stack:
    """The child processes and their addresses."""

    def __init__(self, home: Path, socket_path: Path, host: str, port: int) -> None:
        self.home = home
        self.url = url_of(host, port)
        self._host = host
        self._socket_path = socket_path
        self._settings = {
            "PATHAR_REDIS_URL": redis_url(socket_path),
            "PATHAR_HOST": host,
            "PATHAR_PORT": str(port),
            "PATHAR_DRAIN_SECONDS": "0",  # there is no other API to go to
        }
        self._children: list[Child] = []
        self._metrics: list[str] = []
        self._written = ""
        self._unwritable = False

    def run(
        self, env: Mapping[str, str], workers: Sequence[Mapping[str, str]], signals: Signals
    ) -> None:
        """Start the children, and restart those that die, until a signal arrives.

        `workers`: what each worker is told beside `env`."""
        self._start_redis(env, signals)
        for index, settings in enumerate(workers):
            if METRICS_PORT in settings:
                self._metrics.append(f"{url_of(self._host, int(settings[METRICS_PORT]))}/metrics")
            self._start("worker", f"worker-{index + 1}" if index else "worker", {**env, **settings})
        self._start("service", "service", env)
        self._wait_until_ready(signals)
        if not signals.any.is_set():
            _say(f"PathAR is ready at {self.url} (Ctrl-C stops it)", sys.stdout)
        while not signals.any.wait(TICK_S):
            self._restart_dead()

    def stop(self, signals: Signals) -> None:
        """Stop the children, the API first and Redis last. A second signal stops them at once."""
        for kind, seconds in STOP_S.items():
            stop([c.process for c in self._of(kind)], seconds, lambda: len(signals.seen) > 1)
        with suppress(OSError):
            (self.home / "run.json").unlink(missing_ok=True)

    def _start(self, module: str, name: str, env: Mapping[str, str]) -> None:
        # -P: whatever the folder holds that this was started in, it is our module that runs.
        command = [sys.executable, "-P", "-m", module]
        plan = ProcessPlan(name, command, {**env, **self._settings}, self._log(name))
        self._children.append(Child(plan))

    def _of(self, kind: str) -> list[Child]:
        return [child for child in self._children if child.plan.name.startswith(kind)]

    def _start_redis(self, env: Mapping[str, str], signals: Signals) -> None:
        folder = private(self.home / "redis")
        command = redis_command(find_redis_server(), self._socket_path, folder)
        self._children.append(Child(ProcessPlan("redis", command, env, self._log("redis"))))
        deadline = time.monotonic() + REDIS_START_S
        with redis.Redis(unix_socket_path=str(self._socket_path), socket_timeout=2) as client:
            while not signals.any.wait(TICK_S):
                self._restart_dead()
                self._refuse_early_deaths()
                with suppress(redis.RedisError):
                    client.ping()
                    return
                if time.monotonic() > deadline:
                    raise CommandError(f"Redis does not answer; see {self._log('redis')}")

    def _wait_until_ready(self, signals: Signals) -> None:
        from worker.settings import READY

        with Client(self.url) as client:
            while not signals.any.wait(PROBE_S):
                self._restart_dead()
                self._refuse_early_deaths()
                if all(worker.said(READY) for worker in self._of("worker")) and client.ready():
                    return

    def _restart_dead(self) -> None:
        for child in self._children:
            event = child.restart_if_dead()
            if event is not None:
                _say(f"pathar: {event}")
        self._write_run()

    def _write_run(self) -> None:
        """Write run.json when it has changed. Where it cannot be written, say so once and try again
        at the next tick: the children go on.
        """
        run = {"url": self.url, "redis_url": self._settings["PATHAR_REDIS_URL"], "pid": os.getpid()}
        pids = {child.plan.name: child.process.pid for child in self._children}
        text = json.dumps({**run, "metrics": self._metrics, "pids": pids}, indent=2) + "\n"
        if text == self._written:
            return
        try:
            write_atomically(self.home / "run.json", text.encode())
        except OSError as error:
            if not self._unwritable:
                _say(f"pathar: cannot write {self.home}/run.json ({error.strerror}); trying again")
            self._unwritable = True
        else:
            self._written, self._unwritable = text, False

    def _refuse_early_deaths(self) -> None:
        for child in self._children:
            usage = child.process.poll() == USAGE_EXIT
            if usage or child.deaths >= DEATHS_BEFORE_READY:
                message = f"the {child.plan.name} does not start: {child.last_lines()}"
                raise UsageError(message) if usage else CommandError(message)

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"


def _say(text: str, stream: TextIO = sys.stderr) -> None:
    """Print a line. An error, for example of a full disk, must not end the service."""
    with suppress(OSError):
        print(text, file=stream, flush=True)


def private(folder: Path) -> Path:
    """Create a folder that only its owner can read, whatever the permissions of its parent."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    return folder


def worker_settings(
    env: Mapping[str, str], checkpoints: Sequence[Path], host: str, cleanup: ExitStack
) -> list[dict[str, str]]:
    """What each worker is told beside `env`: its checkpoint, and a port of its own on `host` for
    metrics, reserved until `cleanup` if it was found here.
    """
    told = [{"PATHAR_CHECKPOINT": str(path)} for path in checkpoints] or [{}]
    port = env.get(METRICS_PORT) or "0"
    if port.isascii() and port.isdigit():  # a worker rejects any other value
        for index, settings in enumerate(told):
            free = int(port) + index if int(port) else reserve(host, 0, cleanup)
            settings[METRICS_PORT] = str(free)
    return told


def _address(env: Mapping[str, str]) -> tuple[str, int]:
    from runtime.settings import SettingsError
    from service.settings import read_settings

    try:
        settings = read_settings({**env, "PATHAR_REDIS_URL": ""})
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return settings.host, settings.port


def reserve(host: str, port: int, cleanup: ExitStack) -> int:
    """`port` when nobody listens there, a free one for 0. CommandError.

    On Linux no other process gets it until `cleanup`, unless it asks for this very port and to
    share it (SO_REUSEADDR), as a child does. Such a socket may listen while ours, which does not,
    holds the port. Other systems do not share ports so.
    """
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    except OSError as error:
        probe.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise CommandError(f"{reason}; set PATHAR_PORT (0 takes any free port)") from None
    free: int = probe.getsockname()[1]
    if sys.platform == "linux":
        cleanup.enter_context(probe)
    else:
        probe.close()
    return free


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        private(home / "logs")
        lock = (home / "up.lock").open("w")
    except OSError as error:
        raise CommandError(f"cannot use PATHAR_HOME {home}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run = read_run(home)
            where = (
                f" at {run['url']} (process {run['pid']})" if {"url", "pid"} <= run.keys() else ""
            )
            raise CommandError(f"already running{where}; see {home}/run.json") from None
        yield


@contextmanager
def _signals() -> Iterator[Signals]:
    signals = Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signals.handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _socket_path(home: Path) -> Iterator[Path]:
    """Where Redis listens: in the home, or in a private folder when that path is too long."""
    path = home / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        yield Path(folder) / "redis.sock"
