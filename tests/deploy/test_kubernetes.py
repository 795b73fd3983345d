"""What kustomize makes of deploy/kubernetes: Kubernetes takes it, it fits the code and the images,
and its network policies let those talk who must, and nobody else.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pathar.cli import build_parser
from runtime.settings import SettingsError, results_url
from service import routes
from service.__main__ import ARCHIVE_GRACE_S
from tests.deploy.files import (
    OVERLAYS,
    ROOT,
    Object,
    compose,
    dockerfile,
    known_settings,
    kustomize,
    pinned,
)
from tests.deploy.promql import DASHBOARD, PROMETHEUS, alerts
from tests.system import program
from worker.stopping import GRACE_S

pytestmark = pytest.mark.system

NETWORK = ROOT / "deploy/kubernetes/base/network.yaml"

OLDEST, NEWEST = "1.30", "1.37"
"""Of Kubernetes; docs/deploy.md names the oldest."""
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule"}
"""Kinds that Kubernetes does not know by itself."""
RUNBOOK = "https://CHANGE-ME/docs/runbook.md"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def objects(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return kustomize(overlay, tmp_path_factory.mktemp(overlay))


def of(objects: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pods(objects: list[Object]) -> dict[str, Object]:
    """The pods' templates, by what runs them."""
    kinds = ("Deployment", "StatefulSet", "Job")
    found = {name: each for kind in kinds for name, each in of(objects, kind).items()}
    return {name: each["spec"]["template"] for name, each in found.items()}


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each container with its pod's spec."""
    for template in pods(objects).values():
        spec = template["spec"]
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            yield spec, container


def main(objects: list[Object], name: str) -> Object:
    [container] = pods(objects)[name]["spec"]["containers"]
    return dict(container)


def told(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container.get("env", [])}


def labels(objects: list[Object], name: str) -> dict[str, str]:
    return dict(pods(objects)[name]["metadata"]["labels"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_object(objects: list[Object], version: str) -> None:
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)
    assert set(pods(objects)) == {"api", "worker", "redis", "first-key"}


def test_no_container_is_refused_by_its_namespace_or_takes_all_of_a_machine(
    objects: list[Object],
) -> None:
    [(name, namespace)] = of(objects, "Namespace").items()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in objects if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {name}
    for spec, container in containers(objects):
        pod, own = spec["securityContext"], container["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]["type"]) == (True, "RuntimeDefault")
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_containers_fit_their_images(objects: list[Object], overlay: str) -> None:
    images = {container["image"] for _, container in containers(objects)}
    assert all(pinned(image) for image in images)
    services = compose()["services"]
    assert images == {services[name]["image"] for name in ("redis", "api", f"worker-{overlay}")}
    for name, stage in (("api", "service"), ("worker", "worker")):
        user = pods(objects)[name]["spec"]["securityContext"]
        assert f"{user['runAsUser']}:{user['runAsGroup']}" == dockerfile()[stage].last("USER")
        assert set(told(main(objects, name))) <= known_settings()
    cache = dockerfile()["worker"].environment()["TRITON_CACHE_DIR"]
    for spec, container in containers(objects):
        if container["name"] not in pods(objects):  # it fills the GPU worker's cache
            assert container["command"] == ["cp", "--recursive", f"{cache}/.", "/cache"]
            [mount] = container["volumeMounts"]
            mounts = spec["containers"][0]["volumeMounts"]
            assert {"name": mount["name"], "mountPath": cache} in mounts


def test_the_first_key_is_made_as_compose_makes_it_but_from_a_secret(objects: list[Object]) -> None:
    container, spec = main(objects, "first-key"), pods(objects)["first-key"]["spec"]
    told = build_parser().parse_args(container["command"][1:])
    compose_told = build_parser().parse_args(compose()["services"]["first-key"]["command"][1:])
    assert (told.name, told.if_none) == (compose_told.name, compose_told.if_none) == ("first", True)
    [mount], [volume] = container["volumeMounts"], spec["volumes"]
    secret = of(objects, "Secret")[volume["secret"]["secretName"]]
    assert told.given == Path(mount["mountPath"], *secret["data"])


def test_probes_and_prometheus_ask_what_is_there(objects: list[Object]) -> None:
    paths = {route.path for route in routes.router.routes}  # type: ignore[attr-defined]
    api, worker = main(objects, "api"), main(objects, "worker")
    for container, where, number in (
        (api, paths, dockerfile()["service"].environment()["PATHAR_PORT"]),
        (worker, {"/metrics"}, told(worker)["PATHAR_WORKER_METRICS_PORT"]),
    ):
        [port] = container["ports"]
        assert str(port["containerPort"]) == number
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert (asked["port"], asked["path"] in where) == (port["name"], True)
        notes = pods(objects)[container["name"]]["metadata"]["annotations"]
        assert (notes["prometheus.io/port"], notes["prometheus.io/path"]) == (number, "/metrics")


def test_pods_have_time_to_end(objects: list[Object]) -> None:
    api, worker = (pods(objects)[name]["spec"] for name in ("api", "worker"))
    drain = int(told(api["containers"][0])["PATHAR_DRAIN_SECONDS"])
    assert api["terminationGracePeriodSeconds"] >= drain + ARCHIVE_GRACE_S + 10
    assert worker["terminationGracePeriodSeconds"] >= GRACE_S + 30


def test_every_selector_finds_the_pods_that_it_is_for(objects: list[Object]) -> None:
    for name, service in of(objects, "Service").items():
        assert selects({"matchLabels": service["spec"]["selector"]}, labels(objects, name))
        ports = {port["name"] for port in main(objects, name)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        for name, each in of(objects, kind).items():
            assert selects(each["spec"]["selector"], labels(objects, name))
    for name in ("api", "worker"):
        [rule] = pods(objects)[name]["spec"]["topologySpreadConstraints"]
        assert selects(rule["labelSelector"], labels(objects, name))


def test_secrets_are_placeholders_that_pods_find(objects: list[Object]) -> None:
    secrets = of(objects, "Secret")
    for _, container in containers(objects):
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                wanted = variable["valueFrom"]["secretKeyRef"]
                assert wanted["key"] in secrets[wanted["name"]]["data"]
    texts = [text for secret in secrets.values() for text in secret["data"].values()]
    assert all("CHANGE-ME" in base64.b64decode(text).decode() for text in texts)


def test_no_secret_is_committed() -> None:
    examples = (ROOT / "deploy/kubernetes").rglob("*.env.example")
    secret = {str(path.with_suffix("").relative_to(ROOT)) for path in examples}
    assert {".env", *secret} <= set((ROOT / ".gitignore").read_text().splitlines())
    listed = subprocess.run(["git", "ls-files", "*.env"], cwd=ROOT, capture_output=True, check=True)
    assert listed.stdout == b""


def test_keda_counts_slots_and_metrics_that_there_are(objects: list[Object]) -> None:
    [scaled] = of(objects, "ScaledObject").values()
    [trigger] = scaled["spec"]["triggers"]
    assert scaled["spec"]["scaleTargetRef"]["name"] in of(objects, "Deployment")
    assert "replicas" not in of(objects, "Deployment")["worker"]["spec"], "they would fight"
    assert trigger["metadata"]["threshold"] == told(main(objects, "worker"))["PATHAR_SLOTS"]
    metrics = set(re.findall(r"pathar_\w+", trigger["metadata"]["query"]))
    source = (ROOT / "service" / "metrics.py").read_text()
    assert all(f'"{name}"' in source for name in metrics)


def test_kedas_question_counts_every_image_once_and_has_no_answer_without_an_api(
    objects: list[Object], tmp_path: Path
) -> None:
    [scaled] = of(objects, "ScaledObject").values()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    api = ("a", "b")  # two processes, which tell the same
    up = [f'pathar_redis_up{{instance="{each}"}}' for each in api]
    waits = [
        f'pathar_queue_images{{instance="{each}", model="m", priority="{priority}"}}'
        for each in api
        for priority in ("interactive", "bulk")
    ]
    drawn = [f'pathar_started_images{{instance="{each}", model="m"}}' for each in api]
    cases = [
        (dict.fromkeys(up, 1) | dict.fromkeys(waits, 20) | dict.fromkeys(drawn, 3), [43]),
        (dict.fromkeys(up, 1), [0]),
        (dict.fromkeys(up, 0), []),
        ({"pathar_slots": 1}, []),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": k, "values": f"{v}x5"} for k, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "1m",
                    "exp_samples": [{"labels": "{}", "value": value} for value in values],
                }
            ],
        }
        for series, values in cases
    ]
    path = tmp_path / "keda.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    promtool = [program("promtool"), "test", "rules", str(path)]
    done = subprocess.run(promtool, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_redis_refuses_before_its_container_has_no_memory_left(objects: list[Object]) -> None:
    """And leaves as much again for rewriting its file. Every container has a limit."""
    redis = main(objects, "redis")
    args = redis["args"]
    assert args[args.index("--maxmemory-policy") + 1] == "noeviction"
    most = int(args[args.index("--maxmemory") + 1].removesuffix("gb"))
    assert 2 * most <= int(redis["resources"]["limits"]["memory"].removesuffix("Gi"))
    for _, container in containers(objects):
        assert "memory" in container.get("resources", {}).get("limits", {}), container["name"]


def test_with_object_storage_api_and_workers_are_told_and_let_out_and_redis_is_not(
    objects: list[Object], overlay: str, tmp_path: Path
) -> None:
    more = kustomize(overlay, tmp_path, "object-storage")
    test_kubernetes_takes_every_object(more, OLDEST)
    [settings] = of(more, "ConfigMap").values()
    [secret] = [each for name, each in of(more, "Secret").items() if name.startswith("s3-")]
    sources = [
        {"configMapRef": {"name": settings["metadata"]["name"]}},
        {"secretRef": {"name": secret["metadata"]["name"]}},
    ]
    assert [main(more, name)["envFrom"] for name in ("api", "worker")] == [sources] * 2
    assert "envFrom" not in main(more, "redis")
    with pytest.raises(SettingsError):  # until it is changed
        results_url(settings["data"])
    storage: Place = ("elsewhere", {})
    out = {n for n in pods(more) if lets(more, "egress", ("pathar", labels(more, n)), storage, 443)}
    assert out == {"api", "worker"}


def test_with_monitoring_an_operator_has_what_compose_has(
    objects: list[Object], overlay: str, tmp_path: Path
) -> None:
    more = kustomize(overlay, tmp_path, "monitoring")
    test_kubernetes_takes_every_object(more, OLDEST)
    [rule], [monitor] = of(more, "PrometheusRule").values(), of(more, "PodMonitor").values()
    text = json.dumps(rule["spec"]).replace(RUNBOOK, "{{ $externalLabels.runbook }}")
    assert json.loads(text) == yaml.safe_load((PROMETHEUS / "rules" / "pathar.yml").read_text())
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    check = [program("promtool"), "check", "rules", str(tmp_path / "rules.yml")]
    assert subprocess.run(check, capture_output=True).returncode == 0
    assert json.dumps(rule).count(f'"{RUNBOOK}#pathar') == len(alerts())
    [shown] = [m["data"] for m in of(more, "ConfigMap").values()]
    assert shown == {DASHBOARD.name: DASHBOARD.read_text()}
    scraped = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
    ports = {name: main(more, name).get("ports", []) for name in pods(more)}
    found = {
        name: sum(port["name"] in scraped for port in ports[name])
        for name in ports
        if selects(monitor["spec"]["selector"], labels(more, name))
    }
    assert found == {"api": 1, "worker": 1}
    assert not any("annotations" in template["metadata"] for template in pods(more).values())


def test_only_those_talk_to_each_other_who_must(objects: list[Object]) -> None:
    places: dict[str, Place] = {
        **{name: ("pathar", labels(objects, name)) for name in pods(objects)},
        "prometheus": ("monitoring", {}),
        "ingress": ("ingress", {}),
        "dns": ("kube-system", {}),
    }
    ports = {"api": 8000, "worker": 9100, "redis": 6379, "dns": 53}
    talks = {
        (one, other)
        for one in places
        for other, port in ports.items()
        if one != other
        and lets(objects, "egress", places[one], places[other], port)
        and lets(objects, "ingress", places[other], places[one], port)
    }
    outside = {("ingress", "api"), ("prometheus", "api"), ("dns", "api"), ("prometheus", "worker")}
    inside = {("api", "redis"), ("worker", "redis"), ("first-key", "redis")}
    names = {(one, "dns") for one in places if one != "dns"}
    assert talks == outside | inside | names


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        *((each, False) for each in ("10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.0.1")),
        *((each, False) for each in ("169.254.169.254", "fd00::1", "fe80::1")),
    ],
)
def test_webhooks_leave_the_api_for_public_addresses_alone(address: str, reached: bool) -> None:
    spec = of(list(yaml.safe_load_all(NETWORK.read_text())), "NetworkPolicy")["webhooks"]["spec"]
    assert spec["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "api"}
    (rule,) = spec["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    blocks = [peer["ipBlock"] for peer in rule["to"]]
    taken = [b for b in blocks if ip_address(address) in ip_network(b["cidr"])]
    left = [b for b in taken if not any(ip_address(address) in ip_network(e) for e in b["except"])]
    assert bool(left) is reached


Place = tuple[str, Mapping[str, str]]
"""A namespace and the labels of a pod in it."""


def lets(objects: list[Object], direction: str, pod: Place, other: Place, port: int) -> bool:
    """Whether the policies of `pod` let it take from (ingress) or reach (egress) `other`."""
    kind, side = direction.capitalize(), {"ingress": "from", "egress": "to"}[direction]
    specs = [each["spec"] for each in of(objects, "NetworkPolicy").values()]
    own = [s for s in specs if kind in s["policyTypes"] and selects(s["podSelector"], pod[1])]
    if pod[0] != "pathar" or not own:
        return True
    rules = [rule for spec in own for rule in spec.get(direction, [])]
    return any(
        port in [each["port"] for each in rule["ports"]]
        and (side not in rule or any(is_meant(peer, other) for peer in rule[side]))
        for rule in rules
    )


def is_meant(peer: Object, other: Place) -> bool:
    namespace, found = other
    if "ipBlock" in peer:  # public addresses alone: see below
        return False
    where = {"kubernetes.io/metadata.name": namespace}
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], where)
    else:
        there = namespace == "pathar"
    return there and selects(peer.get("podSelector", {}), found)


def selects(selector: Object, found: Mapping[str, str]) -> bool:
    """Whether a selector takes something with these labels."""
    among = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in among)
    return all(
        found.get(key) == value for key, value in selector.get("matchLabels", {}).items()
    ) and all(found.get(each["key"]) in each["values"] for each in among)
