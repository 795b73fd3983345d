"""A real Prometheus of one's own, that scrapes what a test runs as deploy/prometheus says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conftest import DEADLINE_S
from tests.deploy.promql import PROMETHEUS
from tests.running import wait_until

EVERY_S = 1


class Prometheus:
    """Scrapes `targets`, addresses by job, every second; `query` and `range` ask it. Alerts go to
    the Alertmanager at an address, and link to `runbook`."""

    def __init__(
        self,
        binary: str,
        folder: Path,
        port: int,
        *,
        alertmanager: str = "",
        runbook: str = "",
        rules: Path = PROMETHEUS,
        **targets: Sequence[str],
    ) -> None:
        self._folder = folder
        config = folder / "prometheus.yml"
        config.write_text(json.dumps(configuration(targets, alertmanager, rules)))  # JSON is YAML
        self._log = folder / "log"
        command = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        command += [f"--rules.alert.resend-delay={EVERY_S}s"]  # an Alertmanager is found by then
        command += ["--enable-feature=expand-external-labels"]  # which version 3 does by itself
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATHAR_RUNBOOK_URL": runbook},
            )
        wait_until(self._ready, "Prometheus")
        self.started = time.time()

    def get(self, path: str, **asked: Any) -> Any:
        """What its HTTP API answers."""
        answer = self._http.get(f"/api/v1/{path}", params=asked)
        assert answer.status_code == 200, f"{asked}: {answer.text}"
        return answer.json()["data"]

    def query(self, expr: str) -> dict[frozenset[tuple[str, str]], float]:
        """The series of an expression now, by their labels; those that are no number left out."""
        found = self.get("query", query=expr)["result"]
        values = {
            frozenset(each["metric"].items()): float(each["value"][1])
            for each in found
            if "value" in each
        }
        return {labels: value for labels, value in values.items() if math.isfinite(value)}

    def by(self, label: str, expr: str) -> dict[str, float]:
        """The same by one label, those that are 0 left out."""
        return {dict(labels).get(label, ""): v for labels, v in self.query(expr).items() if v}

    def numbers(self, expr: str, start: float, end: float) -> int:
        """How many numbers an expression had between two moments, second by second."""
        asked = {"query": expr, "start": start, "end": end, "step": EVERY_S}
        series = self.get("query_range", **asked)["result"]
        values = [float(value) for each in series for _, value in each["values"]]
        return sum(math.isfinite(value) for value in values)

    def wait_for_a_scrape(self) -> None:
        """Until every target has been scraped after this moment, and the rules have run on that."""
        at = time.time()
        last = "min(timestamp(up))"
        wait_until(lambda: min(self.query(last).values()) > at + EVERY_S, "a scrape")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._http.close()

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False


def configuration(
    targets: Mapping[str, Sequence[str]], alertmanager: str, rules: Path
) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml with these targets, at the pace of a test."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": f"{EVERY_S}s", "evaluation_interval": f"{EVERY_S}s"}
    config["rule_files"] = [str(rules / each) for each in config["rule_files"]]
    [told] = config["alerting"]["alertmanagers"]
    told["static_configs"] = [{"targets": [alertmanager] if alertmanager else []}]
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        found = [key for key in job if key.endswith("_sd_configs")]
        for key in found:
            del job[key]
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    return config
