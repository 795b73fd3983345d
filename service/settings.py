"""The service's settings, read from PATHAR_ environment variables.

Knows nothing of HTTP. Settings are read once, when a process or an app starts. No other file of the
service reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from pathar.contract import MAX_IMAGES
from runtime.settings import (
    HOST,
    REDIS_URL,
    RESULT_TTL_S,
    SettingsError,
    integer,
    redis_url,
    result_ttl,
    results_url,
)
from store.jobs import MAX_WAITING

Network = IPv4Network | IPv6Network
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1"))
_ROOT_PATH = re.compile("(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def is_root_path(text: str) -> bool:
    """Whether an API can be mounted under this path."""
    return _ROOT_PATH.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))


@dataclass(frozen=True)
class ServiceSettings:
    """The service's settings. `result_ttl` and `drain` are in seconds. With port 0 the system
    chooses a port. `root_path` is the path under which a proxy mounts the API; `trusted_proxies`
    may send another one. Pages of `cors_origins` may call the API. Webhooks may go to public
    addresses and to `notify_networks`.
    """

    host: str = HOST
    port: int = 8000
    redis_url: str = REDIS_URL
    max_n: int = MAX_IMAGES
    max_waiting: int = MAX_WAITING
    result_ttl: int = RESULT_TTL_S
    results_url: str | None = None
    max_connections: int = 4096
    drain: int = 0
    root_path: str = ""
    trusted_proxies: tuple[Network, ...] = LOOPBACK
    cors_origins: tuple[str, ...] = ()
    notify_networks: tuple[Network, ...] = ()


def read_settings(env: Mapping[str, str]) -> ServiceSettings:
    """The settings in `env`, with defaults for the rest. SettingsError on a bad value."""
    default = ServiceSettings()
    return ServiceSettings(
        host=env.get("PATHAR_HOST") or default.host,
        port=integer(env, "PATHAR_PORT", default.port, 0, 65535),
        redis_url=redis_url(env),
        max_n=integer(env, "PATHAR_MAX_N", default.max_n, 1, MAX_IMAGES),
        max_waiting=integer(env, "PATHAR_MAX_WAITING", default.max_waiting, 1, 10_000_000),
        result_ttl=result_ttl(env),
        results_url=results_url(env),
        max_connections=integer(
            env, "PATHAR_MAX_CONNECTIONS", default.max_connections, 100, 1_000_000
        ),
        drain=integer(env, "PATHAR_DRAIN_SECONDS", default.drain, 0, 300),
        root_path=_root_path(env),
        trusted_proxies=_networks(env, "PATHAR_TRUSTED_PROXIES", LOOPBACK),
        cors_origins=_origins(env),
        notify_networks=_networks(env, "PATHAR_NOTIFY_NETWORKS", ()),
    )


def _root_path(env: Mapping[str, str]) -> str:
    text = env.get("PATHAR_ROOT_PATH") or ""
    path = text.rstrip("/")
    if path and not is_root_path(path):
        raise SettingsError("PATHAR_ROOT_PATH", text, "a path such as /pathar")
    return path


def _networks(
    env: Mapping[str, str], key: str, default: tuple[Network, ...]
) -> tuple[Network, ...]:
    text = env.get(key)
    if text is None:
        return default
    try:
        return tuple(ip_network(each) for each in _listed(text))
    except ValueError:
        expected = "addresses and networks separated by commas, such as 10.0.0.0/8,127.0.0.1"
        raise SettingsError(key, text, expected) from None


def _origins(env: Mapping[str, str]) -> tuple[str, ...]:
    text = env.get("PATHAR_CORS_ORIGINS") or ""
    origins = _listed(text)
    if any(each != "*" and not _ORIGIN.fullmatch(each) for each in origins):
        expected = "* or origins separated by commas, such as https://pages.example"
        raise SettingsError("PATHAR_CORS_ORIGINS", text, expected)
    return tuple(origins)


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]
