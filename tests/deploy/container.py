"""Processes as a container would run them, where there is no container engine: as the image's user
without any right, in a mount namespace of their own whose root is read-only, with nothing but /tmp
to write to.

What they need, the interpreter, the environment and the code, is where it was, even where its
folder is closed to that user or lies in /tmp.
"""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.deploy.files import ROOT, Stage
from tests.system import program, root

HOLD = Path("/mnt")
"""Where what is needed is held while what covers it is mounted; in the namespace alone."""


class Container:
    """A stage of the Dockerfile as this machine can run it. `needed` stay readable, `writable`
    are its volumes. `settings` stand over those of the image; there is no HOME.
    """

    def __init__(
        self,
        stage: Stage,
        needed: Sequence[Path] = (),
        writable: Sequence[Path] = (),
        **settings: str,
    ) -> None:
        root()
        self._user, self._group = stage.last("USER").split(":")
        self._writable = [path.resolve() for path in writable]
        python = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
        self._needed = sorted({path.resolve() for path in (*python, *needed)} | set(self._writable))
        self._environment = {
            **stage.environment(),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        del self._environment["HOME"]

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Run a command in it, as the process itself; what it says comes together."""
        unshare = [program("unshare"), "--mount", "--propagation", "private"]
        return subprocess.Popen(
            [*unshare, "sh", "-euc", self._script(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )

    def run(self, command: Sequence[str], timeout: float = 60) -> tuple[int, str]:
        """Run a command in it to its end: exit code and output."""
        process = self.start(command)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, output

    def _script(self, command: Sequence[str]) -> str:
        lines = [f"mount -t tmpfs -o mode=755 none {HOLD}"]
        for number, path in enumerate(self._needed):
            lines += [f"mkdir {HOLD}/{number}", f"mount --bind {quoted(path)} {HOLD}/{number}"]
        closed = {parent for path in self._needed for parent in path.parents if is_closed(parent)}
        lines += [f"mount -t tmpfs -o mode=755 none {quoted(path)}" for path in outermost(closed)]
        lines += ["mount -t tmpfs -o mode=1777 none /tmp"]
        for number, path in enumerate(self._needed):
            lines += [f"mkdir -p {quoted(path)}", f"mount --bind {HOLD}/{number} {quoted(path)}"]
            if path not in self._writable:
                lines += [f"mount -o remount,bind,ro {quoted(path)}"]
        lines += ["mount -o remount,bind,ro /", f"mount -o remount,ro {HOLD}", "cd /"]
        rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"]
        user = [f"--reuid={self._user}", f"--regid={self._group}"]
        told = [f"{key}={value}" for key, value in self._environment.items()]
        run = [program("setpriv"), *rights, *user, "env", "-i", *told, *command]
        return "\n".join([*lines, f"exec {shlex.join(run)}"])


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


def outermost(folders: set[Path]) -> list[Path]:
    return sorted(each for each in folders if not folders & set(each.parents))
