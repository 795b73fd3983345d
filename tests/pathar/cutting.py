"""A network that cuts: a TCP relay which breaks answers off after so many bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


@contextmanager
def cutting(url: str, path: str, *after: int) -> Iterator[str]:
    """The URL of a relay to `url`; the first answers for `path` end after so many bytes each."""
    target, left = urlsplit(url), list(after)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, target.port, path, left), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not left, f"{path} was asked for {len(after) - len(left)} times"


def _serve(server: socket.socket, port: int, path: str, left: list[int]) -> None:
    while True:
        try:
            near, _ = server.accept()
        except OSError:
            return
        far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=_relay, args=(near, far, path.encode(), left), daemon=True).start()


def _relay(near: socket.socket, far: socket.socket, path: bytes, left: list[int]) -> None:
    """One connection, a request after the other; it is closed where an answer is cut."""
    budget: list[int | None] = [None]

    def down() -> None:
        while data := _received(far):
            if budget[0] is not None:
                data, budget[0] = data[: budget[0]], budget[0] - len(data)
            _send(near, data)
            if budget[0] is not None and budget[0] <= 0:
                break
        for side in (near, far):
            _shut(side)

    threading.Thread(target=down, daemon=True).start()
    while data := _received(near):
        if path in data.partition(b"\r\n")[0] and left:
            budget[0] = left.pop(0)
        _send(far, data)
    _shut(far)


def _received(side: socket.socket) -> bytes:
    try:
        return side.recv(65536)
    except OSError:
        return b""


def _send(side: socket.socket, data: bytes) -> None:
    try:
        side.sendall(data)
    except OSError:
        _shut(side)


def _shut(side: socket.socket) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
    side.close()
