"""Two workers, each on a machine of its own: they share one Redis and one API on a third, and work
goes on, with the same bits, whatever becomes of one of them.
"""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cluster import API_PORT, METRICS_PORT, Cluster, answers
from benchmarks.netns import Host, NoNetwork, inside
from pathar import Client, Job, Pair
from runtime.connection import connect
from store.keys import EXECUTION
from tests.conftest import DEADLINE_S
from tests.running import environment, wait_until
from tests.system import missing

pytestmark = pytest.mark.system

SLOTS = 4
N = 24
"""Images of a job: several times what two workers have slots for."""
TRIES = 20
"""How often a moment in mid-decode may be missed."""
Bits = list[tuple[int, int, bytes, bytes, object, object]]


@pytest.fixture(scope="module")
def made(slow_checkpoint: Path) -> Iterator[Cluster]:
    settings = environment(slow_checkpoint, PATHAR_SLOTS=str(SLOTS))
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        try:
            cluster = Cluster(Path(folder), settings)
        except NoNetwork as error:
            missing(str(error))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def cluster(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that is whole, as seen from the host of who asks."""
    monkeypatch.setenv("NO_PROXY", "*")
    for each in made.workers:
        each.link(up=True)
    made.ready()
    with inside(made.asking.space):
        yield made


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.url, cluster.key) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> dict[str, Bits]:
    """What the job of these tests is in peace, once it has been drawn."""
    return {}


def images(worker: Host, status: str) -> float:
    """How many images of a worker ended so, by its own metrics."""
    return measured(worker, "pathar_images_total", status=status)


def metrics_url(worker: Host) -> str:
    return f"http://{worker.address}:{METRICS_PORT}/metrics"


def busy(worker: Host) -> bool:
    return measured(worker, "pathar_slots", state="busy") == SLOTS


def measured(worker: Host, name: str, **labels: str) -> float:
    text = httpx.get(metrics_url(worker), timeout=DEADLINE_S).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def bits(pairs: list[Pair]) -> Bits:
    return [
        (each.index, each.seed, each.image_png, each.instances_png, each.structure, each.appearance)
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
    wait_until(lambda: answers(metrics_url(far)) and images(far, "lost") > lost, "a refusal")
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

            def seen(job_id: str = job.id) -> bool:  # the other may draw all of it meanwhile
                return busy(worker) or client.job(job_id).ended

            wait_until(seen, "work")
            worker.link(up=False)
            holders = [redis.hget(key, "worker_name") for key in redis.keys(f"{EXECUTION}*")]
            own = f"-{worker.pid('worker')}-".encode()
            if sum(own in (holder or b"") for holder in holders) == SLOTS:
                return job
            worker.link(up=True)
            wait_until(lambda job=job: client.job(job.id).ended, "its end")  # type: ignore[misc]
    pytest.fail("it was always cut off between two images")
