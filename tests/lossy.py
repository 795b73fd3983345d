"""A way to Redis on which answers are lost: what was asked for is done, and nobody hears of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Lossy:
    """A unix socket at `path` before that of a Redis. It loses answers of scripts: the next
    `lose` of them, or each `every`-th, by closing the connection instead."""

    def __init__(self, path: Path, redis: Path) -> None:
        self.url = f"unix://{path}"
        self.lose = self.every = self.lost = 0
        self._answers = 0
        self._redis = str(redis)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._redis)
                asked = threading.Event()
                threading.Thread(target=self._ask, args=(near, far, asked), daemon=True).start()
                threading.Thread(target=self._answer, args=(near, far, asked), daemon=True).start()

    def _ask(self, near: socket.socket, far: socket.socket, asked: threading.Event) -> None:
        with suppress(OSError):
            while data := near.recv(1 << 20):
                if b"EVALSHA" in data:
                    asked.set()
                far.sendall(data)
        _shut(near, far)

    def _answer(self, near: socket.socket, far: socket.socket, asked: threading.Event) -> None:
        with suppress(OSError):
            while data := far.recv(1 << 20):
                if asked.is_set() and not data.startswith(b"-"):
                    asked.clear()
                    if self._loses():
                        break
                near.sendall(data)
        _shut(near, far)

    def _loses(self) -> bool:
        self._answers += 1
        loses = self.lose > 0 or (self.every and self._answers % self.every == 0)
        self.lose -= self.lose > 0
        self.lost += bool(loses)
        return bool(loses)


@contextmanager
def lossy(folder: Path) -> Iterator[Lossy]:
    """One before the Redis whose socket lies in `folder`."""
    way = Lossy(folder / "lossy.sock", folder / "redis.sock")
    try:
        yield way
    finally:
        way.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
