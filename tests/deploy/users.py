"""Everybody who uses a service, over and over, until one of them is failed.

Most use plain HTTP and try nothing twice: they send a request, go where the answer tells them to,
and take up a stream of events where it ended, as a browser does. Some use the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import redis

from model.request import Label, ModelInfo, SamplingSettings
from pathar import AsyncClient
from store.keys import queue_name
from store.parts import PartStore, read_part
from store.registry import Registry
from tests.conftest import DEADLINE_S
from tests.service.conftest import FILES

ENDS = ("finished", "failed", "canceled")
N = 3
BODY = {"label": "histology", "n": N, "seed": 7}
PAUSE_S = 0.4
SLOW_S = 0.5
LONG_N = 6
SLOW = ModelInfo(
    name="slow",
    version="cd" * 32,
    numerics="0123456789ab",
    labels=(Label("slow", "modality"),),
    defaults=SamplingSettings(cfg_scale=2.0, temperature=0.9, top_k=16, top_p=0.95),
    codebook_size=64,
    grid_size=2,
    image_size=8,
)
"""A model of which an image is drawn every SLOW_S seconds, by the test, so that jobs last long and
cost nothing."""


class Users:
    """`counted`: how many times each kind of use has come to its good end."""

    def __init__(self, url: str, store: redis.Redis, folder: Path) -> None:
        Registry(store).publish(SLOW, "slow", 1)
        queue = queue_name(SLOW.version, SLOW.numerics)
        self._parts = PartStore(store, queue, "slow", result_ttl=600)
        self.counted: Counter[str] = Counter()
        self.told_to_look_later = 0
        limits = httpx.Limits(keepalive_expiry=60)
        self._http = httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, limits=limits)
        self._client = AsyncClient(url)
        self._file = folder / "pairs.zip"
        self._users: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Users:
        drawn = await self._client.generate("histology", N, seed=7)
        self._job, self._images = drawn[0].job_id, [pair.image_png for pair in drawn]
        await self._client.archive(self._job, self._file)
        self._archive = hashlib.sha256(self._file.read_bytes()).digest()
        quick = [self.wait, self.poll, self.listen, self.download, self.draw, self.fetch]
        self.kinds = {each.__name__ for each in quick}
        for use in (*quick, self.follow_for_long, self.wait_for_long):
            self._users.append(asyncio.create_task(self._again(use)))
        self._users.append(asyncio.create_task(self._draw_slowly()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for user in self._users:
            user.cancel()
        await asyncio.gather(*self._users, return_exceptions=True)
        await self._http.aclose()
        await self._client.close()

    async def during(self, work: Awaitable[None]) -> None:
        """Until work is done and each kind of use has come to its good end meanwhile. Raises what
        the first failure was."""
        before = self.counted.copy()
        task = asyncio.ensure_future(work)
        while not task.done() or any(self.counted[k] <= before[k] for k in self.kinds):
            await asyncio.sleep(PAUSE_S)
            for user in self._users:
                if user.done():
                    user.result()
        task.result()

    async def _again(self, use: Callable[[], Awaitable[None]]) -> None:
        while True:
            await use()
            self.counted[use.__name__] += 1
            await asyncio.sleep(PAUSE_S)

    async def _draw_slowly(self) -> None:
        while True:
            await asyncio.sleep(SLOW_S)
            await asyncio.to_thread(self._draw_one)

    def _draw_one(self) -> None:
        for claim in self._parts.claim(1):
            held = self._parts.start(claim, read_part(claim))
            if held is not None:
                self._parts.finish(held, FILES, 0.5)

    async def wait(self) -> None:
        """Ask for pairs and wait for them; who is told to look later does."""
        answer = await self._ask("POST", "/generate?wait=60", json=BODY)
        if answer.status_code == 202:
            await self._finished(answer.headers["location"])
        await self._check(answer.json()["job_id"])

    async def poll(self) -> None:
        """Ask for pairs and look for them now and then."""
        answer = await self._ask("POST", "/generate?wait=0", json=BODY)
        await self._finished(answer.headers["location"])
        await self._check(answer.json()["job_id"])

    async def listen(self) -> None:
        """Ask for pairs and hear of them."""
        job = uuid4().hex
        await self._ask("PUT", f"/jobs/{job}", json=BODY)
        await self._heard(job, N)
        await self._check(job)

    async def download(self) -> None:
        """Fetch an archive."""
        answer = await self._ask("GET", f"/jobs/{self._job}/pairs.zip")
        assert hashlib.sha256(answer.content).digest() == self._archive

    async def draw(self) -> None:
        """Have the client draw pairs."""
        pairs = await self._client.generate("histology", N, seed=7)
        assert [pair.image_png for pair in pairs] == self._images

    async def fetch(self) -> None:
        """Have the client fetch an archive."""
        await self._client.archive(self._job, self._file)
        assert hashlib.sha256(self._file.read_bytes()).digest() == self._archive

    async def follow_for_long(self) -> None:
        """Hear of a job that lasts for seconds."""
        job = uuid4().hex
        await self._ask("PUT", f"/jobs/{job}", json={"label": "slow", "n": LONG_N})
        await self._heard(job, LONG_N)

    async def wait_for_long(self) -> None:
        """Wait for what is hardly ever drawn before a process leaves, and go without it."""
        later = {"label": "slow", "n": 64, "priority": "bulk"}
        answer = await self._ask("POST", "/generate?wait=300", json=later)
        self.told_to_look_later += answer.status_code == 202
        await self._ask("DELETE", f"/jobs/{answer.json()['job_id']}")

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = await self._http.request(method, path, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    async def _finished(self, path: str) -> None:
        while (state := (await self._ask("GET", path)).json()["status"]) not in ENDS:
            await asyncio.sleep(PAUSE_S)
        assert state == "finished"

    async def _check(self, job: str) -> None:
        for index, image in enumerate(self._images):
            answer = await self._ask("GET", f"/jobs/{job}/images/{index}/image.png")
            assert answer.content == image

    async def _heard(self, job: str, n: int) -> None:
        """Hear of a job to its end: of each image once, whichever process told of it."""
        drawn: Counter[int] = Counter()
        last, kind = "0-0", ""
        while kind not in ENDS:
            headers = {"Last-Event-ID": last}
            async with self._http.stream("GET", f"/jobs/{job}/events", headers=headers) as told:
                assert told.status_code == 200
                fields: dict[str, str] = {}
                async for line in told.aiter_lines():
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    if not line and "id" in fields:
                        assert _order(fields["id"]) > _order(last)
                        last, kind = fields["id"], fields["event"]
                        if kind == "image":
                            drawn[json.loads(fields["data"])["index"]] += 1
                        fields = {}
        assert (kind, drawn) == ("finished", Counter(range(n)))


def _order(event_id: str) -> list[int]:
    return [int(part) for part in event_id.split("-")]
