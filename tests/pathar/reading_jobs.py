"""A program that reads jobs with one client from several processes: HOW URL JOB JOB...

HOW says how those get the client: `DataLoader` (torch forks them), `fork`, `spawn`,
or `stream` (the child goes on with a generator that its parent began). Prints what did not fit.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from pathar import AsyncClient, Client

ROUNDS = 10
PROCESSES = 2
IMAGES = 40


def wrong(client: Client | AsyncClient, job_ids: Sequence[str]) -> list[str]:
    """Ask for every job many times; what was answered with another one."""
    asked = [job_id for _ in range(ROUNDS) for job_id in job_ids]
    if isinstance(client, AsyncClient):
        got = asyncio.run(_looked(client, asked))
    else:
        got = [client.job(job_id).id for job_id in asked]
    return [f"asked for {a}, got {g}" for a, g in zip(asked, got, strict=True) if a != g]


async def _looked(client: AsyncClient, job_ids: Sequence[str]) -> list[str]:
    return [(await client.job(job_id)).id for job_id in job_ids]


def child(client: Client | AsyncClient, job_ids: Sequence[str], told: Connection) -> None:
    told.send(wrong(client, job_ids))


def by_processes(how: str, client: Client | AsyncClient, job_ids: Sequence[str]) -> list[str]:
    context: Any = multiprocessing.get_context(how)
    heard, processes = [], []
    for at in range(PROCESSES):
        here, there = context.Pipe(duplex=False)
        processes.append(context.Process(target=child, args=(client, job_ids[at:], there)))
        heard.append(here)
    for process in processes:
        process.start()
    mine = wrong(client, job_ids) if isinstance(client, Client) else []
    found = [each for here in heard for each in here.recv()]
    for process in processes:
        process.join()
    return mine + found


class Jobs:
    """A Dataset: a job by its place."""

    def __init__(self, client: Client, job_ids: Sequence[str]) -> None:
        self._client, self._job_ids = client, job_ids

    def __len__(self) -> int:
        return ROUNDS * len(self._job_ids)

    def __getitem__(self, at: int) -> tuple[str, str]:
        asked = self._job_ids[at % len(self._job_ids)]
        return asked, self._client.job(asked).id


def by_loader(client: Client, job_ids: Sequence[str]) -> list[str]:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Jobs(client, job_ids), batch_size=None, num_workers=PROCESSES)  # type: ignore[arg-type]
    return [f"asked for {asked}, got {got}" for asked, got in loader if asked != got]


def by_stream(client: Client) -> list[str]:
    """Parent and child both go on with what the parent began; each must see every event."""
    job = client.submit("blood", n=IMAGES)
    events = client.events(job.id)
    seen = [next(events)]
    context: Any = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def rest() -> list[str]:
        return [event.id for event in (*seen, *events) if event.kind != "progress"]

    process = context.Process(target=lambda: there.send(rest()))
    process.start()
    told = [rest(), here.recv()]
    process.join()
    expected = [event.id for event in client.events(job.id) if event.kind != "progress"]
    return [f"of {len(expected)} events {len(ids)} came" for ids in told if ids != expected]


def main(how: str, url: str, job_ids: Sequence[str]) -> int:
    with Client(url, patience=20) as client:
        client.job(job_ids[0])  # a connection is open when the others are started
        if how == "DataLoader":
            found = by_loader(client, job_ids)
        elif how == "stream":
            found = by_stream(client)
        else:
            found = by_processes(how, client, job_ids)
            found += by_processes(how, opened(url, job_ids[0]), job_ids)
    print("\n".join(found[:5]))
    return bool(found)


def opened(url: str, job_id: str) -> AsyncClient:
    client = AsyncClient(url, patience=20)
    asyncio.run(_looked(client, [job_id]))
    return client


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
