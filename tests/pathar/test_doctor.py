"""`pathar doctor` on real Redis, a real API and real settings, whole and broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import redis

from model.request import ModelInfo
from pathar.checks import engine, host, services
from pathar.checks.installation import Check, Finding, Installation, Needed
from pathar.doctor import CHECKS, doctor, examine
from store.access import KeyStore, Limits
from store.registry import Registry
from tests.conftest import DEADLINE_S, RedisServer
from tests.pathar.test_cli import pathar
from tests.running import Up, environment
from tests.s3 import Folder, S3Server
from tests.service.conftest import MODEL, LoneService
from tests.store.conftest import ask
from tests.test_documentation import settings as documented
from tests.test_packaging import PROJECT, ROOT

NOWHERE = Path("/nowhere")
SECRET = "hunter2hunter2"
ENGINE = ("device", "checkpoint", "decoder")
REDIS = ("redis", "persistence", "memory", "clock", "access", "workers", "queue")


@pytest.fixture
def lone(redis_server: RedisServer, tmp_path: Path) -> Iterator[LoneService]:
    service = LoneService(redis_server, tmp_path / "service.log")
    try:
        yield service
    finally:
        service.close()


def look(*checks: Check, **settings: str) -> list[Finding]:
    """What some checks find, in this process."""
    return list(examine(environment(NOWHERE, **settings), checks))


def verdicts(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


def ask_doctor(checkpoint: Path, **settings: str) -> tuple[int, dict[str, Any], str]:
    """`pathar doctor --json` as a process: exit code, document, and all that it wrote."""
    done = pathar("doctor", "--json", checkpoint=checkpoint, **settings)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout), done.stdout


def of(document: dict[str, Any], check: str) -> list[dict[str, str]]:
    return [each for each in document["findings"] if each["check"] == check]


# The command ------------------------------------------------------------------------------------


def test_a_service_that_runs_has_nothing_wrong(stack: Up, test_checkpoint: Path) -> None:
    code, document, _ = ask_doctor(test_checkpoint, PATHAR_HOME=str(stack.home), PATHAR_PORT="0")
    found = document["findings"]
    assert (code, document["failed"]) == (0, 0), found
    assert all(set(each) == {"check", "verdict", "found", "mend"} for each in found)
    assert [each["verdict"] for each in found if each["check"] not in ("packages", "slots")] == [
        "ok"
    ] * len([each for each in found if each["check"] not in ("packages", "slots")]), found
    checks = {each["check"] for each in found}
    assert {"python", "settings", "device", "checkpoint", "decoder", "redis", "api"} <= checks
    assert {"persistence", "memory", "clock", "access", "key", "workers", "queue"} <= checks
    [workers] = of(document, "workers")
    assert re.search(r"test-random [0-9a-f]{12}: 16 slots with numerics [0-9a-f]{12}", str(workers))


def test_the_table_says_what_is_wrong_and_how_to_mend_it() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        done = pathar("doctor", PATHAR_REDIS_URL=url, PATHAR_SLOT="3", COLUMNS="120")
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
    done = pathar("doctor", PATHAR_REDIS_URL=url, **settings)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", {"python", "packages", "variables"}),
        ("service", {"python", "packages", "variables", "settings", *REDIS}),
        ("worker", {"python", "packages", "variables", "settings", "cores", *ENGINE, *REDIS}),
    ],
)
def test_each_part_alone_needs_no_more_than_it_installs(
    extra: str,
    expected: set[str],
    tmp_path: Path,
    redis_server: RedisServer,
    test_checkpoint: Path,
) -> None:
    """The client of `pip install .`, and the two images of the Dockerfile."""
    lines = PROJECT["project"]["dependencies"]
    lines = lines + PROJECT["project"]["optional-dependencies"].get(extra, [])
    site = only(tmp_path / "site", closure(lines))
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
    assert {each["check"] for each in document["findings"]} - {"slots"} == expected
    text = str(of(document, "packages"))
    assert f"Installed: client{' and ' + extra if extra else ''}." in text
    assert extra == "worker" or "worker (pathar worker, pathar generate without --url)" in text


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
    assert names | {*ENGINE, "slots", "key"} <= named


def test_every_check_is_run() -> None:
    names = {check.__name__ for check in CHECKS}
    for module in (host, services):
        own = [each for each in vars(module).values() if getattr(each, "__module__", "") ==
               module.__name__ and "Installation" in str(getattr(each, "__annotations__", {}))
               and "Iterator[Finding]" in str(each.__annotations__)]  # fmt: skip
        assert own
        assert {e.__name__ for e in own if not e.__name__.startswith("_")} <= names


# This machine -----------------------------------------------------------------------------------


def test_every_setting_is_known() -> None:
    known = {f"PATHAR_{name}" for name in host.SETTINGS}
    assert known == documented(), "host.SETTINGS lists what the code reads"


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("PATHAR_SLOT", "Did you mean PATHAR_SLOTS?"),
        ("PATHAR_REDISURL", "Did you mean PATHAR_REDIS_URL?"),
        ("PATHAR_ZZZZ", "Remove it"),
        ("PATHAR_SERVICE_HOST", "Kubernetes"),
    ],
)
def test_a_variable_that_nothing_reads_is_named(name: str, mend: str) -> None:
    first, *_ = look(host.variables, **{name: "value"})
    assert (first.verdict, first.found) == ("warning", f"{name} is set, and nothing reads it.")
    assert mend in first.mend
    assert "value" not in str(first)


@pytest.mark.parametrize(
    ("key", "value"),
    [("PATHAR_PORT", "http"), ("PATHAR_SLOTS", "0"), ("PATHAR_REDIS_URL", "http://x")],
)
def test_a_bad_value_is_named_with_what_would_be_right(
    key: str, value: str, test_checkpoint: Path
) -> None:
    env = environment(test_checkpoint, **{key: value})
    [found] = examine(env, (host.settings,))
    assert found.verdict == "failed"
    assert f"{key}={value!r}: expected" in found.found


def test_kubernetes_port_of_a_service_named_pathar_is_recognised(test_checkpoint: Path) -> None:
    env = environment(test_checkpoint, PATHAR_PORT="tcp://10.0.0.7:80")
    [found] = examine(env, (host.settings,))
    assert "enableServiceLinks" in found.mend


def test_spans_without_their_package_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Installation({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"})
    here.extras = {"traces": (Needed("no-such-package-of-anybody", ">=1"),)}
    [found] = host.traces(here)
    assert found.verdict == "failed"
    assert "pathar[traces]" in found.mend


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
    assert {each.name for each in extras[""]} == {"httpx", "numpy", "pillow", "tqdm"}
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
    [found] = look(host.disk, PATHAR_HOME="/proc/1")
    assert found.verdict == "warning"
    assert "PATHAR_HOME" in found.mend


def test_a_taken_port_keeps_up_from_starting_and_another_api_does_not(lone: LoneService) -> None:
    home = {"PATHAR_HOME": str(NOWHERE)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [found] = look(host.up, PATHAR_PORT=str(port), **home)
        assert found.verdict == "failed"
        assert str(port) in found.found
        assert "PATHAR_PORT" in found.mend
    assert verdicts(look(host.up, PATHAR_PORT=str(port), **home)) == ["ok"]
    port = int(lone.url.rpartition(":")[2])
    [found] = look(host.up, PATHAR_PORT=str(port), **home)
    assert found.verdict == "ok"
    assert "another API" in found.found


def test_a_run_file_of_a_dead_process_is_said(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    run = {"url": "http://127.0.0.1:1", "redis_url": "unix:///gone", "pid": ended.pid}
    (tmp_path / "run.json").write_text(json.dumps(run))
    first, *_ = look(host.up, PATHAR_HOME=str(tmp_path), PATHAR_PORT="0")
    assert first.verdict == "warning"
    assert "runs no more" in first.found
    assert Installation({"PATHAR_HOME": str(tmp_path)}).redis_url is None


# torch ------------------------------------------------------------------------------------------


def findings_of_engine(checkpoint: Path, **settings: str) -> list[Finding]:
    return list(examine(environment(checkpoint, **settings), (engine.engine,)))


def test_a_damaged_checkpoint_and_a_device_that_is_not_there(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(test_checkpoint, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    found = findings_of_engine(copy, PATHAR_DEVICE="cuda:77")
    assert [(f.check, f.verdict) for f in found] == [("device", "failed"), ("checkpoint", "failed")]
    assert "damaged" in found[1].found


def test_too_many_slots_and_a_segmenter_that_is_none(test_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(test_checkpoint, copy)
    (copy / "segmenter.safetensors").write_bytes(b"nothing")
    env = environment(copy, PATHAR_SLOTS="4096")
    found = {(f.check, f.verdict): f for f in engine.look(env)}
    assert ("checkpoint", "ok") in found
    assert "training.evaluate" in found["checkpoint", "warning"].mend
    assert {verdict for check, verdict in found if check == "slots"} <= {"ok", "warning"}
    assert ("decoder", "failed") not in found


def test_a_process_that_dies_on_torch_is_told_from_one_that_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    path = f"{tmp_path}:{ROOT}"
    [found] = findings_of_engine(NOWHERE, PYTHONPATH=path)
    assert found.verdict == "failed"
    assert "SIGILL" in found.found


def test_the_compiled_decoder_is_held_against_torch(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.checkpoint import load_checkpoint
    from model.native_decoder import libraries

    if not libraries():
        pytest.skip("the compiled decode step is not built")
    checkpoint = load_checkpoint(test_checkpoint)
    for variant in libraries():
        assert engine.compare(checkpoint, variant) == ""
    monkeypatch.setattr(engine, "CLOSE", 1e-9)  # bf16 is not that close
    assert "far from torch's" in engine.compare(checkpoint, next(iter(libraries())))


# Redis ------------------------------------------------------------------------------------------


def test_a_good_redis_has_nothing_wrong_but_no_worker(redis_server: RedisServer) -> None:
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url)
    wrong = [f.check for f in found if f.verdict != "ok"]
    assert wrong == ["workers"]


def test_a_redis_that_was_stopped(redis_server: RedisServer, lone: LoneService) -> None:
    redis_server.kill()
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
    assert [(f.check, f.verdict) for f in found if f.verdict != "ok"] == [
        ("redis", "failed"), ("api", "failed"),
    ]  # fmt: skip
    assert all("Start Redis" in f.mend for f in found if f.verdict != "ok")
    assert "cannot draw" in str(found)


@pytest.mark.parametrize(
    ("options", "check", "verdict", "words"),
    [
        ({"appendonly": "no"}, services.persistence, "warning", "a restart loses jobs"),
        (
            {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
            services.memory,
            "warning",
            "allkeys-lru it drops queues or results",
        ),
        ({"maxmemory-policy": "allkeys-lru"}, services.memory, "ok", "drops nothing"),
        ({"maxmemory": "1"}, services.memory, "failed", "takes no jobs"),
    ],
)
def test_how_redis_is_set_up(
    options: dict[str, str], check: Check, verdict: str, words: str, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        for name, value in options.items():
            client.config_set(name, value)
    [found] = look(check, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == verdict
    assert words in found.found
    assert bool(found.mend) == (verdict != "ok")


def test_keys_that_were_dropped_are_a_failure(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", used + 2_000_000)
        for number in range(100):
            client.set(f"filler:{number}", bytes(100_000))
        client.config_set("maxmemory", 2 * used + 10_000_000)
    [found] = look(services.memory, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "failed"
    assert re.search(r"drops \d+ keys so far", found.found)


def test_a_replica_and_a_password(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", 1)
        [found] = look(services.redis, PATHAR_REDIS_URL=redis_server.url)
        assert (found.verdict, "primary" in found.mend) == ("failed", True)
        client.replicaof("NO", "ONE")
        client.config_set("requirepass", SECRET)
    [found] = look(services.redis, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "failed"
    right = redis_server.url.replace("unix://", f"unix://:{SECRET}@")
    [found] = look(services.redis, PATHAR_REDIS_URL=right)
    assert found.verdict == "ok"
    assert SECRET not in str(found)


def test_a_user_who_may_not_ask_is_told_so(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-info")
    url = redis_server.url.replace("unix://", "unix://ann:pw@")
    found = look(*services.CHECKS, PATHAR_REDIS_URL=url)
    assert "+info" in str(found)
    assert {f.verdict for f in found if f.check not in ("workers", "memory")} == {"ok"}


def test_a_clock_that_is_off(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    [found] = look(services.clock, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "warning"
    assert re.search(r"is (59|60)\.\d s from", found.found)


def test_nothing_is_written_to_redis(redis_server: RedisServer, lone: LoneService) -> None:
    lone.publish()
    with redis_server.client() as client:
        dirty = "rdb_changes_since_last_save"
        before, size = client.info("persistence")[dirty], client.dbsize()
        look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
        assert (client.info("persistence")[dirty], client.dbsize()) == (before, size)


def test_results_in_object_storage(s3_server: S3Server) -> None:
    folder = Folder(s3_server)

    def results(url: str = folder.url) -> Finding:
        [found] = look(services.results, PATHAR_RESULTS_URL=url)
        return found

    assert look(services.results) == []
    assert results().verdict == "ok"
    assert folder.names() == [], "nothing is written"
    missing = results("s3://no-such-bucket/prefix")
    assert (missing.verdict, "no-such-bucket" in missing.found) == ("failed", True)
    s3_server.stop()
    try:
        away = results()
        assert away.verdict == "failed"
        assert "AWS_ENDPOINT_URL" in away.mend
        assert s3_server.access["AWS_SECRET_ACCESS_KEY"] not in away.found.split()
    finally:
        s3_server.start()


# Workers and what waits ---------------------------------------------------------------------------


def info(**changes: str) -> ModelInfo:
    return ModelInfo.from_dict({**MODEL.to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numerics": "ffffffffffff"}, "a job waits for those it began with"),
        ({"version": "cd" * 32}, "in versions abababababab and cdcdcdcdcdcd"),
    ],
)
def test_workers_that_draw_other_bits_than_the_rest_are_named(
    changes: dict[str, str], words: str, redis_server: RedisServer
) -> None:
    registry = Registry(redis_server.client())
    registry.publish(MODEL, "one", 4)
    registry.publish(MODEL, "two", 4)
    assert verdicts(look(services.workers, PATHAR_REDIS_URL=redis_server.url)) == ["ok"]
    registry.publish(info(**changes), "three", 4)
    [found] = look(services.workers, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "warning"
    assert words in found.found


def test_images_that_nobody_can_draw_are_a_failure(
    redis_server: RedisServer, lone: LoneService
) -> None:
    from store.access import ANYBODY

    def queue() -> list[Finding]:
        return look(services.queue, PATHAR_REDIS_URL=redis_server.url)

    lone.publish()
    lone.jobs.submit(ask(3), MODEL, owner=ANYBODY)
    assert verdicts(queue()) == ["ok"]
    lone.registry.withdraw(MODEL, "test-worker", 4)
    [found] = queue()
    assert found.verdict == "failed"
    assert "3 images wait for stub abababababab" in found.found
    lone.registry.publish(info(numerics="ffffffffffff"), "another", 4)
    assert verdicts(queue()) == ["ok"], "they go over to workers of the same version"


# The API ----------------------------------------------------------------------------------------


@pytest.fixture
def make_key(redis_server: RedisServer) -> Callable[[str], str]:
    store = KeyStore(redis_server.client())
    return lambda name: store.make(name, 1.0, Limits())[0]


def test_the_key_is_asked_for_known_or_unknown(
    lone: LoneService, make_key: Callable[[str], str]
) -> None:
    lone.publish()

    def key(**settings: str) -> list[tuple[str, str]]:
        found = look(services.api, PATHAR_URL=lone.url, **settings)
        return [(f.verdict, f.found) for f in found if f.check == "key"]

    [(verdict, text)] = key()
    assert (verdict, "No key is needed; histology and blood" in text) == ("ok", True)
    token = make_key("ann")
    [(verdict, text)] = key()
    assert (verdict, "PATHAR_API_KEY is unset" in text) == ("failed", True)
    [(verdict, text)] = key(PATHAR_API_KEY=token[:-1] + ("a" if token[-1] != "a" else "b"))
    assert (verdict, "does not know" in text) == ("failed", True)
    [(verdict, text)] = key(PATHAR_API_KEY=token)
    assert (verdict, "is accepted" in text) == ("ok", True)


def test_an_api_without_workers_is_not_ready(lone: LoneService) -> None:
    found = look(services.api, PATHAR_URL=lone.url)
    assert [(f.check, f.verdict) for f in found][:2] == [("api", "ok"), ("api", "failed")]
    assert "worker" in found[1].mend


def test_what_is_no_api_is_said(test_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as server:
        assert server.stdout is not None
        match = re.search(rb"port (\d+)", server.stdout.readline())
        assert match
        found = look(services.api, PATHAR_URL=f"http://127.0.0.1:{match[1].decode()}")
        server.kill()
    assert verdicts(found) == ["failed"]
    assert "as PathAR would not" in found[0].found


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[", "nonsense"])
def test_a_url_that_is_none(url: str) -> None:
    [found] = look(services.api, PATHAR_URL=url)
    assert found.verdict == "failed"
    assert "PATHAR_URL" in found.mend


def test_a_service_open_to_others_without_a_key(
    redis_server: RedisServer, make_key: Callable[[str], str]
) -> None:
    settings = {"PATHAR_REDIS_URL": redis_server.url, "PATHAR_HOST": "0.0.0.0"}
    [found] = look(services.access, **settings)
    assert found.verdict == "warning"
    assert "answers nobody" in found.found
    make_key("ann")
    assert verdicts(look(services.access, **settings)) == ["ok"]


def test_redis_itself_open_to_others() -> None:
    """Only the URL is looked at: on an address that is not loopback, without a password."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says from which address it would
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    from tests.conftest import redis_binary
    from tests.running import wait_until

    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    command = [redis_binary(), "--port", str(port), "--bind", address, "--save", ""]
    process = subprocess.Popen([*command, "--protected-mode", "no"], stdout=subprocess.DEVNULL)
    url = f"redis://{address}:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: _pings(client), "Redis")
        first, *_ = look(services.access, PATHAR_REDIS_URL=url)
    finally:
        process.kill()
        process.wait()
    assert first.verdict == "warning"
    assert "without a password" in first.found


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
