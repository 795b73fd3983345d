from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from pathar.cli import build_parser
from service.__main__ import GRACE_SECONDS
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
def test_images_are_pinned(name: str) -> None:
    assert pinned(SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_write_nowhere_but_to_memory_and_volumes(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":")
        assert source in compose()["volumes"] or options == ["ro"], volume
        assert target.startswith("/")


@pytest.mark.parametrize("name", SERVICES)
def test_the_log_of_a_container_cannot_fill_the_disk(name: str) -> None:
    logging = SERVICES[name]["logging"]
    assert logging["driver"] == "local"
    size, files = logging["options"]["max-size"], logging["options"]["max-file"]
    most = int(size.removesuffix("m")) * int(files)
    assert f"{most} MB at most" in (ROOT / "docs/deploy.md").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_redis_and_workers_have_no_way_out() -> None:
    assert compose()["networks"]["inside"]["internal"] is True
    for name in ("redis", "first-key", "worker-cpu", "worker-gpu"):
        assert list(SERVICES[name]["networks"]) == ["inside"]


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
    asked = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(service["build"].get("args", {})) <= asked


def test_the_gpu_worker_is_told_of_a_gpu_and_the_cpu_worker_of_none() -> None:
    gpu, cpu = SERVICES["worker-gpu"], SERVICES["worker-cpu"]
    assert (gpu["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in cpu
    assert (gpu["environment"]["PATHAR_DEVICE"], cpu["environment"]["PATHAR_DEVICE"]) == (
        "cuda",
        "cpu",
    )
    cache = dockerfile()["worker"].environment()["TRITON_CACHE_DIR"]
    assert gpu["volumes"] == [f"triton:{cache}"]


def test_containers_have_time_to_end() -> None:
    for name, needed in (("worker-cpu", GRACE_S), ("worker-gpu", GRACE_S), ("api", GRACE_SECONDS)):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= needed + 10


def test_redis_keeps_what_it_is_told_and_asks_for_a_password() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--requirepass"] == "${PATHAR_REDIS_PASSWORD}"
    assert all(isinstance(word, str) for word in command)
    assert options["--dir"] in [volume.split(":")[1] for volume in SERVICES["redis"]["volumes"]]


def test_without_a_password_nothing_starts_and_none_is_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert "${PATHAR_REDIS_PASSWORD:?" in text
    for name, service in OURS.items():
        url = service["environment"]["PATHAR_REDIS_URL"]
        assert re.fullmatch(r"redis://:\$\{PATHAR_REDIS_PASSWORD:\?[^}]*\}@redis:6379/0", url), name


def test_the_api_starts_when_its_first_key_is_there_to_be_read() -> None:
    first = SERVICES["first-key"]
    words = build_parser().parse_args(first["command"][1:])
    assert words.if_none
    [volume] = first["volumes"]
    assert str(words.out.parent) == volume.split(":")[1]
    made = " ".join(text for _, text in dockerfile()["service"].instructions)
    assert f"--owner=10001 --group=10001 --mode=0700 {words.out.parent}" in made
    condition = SERVICES["api"]["depends_on"]["first-key"]["condition"]
    assert condition == "service_completed_successfully"


def test_prometheus_finds_the_api_and_every_worker() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    found = {}
    for job in scraped["scrape_configs"]:
        [lookup] = job["dns_sd_configs"]
        found[lookup["names"][0]] = lookup["port"]
    api, worker = (dockerfile()[name].environment() for name in ("service", "worker"))
    for name, port in (
        ("api", api["PATHAR_PORT"]),
        ("worker-cpu", worker["PATHAR_WORKER_METRICS_PORT"]),
        ("worker-gpu", worker["PATHAR_WORKER_METRICS_PORT"]),
    ):
        [alias] = SERVICES[name]["networks"]["inside"]["aliases"]
        assert found[alias] == int(port)
    assert "inside" in SERVICES["prometheus"]["networks"]


def test_every_file_that_is_mounted_is_there() -> None:
    for name in ("prometheus", "grafana"):
        for volume in SERVICES[name]["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_dir(), volume


def test_grafana_finds_its_data_and_its_dashboards() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((folder / "dashboards/pathar.yml").read_text())["providers"]
    targets = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])


def test_what_can_be_set_is_in_the_document() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    document = (ROOT / "docs/deploy.md").read_text()
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert f"`{name}`" in document
