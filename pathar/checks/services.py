"""What `pathar doctor` looks at elsewhere: Redis, the API, the workers and what waits for them.

Each check is a function of an `Installation`; each asks, and none changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from model.contract import VERSION
from pathar.checks.installation import ANSWER_S, Check, Finding, Installation, Verdict, listed, said
from pathar.client import LOOPBACK, read_key
from pathar.errors import UsageError

if TYPE_CHECKING:
    import redis as redis_package

OLDEST_REDIS = (6, 2)
"""The scripts move list elements with LMOVE."""
CLOCK_S = 2.0
FULL, NEARLY_FULL = 0.95, 0.8
"""Shares of `maxmemory`."""
STUCK_S = 60.0
RESTART = "with --appendonly yes"


def shown(url: str) -> str:
    """A URL without user, password and what stands behind its path."""
    scheme, slashes, rest = url.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2].partition('?')[0].partition('#')[0]}"


def redis(here: Installation) -> Iterator[Finding]:
    """Whether Redis answers, and is one that the scripts run on."""
    if here.redis_url is None or not here.has_redis:
        return
    bad_url = isinstance(here.redis, ValueError)  # where nobody knows what of it is a secret
    where = "Redis" if bad_url else f"Redis at {shown(here.redis_url)}"
    if here.redis is None or isinstance(here.redis, Exception):
        yield Finding("redis", "failed", f"{where} cannot be used: {_why(here)}.", _way(here))
        return
    info = _info(here.redis, "server", "replication")
    version = str(info.get("redis_version", "of unknown version"))
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if numbers and numbers < OLDEST_REDIS:
        least = ".".join(map(str, OLDEST_REDIS))
        mend = f"Install Redis {least} or newer."
        yield Finding("redis", "failed", f"{where} is version {version}.", mend)
    elif info.get("redis_mode") == "cluster":
        mend = "Use a single Redis, with a replica if you like."
        yield Finding("redis", "failed", f"{where} is a cluster, on which scripts fail.", mend)
    elif info.get("role") == "slave":
        mend = "Set PATHAR_REDIS_URL to the primary."
        yield Finding("redis", "failed", f"{where} is a replica and takes no writes.", mend)
    else:
        yield Finding("redis", "ok", f"{where} answers, version {version}.")


def persistence(here: Installation) -> Iterator[Finding]:
    """Whether jobs and keys outlive a restart of Redis."""
    client = _client(here)
    if client is None:
        return
    info = _info(client, "persistence")
    if not info:
        return
    if info.get("loading"):
        found = "Redis is reading its file and answers nothing else yet."
        yield Finding("persistence", "warning", found, "Wait.")
    elif not info.get("aof_enabled"):
        found = "Redis has no append-only file: a restart loses jobs, results and API keys."
        yield Finding("persistence", "warning", found, f"Start Redis {RESTART}.")
    elif {info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")} - {"ok"}:
        found = "Redis could not write its append-only file lately, and refuses writes until it can"
        yield Finding("persistence", "failed", f"{found}.", "Look at its log and at its disk.")
    else:
        yield Finding("persistence", "ok", "Redis keeps an append-only file.")


def memory(here: Installation) -> Iterator[Finding]:
    """Whether Redis may drop what it holds, and how full it is."""
    client = _client(here)
    if client is None:
        return
    info = _info(client, "memory", "stats")
    if "used_memory" not in info:
        found = "Redis does not tell this user of its memory and its file."
        yield Finding("memory", "warning", found, "Allow INFO: ACL SETUSER ... +info.")
        return
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    policy, evicted = str(info.get("maxmemory_policy", "")), int(info.get("evicted_keys", 0))
    found = f"Redis holds {used / 1e6:.0f} MB"
    if most:
        found += f" of maxmemory {most / 1e6:.0f} MB"
    mend = "Give it more maxmemory, or shorten PATHAR_RESULT_TTL."
    if policy != "noeviction" and (most or evicted):
        what = f"{evicted} keys so far" if evicted else "queues or results, once it is full"
        found += f", and with maxmemory-policy {policy} it drops {what}."
        mend = "Set maxmemory-policy to noeviction: full, it then refuses new jobs and says so."
        yield Finding("memory", "failed" if evicted else "warning", found, mend)
    elif most and used > FULL * most:
        yield Finding("memory", "failed", f"{found}, and takes no jobs when it is full.", mend)
    elif most and used > NEARLY_FULL * most:
        yield Finding("memory", "warning", f"{found}.", mend)
    else:
        yield Finding("memory", "ok", f"{found}; it drops nothing.")


def clock(here: Installation) -> Iterator[Finding]:
    """How far this machine's clock is from that of Redis, which is the one that counts."""
    client = _client(here)
    if client is None:
        return
    from store.registry import seconds

    before = time.time()
    there = seconds(client.time())
    after = time.time()
    gap = max(there - after, before - there, 0.0)
    found = f"This machine's clock is {gap:.1f} s from that of Redis"
    if gap > CLOCK_S:
        found += ", so logs and times of jobs do not agree."
        yield Finding("clock", "warning", found, "Let NTP set both (timedatectl).")
    else:
        yield Finding("clock", "ok", f"{found}.")


def results(here: Installation) -> Iterator[Finding]:
    """Whether results in object storage can be read; that they can be written, a worker tries."""
    from runtime.settings import SettingsError, results_url

    try:
        url = results_url(here.env)
    except SettingsError:
        return  # `settings` says so
    if url is None:
        return
    from runtime.objects import PROBE, ObjectsAway, open_objects

    where = f"The storage of results at {shown(url)}"
    try:
        objects = open_objects(url, timeout_s=ANSWER_S)
        if objects is not None:
            objects.get([PROBE])
    except SettingsError as error:
        yield Finding("results", "failed", f"{error}.", "Set the AWS_ variables so.")
    except ObjectsAway as error:
        mend = "See that AWS_ENDPOINT_URL, the bucket and the AWS_ credentials are right."
        yield Finding("results", "failed", f"{where} cannot be used: {error}.", mend)
    else:
        yield Finding("results", "ok", f"{where} answers.")


def api(here: Installation) -> Iterator[Finding]:
    """Whether the API answers, is ready, is of this version and takes the key."""
    named = bool(here.env.get("PATHAR_URL") or here.up)
    url = here.api_url.rstrip("/")
    where = f"The API at {shown(url)}"
    answer = here.get(f"{url}/healthz")
    if isinstance(answer, Exception):
        if named:
            found = f"{where} does not answer: {_reason(answer)}."
            mend = "See that it runs (pathar serve) and that PATHAR_URL is right."
            yield Finding("api", "failed", found, mend)
        return
    if said(answer) != {"status": "ok"}:
        if named:
            found = f"{where} answers {answer.status_code}, as PathAR would not."
            mend = "Set PATHAR_URL to the API's own address"
            to = answer.headers.get("location")
            mend += f", which may be {shown(to)}." if to else ", and see what a proxy answers."
            yield Finding("api", "failed", found, mend)
        return
    document = here.get(f"{url}/openapi.json")
    there = said(document) if not isinstance(document, Exception) else {}
    version = str(there.get("info", {}).get("version", "?")) if isinstance(there, dict) else "?"
    if here.extras and version not in ("?", VERSION):
        found = f"{where} is version {version}, this package {VERSION}."
        yield Finding("api", "warning", found, "Install the same version on both sides.")
    else:
        yield Finding("api", "ok", f"{where} answers, version {version}.")
    ready = here.get(f"{url}/readyz")
    if isinstance(ready, Exception) or not ready.is_success:
        why = "no answer" if isinstance(ready, Exception) else _detail(ready)
        mend = "Start a worker, and see that it reaches the same Redis (PATHAR_REDIS_URL)."
        if "redis" in why.lower():
            mend = "Start Redis, or mend the API's PATHAR_REDIS_URL."
        yield Finding("api", "failed", f"{where} cannot draw: {why}.", mend)
    yield from _key(here, url)


def _key(here: Installation, url: str) -> Iterator[Finding]:
    """What can be asked for with the key, or without one."""
    try:
        key = read_key(here.env.get("PATHAR_API_KEY") or "") or None
    except UsageError as error:
        mend = "Set it to the one line that `pathar keys make` printed."
        yield Finding("key", "failed", f"PATHAR_API_KEY cannot be used: {error}.", mend)
        return
    host = urlsplit(url).hostname
    if key and url.startswith("http://") and host not in LOOPBACK:
        found = "PATHAR_API_KEY goes over http to another machine, readable on its way."
        yield Finding("key", "warning", found, "Use https, unless that network is your own.")
    answer = here.get(f"{url}/labels", key=key)
    if isinstance(answer, Exception):
        found = f"The API does not answer GET /labels: {_reason(answer)}."
        yield Finding("key", "failed", found, "See that Redis answers the API.")
    elif answer.status_code == 401 and key:
        mend = "Take a key that `pathar keys list` shows, or make one: pathar keys make NAME"
        yield Finding("key", "failed", "The API does not know PATHAR_API_KEY.", mend)
    elif answer.status_code == 401:
        mend = "Set PATHAR_API_KEY; its operator makes one: pathar keys make NAME"
        verdict: Verdict = "failed" if here.env.get("PATHAR_URL") else "warning"
        yield Finding("key", verdict, "The API asks for a key and PATHAR_API_KEY is unset.", mend)
    elif answer.status_code == 403:
        mend = "Make a key (pathar keys make NAME), or ask at the machine that it runs on."
        yield Finding("key", "failed", f"The API refuses: {_detail(answer)}.", mend)
    elif answer.is_success:
        labels = said(answer).get("labels", [])
        drawn = list(dict.fromkeys(str(each["name"]) for each in labels if each["ready"]))
        away = {str(each["model"]) for each in labels if not each["ready"]}
        how = "PATHAR_API_KEY is accepted" if key else "No key is needed"
        if drawn:
            yield Finding("key", "ok", f"{how}; {listed(drawn)} can be asked for.")
        if away:
            found = f"{listed(sorted(away))} can be asked for, and no worker of it lives."
            yield Finding("key", "warning", found, "Start one: pathar worker")


def workers(here: Installation) -> Iterator[Finding]:
    """Which models living workers serve, and whether all draw the same bits."""
    client = _client(here)
    if client is None:
        return
    from store.registry import Registry

    living = [known for known in Registry(client).models() if known.ready]
    if not living:
        found = "No worker has given a sign of life to this Redis."
        mend = "Start one (pathar worker), with the same PATHAR_REDIS_URL."
        yield Finding("workers", "failed", found, mend)
    for name in sorted({known.info.name for known in living}):
        mine = [known for known in living if known.info.name == name]
        versions = {known.info.version[:12] for known in mine}
        kinds = [f"{k.slots} slots with numerics {k.info.numerics}" for k in mine]
        if len(versions) > 1:
            found = f"{name} is served in versions {listed(sorted(versions))}, new jobs by the last"
            mend = "After an update, stop the old one's workers once their queue is empty."
            yield Finding("workers", "warning", f"{found}.", mend)
        elif len(mine) > 1:
            found = f"{name} is drawn by {listed(kinds)}: a job waits for those it began with."
            mend = "Give all workers of a model the same machines, packages and PATHAR_THREADS."
            yield Finding("workers", "warning", found, mend)
        else:
            yield Finding("workers", "ok", f"{name} {min(versions)}: {kinds[0]}.")


def queue(here: Installation) -> Iterator[Finding]:
    """What waits, and whether anybody can draw it."""
    client = _client(here)
    if client is None:
        return
    from store.census import CensusTaker

    found, waiting = [], 0
    queues = CensusTaker(client).queues()
    for each in queues:
        images = sum(line.images for line in each.lines)
        oldest = max(line.oldest_s for line in each.lines)
        version = each.name.removeprefix("pathar-").partition("-")[0]
        waiting += images
        # Jobs go over to workers of their version with other numerics, after a minute.
        served = any(o.slots for o in queues if o.name.startswith(f"pathar-{version}-"))
        what = f"{images} images wait for {each.model} {version}"
        if images and not served:
            mend = "Start a worker with its checkpoint, or cancel them: DELETE /jobs/{id}"
            found.append(Finding("queue", "failed", f"{what}, and no worker of it lives.", mend))
        elif images and oldest > STUCK_S and each.slots and not each.started:
            mend = "Look at the workers' logs; docs/runbook.md, PatharQueueStuck."
            text = f"{what}, the oldest for {oldest:.0f} s, and nobody draws."
            found.append(Finding("queue", "warning", text, mend))
    yield from found
    if not found:
        yield Finding("queue", "ok", f"{waiting} images wait, all for workers that live.")


def access(here: Installation) -> Iterator[Finding]:
    """Who can use the service, and who its Redis."""
    client = _client(here)
    if client is None:
        return
    from store.access import KeyStore

    parts = urlsplit(here.redis_url or "")
    secret = parts.password or "password=" in parts.query
    if parts.scheme != "unix" and not secret and not _is_loopback(parts.hostname or ""):
        found = "Redis takes commands from this network without a password."
        mend = "Set requirepass, and the password in PATHAR_REDIS_URL."
        yield Finding("access", "warning", found, mend)
    store = KeyStore(client)
    host = here.env.get("PATHAR_HOST") or "127.0.0.1"
    if store.required():
        yield Finding("access", "ok", f"Requests need a key; there are {len(store.all())}.")
    elif not _is_loopback(host):
        found = f"PATHAR_HOST={host} is open to others, and without any key the API answers nobody."
        yield Finding("access", "warning", found, "Make a key: pathar keys make NAME")
    else:
        yield Finding("access", "ok", "Requests need no key, and come from this machine alone.")


def metrics(here: Installation) -> Iterator[Finding]:
    """Whether the workers of this machine can be scraped where they should be."""
    port = here.env.get("PATHAR_WORKER_METRICS_PORT") or "0"
    urls = [str(url) for url in here.up.get("metrics", ())]
    if not urls and port.isascii() and port.isdigit() and int(port):
        host = here.env.get("PATHAR_HOST") or "127.0.0.1"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        urls = [f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"]
    for url in urls:
        answer = here.get(url)
        if isinstance(answer, Exception) or "pathar_worker_info{" not in answer.text:
            found = f"No worker shows metrics at {shown(url)}."
            mend = "Start one, or see what else listens there (PATHAR_WORKER_METRICS_PORT)."
            yield Finding("metrics", "warning", found, mend)
        else:
            yield Finding("metrics", "ok", f"A worker shows its metrics at {shown(url)}.")


CHECKS: tuple[Check, ...] = (
    *(redis, persistence, memory, clock, access, results),
    *(api, workers, queue, metrics),
)


def _client(here: Installation) -> redis_package.Redis | None:
    """The client, where Redis answers; where it does not, `redis` says so."""
    return None if isinstance(here.redis, Exception) else here.redis


def _info(client: redis_package.Redis, *sections: str) -> dict[str, Any]:
    """INFO; nothing where the user may not ask for it."""
    from redis.exceptions import ResponseError

    found: dict[str, Any] = {}
    for section in sections:
        try:
            found.update(client.info(section))
        except ResponseError:
            continue
    return found


def _why(here: Installation) -> str:
    """Why Redis cannot be used, without what may be a secret."""
    from redis.exceptions import AuthenticationError, TimeoutError

    if isinstance(here.redis, AuthenticationError):
        return "it refuses the password"
    if isinstance(here.redis, ValueError):  # which repeats a part of the URL
        return "PATHAR_REDIS_URL is no URL that Redis's client takes"
    if isinstance(here.redis, TimeoutError):
        return "no answer in time"
    return str(here.redis).rstrip(".") or type(here.redis).__name__


def _way(here: Installation) -> str:
    from redis.exceptions import AuthenticationError

    if isinstance(here.redis, AuthenticationError):
        return "Put Redis's password into PATHAR_REDIS_URL: redis://:PASSWORD@host:6379/0"
    if isinstance(here.redis, ValueError):
        return "Percent-encode the password: redis://:PASSWORD@host:6379/0"
    return "Start Redis, and see that PATHAR_REDIS_URL, name server and firewall lead to it."


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def _reason(error: Exception) -> str:
    """Why there is no answer; what is said of a wrong URL may repeat a secret in it."""
    text = str(error).rstrip(".") if isinstance(error, httpx.HTTPError) else ""
    return text or type(error).__name__


def _detail(answer: Any) -> str:
    """What a problem document says."""
    document = said(answer)
    if isinstance(document, Mapping) and "detail" in document:
        return str(document["detail"])
    return f"it answers {answer.status_code}"
