"""A server that speaks S3, in a process of its own: moto's. It can be away and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
