"""A server that speaks S3, in a process of its own: moto's. It can be away and come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

if TYPE_CHECKING:
    from runtime.objects import Objects

ROOT = Path(__file__).parent.parent
BUCKET = "results"
TIMEOUT_S = 1.0
"""How long a test that opens it waits for it."""


class S3Server:
    """An empty bucket, and what a process must be told to reach it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.endpoint = self._answer()
        httpx.put(f"{self.endpoint}/{BUCKET}").raise_for_status()
        self.access = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def stop(self) -> None:
        """Answer nobody; what is stored stays."""
        self._tell("stop")

    def start(self) -> None:
        """Answer again, on the same port."""
        self._tell("start")

    def freeze(self) -> None:
        """Take connections and say nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self._answer() in (word, self.endpoint)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class CutOff:
    """A way to the server on which uploads break off: of every PUT to a path that contains `cut`
    only the first BYTES pass, and then nothing until `close`.
    """

    BYTES = 20_000

    def __init__(self, server: S3Server) -> None:
        self.cut = ""
        self.broken = threading.Event()
        """Set once an upload has broken off."""
        self._ended = threading.Event()
        self._to = ("127.0.0.1", urlsplit(server.endpoint).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nothing more, and end what has broken off."""
        self._ended.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._to) as far:
            back = threading.Thread(target=_pass, args=(far, near), daemon=True)
            back.start()
            with suppress(OSError):
                self._there(near, far)
            back.join()

    def _there(self, near: socket.socket, far: socket.socket) -> None:
        left: int | None = None
        while data := near.recv(4096):
            if left is None and self.cut and data.startswith(b"PUT "):
                left = self.BYTES if self.cut.encode() in data.split(b" ", 2)[1] else None
            if left is not None and len(data) >= left:
                far.sendall(data[:left])
                self.broken.set()
                self._ended.wait()
                break
            far.sendall(data)
            left = None if left is None else left - len(data)
        far.shutdown(socket.SHUT_WR)


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Pass everything on to its end."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Folder:
    """A prefix of the bucket that nobody else uses."""

    def __init__(self, server: S3Server) -> None:
        import boto3

        self._prefix = uuid4().hex
        self.url = f"s3://{BUCKET}/{self._prefix}"
        self._client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id="one",
            aws_secret_access_key="secret",
        )

    def names(self) -> list[str]:
        """What lies there."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        return [each["Key"].removeprefix(f"{self._prefix}/") for each in found.get("Contents", ())]

    def read(self, name: str) -> tuple[bytes, str]:
        """An object's bytes and media type."""
        found: Any = self._client.get_object(Bucket=BUCKET, Key=f"{self._prefix}/{name}")
        return found["Body"].read(), found["ContentType"]

    def open(self) -> Objects:
        """The same through the product."""
        from runtime.objects import open_objects

        objects = open_objects(self.url, timeout_s=TIMEOUT_S)
        assert objects is not None
        return objects


def serve() -> None:
    """Serve on a free port, until told "stop" and from "start" on, both by a line on stdin."""
    from moto.server import ThreadedMotoServer

    port = 0
    words = iter(sys.stdin)
    while True:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
        print(f"http://127.0.0.1:{port}", flush=True)
        assert next(words).strip() == "stop"
        server.stop()
        print("stop", flush=True)
        assert next(words).strip() == "start"


if __name__ == "__main__":
    serve()
