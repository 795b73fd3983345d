"""`pathar demo`: starts the service, asks it for pairs of every label, writes them, stops it.

Uses the service as a user would: `pathar up` as a process, HTTP, files. Knows nothing behind them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathar.client import Client
from pathar.contact_sheet import SheetRow, contact_sheet
from pathar.local_service import local_service
from pathar.pair_files import write_atomically

PAIRS = 6
"""Pairs of each label. Their seeds are 0 to PAIRS - 1, so every demo draws the same pairs."""


@dataclass(frozen=True)
class Drawn:
    """One label's pairs, and the seconds from request to answer of each."""

    label: str
    pairs: tuple[Mapping[str, bytes], ...]
    seconds: tuple[float, ...]


def demo(out: Path) -> None:
    """Write pairs of every label and `contact_sheet.png` to `out`; print seconds an image."""
    out.mkdir(parents=True, exist_ok=True)
    with local_service({}) as url, Client(url) as client:
        print(f"the service is ready at {url}", file=sys.stderr, flush=True)
        drawn = [_draw(client, label, out) for label in labels(client)]
    sheet = out / "contact_sheet.png"
    write_atomically(sheet, contact_sheet([SheetRow(d.label, d.pairs) for d in drawn]))
    _print_latency(drawn)
    print(f"contact sheet: {sheet}")


def labels(client: Client) -> list[str]:
    """The names of all labels, each once."""
    return list(dict.fromkeys(label.name for label in client.labels()))


def _draw(client: Client, label: str, out: Path) -> Drawn:
    pairs, seconds = [], []
    for seed in range(PAIRS):
        begin = time.perf_counter()
        (pair,) = client.generate(label, seed=seed, progress=False)
        seconds.append(time.perf_counter() - begin)
        pairs.append(pair.files())
        pair.save(out)
        print(f"{label} {seed + 1}/{PAIRS}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return Drawn(label, tuple(pairs), tuple(seconds))


def _print_latency(drawn: Sequence[Drawn]) -> None:
    print("seconds from request to pair over HTTP, one at a time:")
    print(f"{'label':<16}{'median':>8}{'images':>8}")
    for row in drawn:
        print(f"{row.label:<16}{statistics.median(row.seconds):>8.2f}{len(row.seconds):>8}")
