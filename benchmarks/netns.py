"""Hosts with addresses of their own on one switch, all on this machine: a network namespace each.

The namespaces have no names. What holds them are processes and open files, and hosts' processes die
with this one, so nothing of them outlives it, however it ends. It takes Linux, and root's rights.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pathar.processes import ProcessPlan, kill, start

CLONE_NEWNET = 0x40000000
PREFIX = "10.213.7"
SWITCH = "switch"


class NoNetwork(Exception):
    """Hosts cannot be made here, for want of a program or of a right."""


class Host:
    """A machine on the network: what is started here has its address and no other."""

    def __init__(self, network: HostNetwork, number: int, folder: Path) -> None:
        self.address = f"{PREFIX}.{number}"
        self.space = _new_namespace()
        self._network, self._port, self._folder = network, f"port{number}", folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        peer = ["peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{self.space}"]
        network.ip("link", "add", self._port, "type", "veth", *peer)
        network.ip("link", "set", self._port, "master", SWITCH)
        self.link(up=True)
        network.ip("addr", "add", f"{self.address}/24", "dev", "eth0", space=self.space)
        for each in ("lo", "eth0"):
            network.ip("link", "set", each, "up", space=self.space)

    def link(self, *, up: bool) -> None:
        """Put its cable in, or pull it out: who is connected to it hears nothing, not even that."""
        self._network.ip("link", "set", self._port, "up" if up else "down")

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a program here with `env` for its environment, its output in a log."""
        plan = ProcessPlan(name, list(command), env, self._log(name))
        with inside(self.space), plan.log.open("ab") as output:
            self._processes[name] = start(plan, output)

    def log(self, name: str) -> str:
        """What a program has said."""
        return self._log(name).read_text()

    def runs(self, name: str) -> bool:
        """Whether a program has been started and has not ended."""
        return name in self._processes and self._processes[name].poll() is None

    def pid(self, name: str) -> int:
        """The process of a program."""
        return self._processes[name].pid

    def stop(self) -> None:
        """kill -9 of all that runs here."""
        for process in self._processes.values():
            kill(process)

    def _log(self, name: str) -> Path:
        return self._folder / f"{self.address}-{name}.log"


class HostNetwork:
    """A switch, and hosts on it, whose logs are in `folder`. NoNetwork."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("ip")
        if program is None:
            raise NoNetwork("ip (of iproute2) is not on PATH")
        self._folder, self._ip = folder, program
        self._hosts: list[Host] = []
        self._space = _new_namespace()
        self.ip("link", "add", SWITCH, "type", "bridge")
        self.ip("link", "set", SWITCH, "up")

    def host(self) -> Host:
        """One more host."""
        self._hosts.append(Host(self, len(self._hosts) + 1, self._folder))
        return self._hosts[-1]

    def ip(self, *words: str, space: int | None = None) -> None:
        """Run `ip`, on the switch unless told otherwise. NoNetwork when it fails."""
        with inside(self._space if space is None else space):
            done = subprocess.run([self._ip, *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise NoNetwork(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def close(self) -> None:
        """End everything on it, and it."""
        for host in self._hosts:
            host.stop()
            os.close(host.space)
        os.close(self._space)


@contextmanager
def inside(space: int) -> Iterator[None]:
    """This thread, and what it starts, in another network namespace."""
    before = _own_namespace()
    try:
        _call("setns", space, CLONE_NEWNET)
        yield
    finally:
        _call("setns", before, CLONE_NEWNET)
        os.close(before)


def _new_namespace() -> int:
    """An open file that is a new namespace; a thread that ends with it makes it."""

    def make() -> int:
        _call("unshare", CLONE_NEWNET)
        return _own_namespace()

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(make).result()
        except OSError as error:
            raise NoNetwork(f"network namespaces cannot be made: {error}") from None


def _own_namespace() -> int:
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)


def _call(name: str, *numbers: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*numbers) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
