"""Webhooks: sends the end of a job to the URL that its request named.

Messages are signed as in Standard Webhooks (headers `webhook-id`, `webhook-timestamp` and
`webhook-signature`, HMAC-SHA256), with the secret of the job's API key. A message that is not
answered with 2xx is retried after growing pauses. The receiver's address must be public, or in a
network of PATHAR_NOTIFY_NETWORKS: otherwise a request could make the service call hosts that only
it can reach. The service calls the address that it has checked, so a DNS change in between has no
effect. Knows no routes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

import httpx
import redis
from starlette.concurrency import run_in_threadpool

from service.response_schemas import job_summary
from service.settings import Network
from store.access import KeyStore
from store.job import Job
from store.jobs import JobStore
from store.notices import Notice, NoticeStore

TIMEOUT_S = 10.0
"""Time-out of one try: name lookup, connection and answer."""
PAUSES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)
"""Seconds between tries. The message is given up after the last try."""
POLL_S = 1.0
MOST_TRIES, MOST_TRIES_A_KEY = 16, 4
"""The most simultaneous tries of this process, and of one API key in it."""
NAT64 = ip_network("64:ff9b::/96")

Delivery = Literal["delivered", "failed", "given_up"]
Address = IPv4Address | IPv6Address
log = logging.getLogger("pathar.service")


class NotifyError(Exception):
    """A message was not received. `final`: a retry cannot help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        self.final = final
        super().__init__(reason)


class Notifier:
    """Sends webhooks until it is canceled."""

    def __init__(
        self,
        notices: NoticeStore,
        jobs: JobStore,
        keys: KeyStore,
        networks: Sequence[Network],
        count: Callable[[Delivery], None],
    ) -> None:
        self._notices, self._jobs, self._keys = notices, jobs, keys
        self._networks, self._count = networks, count
        self._busy: Counter[str] = Counter()
        self._free = asyncio.Semaphore(MOST_TRIES)

    async def run(self) -> None:
        """Send each message when it is due."""
        # No proxy: it would resolve the name itself. No redirects: their targets are not checked.
        client = httpx.AsyncClient(
            verify=httpx.create_ssl_context(), trust_env=False, timeout=TIMEOUT_S
        )
        async with client, asyncio.TaskGroup() as tries:
            while True:
                await self._free.acquire()
                notice = None
                with suppress(redis.RedisError):
                    busy = [owner for owner, n in self._busy.items() if n >= MOST_TRIES_A_KEY]
                    notice = await run_in_threadpool(self._notices.next, busy)
                if notice is None:
                    self._free.release()
                    await asyncio.sleep(POLL_S)
                else:
                    self._busy[notice.owner] += 1
                    tries.create_task(self._try(client, notice))

    async def _try(self, client: httpx.AsyncClient, notice: Notice) -> None:
        try:
            await self._deliver(client, notice)
        except redis.RedisError as error:
            log.warning("webhook: Redis: %s", error, extra={"job": notice.job_id})
        except Exception:  # the lease of the try expires, and it is retried
            log.exception("webhook", extra={"job": notice.job_id})
        finally:
            self._busy[notice.owner] -= 1
            self._busy += Counter()
            self._free.release()

    async def _deliver(self, client: httpx.AsyncClient, notice: Notice) -> None:
        about = {"job": notice.job_id}
        try:
            job, secret = await run_in_threadpool(self._look, notice)
            await send(client, job, secret, self._networks)
        except NotifyError as error:
            last = error.final or notice.tries >= len(PAUSES_S)
            again = None if last else float(PAUSES_S[notice.tries])
            await run_in_threadpool(self._notices.failed, notice, str(error), again)
            self._count("given_up" if last else "failed")
            log.warning("webhook %s: %s", "given up" if last else "failed", error, extra=about)
        else:
            await run_in_threadpool(self._notices.delivered, notice)
            self._count("delivered")
            log.info("webhook delivered", extra=about)

    def _look(self, notice: Notice) -> tuple[Job, bytes]:
        owner = self._keys.owner(notice.owner)
        secret = None if owner is None else self._keys.webhook_secret(owner)
        if owner is None or secret is None:
            raise NotifyError("its API key has been revoked", final=True)
        job = self._jobs.get(notice.job_id, owner=owner)
        if job is None:
            raise NotifyError("the job has expired", final=True)
        return job, secret


async def send(
    client: httpx.AsyncClient, job: Job, secret: bytes, networks: Sequence[Network]
) -> None:
    """Send a message once. NotifyError unless the receiver answers with 2xx within TIMEOUT_S."""
    assert job.notify is not None
    try:
        url, body = httpx.URL(job.notify.url), message(job)
    except httpx.InvalidURL as error:
        raise NotifyError(f"not a URL: {error}", final=True) from None
    headers = signed(f"{job.owner}-{job.id}", body, secret, int(time.time()))
    headers |= {"Content-Type": "application/json", "Host": url.netloc.decode()}
    try:
        async with asyncio.timeout(TIMEOUT_S):
            address = await _allowed(url, networks)
            target = url.copy_with(host=str(address))
            request = client.build_request(
                "POST", target, content=body, headers=headers, extensions={"sni_hostname": url.host}
            )
            answer = await client.send(request, stream=True)  # its body is not read
            await answer.aclose()
    except TimeoutError:
        raise NotifyError(f"no answer within {TIMEOUT_S:g} s") from None
    except (httpx.HTTPError, OSError) as error:
        raise NotifyError(f"no answer: {error or type(error).__name__}") from None
    if answer.status_code == httpx.codes.GONE:
        raise NotifyError("answered 410: the receiver wants no more messages", final=True)
    if not answer.is_success:
        raise NotifyError(f"answered {answer.status_code}, expected 2xx")


def message(job: Job) -> bytes:
    """The body of a message: event type, time of the end, and the job as in `GET /jobs`."""
    ended = datetime.fromtimestamp(job.ended_at or 0.0, UTC).isoformat().replace("+00:00", "Z")
    data = job_summary(job).model_dump(mode="json")
    return json.dumps({"type": f"job.{job.status}", "timestamp": ended, "data": data}).encode()


def signed(message_id: str, body: bytes, secret: bytes, now: int) -> dict[str, str]:
    """The headers of Standard Webhooks; `now` in seconds since 1970."""
    content = f"{message_id}.{now}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{signature}",
    }


def is_allowed(address: Address, networks: Sequence[Network], *, encrypted: bool) -> bool:
    """Whether the service may call this address: public and over https, or in `networks`."""
    if any(address in network for network in networks):
        return True
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_allowed(inner, networks, encrypted=encrypted)
        if address.teredo is not None:
            return False
    return encrypted and address.is_global and not address.is_multicast


async def _allowed(url: httpx.URL, networks: Sequence[Network]) -> Address:
    """The address to call. NotifyError when any address of the name is not allowed."""
    loop, port = asyncio.get_running_loop(), url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotifyError(f"its name cannot be resolved: {error}") from None
    addresses = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    for address in addresses:
        if not is_allowed(address, networks, encrypted=url.scheme == "https"):
            reason = f"its address {address} is not public, or not called over https"
            raise NotifyError(reason, final=True)
    if not addresses:
        raise NotifyError("its name has no address")
    return addresses[0]
