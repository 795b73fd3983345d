from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from model.contract import VERSION
from tests.deploy.files import ROOT, compose, dockerfile, known_settings, pinned

IMAGES = ("service", "worker")
OTHERS = {
    "PATH": "where the environment is",
    "HOME": "a user without an entry in /etc/passwd has none",
    "PYTHONDONTWRITEBYTECODE": "of Python",
    "PYTHONSAFEPATH": "of Python",
    "PYTHONUNBUFFERED": "of Python",
    "NVIDIA_DRIVER_CAPABILITIES": "of NVIDIA's container runtime",
    "TRITON_CACHE_DIR": "of Triton",
    "TRITON_LIBCUDA_PATH": "of Triton",
}
"""Variables that are not read by our code, and whose they are."""


@pytest.mark.processes
def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_base_is_pinned_by_tag_and_digest_and_is_the_python_of_the_tests() -> None:
    stages = dockerfile()
    [base] = {stage.base for stage in stages.values() if stage.base not in stages}
    assert pinned(base)
    assert "@sha256:" in base
    assert base.startswith("python:3.11.")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_a_module_of_ours_as_a_numbered_user(name: str) -> None:
    stage = dockerfile()[name]
    python, flag, module = stage.command()
    assert (python, flag, module) == ("python", "-m", name)
    assert find_spec(f"{module}.__main__") is not None
    user, group = stage.last("USER").split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_sets_only_variables_that_somebody_reads(name: str) -> None:
    assert set(dockerfile()[name].environment()) <= known_settings() | set(OTHERS)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_listens_to_other_machines(name: str) -> None:
    """Probes and Prometheus are some, also for a worker, which has nothing but metrics to tell."""
    assert dockerfile()[name].environment()["PATHAR_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_that_compiles_or_installs_gets_into_an_image(name: str) -> None:
    stages = dockerfile()
    stage = stages[name]
    assert stages[stage.base].base not in stages, "it stands on the bare Python"
    ran = " ".join(text for each, text in stage.instructions if each == "RUN")
    assert "pip uninstall --yes pip setuptools wheel" in ran
    for tool in ("apt-get", "pip install", "g++", "gcc"):
        assert tool not in ran
    copied = [text for each, text in stage.instructions if each == "COPY"]
    assert any("/opt/pathar" in text for text in copied)


def test_nothing_is_kept_in_a_cache_of_pip() -> None:
    ran = [text for stage in dockerfile().values() for name, text in stage.instructions]
    for text in ran:
        calls = re.findall(r"\bpip (?:--python \S+ )?(?:install|wheel) ", text)
        assert text.count("--no-cache-dir") == len(calls), text
    assert any("--no-cache-dir" in text for text in ran)


def test_only_the_worker_has_torch() -> None:
    stages = dockerfile()
    for name, built in (("service", "service-build"), ("worker", "worker-build")):
        ran = " ".join(text for each, text in stages[built].instructions if each == "RUN")
        assert ("torch" in ran) == (name == "worker")
        assert f"$1[{name}" in ran
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["service"]]
    assert not [each for each in asked if "torch" in each or "triton" in each]


def test_the_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for built in ("service-build", "worker-build"):
        ran = " ".join(text for each, text in dockerfile()[built].instructions if each == "RUN")
        wanted = ran.partition("$1[")[2].partition("]")[0].split(",")
        assert set(wanted) <= set(extras)


def test_what_is_copied_exists_and_is_let_through_by_dockerignore() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    through = {line[1:] for line in ignored if line.startswith("!")}
    stages = dockerfile()
    wanted = set()
    for stage in stages.values():
        for name, text in stage.instructions:
            if name == "COPY" and "--from" not in text:
                wanted |= set(text.split()[:-1])
    assert wanted == through
    assert all((ROOT / each).exists() for each in wanted)


def test_the_wheel_is_built_from_every_package_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        each.removesuffix("*")
        for each in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    copied = {
        text.split()[0] for name, text in dockerfile()["wheel"].instructions if name == "COPY"
    }
    assert packages <= copied


def test_the_shipped_checkpoint_is_where_the_worker_looks() -> None:
    worker = dockerfile()["worker"]
    folder = worker.environment()["PATHAR_CHECKPOINT"]
    assert ("COPY", f"checkpoints/small {folder}") in worker.instructions
    assert (ROOT / "checkpoints" / "small" / "model.safetensors").is_file()


def test_images_carry_the_projects_version() -> None:
    ours = [each["image"] for each in compose()["services"].values() if "build" in each]
    assert {image.rpartition(":")[2] for image in ours} == {VERSION, f"{VERSION}-cuda"}
    for overlay in (ROOT / "deploy/kubernetes/overlays").iterdir():
        assert f"newTag: {VERSION}" in (overlay / "kustomization.yaml").read_text()


def test_what_triton_would_compile_is_compiled_where_the_worker_looks() -> None:
    stages = dockerfile()
    folder = stages["worker"].environment()["TRITON_CACHE_DIR"]
    built = stages["worker-build"].instructions
    assert any(
        f"TRITON_CACHE_DIR={folder}" in text and "triton_driver.py" in text for _, text in built
    )
    copies = [text for name, text in stages["worker"].instructions if name == "COPY"]
    assert (
        f"--from=worker-build --chown={stages['worker'].last('USER')} {folder} {folder}" in copies
    )
    assert Path(folder).is_absolute()
