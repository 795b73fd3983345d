"""The Dockerfile: of the right form, and fit to the project that it packs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from pathar.contract import VERSION
from pathar.server import FOLDERS
from tests.deploy.files import ROOT, compose, dockerfile, known_settings, pinned

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
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


@pytest.mark.parametrize("name", ["service", "worker"])
def test_an_image_runs_a_module_of_ours_as_a_numbered_user(name: str) -> None:
    stage = dockerfile()[name]
    assert stage.command() == ["python", "-m", name]
    assert find_spec(f"{name}.__main__") is not None
    assert all(int(each) >= 1000 for each in stage.last("USER").split(":"))
    assert set(stage.environment()) <= known_settings() | set(OTHERS)
    assert stage.environment()["PATHAR_HOST"] == "0.0.0.0", "probes and Prometheus are elsewhere"


@pytest.mark.parametrize(("name", "torch"), [("service", False), ("worker", True)])
def test_only_the_worker_is_built_with_torch(name: str, torch: bool) -> None:
    instructions = dockerfile()[f"{name}-build"].instructions
    ran = " ".join(text for each, text in instructions if each == "RUN")
    extras = ran.partition(".[")[2].partition("]")[0].split(",")
    assert extras[0] == name
    known = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(need for e in extras for need in known[e])]
    assert any(need.startswith("torch") for need in asked) is torch
    assert ("torch" in ran) is torch


def test_what_is_copied_exists_and_is_let_through_by_dockerignore() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = [
        text.split()[:-1]
        for stage in dockerfile().values()
        for name, text in stage.instructions
        if name == "COPY" and "--from" not in text
    ]
    wanted = {each for words in copied for each in words}
    assert wanted == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / each).exists() for each in wanted)
    assert {"pathar", *FOLDERS} <= wanted


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
    worker, built = stages["worker"], stages["worker-build"].instructions
    folder = worker.environment()["TRITON_CACHE_DIR"]
    script = f"TRITON_CACHE_DIR={folder} .venv/bin/python /tmp/triton_driver.py"
    assert ("RUN", script) in built
    owner = f"--from=worker-build --chown={worker.last('USER')}"
    assert ("COPY", f"{owner} {folder} {folder}") in worker.instructions
