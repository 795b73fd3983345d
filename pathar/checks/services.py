"""The checks of `pathar doctor` on Redis, the API, the workers and the queue.

Each check is a function of an `Installation`; those that need Redis get its client too. None
changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from pathar.checks.installation import (
    ANSWER_S,
    Check,
    Finding,
    Installation,
    failed,
    listed,
    ok,
    said,
    warning,
)
from pathar.client import LOOPBACK, read_key
from pathar.contract import VERSION
from pathar.errors import UsageError
from pathar.retries import error_of
from pathar.run_file import url_of

if TYPE_CHECKING:
    from redis import Redis

    from store.registry import KnownModel

OLDEST_REDIS = (7, 0)
"""The scripts move list elements with LMOVE."""
CLOCK_GAP_S = 2.0
NEARLY_FULL = 0.8
"""Share of `maxmemory` in use."""
STUCK_S = 60.0
REFUSALS: Mapping[str, tuple[str, str]] = {
    "full": ("is full and takes no jobs", "Give it more maxmemory; shorten PATHAR_RESULT_TTL."),
    "read_only": ("is a replica", "Set PATHAR_REDIS_URL to the primary."),
    "loading": ("is loading its file", "Wait."),
    "disk": ("cannot write to its disk and takes no jobs", "Look at its log and at its disk."),
}
"""What to say of each condition in which Redis refuses writes (`store.condition`)."""


def shown(url: str) -> str:
    """A URL without user, password and query."""
    scheme, slashes, rest = url.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2].partition('?')[0].partition('#')[0]}"


def asks_redis(check: Callable[[Installation, Redis], Iterator[Finding]]) -> Check:
    """A check that finds nothing where Redis does not answer; the check `redis` says why."""

    @wraps(check)
    def run(here: Installation) -> Iterator[Finding]:
        if here.redis is not None and not isinstance(here.redis, Exception):
            yield from check(here, here.redis)

    return run


def redis(here: Installation) -> Iterator[Finding]:
    """Whether Redis answers, can run the scripts, and takes writes."""
    if here.redis_url is None or here.redis is None:
        return
    from store.condition import conditions

    bad_url = isinstance(here.redis, ValueError)  # nothing says which part of it is a secret
    where = "Redis" if bad_url else f"Redis at {shown(here.redis_url)}"
    if isinstance(here.redis, Exception):
        why, fix = _why_not(here.redis)
        yield failed(f"{where} cannot be used: {why}.", fix)
        return
    if not here.info:
        found = f"{where} does not let this user read its memory and persistence figures."
        yield warning(found, "Allow INFO: ACL SETUSER ... +info.")
        return
    refuses = [name for name, holds in conditions(here.redis).items() if holds]
    version = str(here.info["redis_version"])
    if tuple(int(n) for n in version.split(".")[:2]) < OLDEST_REDIS:
        least = ".".join(map(str, OLDEST_REDIS))
        yield failed(f"{where} is version {version}.", f"Install Redis {least} or newer.")
    elif here.info.get("redis_mode") == "cluster":
        yield failed(f"{where} is a cluster, on which scripts fail.", "Use a single Redis.")
    elif refuses:
        yield from (failed(f"{where} {REFUSALS[r][0]}.", REFUSALS[r][1]) for r in refuses)
    else:
        yield ok(f"{where} answers, version {version}.")


@asks_redis
def persistence(here: Installation, _: Redis) -> Iterator[Finding]:
    """Whether jobs and keys outlive a restart of Redis."""
    if here.info.get("aof_enabled"):
        yield ok("Redis writes an append-only file.")
    elif here.info:
        found = "Redis writes no append-only file: a restart loses jobs, results and API keys."
        yield warning(found, "Start Redis with --appendonly yes.")


@asks_redis
def memory(here: Installation, _: Redis) -> Iterator[Finding]:
    """Whether Redis may evict keys, and how full it is."""
    if not (info := here.info):
        return
    used, most, evicted = (int(info[n]) for n in ("used_memory", "maxmemory", "evicted_keys"))
    limit = f" of maxmemory {most / 1e6:.0f} MB" if most else ""
    found, policy = f"Redis holds {used / 1e6:.0f} MB{limit}", info["maxmemory_policy"]
    if policy != "noeviction" and (most or evicted):
        what = f"{evicted} keys so far" if evicted else "queues or results, once it is full"
        fix = "Set maxmemory-policy to noeviction: full, it then refuses new jobs and says so."
        found += f", and with maxmemory-policy {policy} it drops {what}."
        yield (failed if evicted else warning)(found, fix)
    elif most and used > NEARLY_FULL * most:
        yield warning(f"{found}.", REFUSALS["full"][1])
    else:
        yield ok(f"{found}; it drops nothing.")


@asks_redis
def clock(_: Installation, client: Redis) -> Iterator[Finding]:
    """How far this machine's clock is from Redis's, which the service uses."""
    from store.registry import seconds

    before, there, after = time.time(), seconds(client.time()), time.time()
    gap = max(there - after, before - there, 0.0)
    found = f"This machine's clock is {gap:.1f} s from that of Redis."
    yield ok(found) if gap <= CLOCK_GAP_S else warning(found, "Let NTP set both (timedatectl).")


@asks_redis
def access(here: Installation, client: Redis) -> Iterator[Finding]:
    """Who can use the service and its Redis."""
    from store.access import KeyStore

    parts = urlsplit(here.redis_url or "")
    is_open = parts.scheme != "unix" and not _is_loopback(parts.hostname or "")
    if is_open and not parts.password and "password=" not in parts.query:
        found = "Redis takes commands from this network without a password."
        yield warning(found, "Set requirepass, and the password in PATHAR_REDIS_URL.")
    store = KeyStore(client)
    host = here.env.get("PATHAR_HOST") or "127.0.0.1"
    if store.required():
        yield ok(f"Requests need a key; there are {len(store.all())}.")
    elif not _is_loopback(host):
        found = f"PATHAR_HOST={host} is open to others, and without any key the API answers nobody."
        yield warning(found, "Make a key: pathar keys make NAME")
    else:
        yield ok("Requests need no key, and come from this machine alone.")


def results(here: Installation) -> Iterator[Finding]:
    """Whether results in object storage can be read. Writing is tested by each worker."""
    if here.lacks_server:
        return
    from runtime.objects import PROBE, ObjectsAway, open_objects
    from runtime.settings import SettingsError, results_url

    try:
        url = results_url(here.env)
    except SettingsError:
        return  # `settings` says so
    where = f"The storage of results at {shown(url or '')}"
    try:
        objects = open_objects(url, timeout_s=ANSWER_S)
        if objects is not None:
            objects.get([PROBE])
            yield ok(f"{where} answers.")
    except SettingsError as error:
        yield failed(f"{error}.", "Set the AWS_ variables so.")
    except ObjectsAway as error:
        fix = "See that AWS_ENDPOINT_URL, the bucket and the AWS_ credentials are right."
        yield failed(f"{where} cannot be used: {error}.", fix)


def api(here: Installation) -> Iterator[Finding]:
    """Whether the API answers, has this version and is ready."""
    where = f"The API at {shown(here.api_url)}"
    if not here.has_api:
        if here.env.get("PATHAR_URL") or here.up:
            fix = "See that it runs (pathar serve), and that PATHAR_URL is its own address."
            yield failed(f"{where} cannot be used: {_reason(here.health)}.", fix)
        return
    document = said(here.get(f"{here.api_url}/openapi.json"))
    info = document.get("info", {}) if isinstance(document, dict) else {}
    version = str(info.get("version", "?"))
    if here.extras and version not in ("?", VERSION):
        found = f"{where} is version {version}, this package {VERSION}."
        yield warning(found, "Install the same version on both sides.")
    else:
        yield ok(f"{where} answers, version {version}.")
    ready = here.get(f"{here.api_url}/readyz")
    if isinstance(ready, Exception) or not ready.is_success:
        why, fix = _reason(ready), "Start a worker, and see that it reaches the same Redis."
        if "redis" in why.lower():
            fix = "Start Redis, or correct the API's PATHAR_REDIS_URL."
        yield failed(f"{where} cannot draw: {why}.", fix)


def key(here: Installation) -> Iterator[Finding]:
    """Which labels the API offers with the key, or without one."""
    if not here.has_api:
        return
    try:
        url, key = here.api_url, read_key(here.env.get("PATHAR_API_KEY") or "") or None
    except UsageError as error:
        fix = "Set it to the one line that `pathar keys make` printed."
        yield failed(f"PATHAR_API_KEY cannot be used: {error}.", fix)
        return
    if key and url.startswith("http://") and urlsplit(url).hostname not in LOOPBACK:
        found = "PATHAR_API_KEY goes over http to another machine, readable on its way."
        yield warning(found, "Use https, unless that network is your own.")
    answer = here.get(f"{url}/labels", key=key)
    if isinstance(answer, Exception) or answer.is_client_error:
        unasked = key is None and not here.env.get("PATHAR_URL")
        fix = "Set PATHAR_API_KEY to a key that its operator made: pathar keys make NAME"
        yield (warning if unasked else failed)(f"The API refuses: {_reason(answer)}.", fix)
        return
    labels = said(answer).get("labels", [])  # none where the API is not ready, as `api` says
    drawn = list(dict.fromkeys(str(each["name"]) for each in labels if each["ready"]))
    away = sorted({str(each["model"]) for each in labels if not each["ready"]})
    if drawn:
        how = "PATHAR_API_KEY is accepted" if key else "No key is needed"
        yield ok(f"{how}; {listed(drawn)} can be asked for.")
    if away:
        found = f"{listed(away)} can be asked for, and no worker of it lives."
        yield warning(found, "Start one: pathar worker")


@asks_redis
def workers(_: Installation, client: Redis) -> Iterator[Finding]:
    """Which models the workers serve, and whether all workers of a model draw the same bits."""
    from store.registry import Registry

    by_name: dict[str, list[KnownModel]] = {}
    for known in Registry(client).models():
        if known.ready:
            by_name.setdefault(known.info.name, []).append(known)
    if not by_name:
        found = "No worker has sent a heartbeat to this Redis."
        yield failed(found, "Start one (pathar worker), with the same PATHAR_REDIS_URL.")
    for name, mine in sorted(by_name.items()):
        versions = sorted({known.info.version[:12] for known in mine})
        kinds = [f"{k.slots} slots with numerics {k.info.numerics}" for k in mine]
        if len(versions) > 1:
            found = f"{name} is served in versions {listed(versions)}, new jobs by the last."
            fix = "After an update, stop the old one's workers once their queue is empty."
            yield warning(found, fix)
        elif len(mine) > 1:
            found = f"{name} is drawn by {listed(kinds)}: a job waits for those it began with."
            fix = "Give all workers of a model the same machines, packages and PATHAR_THREADS."
            yield warning(found, fix)
        else:
            yield ok(f"{name} {versions[0]}: {kinds[0]}.")


@asks_redis
def queue(_: Installation, client: Redis) -> Iterator[Finding]:
    """How many images wait, and whether a worker can draw them."""
    from store.statistics import StatisticsReader

    queues, wrong = StatisticsReader(client).queues(), []
    for each in queues:
        images = sum(line.images for line in each.lines)
        oldest_s = max(line.oldest_s for line in each.lines)
        version = each.name.removeprefix("pathar-").partition("-")[0]
        # Jobs go over to workers of their version with other numerics, after a minute.
        served = any(o.slots for o in queues if o.name.startswith(f"pathar-{version}-"))
        found = f"{images} images wait for {each.model} {version}"
        if images and not served:
            fix = "Start a worker with its checkpoint, or cancel them: DELETE /jobs/{id}"
            wrong.append(failed(f"{found}, and no worker of it lives.", fix))
        elif images and oldest_s > STUCK_S and each.slots and not each.started:
            found = f"{found}, the oldest for {oldest_s:.0f} s, and nobody draws."
            wrong.append(
                warning(found, "See the workers' logs; docs/runbook.md, PatharQueueStuck.")
            )
    waiting = sum(line.images for each in queues for line in each.lines)
    yield from wrong or [ok(f"{waiting} images wait, all for workers that live.")]


def metrics(here: Installation) -> Iterator[Finding]:
    """Whether the metrics of the workers of this machine can be scraped."""
    urls = [str(url) for url in here.up.get("metrics", ())]
    port = here.env.get("PATHAR_WORKER_METRICS_PORT") or "0"
    if not urls and port.isascii() and port.isdigit() and int(port):
        host = here.env.get("PATHAR_HOST") or "127.0.0.1"
        urls = [f"{url_of(host, int(port))}/metrics"]
    for url in urls:
        answer = here.get(url)
        if isinstance(answer, Exception) or "pathar_worker_info{" not in answer.text:
            fix = "Start one, or see what else listens there (PATHAR_WORKER_METRICS_PORT)."
            yield warning(f"No worker shows metrics at {shown(url)}.", fix)
        else:
            yield ok(f"A worker shows its metrics at {shown(url)}.")


CHECKS: tuple[Check, ...] = (
    *(redis, persistence, memory, clock, access, results),
    *(api, key, workers, queue, metrics),
)


def _why_not(error: Exception) -> tuple[str, str]:
    """Why Redis cannot be used, without secrets, and how to fix that."""
    from redis.exceptions import AuthenticationError, TimeoutError

    if isinstance(error, AuthenticationError):
        fix = "Put Redis's password into PATHAR_REDIS_URL: redis://:PASSWORD@host:6379/0"
        return "it refuses the password", fix
    if isinstance(error, ValueError):  # whose message repeats a part of the URL
        fix = "Percent-encode the password: redis://:PASSWORD@host:6379/0"
        return "PATHAR_REDIS_URL is no URL that Redis's client takes", fix
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error).rstrip(".")
    return why, "Start Redis, and see that PATHAR_REDIS_URL, name server and firewall lead to it."


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def _reason(answer: httpx.Response | Exception) -> str:
    """Why there is no answer, or none of PathAR, or an error. Leaves out what is said of a wrong
    URL, which may repeat a secret."""
    if isinstance(answer, httpx.Response):
        return error_of(answer).detail.rstrip(".")
    text = str(answer) if isinstance(answer, httpx.HTTPError) else ""
    return f"no answer: {text or type(answer).__name__}"
