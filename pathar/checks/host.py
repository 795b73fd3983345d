"""The checks of `pathar doctor` on this machine that need no torch: Python, packages, settings,
disk, and what `pathar up` needs. Each check is a function of an `Installation`.
"""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from pathar.checks.installation import (
    OF_THE_CLIENT,
    Check,
    Finding,
    Installation,
    failed,
    is_api,
    listed,
    ok,
    warning,
)
from pathar.errors import CommandError
from pathar.server import CHECKOUT, is_checkout

PYTHON = (3, 11)
USES = {
    "": "pathar generate and pull with --url, pathar verify, pathar.Client",
    "service": "pathar serve, pathar keys",
    "worker": "pathar worker, pathar generate and pull without --url",
    "top": "pathar top",
    "sign": "pathar sign",
    "parquet": "pathar pull --format parquet",
    "traces": "spans",
    "s3": "results in object storage",
    "training": "python -m training.train",
}
"""What each extra is for; `pathar up` and `pathar demo` need service and worker."""
SETTINGS = (
    *("API_KEY", "CHECKPOINT", "CORS_ORIGINS", "DEVICE", "DRAIN_SECONDS", "HOME", "HOST"),
    *("MAX_CONNECTIONS", "MAX_N", "MAX_WAITING", "NOTIFY_NETWORKS", "PORT", "REDIS_URL"),
    *("RESULTS_URL", "RESULT_TTL", "ROOT_PATH", "SLOTS", "THREADS", "TRUSTED_PROXIES", "URL"),
    "WORKER_METRICS_PORT",
)
"""All PATHAR_ variables, without the prefix. A test compares them with the code."""
OTHERS = (
    *("ALERTMANAGER_PORT", "ALERT_WEBHOOK", "GRAFANA_PORT", "PROMETHEUS_PORT", "REDIS_PASSWORD"),
    *("RUNBOOK_URL", "WORKER_MEMORY", "TEST_EXAMPLES", "TEST_SYSTEM"),
)
"""Those of docker-compose.yml and of the tests. A test compares them with the former."""
PREFIX = "PATHAR_"
KUBERNETES = "Kubernetes sets it for a Service named pathar: enableServiceLinks: false."
LITTLE_BYTES, LEAST_BYTES = 1 << 30, 64 << 20
"""Bytes on disk: for a few thousand pairs of results, and the least to start with."""


def python(_: Installation) -> Iterator[Finding]:
    """The Python version and the operating system."""
    version, system = platform.python_version(), platform.system()
    found = f"Python {version} on {system} {platform.machine()}."
    if sys.version_info < PYTHON:
        least = ".".join(map(str, PYTHON))
        yield failed(found, f"Install Python {least} or newer.")
    elif system != "Linux":
        yield warning(found, "Run the client here; workers, the API and `pathar up` on Linux.")
    else:
        yield ok(found)


def server(here: Installation) -> Iterator[Finding]:
    """Whether the server's code is here, or the client alone."""
    if here.lacks_server and is_checkout():
        found, _, how = here.lacks_server.partition(": ")
        yield failed(f"`pathar up` needs {found}.", f"{how[0].upper()}{how[1:]}.")
    elif here.lacks_server:
        yield ok(f"This is the client alone. `pathar up` needs {here.lacks_server}.")
    else:
        yield ok(f"The server is in {CHECKOUT}.")


def packages(here: Installation) -> Iterator[Finding]:
    """Which extras are installed, and which packages are missing for which command."""
    if not here.extras:
        yield failed("The package pathar is not installed.", "pip install . in its folder.")
        return
    names = [e for e in USES if e in here.extras and (not here.lacks_server or e in OF_THE_CLIENT)]
    yield ok(f"Installed: {listed([e or 'client' for e in names if here.has(e)])}.")
    askers = Counter(each for extra in names for each in here.extras[extra])
    absent = []
    for extra in names:
        needed, lacking = here.extras[extra], here.lacks(extra)
        if extra and lacking and all(n.name in lacking for n in needed if askers[n] == 1):
            absent.append(f"{extra} ({USES[extra]})")
        elif lacking:
            part = f"The extra {extra}" if extra else "The client"
            found = f"{part} lacks {listed(lacking)}, needed for {USES[extra]}."
            yield (warning if extra else failed)(found, _install(extra))
        else:
            for each in (each for each in needed if not each.fits()):
                found = f"{each.name} is {each.installed()}, expected {each.versions}."
                yield failed(found, _install(extra))
    if absent:
        yield ok(f"Not installed: {', '.join(absent)}. If wanted: pip install 'pathar[NAME]'.")


def variables(here: Installation) -> Iterator[Finding]:
    """PATHAR_ variables that nothing reads, most often misspelled ones."""
    known = (*SETTINGS, *OTHERS)
    told = sorted(name for name in here.env if name.startswith(PREFIX))
    read = [name for name in told if name.removeprefix(PREFIX) in known]
    for name in (name for name in told if name not in read):
        fix = "Remove it; docs/reference.md lists what there is."
        if near := difflib.get_close_matches(name.removeprefix(PREFIX), known, 1):
            fix = f"Did you mean {PREFIX}{near[0]}?"
        if name.startswith(f"{PREFIX}SERVICE_") or f"{PREFIX}PORT_" in name:
            fix = KUBERNETES
        yield warning(f"{name} is set, and nothing reads it.", fix)
    yield ok(f"Set and known: {listed(read) or 'none, all defaults'}.")


def settings(here: Installation) -> Iterator[Finding]:
    """Values that the service or a worker would refuse."""
    if here.lacks_server:
        return
    from runtime.settings import SettingsError

    refused: dict[str, None] = {}
    parts = [extra for extra in ("service", "worker") if here.has(extra)]
    for part in parts:
        try:
            import_module(f"{part}.settings").read_settings(here.env)
        except SettingsError as error:
            refused[str(error)] = None
    for sentence in refused:
        key = sentence.partition("=")[0]
        fix = f"Set {key} to one, or unset it and have the default."
        if here.env.get(key, "").startswith("tcp://"):
            fix = KUBERNETES
        yield failed(f"{sentence}.", fix)
    if parts and not refused:
        yield ok("Service and worker take the settings.")


def traces(here: Installation) -> Iterator[Finding]:
    """Whether traces are configured but cannot be sent."""
    told = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    if here.lacks_server:
        return
    asked, lacking = [name for name in told if here.env.get(name)], here.lacks("traces")
    if asked and lacking:
        found = f"{listed(asked)} is set, and {lacking[0]} is not installed."
        yield failed(found, _install("traces"))


def cores(here: Installation, root: Path = Path("/")) -> Iterator[Finding]:
    """Compares the threads of a worker with the cores it may use. `root`: where `/proc` and `/sys`
    are."""
    text = here.env.get("PATHAR_THREADS") or "0"
    if not here.has("worker") or not (text.isascii() and text.isdigit()):
        return
    from model.processors import allowed_cores, usable_cores

    allowed, usable = allowed_cores(root), usable_cores(root)
    threads = int(text) or usable
    workers = sum(n.startswith("worker") for n in here.up.get("pids", ()))
    told = f"PATHAR_THREADS={text}" + (f", that is {threads}" if text == "0" else "")
    fix = f"Set PATHAR_THREADS={usable}, or give it more; it is part of numerics."
    if threads > allowed:
        found = f"This process may use {allowed:g} cores and a worker takes {threads} ({told})."
        yield warning(found, fix)
    elif workers > 1 and threads * workers > allowed:
        found = f"{workers} workers take {threads} threads each of {allowed:g} cores ({told})."
        fix = f"Set PATHAR_THREADS={max(1, usable // workers)}; it is part of numerics."
        yield warning(found, fix)
    else:
        yield ok(f"{allowed:g} cores; a worker takes {threads} ({told}).")


def disk(here: Installation) -> Iterator[Finding]:
    """Disk space for the Redis file of `pathar up`, which holds the results."""
    if not (here.has("service") and here.has("worker")):
        return
    home = here.home or Path("/nowhere")
    folder = next(each for each in (home, *home.parents) if each.exists())
    if here.home is None or not os.access(folder, os.W_OK | os.X_OK):
        found = f"`pathar up` has nowhere to keep its files: {folder} cannot be written to."
        yield warning(found, "Set PATHAR_HOME if you want to use it.")
        return
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB are free at {folder}, where `pathar up` keeps results."
    fix = "Make room, set PATHAR_HOME to a larger disk, or shorten PATHAR_RESULT_TTL."
    if free >= LITTLE_BYTES:
        yield ok(found)
    else:
        yield (failed if free < LEAST_BYTES else warning)(found, fix)


def up(here: Installation) -> Iterator[Finding]:
    """Whether `pathar up` runs here, or could: it needs a redis-server and a free port."""
    if here.up:
        yield ok(f"`pathar up` runs here, at {here.up['url']}.")
        return
    if here.run:
        found = f"{here.home}/run.json is of a `pathar up` that runs no more."
        yield warning(found, "Start `pathar up` again, or remove the file.")
    elsewhere = here.env.get("PATHAR_REDIS_URL") or here.env.get("PATHAR_URL")
    if elsewhere or not (here.has("service") and here.has("worker")):
        return
    from pathar.embedded_redis import find_redis_server
    from pathar.up import reserve
    from runtime.settings import SettingsError
    from service.settings import read_settings

    try:
        program, address = find_redis_server(), read_settings(here.env)
    except CommandError as error:
        yield failed(f"`pathar up` finds {error}.", "Do that.")
        return
    except SettingsError:
        return  # `settings` says so
    where = f"{address.host}:{address.port}"
    try:
        with ExitStack() as held:
            reserve(address.host, address.port, held)
        yield ok(f"`pathar up` does not run; it would start {program} and listen on {where}.")
    except CommandError:
        if is_api(here.get(f"http://{where}/healthz")):
            yield ok(f"`pathar up` does not run; another API listens on {where}.")
        else:
            fix = "Stop what listens there, or set PATHAR_PORT (0 takes any free port)."
            yield failed(f"`pathar up` cannot listen on {where}: it is taken.", fix)


CHECKS: tuple[Check, ...] = (
    *(python, server, packages, variables, settings),
    *(traces, cores, disk, up),
)


def _install(extra: str) -> str:
    return f"pip install 'pathar[{extra}]'" if extra else "pip install pathar"
