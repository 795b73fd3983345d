"""Restarts while people use the service: of a worker, and of everything, one process at a time."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from pathar import Client
from store import keys
from store.access import ANYBODY
from tests.conftest import DEADLINE_S, RedisServer
from tests.deploy.balancer import Balancer
from tests.deploy.test_containers import free_port
from tests.deploy.users import Users
from tests.forked import Forked, start
from tests.running import environment, wait_until

DRAIN_S = 3
"""Some times what the balancer takes to notice."""
SEED = 7
SLOTS = 24
N = 2 * SLOTS + 8
"""Images of a job: all slots of two workers, and some that wait."""
TRIES = 10
"""How often a worker may have drawn all of its images when it is told."""
ALL = ("api-1", "worker-1", "api-2", "worker-2")


class Fleet:
    """Processes of one service, on one Redis, by name."""

    def __init__(self, redis_url: str, checkpoint: Path, folder: Path, slots: int) -> None:
        env = environment(checkpoint, PATHAR_REDIS_URL=redis_url, PATHAR_SLOTS=str(slots))
        self._env = {**env, "PATHAR_DRAIN_SECONDS": str(DRAIN_S)}
        self._folder = folder
        self._processes: dict[str, Forked | subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}

    def start(self, name: str) -> None:
        """Start an API or a worker; an API is where it was before."""
        module, env = "worker", self._env
        if name.startswith("api"):
            port = self.ports.setdefault(name, free_port())
            module, env = "service", {**env, "PATHAR_PORT": str(port)}
        self._processes[name] = start(module, env, self._log(name), warnings_as_errors=True)

    def ready(self, name: str) -> None:
        """Wait until it is."""
        word = "startup complete" if name.startswith("api") else "worker ready"
        wait_until(lambda: word in self.log(name) or self._ended(name), f"{name} ready")
        assert not self._ended(name), self.log(name)

    def tell(self, name: str) -> None:
        """SIGTERM."""
        self._processes[name].send_signal(signal.SIGTERM)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """It does nothing meanwhile, and hears what it is told afterwards."""
        self._processes[name].send_signal(signal.SIGSTOP)
        yield
        self._processes[name].send_signal(signal.SIGCONT)

    def end(self, name: str) -> None:
        """Wait for the end of what was told to stop, as it ought to be."""
        assert self._processes[name].wait(DEADLINE_S) == 0, self.log(name)
        assert "Traceback" not in self.log(name)

    def log(self, name: str) -> str:
        return self._log(name).read_text()

    def _ended(self, name: str) -> bool:
        return self._processes[name].poll() is not None

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def make_fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(checkpoint: Path, *names: str, slots: int) -> Fleet:
        fleet = Fleet(redis_server.url, checkpoint, tmp_path, slots)
        made.append(fleet)
        for name in names:
            fleet.start(name)
        for name in names:
            fleet.ready(name)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


def test_what_a_worker_hands_back_is_drawn_first_by_the_other_and_costs_no_try(
    make_fleet: Callable[..., Fleet], slow_checkpoint: Path, redis_server: RedisServer
) -> None:
    fleet = make_fleet(slow_checkpoint, "api", "worker-1", "worker-2", slots=SLOTS)
    with Client(f"http://127.0.0.1:{fleet.ports['api']}") as client, redis_server.client() as store:
        for _ in range(TRIES):
            job = client.submit("histology", N, seed=SEED)
            followed = client.events(job.id)
            count = 0
            while count < 2 * SLOTS:
                count += next(followed).kind == "started"
            fleet.tell("worker-1")
            time.sleep(0.1)
            # The other takes nothing meanwhile: it would take what waits between two parts.
            with ExitStack() as other:
                with fleet.frozen("worker-1"):
                    time.sleep(1.2)  # a second word within a second is an echo of the first
                    fleet.tell("worker-1")
                    other.enter_context(fleet.frozen("worker-2"))
                fleet.end("worker-1")
            assert [event.kind for event in followed][-1] == "finished"
            begun = [e.data["index"] for e in client.events(job.id) if e.kind == "started"]
            twice = {index for index in begun if begun.count(index) == 2}
            if twice:
                break
            fleet.start("worker-1")
            fleet.ready("worker-1")
        else:
            pytest.fail("nothing was handed back")
        assert len(begun) == job.n + len(twice), "none was begun more than twice"
        first = next(at for at, index in enumerate(begun) if index in begun[:at])
        assert set(begun[first : first + len(twice)]) == twice, "before what came after them"
        assert losses(store, job.id) == []
        assert client.job(job.id).finished == frozenset(range(job.n))


def losses(store: redis.Redis, job_id: str) -> list[bytes]:
    """What its record says of tries that images lost."""
    record = store.hgetall(keys.RECORD + keys.owned_id(ANYBODY.id, job_id))
    return [name for name in record if name.startswith(b"losses:")]


def test_everything_restarts_one_after_the_other_and_no_request_fails(
    make_fleet: Callable[..., Fleet],
    test_checkpoint: Path,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    fleet = make_fleet(test_checkpoint, *ALL, slots=4)
    with redis_server.client() as store:
        asyncio.run(roll(fleet, store, tmp_path))


async def roll(fleet: Fleet, store: redis.Redis, folder: Path) -> None:
    """Restart everything while it is used."""
    balancer = Balancer(list(fleet.ports.values()))
    async with balancer.running() as url:
        await balanced(balancer, fleet)
        async with Users(url, store, folder) as users:
            for name in ALL:
                await users.during(asyncio.to_thread(restart, fleet, name))
                await users.during(balanced(balancer, fleet))
            assert users.told_to_look_later > 0, "nobody waited when a process left"


def restart(fleet: Fleet, name: str) -> None:
    fleet.tell(name)
    fleet.end(name)
    fleet.start(name)
    fleet.ready(name)


async def balanced(balancer: Balancer, fleet: Fleet) -> None:
    while not balancer.serves(*fleet.ports.values()):
        await asyncio.sleep(0.05)
