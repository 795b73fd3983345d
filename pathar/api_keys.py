"""`pathar keys`: make, list and revoke API keys in the Redis of PATHAR_REDIS_URL, or in that of the
`pathar up` that runs here.

As soon as there is one key, every request needs one. Knows no HTTP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from pathar import run_file
from pathar.errors import CommandError, UsageError
from pathar.pair_files import write_atomically

if TYPE_CHECKING:
    from store.access import KeyStore


def run(arguments: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Run `pathar keys`; returns the exit code. Raises CommandError, UsageError."""
    from runtime.connection import connect
    from store.access import KeyStore, KeyStoreError

    url = redis_url(env)
    try:
        with connect(url) as client:
            _do(KeyStore(client), arguments)
    except KeyStoreError as error:
        raise UsageError(str(error)) from None
    except (redis.RedisError, ValueError) as error:
        where = f"Redis at {without_password(url)} (PATHAR_REDIS_URL)"
        raise CommandError(f"{where}: {error}") from None
    return 0


def redis_url(env: Mapping[str, str]) -> str:
    """PATHAR_REDIS_URL, or the URL of the `pathar up` that runs here, which is printed.

    UsageError on an unusable URL, and when there is neither: a key made in another Redis would
    open nothing.
    """
    if env.get("PATHAR_REDIS_URL"):  # and no home is needed
        from runtime import settings

        try:
            return settings.redis_url(env)
        except settings.SettingsError as error:
            raise UsageError(str(error)) from None
    home = run_file.home(env)
    run = run_file.read_run(home)
    if "redis_url" not in run:
        raise UsageError(
            "PATHAR_REDIS_URL is not set and no `pathar up` runs here: expected the URL of the "
            "service's Redis, such as redis://127.0.0.1:6379/0"
        )
    print(f"pathar: the Redis of {home / run_file.NAME}", file=sys.stderr)
    return str(run["redis_url"])


def without_password(url: str) -> str:
    """The URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _do(store: KeyStore, arguments: argparse.Namespace) -> None:
    if arguments.action == "make":
        _make(store, arguments)
    elif arguments.action == "revoke":
        if not store.revoke(arguments.name):
            raise UsageError(f"name: there is no key {arguments.name!r}; see `pathar keys list`")
    elif arguments.action == "open":
        store.open()
    else:
        print(f"{'name':<24}{'weight':>8}{'rate':>8}{'waiting':>9}{'stored':>14}  made")
        for owner in store.all():
            limits = owner.limits
            made = datetime.fromtimestamp(owner.created_at, UTC).strftime("%Y-%m-%d %H:%M")
            print(
                f"{owner.name:<24}{owner.weight:>8g}{limits.requests_per_minute:>8}"
                f"{limits.waiting_images:>9}{limits.stored_bytes:>14}  {made}"
            )
        for key_id in store.damaged():
            print(
                f"key {key_id}: its record is damaged, so it opens nothing; "
                f"`pathar keys revoke {key_id}` removes it",
                file=sys.stderr,
            )


def _make(store: KeyStore, arguments: argparse.Namespace) -> None:
    from store.access import Limits

    told = {
        "requests_per_minute": arguments.rate,
        "waiting_images": arguments.waiting,
        "stored_bytes": arguments.stored,
    }
    limits = replace(Limits(), **{name: value for name, value in told.items() if value is not None})
    make = store.make_first if arguments.if_none else store.make
    given = None if arguments.given is None else _read(arguments.given)
    made = make(arguments.name, arguments.weight, limits, given)
    if made is None:
        print("pathar: there is a key already; none was made", file=sys.stderr)
        return
    token, _ = made
    if arguments.out is not None:
        _write(store, arguments.name, token, arguments.out)
    elif given is None:
        print(token)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read the key in {path}: {error}") from None


def _write(store: KeyStore, name: str, token: str, path: Path) -> None:
    """To a file for its owner's eyes alone; a key that nobody would ever see is taken back."""
    try:
        write_atomically(path, f"{token}\n".encode(), mode=0o600)
    except OSError as error:
        store.revoke(name)
        raise CommandError(f"cannot write the key to {path}: {error.strerror}") from None
