"""`pathar doctor`: what is wrong with an installation, and how to fix it.

Runs every check, each with a time limit, and prints the findings as a table or as JSON. Secrets in
settings and URLs are masked. Knows nothing of what is checked.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from urllib.parse import unquote

from pathar.checks import engine, host, services
from pathar.checks.installation import Check, Finding, Installation, failed, named

CHECKS: tuple[Check, ...] = (*host.CHECKS, engine.engine, *services.CHECKS)
LIMIT_S = 20.0
"""The time limit of a check: it may wait for several answers of 2 s each."""
COLOURS = {"ok": "32", "warning": "33", "failed": "31"}
LIMITS: Mapping[Check, float] = {engine.engine: engine.ENGINE_S + 10}
"""Checks with a longer time limit."""
SECRET = re.compile(r"(PATHAR|AWS|OTEL)_.*(KEY|SECRET|PASSWORD|TOKEN|HEADERS)")
PASSWORD = re.compile(r"[?&]password=([^&#]*)")
SHORTEST_SECRET = 4
"""The shortest secret to mask: a shorter one would mask parts of ordinary words."""
INDENT = 22
LOOK = "Look at what it asks."


def doctor(
    env: Mapping[str, str], *, as_json: bool = False, checks: Sequence[Check] = CHECKS
) -> int:
    """Print the findings; returns the exit code: 1 when a check failed, else 0."""
    logging.getLogger("pathar").addHandler(logging.NullHandler())  # what it logs, checks find
    hidden = secrets(env)
    coloured = sys.stdout.isatty() and not env.get("NO_COLOR")
    found = []
    for finding in examine(env, checks):
        told = replace(finding, found=_told(finding.found, hidden), fix=_told(finding.fix, hidden))
        found.append(told)
        if not as_json:
            print(rendered(told, coloured=coloured), flush=True)
    counts = Counter(finding.verdict for finding in found)
    if as_json:
        summary = {"failed": counts["failed"], "warnings": counts["warning"]}
        print(json.dumps({**summary, "findings": [asdict(each) for each in found]}, indent=2))
    else:
        print(f"\n{counts['failed']} failed, {counts['warning']} warnings, {counts['ok']} ok")
    return 1 if counts["failed"] else 0


def examine(
    env: Mapping[str, str], checks: Sequence[Check], limit_s: float = LIMIT_S
) -> Iterator[Finding]:
    """The findings of all checks, in order. A check that fails to run is a finding itself."""
    here = Installation(env)
    for check in checks:
        yield from _within(check, here, LIMITS.get(check, limit_s))


def rendered(finding: Finding, *, coloured: bool) -> str:
    """The rows of the table for one finding."""
    verdict = f"{finding.verdict:<9}"
    if coloured:
        verdict = f"\x1b[{COLOURS[finding.verdict]}m{verdict}\x1b[0m"
    width = max(40, shutil.get_terminal_size((100, 24)).columns) - INDENT
    lines = textwrap.wrap(finding.found, width)
    if finding.fix and finding.verdict != "ok":
        lines += textwrap.wrap(f"-> {finding.fix}", width, subsequent_indent="   ")
    return f"{verdict}{finding.check:<13}" + f"\n{' ' * INDENT}".join(lines)


def secrets(env: Mapping[str, str]) -> list[str]:
    """What must not be printed: values of variables named as secrets, and passwords in URLs."""
    found = {value for name, value in env.items() if SECRET.match(name)}
    for url in (value for value in env.values() if "://" in value):
        user = url.partition("://")[2].rpartition("@")[0]
        found |= {user.partition(":")[2] or user, *PASSWORD.findall(url)}
    found |= {unquote(word) for word in found}
    return sorted((word for word in found if len(word) >= SHORTEST_SECRET), key=len, reverse=True)


def _told(text: str, hidden: Sequence[str]) -> str:
    """A text with secrets masked, on one line, without control characters."""
    for word in hidden:
        text = text.replace(word, "...")
    return "".join(each if each.isprintable() else " " for each in text)


def _within(check: Check, here: Installation, limit_s: float) -> list[Finding]:
    """The findings of one check within its time limit.

    It runs in a thread that the process does not wait for: nothing else bounds the wait for a name
    server or a network folder."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(check(here))
        except Exception as error:
            found.append(failed(f"This check broke: {type(error).__name__}: {error}", LOOK))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        found.append(failed(f"This check did not end within {limit_s:g} s.", LOOK))
    return list(named(check.__name__, found))
