"""`pathar doctor` as a command, and how it runs its checks."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pathar.checks import engine, host, services
from pathar.checks.installation import Finding, Installation, Needed
from pathar.doctor import CHECKS, doctor, examine
from tests.conftest import DEADLINE_S, RedisServer
from tests.pathar.findings import NOWHERE, SECRET, look, verdicts
from tests.pathar.test_cli import called
from tests.running import Up, environment
from tests.test_packaging import PROJECT, ROOT

ALWAYS = ("python", "server", "packages", "variables")
ENGINE = ("device", "checkpoint", "decoder")
REDIS = ("redis", "persistence", "memory", "clock", "access", "workers", "queue")


def ask_doctor(checkpoint: Path, **settings: str) -> tuple[int, dict[str, Any], str]:
    """`pathar doctor --json`: exit code, document, and all that it wrote."""
    done = called("doctor", "--json", checkpoint=checkpoint, **settings)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout), done.stdout


def of(document: dict[str, Any], check: str) -> list[dict[str, str]]:
    return [each for each in document["findings"] if each["check"] == check]


def test_a_service_that_runs_has_nothing_wrong(stack: Up, test_checkpoint: Path) -> None:
    code, document, _ = ask_doctor(test_checkpoint, PATHAR_HOME=str(stack.home), PATHAR_PORT="0")
    found = document["findings"]
    assert (code, document["failed"]) == (0, 0), found
    assert all(set(each) == {"check", "verdict", "found", "fix"} for each in found)
    assert {each["verdict"] for each in found if each["check"] != "packages"} == {"ok"}, found
    checks = {each["check"] for each in found}
    assert {"python", "settings", "device", "checkpoint", "decoder", "redis", "api"} <= checks
    assert {"persistence", "memory", "clock", "access", "key", "workers", "queue"} <= checks
    [workers] = of(document, "workers")
    assert re.search(r"test-random [0-9a-f]{12}: 4 slots with numerics [0-9a-f]{12}", str(workers))


@pytest.mark.processes
def test_the_table_says_what_is_wrong_and_how_to_fix_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        done = called("doctor", PATHAR_REDIS_URL=url, PATHAR_SLOT="3", COLUMNS="120")
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^failed +redis +Redis at redis://127.0.0.1", done.stdout, re.MULTILINE)
    assert re.search(r"^failed +settings +PATHAR_CHECKPOINT='/nowhere'", done.stdout, re.MULTILINE)
    assert "-> Did you mean PATHAR_SLOTS?" in done.stdout
    assert re.search(r"^2 failed, \d+ warnings, \d+ ok$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_no_secret_is_printed(
    redis_server: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "another")
    quick = [check for check in CHECKS if check is not engine.engine]
    settings = {
        "PATHAR_API_KEY": f"pathar_{SECRET}",
        "PATHAR_URL": f"http://ann:{SECRET}@127.0.0.1:1/?password={SECRET}",
        "PATHAR_HOST": f"{SECRET}",
        "PATHAR_S3_SECRET_KEY": SECRET,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://ann:{SECRET}@otel:4318",
        "PATHAR_HOME": str(tmp_path),
    }
    for url in (
        redis_server.url.replace("unix://", f"unix://:{SECRET}@"),
        f"redis://:{SECRET}#{SECRET}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={SECRET}",
        f"http://:{SECRET}@127.0.0.1",
    ):
        env = environment(NOWHERE, PATHAR_REDIS_URL=url, **settings)
        for as_json in (False, True):
            assert doctor(env, as_json=as_json, checks=quick) == 1
            shown = capsys.readouterr()
            assert "redis" in shown.out
            assert "hunter2" not in shown.out + shown.err
    done = called("doctor", PATHAR_REDIS_URL=url, **settings)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", {*ALWAYS}),
        ("service", {*ALWAYS, "settings", *REDIS}),
        ("worker", {*ALWAYS, "settings", "cores", *ENGINE, *REDIS}),
    ],
)
def test_each_part_alone_needs_no_more_than_it_installs(
    extra: str,
    expected: set[str],
    tmp_path: Path,
    redis_server: RedisServer,
    test_checkpoint: Path,
) -> None:
    """A checkout with what the client needs, and the two images of the Dockerfile."""
    lines = PROJECT["project"]["dependencies"]
    lines = lines + PROJECT["project"]["optional-dependencies"].get(extra, [])
    site = only(tmp_path / "site", closure(lines) | {"pathar"})
    assert (site / "torch").exists() == (extra == "worker")
    assert (site / "redis").exists() == bool(extra)
    env = environment(test_checkpoint, PATHAR_HOME=str(tmp_path), PATHAR_REDIS_URL=redis_server.url)
    path = f"{site}:{ROOT}"
    command = [sys.executable, "-S", "-W", "error", "-m", "pathar", "doctor", "--json"]
    done = subprocess.run(
        command, env={**env, "PYTHONPATH": path}, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    failed = [each["check"] for each in document["findings"] if each["verdict"] == "failed"]
    assert failed == (["workers"] if extra else []), "Redis has no worker"
    assert done.returncode == bool(extra)
    assert {each["check"] for each in document["findings"]} == expected
    text = str(of(document, "packages"))
    assert f"Installed: client{' and ' + extra if extra else ''}." in text
    absent = "worker (pathar worker, pathar generate and pull without --url)"
    assert (absent in text) == (extra != "worker")


def only(site: Path, names: set[str]) -> Path:
    """A folder with these packages, and nothing that is installed beside them."""
    site.mkdir()
    for name in names:
        for path in metadata.files(name) or []:
            top = path.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    return site


def closure(lines: list[str]) -> set[str]:
    """The packages that requirements name, and what those need without any extra."""
    found: set[str] = set()
    left = list(lines)
    while left:
        name = re.split(r"[<>=!~ \[(]", left.pop())[0]
        if name not in found and Needed(name, "").installed():
            found.add(name)
            left += [line for line in metadata.requires(name) or [] if "extra ==" not in line]
    return found


def test_a_check_that_breaks_or_does_not_end_is_a_finding_and_stops_no_other() -> None:
    never = threading.Event()

    def hangs(_: Installation) -> Iterator[Finding]:
        yield Finding("hangs", "ok", "First.")
        never.wait()

    def breaks(_: Installation) -> Iterator[Finding]:
        yield from [Finding("breaks", "ok", str(1 / int("0")))]

    found = list(examine({}, (hangs, breaks, host.python), limit_s=0.1))
    assert [f.check for f in found] == ["hangs", "hangs", "breaks", "python"]
    assert verdicts(found)[:3] == ["ok", "failed", "failed"]
    assert "did not end within 0.1 s" in found[1].found
    assert "ZeroDivisionError" in found[2].found


def test_who_accepts_and_never_answers_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = {
            "PATHAR_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "PATHAR_URL": f"http://127.0.0.1:{port}",
            "PATHAR_WORKER_METRICS_PORT": str(port),
        }
        found = look(*services.CHECKS, **settings)
    assert [(f.check, f.verdict) for f in found] == [
        ("redis", "failed"), ("api", "failed"), ("metrics", "warning"),
    ]  # fmt: skip
    assert "no answer in time" in found[0].found


def test_every_check_is_in_the_document() -> None:
    document = (ROOT / "docs" / "operate.md").read_text().partition("## What is wrong")[2]
    rows = [row.split("|")[1] for row in document.splitlines() if row.startswith("| ")]
    named = {name.strip() for row in rows for name in row.split(",")}
    names = {check.__name__ for check in CHECKS} - {"engine"}
    assert names | {*ENGINE} <= named


def test_every_check_is_run() -> None:
    for module in (host, services):
        own = {
            each
            for each in vars(module).values()
            if getattr(each, "__module__", "") == module.__name__
            and getattr(each, "__annotations__", {}).get("return") == "Iterator[Finding]"
        }
        assert own == set(module.CHECKS)
