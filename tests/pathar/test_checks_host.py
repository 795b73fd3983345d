"""What `pathar doctor` finds on this machine: settings, packages, cores, disk, ports."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pathar.checks import host
from pathar.checks.installation import Finding, Installation, Needed
from pathar.doctor import examine
from tests.pathar.findings import NOWHERE, expect, look, verdicts
from tests.running import environment
from tests.service.conftest import LoneService
from tests.test_documentation import ROOT
from tests.test_documentation import settings as documented


def test_every_setting_is_known() -> None:
    known = {f"PATHAR_{name}" for name in host.SETTINGS}
    assert known == documented(), "host.SETTINGS lists what the code reads"
    compose = re.findall(r"\$\{(PATHAR_\w+)", (ROOT / "docker-compose.yml").read_text())
    assert set(compose) <= known | {f"PATHAR_{name}" for name in host.OTHERS}


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("PATHAR_SLOT", "Did you mean PATHAR_SLOTS?"),
        ("PATHAR_REDISURL", "Did you mean PATHAR_REDIS_URL?"),
        ("PATHAR_ZZZZ", "Remove it"),
        ("PATHAR_SERVICE_HOST", "Kubernetes"),
    ],
)
def test_a_variable_that_nothing_reads_is_named(name: str, fix: str) -> None:
    first, *_ = look(host.variables, **{name: "value"})
    assert (first.verdict, first.found) == ("warning", f"{name} is set, and nothing reads it.")
    assert fix in first.fix
    assert "value" not in str(first)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PATHAR_PORT", "http"),
        ("PATHAR_PORT", "tcp://10.0.0.7:80"),  # as Kubernetes sets it for a Service named pathar
        ("PATHAR_SLOTS", "4097"),
        ("PATHAR_REDIS_URL", "http://x"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(
    key: str, value: str, test_checkpoint: Path
) -> None:
    [found] = examine(environment(test_checkpoint, **{key: value}), (host.settings,))
    assert found.verdict == "failed"
    assert f"{key}={value!r}: expected" in found.found
    assert value[:3] != "tcp" or "enableServiceLinks" in found.fix


def test_spans_without_their_package_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Installation({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"})
    here.extras = {"traces": (Needed("no-such-package-of-anybody", ">=1"),)}
    [found] = host.traces(here)
    assert found.verdict == "failed"
    assert "pathar[traces]" in found.fix


def packages(**extras: tuple[Needed, ...]) -> list[Finding]:
    here = Installation({})
    here.extras = {"": (Needed("httpx", ">=0.27"),), **extras}
    return list(host.packages(here))


def test_packages_are_told_apart_by_whole_absent_partly_there_and_unfit() -> None:
    missing, unfit = Needed("no-such-package", ">=1"), Needed("numpy", ">=99,<100")
    shared, there = Needed("redis", ">=5"), Needed("numpy", ">=1.26,<99")
    assert verdicts(packages(worker=(there,))) == ["ok"]
    absent = packages(worker=(missing, shared), service=(shared, there))
    assert verdicts(absent) == ["ok", "ok"]
    assert "Not installed: worker" in absent[1].found
    [_, partly] = packages(worker=(missing, there))
    assert partly.verdict == "warning"
    assert "lacks no-such-package" in partly.found
    [_, wrong] = packages(worker=(unfit,))
    assert wrong.verdict == "failed"
    assert "expected >=99,<100" in wrong.found


@pytest.mark.parametrize(
    ("versions", "fits"),
    [(">=1.26", True), (">=1,<100", True), ("<1", False), (">=99", False), ("", True)],
)
def test_versions_are_compared_as_numbers(versions: str, fits: bool) -> None:
    assert Needed("numpy", versions).fits() == fits


def test_the_extras_are_those_of_the_package() -> None:
    extras = Installation({}).extras
    assert {each.name for each in extras[""]} == {"httpx", "numpy", "pillow", "shtab", "tqdm"}
    assert {"torch", "redis", "fastapi"} <= {each.name for each in extras["all"]}


@pytest.mark.parametrize(
    ("files", "threads", "verdict"),
    [
        ({}, "1", "ok"),
        ({}, "1000", "warning"),
        ({"sys/fs/cgroup/a/cpu.max": "50000 100000"}, "1", "warning"),
        ({"sys/fs/cgroup/cpu.max": "100000 100000"}, "1", "ok"),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, "1", "ok"),
        ({"sys/fs/cgroup/a/b/cpu.max": "garbage"}, "1", "ok"),
    ],
)
def test_threads_are_held_against_the_cores_of_the_container(
    files: dict[str, str], threads: str, verdict: str, tmp_path: Path
) -> None:
    for name, text in {"proc/self/cgroup": "0::/a/b\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    here = Installation({"PATHAR_THREADS": threads})
    [found] = host.cores(here, tmp_path)
    assert found.verdict == verdict


def test_a_home_that_cannot_be_used_is_no_end_of_the_world() -> None:
    expect(host.disk, "warning", "Set PATHAR_HOME", PATHAR_HOME="/proc/1")


def test_a_taken_port_keeps_up_from_starting_and_another_api_does_not(lone: LoneService) -> None:
    home = {"PATHAR_HOME": str(NOWHERE)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        expect(host.up, "failed", port, "PATHAR_PORT", PATHAR_PORT=port, **home)
    expect(host.up, "ok", port, PATHAR_PORT=port, **home)
    port = lone.url.rpartition(":")[2]
    expect(host.up, "ok", "another API", PATHAR_PORT=port, **home)


@pytest.mark.processes
def test_a_run_file_of_a_dead_process_is_said(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    run = {"url": "http://127.0.0.1:1", "redis_url": "unix:///gone", "pid": ended.pid}
    (tmp_path / "run.json").write_text(json.dumps(run))
    first, *_ = look(host.up, PATHAR_HOME=str(tmp_path), PATHAR_PORT="0")
    assert first.verdict == "warning"
    assert "runs no more" in first.found
    assert Installation({"PATHAR_HOME": str(tmp_path)}).redis_url is None
