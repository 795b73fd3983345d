"""What is deployed, read from the files: the Dockerfile's stages, docker-compose.yml, and what
kustomize makes of deploy/kubernetes.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.system import missing, program

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
PACKAGES = ("model", "runtime", "store", "worker", "service", "pathar")
LEAST_KUBECTL = 27
"""kubectl 1.27 has a kustomize that knows what kustomization.yaml says."""

Object = dict[str, Any]


@dataclass
class Stage:
    """One stage of the Dockerfile; what it has from the stage it stands on is in it too."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, name: str) -> str:
        return [text for each, text in self.instructions if each == name][-1]

    def command(self) -> list[str]:
        words: list[str] = json.loads(self.last("CMD"))
        return words

    def health_check(self) -> list[str]:
        words: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD")[2])
        return words

    def environment(self) -> dict[str, str]:
        words = [w for name, text in self.instructions if name == "ENV" for w in shlex.split(text)]
        return dict(word.split("=", 1) for word in words)


@cache
def dockerfile() -> dict[str, Stage]:
    """The stages by name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "ARG" and stage is None:
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name == "FROM":
            base, _, own = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest).split()
            below = stages.get(base)
            stage = Stage(own, base, list(below.instructions) if below else [])
            stages[own] = stage
        elif name and stage is not None:
            stage.instructions.append((name, rest.strip()))
    return stages


@cache
def compose() -> Object:
    """docker-compose.yml with its merges done and its variables as they stand."""
    document: Object = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


@cache
def known_settings() -> set[str]:
    """The PATHAR_ variables that the code reads."""
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {key for path in sources for key in re.findall(r"PATHAR_[A-Z_]+\b", path.read_text())}
    assert {"PATHAR_REDIS_URL", "PATHAR_SLOTS"} <= found
    return found


def kustomize(overlay: str, folder: Path, *components: str) -> list[Object]:
    """What `kubectl kustomize` makes of an overlay that takes in these components, with what the
    examples of .env files hold, in `folder`."""
    kubectl = program("kubectl")
    told = subprocess.run(
        [kubectl, "version", "--client", "--output", "json"], capture_output=True, check=True
    )
    minor = int(re.sub(r"\D", "", json.loads(told.stdout)["clientVersion"]["minor"]))
    if minor < LEAST_KUBECTL:
        missing(f"kubectl is 1.{minor}; 1.{LEAST_KUBECTL} or newer is needed")
    copy = folder / "deploy" / "kubernetes"
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for example in copy.rglob("*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    if components:
        with (copy / "overlays" / overlay / "kustomization.yaml").open("a") as file:
            file.write(f"components: [{', '.join(f'../../components/{c}' for c in components)}]\n")
    made = subprocess.run(
        [kubectl, "kustomize", str(copy / "overlays" / overlay)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""  # nor a warning of what is deprecated
    return [each for each in yaml.safe_load_all(made.stdout) if each]


def pinned(image: str) -> bool:
    """Whether an image's name has a full version, or a digest."""
    tag = image.partition("@")[0].rpartition(":")[2]
    return re.match(r"v?\d+\.\d+\.\d+", tag) is not None and "/" not in tag
