"""Two workers, each on a machine of its own: they share one Redis and one API on a third, and work
goes on, with the same bits, whatever becomes of one of them.
"""

from __future__ import annotations

import http.client
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pathar import Client, Job, Pair
from store.connection import connect
from store.keys import EXECUTION
from tests.conftest import DEADLINE_S, redis_binary
from tests.deploy.netns import Host, Network, inside
from tests.running import environment, wait_until

pytestmark = pytest.mark.system

PASSWORD = "a1b2c3d4"
API_PORT, REDIS_PORT, METRICS_PORT = 8000, 6379, 9100
SLOTS = 4
N = 32
"""Images of a job: several times what two workers have slots for."""
TRIES = 20
"""How often a moment in mid-decode may be missed."""
Bits = list[tuple[int, int, bytes, bytes, object, object]]


class Cluster:
    """A network with Redis and API on one host, two workers' hosts, and one for who asks."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._network = Network(folder)
        try:
            self.home, self.asking = self._network.host(), self._network.host()
            self._folder = folder
            home = self.home.address
            self.redis_url = f"redis://:{PASSWORD}@{home}:{REDIS_PORT}/0"
            self._env = environment(checkpoint, PATHAR_REDIS_URL=self.redis_url)
            self._env |= {"PATHAR_SLOTS": str(SLOTS), "NO_PROXY": "*"}
            self.workers = [self._worker(), self._worker()]
            self._serve()
            self.url, self.key = f"http://{home}:{API_PORT}", self._make_key()
        except BaseException:
            self.close()
            raise

    def _serve(self) -> None:
        options = {"bind": self.home.address, "port": REDIS_PORT, "requirepass": PASSWORD}
        options |= {"save": "", "appendonly": "yes", "dir": self._folder}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.home.start("redis", [redis_binary(), *words], self._env)
        told = {"PATHAR_HOST": self.home.address, "PATHAR_PORT": str(API_PORT)}
        command = [sys.executable, "-W", "error", "-m", "service"]
        self.home.start("service", command, {**self._env, **told})

    def _worker(self) -> Host:
        host = self._network.host()
        told = {"PATHAR_HOST": host.address, "PATHAR_WORKER_METRICS_PORT": str(METRICS_PORT)}
        command = [sys.executable, "-W", "error", "-m", "worker"]
        host.start("worker", command, {**self._env, **told})
        return host

    def _make_key(self) -> str:
        """As an operator makes it, on the host of Redis: without one nobody is let in."""
        words = [sys.executable, "-m", "pathar", "keys", "make", "test"]
        wait_until(lambda: "Ready to accept" in self.home.log("redis"), "Redis")
        self.home.start("keys", words, self._env)
        wait_until(lambda: not self.home.runs("keys"), "the key")
        return self.home.log("keys").split()[0]

    def ready(self) -> Cluster:
        """Two workers are there, new ones in place of those that were killed."""
        self.workers = [each if each.runs("worker") else self._worker() for each in self.workers]
        for each in self.workers:
            wait_until(lambda each=each: "worker ready" in each.log("worker"), "a worker")  # type: ignore[misc]
            each.link(up=True)
        return self

    def close(self) -> None:
        self._network.close()


@pytest.fixture(scope="module")
def made(slow_checkpoint: Path) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        cluster = Cluster(slow_checkpoint, Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def cluster(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that is whole, as seen from the host of who asks."""
    monkeypatch.setenv("NO_PROXY", "*")
    with inside(made.asking.space):
        wait_until(lambda: answers(f"{made.url}/readyz"), "the API")
        yield made.ready()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.url, cluster.key) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> dict[str, Bits]:
    """What the job of these tests is in peace, once it has been drawn."""
    return {}


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def images(worker: Host, status: str) -> float:
    """How many images of a worker ended so, by its own metrics."""
    return measured(worker, "pathar_images_total", status=status)


def busy(worker: Host) -> bool:
    return measured(worker, "pathar_slots", state="busy") == SLOTS


def metrics_of(worker: Host) -> str:
    return f"http://{worker.address}:{METRICS_PORT}/metrics"


def measured(worker: Host, name: str, **labels: str) -> float:
    text = httpx.get(metrics_of(worker), timeout=DEADLINE_S).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def bits(pairs: list[Pair]) -> Bits:
    return [
        (each.index, each.seed, each.image_png, each.mask_png, each.structure, each.appearance)
        for each in sorted(pairs, key=lambda pair: pair.index)
    ]


def drawn(client: Client) -> Bits:
    return bits(client.generate("histology", N, seed=7))


@pytest.fixture
def in_peace(client: Client, expected: dict[str, Bits]) -> Bits:
    if not expected:
        expected["bits"] = drawn(client)
    return expected["bits"]


def test_work_spreads_over_both_hosts(cluster: Cluster, client: Client) -> None:
    before = [images(each, "finished") for each in cluster.workers]
    assert [index for index, *_ in drawn(client)] == list(range(N))
    shares = [
        images(each, "finished") - was for each, was in zip(cluster.workers, before, strict=True)
    ]
    assert sum(shares) == N
    assert min(shares) >= N / 4


def test_a_host_that_is_cut_off_is_replaced_and_refused_and_goes_on_when_it_is_back(
    cluster: Cluster, client: Client, in_peace: Bits
) -> None:
    near, far = cluster.workers
    lost = images(far, "lost")
    job = cut_off_in_mid_decode(cluster, client, far)
    assert bits(list(client.pairs(job.id))) == in_peace
    assert "took back" in near.log("worker")
    after = client.job(job.id)
    far.link(up=True)
    wait_until(lambda: answers(metrics_of(far)) and images(far, "lost") > lost, "a refusal")
    assert client.job(job.id) == after
    finished = images(far, "finished")
    assert drawn(client) == in_peace
    assert images(far, "finished") > finished, "it took nothing more"


def test_a_host_that_dies_loses_nothing(cluster: Cluster, client: Client, in_peace: Bits) -> None:
    _, far = cluster.workers
    with closing(http.client.HTTPConnection(cluster.home.address, API_PORT)) as kept:
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        job = cut_off_in_mid_decode(cluster, client, far)
        far.stop()
        assert bits(list(client.pairs(job.id))) == in_peace
        kept.request("GET", "/healthz")  # as a load balancer does, after the seconds of a lease
        assert kept.getresponse().status == 200


def cut_off_in_mid_decode(cluster: Cluster, client: Client, worker: Host) -> Job:
    """A job of which a worker holds images, one in each slot, and can tell nobody of them."""
    with connect(cluster.redis_url) as redis:
        for _ in range(TRIES):
            job = client.submit("histology", N, seed=7)
            wait_until(lambda: busy(worker), "work")
            worker.link(up=False)
            holders = [redis.hget(key, "worker_name") for key in redis.keys(f"{EXECUTION}*")]
            own = f"-{worker.pid('worker')}-".encode()
            if sum(own in (holder or b"") for holder in holders) == SLOTS:
                return job
            worker.link(up=True)
            wait_until(lambda job=job: client.job(job.id).ended, "its end")  # type: ignore[misc]
    pytest.fail("it was always cut off between two images")
