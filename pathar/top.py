"""`pathar top`: queue, slots, rate and latency, live, from the metrics of API and workers.

Without arguments it shows the `pathar up` that runs here. Knows nothing of Redis.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pathar import run_file
from pathar.contract import PRIORITIES
from pathar.errors import CommandError, UsageError
from pathar.readings import TIMEOUT_S, Reading, Source, quantile, rate

STAGES = ("queue", "decode", "vq_decode", "png", "store", "total")
EVERY_S = 1.0


def top(env: Mapping[str, str], urls: Sequence[str], *, once: bool) -> int:
    """Show the metrics until Ctrl-C, or once; returns the exit code. CommandError without an answer
    from any of them.
    """
    wanted = [_metrics_url(url) for url in urls] or _running(env)
    with httpx.Client(timeout=TIMEOUT_S) as http:
        return _shown(Source(wanted, http), once=once)


def _shown(source: Source, *, once: bool) -> int:
    before = now = source.read()
    if len(now.silent) == len(source.urls):
        raise CommandError(f"{', '.join(now.silent)}: no answer")
    console = Console()
    if once:
        time.sleep(EVERY_S)
        console.print(frame(source.read(), before))
        return 0
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.update(frame(now, before), refresh=True)
            time.sleep(EVERY_S)
            before, now = now, source.read()


def frame(now: Reading, before: Reading) -> RenderableType:
    """The table for the state at `now`, with rates since `before`."""
    return Group(_state(now), _queues(now, before), _stages(now, before), _workers(now, before))


def _state(now: Reading) -> Text:
    failed = now.largest("pathar_jobs_total", status="failed")
    said = Text("PathAR  ", style="bold")
    if now.largest("pathar_redis_up"):
        said.append("Redis up", style="green")
    else:
        said.append("Redis away", style="bold red")
    said.append(f"  jobs finished {now.largest('pathar_jobs_total', status='finished'):.0f}")
    said.append(f"  failed {failed:.0f}", style="red" if failed else "")
    for url in now.silent:
        said.append(f"\n{url}: no answer", style="bold red")
    return said


def _queues(now: Reading, before: Reading) -> Table:
    table = Table(title="models", title_justify="left", expand=True)
    table.add_column("model")
    names = ("slots", "drawing", *(f"waiting, {p}" for p in PRIORITIES), "oldest", "images/s")
    for name in names:
        table.add_column(name, justify="right")
    for model in now.values("pathar_ready_slots", "model"):
        waiting = [
            now.largest("pathar_queue_images", model=model, priority=priority)
            for priority in PRIORITIES
        ]
        oldest = max(
            now.largest("pathar_queue_oldest_seconds", model=model, priority=priority)
            for priority in PRIORITIES
        )
        slots = now.largest("pathar_ready_slots", model=model)
        drawn = rate(now, before, "pathar_images_total", model=model, status="finished")
        table.add_row(
            model,
            f"{slots:.0f}" if slots else Text("no worker", style="bold red"),
            f"{now.largest('pathar_started_images', model=model):.0f}",
            *(f"{count:.0f}" for count in waiting),
            _seconds(oldest) if sum(waiting) else "",
            f"{drawn:.2f}",
        )
    return table


def _stages(now: Reading, before: Reading) -> Table:
    table = Table(title="seconds an image, lately", title_justify="left", expand=True)
    table.add_column("")
    for stage in STAGES:
        table.add_column(stage, justify="right")
    for share, name in ((0.5, "half within"), (0.95, "95% within")):
        found = [quantile(share, now, before, "pathar_image_seconds", stage=s) for s in STAGES]
        table.add_row(name, *("" if each is None else _seconds(each) for each in found))
    return table


def _workers(now: Reading, before: Reading) -> Table:
    table = Table(title="workers", title_justify="left", expand=True)
    table.add_column("where")
    table.add_column("model")
    for name in ("busy", "slots", "steps/s", "rows a step", "MiB"):
        table.add_column(name, justify="right")
    for url in now.values("pathar_worker_info", "instance"):
        busy = now.sum("pathar_slots", state="busy", instance=url)
        steps = rate(now, before, "pathar_steps_total", instance=url)
        rows = rate(now, before, "pathar_step_rows_total", instance=url)
        models = [
            dict(labels)["model"]
            for labels in now.samples["pathar_worker_info"]
            if ("instance", url) in labels
        ]
        table.add_row(
            url.removesuffix("/metrics"),
            ", ".join(models),
            f"{busy:.0f}",
            f"{busy + now.sum('pathar_slots', state='free', instance=url):.0f}",
            f"{steps:.1f}",
            f"{rows / steps:.1f}" if steps else "",
            f"{now.sum('process_resident_memory_bytes', instance=url) / 2**20:.0f}",
        )
    return table


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"


def _metrics_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"url {url!r}: expected a URL such as http://127.0.0.1:8000")
    return url if url.endswith("/metrics") else url.rstrip("/") + "/metrics"


def _running(env: Mapping[str, str]) -> list[str]:
    """The metrics URLs of the `pathar up` that runs here. CommandError where none runs."""
    path = run_file.home(env)
    run = run_file.read_run(path)
    if not {"url", "metrics"} <= run.keys():
        raise UsageError(
            f"no `pathar up` runs here ({path / run_file.NAME}); name the API and the workers' "
            "metrics: pathar top http://api:8000 http://worker:9100"
        )
    return [_metrics_url(run["url"]), *map(_metrics_url, run["metrics"])]
