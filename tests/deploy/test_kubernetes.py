from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from runtime.settings import SettingsError, results_url
from service import routes
from service.__main__ import GRACE_SECONDS
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
from tests.system import program
from worker.stopping import GRACE_S

pytestmark = pytest.mark.system

OLDEST, NEWEST = "1.30", "1.37"
"""Of Kubernetes; docs/deploy.md names the oldest."""
CUSTOM = {"ScaledObject"}
"""Kinds that Kubernetes does not know by itself."""
NAME = "app.kubernetes.io/name"
GPU = "nvidia.com/gpu"


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
    found = {**of(objects, "Deployment"), **of(objects, "StatefulSet")}
    return {name: each["spec"]["template"] for name, each in found.items()}


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each container with its pod's spec."""
    for template in pods(objects).values():
        for container in (
            *template["spec"]["containers"],
            *template["spec"].get("initContainers", []),
        ):
            yield template["spec"], container


def main(objects: list[Object], name: str) -> Object:
    [container] = pods(objects)[name]["spec"]["containers"]
    return dict(container)


def told(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container.get("env", [])}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_what_kubernetes_says(objects: list[Object], version: str) -> None:
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)
    assert set(pods(objects)) == {"api", "worker", "redis"}


def test_everything_lives_in_one_namespace_that_demands_restricted_pods(
    objects: list[Object],
) -> None:
    [namespace] = of(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    name = namespace["metadata"]["name"]
    others = [each for each in objects if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {name}


def test_every_container_is_as_restricted_as_its_namespace_demands(objects: list[Object]) -> None:
    for spec, container in containers(objects):
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_our_pods_run_as_the_user_of_their_image(objects: list[Object]) -> None:
    for name, image in (("api", "service"), ("worker", "worker")):
        pod = pods(objects)[name]["spec"]["securityContext"]
        assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == dockerfile()[image].last("USER")


def test_images_are_pinned_and_those_of_docker_compose(objects: list[Object], overlay: str) -> None:
    images = {container["image"] for _, container in containers(objects)}
    assert all(pinned(image) for image in images)
    services = compose()["services"]
    assert images == {services[name]["image"] for name in ("redis", "api", f"worker-{overlay}")}


def test_every_container_asks_for_what_it_needs_and_has_a_limit(objects: list[Object]) -> None:
    for _, container in containers(objects):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_containers_run_what_their_image_runs(objects: list[Object]) -> None:
    """Ours name no command, so it is the image's; Redis is the server, and the cache is copied."""
    for _, container in containers(objects):
        command = container.get("command")
        if container["name"] in ("api", "worker"):
            assert command is None
            assert "args" not in container
        elif container["name"] == "redis":
            assert command == ["redis-server"]
            assert all(isinstance(word, str) for word in container["args"])
        else:
            cache = dockerfile()["worker"].environment()["TRITON_CACHE_DIR"]
            assert command == ["cp", "--recursive", f"{cache}/.", "/cache"]
            [mount] = container["volumeMounts"]
            mounts = main(objects, "worker")["volumeMounts"]
            assert mount["mountPath"] == "/cache"
            assert {"name": mount["name"], "mountPath": cache} in mounts


def test_containers_are_told_what_somebody_reads(objects: list[Object]) -> None:
    for name in ("api", "worker"):
        assert set(told(main(objects, name))) <= known_settings()
    assert set(told(main(objects, "redis"))) == {"REDISCLI_AUTH"}


def test_secrets_are_placeholders_that_pods_find(objects: list[Object]) -> None:
    secrets = of(objects, "Secret")
    for _, container in containers(objects):
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                wanted = variable["valueFrom"]["secretKeyRef"]
                assert wanted["key"] in secrets[wanted["name"]]["data"]
    for secret in secrets.values():
        for text in secret["data"].values():
            assert "CHANGE-ME" in base64.b64decode(text).decode()
    [redis] = [each for name, each in secrets.items() if name.startswith("redis-")]
    assert set(redis["data"]) == {"password", "url"}
    url = base64.b64decode(redis["data"]["url"]).decode()
    assert url == "redis://:CHANGE-ME@redis:6379/0"
    assert "redis" in of(objects, "Service")


def test_no_secret_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not [path for path in listed.splitlines() if path.endswith(".env")]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    examples = (ROOT / "deploy/kubernetes").rglob("*.env.example")
    secret = {str(path.with_suffix("").relative_to(ROOT)) for path in examples}
    assert {".env", "deploy/kubernetes/base/redis.env"} <= {".env", *secret} <= set(ignored)


def test_probes_ask_what_is_there(objects: list[Object]) -> None:
    api, worker, redis = (main(objects, name) for name in ("api", "worker", "redis"))
    paths = {route.path for route in routes.router.routes}  # type: ignore[attr-defined]
    metrics_port = told(worker)["PATHAR_WORKER_METRICS_PORT"]
    ports = {"api": dockerfile()["service"].environment()["PATHAR_PORT"], "worker": metrics_port}
    for container in (api, worker):
        [port] = container["ports"]
        assert str(port["containerPort"]) == ports[container["name"]]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port["name"]
            assert asked["path"] in (paths if container is api else {"/metrics"})
    assert "/healthz" in paths
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(redis)


def test_a_probe_of_a_busy_worker_is_patient(objects: list[Object]) -> None:
    worker = main(objects, "worker")
    start, live = worker["startupProbe"], worker["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 600
    assert live["periodSeconds"] * live["failureThreshold"] >= 120


def test_pods_have_time_to_end(objects: list[Object]) -> None:
    api, worker = (pods(objects)[name]["spec"] for name in ("api", "worker"))
    drain = int(told(api["containers"][0])["PATHAR_DRAIN_SECONDS"])
    assert drain >= 10, "until everybody has heard that the pod leaves"
    assert api["terminationGracePeriodSeconds"] >= drain + GRACE_SECONDS + 10
    assert worker["terminationGracePeriodSeconds"] >= GRACE_S + 30
    assert GRACE_S <= 13, "what is handed back comes no later than by 15 s and a decode"


def test_prometheus_is_told_where_to_scrape(objects: list[Object]) -> None:
    for name in ("api", "worker"):
        notes = pods(objects)[name]["metadata"]["annotations"]
        assert notes["prometheus.io/scrape"] == "true"
        assert notes["prometheus.io/path"] == "/metrics"
        [port] = main(objects, name)["ports"]
        assert notes["prometheus.io/port"] == str(port["containerPort"])


def test_one_api_answers_while_others_restart(objects: list[Object]) -> None:
    api = of(objects, "Deployment")["api"]["spec"]
    assert api["replicas"] >= 2
    assert api["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for name in ("api", "worker"):
        budget = of(objects, "PodDisruptionBudget")[name]["spec"]
        assert budget["maxUnavailable"] == 1
        assert selects(budget["selector"], labels(objects, name))


def test_pods_are_spread_over_machines(objects: list[Object]) -> None:
    for name in ("api", "worker"):
        [rule] = pods(objects)[name]["spec"]["topologySpreadConstraints"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        assert selects(rule["labelSelector"], labels(objects, name))


def test_services_and_workloads_select_their_pods(objects: list[Object]) -> None:
    for name, service in of(objects, "Service").items():
        assert selects({"matchLabels": service["spec"]["selector"]}, labels(objects, name))
        ports = {port["name"] for port in main(objects, name)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload in (*of(objects, "Deployment").values(), *of(objects, "StatefulSet").values()):
        assert selects(
            workload["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"]
        )


def test_only_gpu_workers_ask_for_a_gpu_and_find_one(objects: list[Object], overlay: str) -> None:
    worker = pods(objects)["worker"]["spec"]
    container = main(objects, "worker")
    assert told(container)["PATHAR_DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[overlay]
    assert (container["resources"]["limits"].get(GPU) == 1) == (overlay == "gpu")
    if overlay == "gpu":
        assert worker["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert {"key": GPU, "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]
    else:
        assert told(container)["PATHAR_THREADS"] == container["resources"]["requests"]["cpu"]


def test_keda_brings_a_slot_for_every_image_that_waits_or_is_drawn(objects: list[Object]) -> None:
    [scaled] = of(objects, "ScaledObject").values()
    spec = scaled["spec"]
    assert spec["scaleTargetRef"]["name"] in of(objects, "Deployment")
    assert "replicas" not in of(objects, "Deployment")["worker"]["spec"]
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    asked = trigger["metadata"]
    assert all(isinstance(value, str) for value in asked.values())
    assert asked["threshold"] == told(main(objects, "worker"))["PATHAR_SLOTS"]
    metrics = set(re.findall(r"pathar_\w+", asked["query"]))
    assert {"pathar_queue_images", "pathar_started_images"} <= metrics
    source = (ROOT / "service" / "metrics.py").read_text()
    assert all(f'"{name}"' in source for name in metrics)
    # No answer of Prometheus is an error, after which the number of workers stays.
    assert asked["ignoreNullValues"] == "false"
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


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
    document = {
        "rule_files": [],
        "tests": [
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
        ],
    }
    path = tmp_path / "keda.yml"
    path.write_text(yaml.safe_dump(document))
    promtool = [program("promtool"), "test", "rules", str(path)]
    done = subprocess.run(promtool, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_object_storage_api_and_workers_are_told_and_let_out_and_redis_is_not(
    objects: list[Object], overlay: str, tmp_path: Path
) -> None:
    more = kustomize(overlay, tmp_path, "object-storage")
    for each in more:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, OLDEST, strict=True)
    assert {each["metadata"].get("namespace") for each in more} == {"pathar", None}
    [settings] = of(more, "ConfigMap").values()
    [secret] = [each for name, each in of(more, "Secret").items() if name.startswith("s3-")]
    sources = [
        {"configMapRef": {"name": settings["metadata"]["name"]}},
        {"secretRef": {"name": secret["metadata"]["name"]}},
    ]
    for name in ("api", "worker"):
        assert main(more, name)["envFrom"] == sources
        assert main(more, name)["env"] == main(objects, name)["env"]
    assert "envFrom" not in main(more, "redis")
    names = {*settings["data"], *secret["data"]}
    assert {name for name in names if not name.startswith("AWS_")} == {"PATHAR_RESULTS_URL"}
    with pytest.raises(SettingsError):  # until it is changed
        results_url(settings["data"])
    for text in secret["data"].values():
        assert base64.b64decode(text).decode() == "CHANGE-ME"
    storage: Place = ("elsewhere", {})
    out = {
        name
        for name in pods(more)
        if lets(more, "egress", ("pathar", labels(more, name)), storage, 443)
    }
    assert out == {"api", "worker"}


def labels(objects: list[Object], name: str) -> dict[str, str]:
    return dict(pods(objects)[name]["metadata"]["labels"])


def selects(selector: Object, found: Mapping[str, str]) -> bool:
    """Whether a selector takes something with these labels."""
    wanted = selector.get("matchLabels", {})
    among = [
        (each["key"], each["operator"], each["values"])
        for each in selector.get("matchExpressions", [])
    ]
    assert all(operator == "In" for _, operator, _ in among)
    return all(found.get(key) == value for key, value in wanted.items()) and all(
        found.get(key) in values for key, _, values in among
    )


Place = tuple[str, Mapping[str, str]]
"""A namespace and the labels of a pod in it."""


def lets(objects: list[Object], direction: str, pod: Place, other: Place, port: int) -> bool:
    """Whether the policies of `pod` let it take from (ingress) or reach (egress) `other`."""
    kind, side = direction.capitalize(), {"ingress": "from", "egress": "to"}[direction]
    rules = []
    isolated = False
    for policy in of(objects, "NetworkPolicy").values():
        spec = policy["spec"]
        if (
            pod[0] == "pathar"
            and selects(spec["podSelector"], pod[1])
            and kind in spec["policyTypes"]
        ):
            isolated = True
            rules += spec.get(direction, [])
    fits = [rule for rule in rules if port in [each["port"] for each in rule["ports"]]]
    return not isolated or any(
        side not in rule or any(is_meant(peer, other) for peer in rule[side]) for rule in fits
    )


def is_meant(peer: Object, other: Place) -> bool:
    namespace, found = other
    where = {"kubernetes.io/metadata.name": namespace}
    there = (
        selects(peer["namespaceSelector"], where)
        if "namespaceSelector" in peer
        else (namespace == "pathar")
    )
    return there and selects(peer.get("podSelector", {}), found)


def test_only_those_talk_to_each_other_who_must(objects: list[Object]) -> None:
    ours = {name: ("pathar", labels(objects, name)) for name in pods(objects)}
    places: dict[str, Place] = {
        **ours,
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
    inside = {("api", "redis"), ("worker", "redis")}
    names = {(one, "dns") for one in places if one != "dns"}
    assert talks == outside | inside | names
