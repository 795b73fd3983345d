"""The checks of `pathar doctor` on Redis, the API, the workers and the queue.

Each check is a function of an `Installation`; those that need Redis get its client too. None
changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any
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
from pathar.run_file import url_of

if TYPE_CHECKING:
    from redis import Redis

    from store.registry import KnownModel

OLDEST_REDIS = (7, 0)
"""The scripts move list elements with LMOVE."""
CLOCK_GAP_S = 2.0
FULL, NEARLY_FULL = 0.95, 0.8
"""Shares of `maxmemory` in use."""
STUCK_S = 60.0


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
    """Whether Redis answers and can run the scripts."""
    if here.redis_url is None or here.redis is None:
        return
    bad_url = isinstance(here.redis, ValueError)  # nothing says which part of it is a secret
    where = "Redis" if bad_url else f"Redis at {shown(here.redis_url)}"
    if isinstance(here.redis, Exception):
        why, fix = _why_not(here.redis)
        yield failed(f"{where} cannot be used: {why}.", fix)
        return
    info = _info(here.redis, "server", "replication")
    version = str(info.get("redis_version", "of unknown version"))
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if numbers and numbers < OLDEST_REDIS:
        least = ".".join(map(str, OLDEST_REDIS))
        yield failed(f"{where} is version {version}.", f"Install Redis {least} or newer.")
    elif info.get("redis_mode") == "cluster":
        yield failed(f"{where} is a cluster, on which scripts fail.", "Use a single Redis.")
    elif info.get("role") == "slave":
        yield failed(f"{where} is a replica.", "Set PATHAR_REDIS_URL to the primary.")
    else:
        yield ok(f"{where} answers, version {version}.")


@asks_redis
def persistence(_: Installation, client: Redis) -> Iterator[Finding]:
    """Whether jobs and keys outlive a restart of Redis."""
    info = _info(client, "persistence")
    if not info:
        return
    if not info.get("aof_enabled"):
        found = "Redis writes no append-only file: a restart loses jobs, results and API keys."
        yield warning(found, "Start Redis with --appendonly yes.")
    elif {info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")} - {"ok"}:
        found = "Redis could not write its append-only file lately, and refuses writes until it can"
        yield failed(f"{found}.", "Look at its log and at its disk.")
    else:
        yield ok("Redis writes an append-only file.")


@asks_redis
def memory(_: Installation, client: Redis) -> Iterator[Finding]:
    """Whether Redis may evict keys, and how full it is."""
    info = _info(client, "memory", "stats")
    if "used_memory" not in info:
        found = "Redis does not let this user read its memory and persistence figures."
        yield warning(found, "Allow INFO: ACL SETUSER ... +info.")
        return
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    policy, evicted = str(info.get("maxmemory_policy", "")), int(info.get("evicted_keys", 0))
    limit = f" of maxmemory {most / 1e6:.0f} MB" if most else ""
    found = f"Redis holds {used / 1e6:.0f} MB{limit}"
    fix = "Give it more maxmemory, or shorten PATHAR_RESULT_TTL."
    if policy != "noeviction" and (most or evicted):
        what = f"{evicted} keys so far" if evicted else "queues or results, once it is full"
        found += f", and with maxmemory-policy {policy} it drops {what}."
        fix = "Set maxmemory-policy to noeviction: full, it then refuses new jobs and says so."
        yield (failed if evicted else warning)(found, fix)
    elif most and used > FULL * most:
        yield failed(f"{found}, and takes no jobs when it is full.", fix)
    elif most and used > NEARLY_FULL * most:
        yield warning(f"{found}.", fix)
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
    where, health = f"The API at {shown(here.api_url)}", here.health
    if not here.has_api:
        if not (here.env.get("PATHAR_URL") or here.up):
            return
        if isinstance(health, Exception):
            fix = "See that it runs (pathar serve) and that PATHAR_URL is right."
            yield failed(f"{where} does not answer: {_reason(health)}.", fix)
        else:
            to = health.headers.get("location")
            hint = f", which may be {shown(to)}." if to else ", and see what a proxy answers."
            found = f"{where} answers {health.status_code}, as PathAR would not."
            yield failed(found, f"Set PATHAR_URL to the API's own address{hint}")
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
        why = "no answer" if isinstance(ready, Exception) else _detail(ready)
        fix = "Start a worker, and see that it reaches the same Redis (PATHAR_REDIS_URL)."
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
    if isinstance(answer, Exception):
        found = f"The API does not answer GET /labels: {_reason(answer)}."
        yield failed(found, "See that Redis answers the API.")
    elif answer.status_code == 401 and key:
        fix = "Take a key that `pathar keys list` shows, or make one: pathar keys make NAME"
        yield failed("The API does not know PATHAR_API_KEY.", fix)
    elif answer.status_code == 401:
        fix = "Set PATHAR_API_KEY; its operator makes one: pathar keys make NAME"
        say = failed if here.env.get("PATHAR_URL") else warning
        yield say("The API asks for a key and PATHAR_API_KEY is unset.", fix)
    elif answer.status_code == 403:
        fix = "Make a key (pathar keys make NAME), or ask at the machine that it runs on."
        yield failed(f"The API refuses: {_detail(answer)}.", fix)
    elif answer.is_success:
        labels = said(answer).get("labels", [])
        drawn = list(dict.fromkeys(str(each["name"]) for each in labels if each["ready"]))
        away = {str(each["model"]) for each in labels if not each["ready"]}
        if drawn:
            how = "PATHAR_API_KEY is accepted" if key else "No key is needed"
            yield ok(f"{how}; {listed(drawn)} can be asked for.")
        if away:
            found = f"{listed(sorted(away))} can be asked for, and no worker of it lives."
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


def _info(client: Redis, *sections: str) -> dict[str, Any]:
    """Redis's INFO; empty where the user may not read it."""
    from redis.exceptions import ResponseError

    found: dict[str, Any] = {}
    with suppress(ResponseError):
        for section in sections:
            found.update(client.info(section))
    return found


def _why_not(error: Exception) -> tuple[str, str]:
    """Why Redis cannot be used, without secrets, and how to fix that."""
    from redis.exceptions import AuthenticationError, TimeoutError

    if isinstance(error, AuthenticationError):
        fix = "Put Redis's password into PATHAR_REDIS_URL: redis://:PASSWORD@host:6379/0"
        return "it refuses the password", fix
    if isinstance(error, ValueError):  # whose message repeats a part of the URL
        fix = "Percent-encode the password: redis://:PASSWORD@host:6379/0"
        return "PATHAR_REDIS_URL is no URL that Redis's client takes", fix
    why = "no answer in time" if isinstance(error, TimeoutError) else _reason(error)
    return why, "Start Redis, and see that PATHAR_REDIS_URL, name server and firewall lead to it."


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def _reason(error: Exception) -> str:
    """Why there is no answer. Leaves out the message on a wrong URL, which may repeat a secret."""
    text = "" if isinstance(error, (ValueError, httpx.InvalidURL)) else str(error).rstrip(".")
    return text or type(error).__name__


def _detail(answer: Any) -> str:
    """The detail of a problem document."""
    document = said(answer)
    has_detail = isinstance(document, dict) and "detail" in document
    return str(document["detail"]) if has_detail else f"it answers {answer.status_code}"
