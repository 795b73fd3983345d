"""The wheel, installed in an environment of its own and used from a folder that is not ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pathar.contract import VERSION
from tests.conftest import DEADLINE_S
from tests.deploy.test_containers import free_port
from tests.running import Up, wait_until
from tests.system import missing
from tests.test_packaging import PACKAGES, PROJECT, ROOT

pytestmark = pytest.mark.processes

OURS = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Not for what is installed: it finds no code of ours, and compiles a module once."""
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
WITHOUT_COMPILER = {"CC": "false", "CXX": "false"}
"""As on a machine without one: the test of the whole wheel compiles."""
COMMANDS = ("up", "serve", "worker", "generate --label blood", "top")
"""What the client alone cannot do."""


def run(*words: object, code: int = 0, cwd: Path = ROOT, **settings: str) -> str:
    """What a command prints, which ends with `code`; nothing of ours is on its path."""
    env = {key: value for key, value in os.environ.items() if key not in OURS}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**env, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def made(python: Path, folder: Path) -> Path:
    """The commands of a new environment without any package."""
    run(python, "-m", "venv", "--without-pip", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from, as building leaves files there."""
    folder = tmp_path_factory.mktemp("source")
    parts = [*PACKAGES, "pyproject.toml", "LICENSE", "README.md"]
    for name in run("git", "ls-files", *parts).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_everything_runs_from_the_wheel_alone(
    source: Path, test_checkpoint: Path, tmp_path: Path
) -> None:
    """What it needs besides comes from where the tests have it, where our code is not."""
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source)
    [wheel] = (tmp_path / "dist").iterdir()
    commands, strange = made(Path(sys.executable), tmp_path / "env"), tmp_path / "strange"
    strange.mkdir()
    python = commands / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    assert run(commands / "pathar", "--version", cwd=strange) == f"pathar {VERSION}\n"
    settings = {"PATHAR_CHECKPOINT": str(test_checkpoint), "PATHAR_DEVICE": "cpu"}
    settings["PATHAR_HOME"] = str(tmp_path / "home")
    run(commands / "pathar", "demo", "--out", "drawn", cwd=strange, **settings)
    assert len(list((strange / "drawn").glob("*_mask.png"))) == 30
    code = "import model.native as m; print(*m.__path__)"
    native = Path(run(python, "-c", code, cwd=strange).strip())
    assert native.is_relative_to(site)
    assert bool(list(native.glob("_decode_portable*"))) == bool(shutil.which("g++"))


def pythons() -> list[Path]:
    """The oldest and the newest Python here of those that the project is for."""
    least = int(re.findall(r"\d+", PROJECT["project"]["requires-python"])[1])
    folders = [*Path.home().glob(".pyenv/versions/*/bin"), *os.get_exec_path()]
    found = {sys.version_info[1]: Path(sys.executable)}
    for path in (path for folder in folders for path in Path(folder).glob("python3.[0-9]*")):
        if (number := re.fullmatch(r"python3\.(\d+)", path.name)) and int(number[1]) >= least:
            found.setdefault(int(number[1]), path)
    return [found[minor] for minor in sorted({min(found), max(found)})]


@contextmanager
def served(python: Path, stack: Up, folder: Path) -> Iterator[str]:
    """The URL of an API that this Python runs, beside that of the stack; a warning ends it."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [python, "-W", "error", "-m", "pathar", "serve"],
            cwd=folder,
            env={
                **{key: value for key, value in os.environ.items() if key not in OURS},
                "PATHAR_REDIS_URL": stack.run()["redis_url"],
                "PATHAR_PORT": str(port),
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "the API")
        yield url
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
    assert process.returncode == 0, log.read_text()


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.name)
def test_client_and_service_run_on_the_oldest_and_the_newest_python(
    python: Path, source: Path, stack: Up, tmp_path: Path
) -> None:
    """Each with what it needs alone, and with the pinned versions; the worker is the stack's."""
    if os.environ.get("PATHAR_TEST_SYSTEM") != "1":
        missing("it installs packages, which PATHAR_TEST_SYSTEM=1 asks for")
    commands, strange = made(python, tmp_path / "env"), tmp_path / "strange"
    strange.mkdir()
    pip = (*PIP, "--python", commands / "python")
    run(*pip, "wheel", "--no-deps", "-w", tmp_path / "dist", source, **WITHOUT_COMPILER)
    [wheel] = (tmp_path / "dist").iterdir()
    install = (*pip, "install", "--no-compile", "-c", ROOT / "constraints.txt")
    run(*install, wheel)
    pathar = commands / "pathar"
    assert run(pathar, "--version", cwd=strange) == f"pathar {VERSION}\n"
    words = ("generate", "--label", "blood", "--seed", "7", "--out", "drawn")
    run(pathar, *words, "--url", stack.run()["url"], cwd=strange)
    assert len(list((strange / "drawn").glob("*_mask.png"))) == 1
    for command in COMMANDS:
        said = run(pathar, *command.split(), cwd=strange, code=2)
        assert re.fullmatch(r"pathar: pathar \w+ needs \w+: pip install 'pathar\[\w+\]'\n", said)
    run(*install, f"{wheel}[service]")
    with served(commands / "python", stack, strange) as url:
        run(pathar, *words[:-1], "both", "--url", url, cwd=strange)
    drawn, both = (sorted((strange / name).glob("*.png")) for name in ("drawn", "both"))
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in drawn]
