"""docker-compose.yml: of the right form, and fit to the images, the code and the documents."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from pathar.cli import build_parser
from service.__main__ import ARCHIVE_GRACE_S
from tests.deploy.files import ROOT, compose, dockerfile, known_settings, pinned
from worker.stopping import GRACE_S

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: each for name, each in SERVICES.items() if "build" in each}


@pytest.mark.processes
def test_it_is_what_the_compose_specification_says() -> None:
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, "docker-compose.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_right_place_or_port_that_it_could_do_without(name: str) -> None:
    service = SERVICES[name]
    assert pinned(service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert re.fullmatch(r"\d+[gm]|\$\{PATHAR_WORKER_MEMORY:-\d+g\}", service["mem_limit"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for volume in service.get("volumes", []):
        source, _, *options = volume.split(":")
        assert source in compose()["volumes"] or options == ["ro"], volume
        assert source in compose()["volumes"] or (ROOT / source).is_dir(), volume
    limits = service["logging"]["options"]
    most = int(limits["max-size"].removesuffix("m")) * int(limits["max-file"])
    assert f"{most} MB at most" in (ROOT / "docs/deploy.md").read_text()


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_of_ours_runs_and_is_told_is_known(name: str) -> None:
    service = OURS[name]
    stage = dockerfile()[service["build"]["target"]]
    command = service.get("command", stage.command())
    if command[0] == "pathar":
        assert build_parser().parse_args(command[1:]).run
    else:
        assert command == ["python", "-m", service["build"]["target"]]
    assert set(service["environment"]) <= known_settings()
    url = service["environment"]["PATHAR_REDIS_URL"]
    assert re.fullmatch(r"redis://:\$\{PATHAR_REDIS_PASSWORD:\?[^}]*\}@redis:6379/0", url)
    asked = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(service["build"].get("args", {})) <= asked


def test_containers_have_time_to_end() -> None:
    for name, needed in (
        ("worker-cpu", GRACE_S),
        ("worker-gpu", GRACE_S),
        ("api", ARCHIVE_GRACE_S),
    ):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= needed + 10


def test_redis_refuses_before_its_container_has_no_memory_left() -> None:
    """And leaves as much again for rewriting its file."""
    redis = SERVICES["redis"]
    settings = dict(zip(redis["command"][::2], redis["command"][1::2], strict=True))
    assert settings["--maxmemory-policy"] == "noeviction"
    most, limit = (int(text.rstrip("gb")) for text in (settings["--maxmemory"], redis["mem_limit"]))
    assert 2 * most <= limit


def test_volumes_are_where_the_images_and_programs_look() -> None:
    mounted = {
        name: [volume.split(":")[1] for volume in each.get("volumes", [])]
        for name, each in SERVICES.items()
    }
    assert mounted["worker-gpu"] == [dockerfile()["worker"].environment()["TRITON_CACHE_DIR"]]
    command = SERVICES["redis"]["command"]
    assert command[command.index("--dir") + 1] in mounted["redis"]
    key = build_parser().parse_args(SERVICES["first-key"]["command"][1:]).out
    assert mounted["first-key"] == [str(key.parent)]
    made = " ".join(text for _, text in dockerfile()["service"].instructions)
    assert f"--owner=10001 --group=10001 --mode=0700 {key.parent}" in made
    [provider] = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/pathar.yml").read_text()
    )["providers"]
    assert provider["options"]["path"] in mounted["grafana"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])


def test_prometheus_finds_the_api_and_every_worker() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    lookups = [job["dns_sd_configs"][0] for job in scraped["scrape_configs"]]
    found = {lookup["names"][0]: lookup["port"] for lookup in lookups}
    api, worker = (dockerfile()[name].environment() for name in ("service", "worker"))
    for name, port in (
        ("api", api["PATHAR_PORT"]),
        ("worker-cpu", worker["PATHAR_WORKER_METRICS_PORT"]),
        ("worker-gpu", worker["PATHAR_WORKER_METRICS_PORT"]),
    ):
        [alias] = SERVICES[name]["networks"]["inside"]["aliases"]
        assert found[alias] == int(port)
    assert "inside" in SERVICES["prometheus"]["networks"]


def test_by_default_grafana_serves_the_runbook_that_alerts_link_to() -> None:
    url = SERVICES["prometheus"]["environment"]["PATHAR_RUNBOOK_URL"]
    [port] = SERVICES["grafana"]["ports"]
    address = port.rpartition(":")[0]
    path = url.removeprefix(f"${{PATHAR_RUNBOOK_URL:-http://{address}/public/").removesuffix("}")
    [source] = [v.split(":")[0] for v in SERVICES["grafana"]["volumes"] if "/public/pathar" in v]
    assert (ROOT / source / path.removeprefix("pathar/")).is_file()


def test_what_can_be_set_is_in_the_document() -> None:
    document = (ROOT / "docs/deploy.md").read_text()
    for name in set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())):
        assert f"`{name}`" in document
