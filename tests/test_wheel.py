"""What is installed: the client alone, from the wheel; and the server, from a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from pathar.contract import VERSION
from tests.conftest import DEADLINE_S
from tests.deploy.test_containers import free_port
from tests.pathar.test_sign import write_key
from tests.running import Up, painted, wait_until
from tests.system import missing, old_compiler
from tests.test_documentation import commands
from tests.test_packaging import PACKAGES, PROJECT, ROOT

pytestmark = pytest.mark.processes

INSTALL = ("install", "--no-compile", "-c", ROOT / "constraints.txt")
OURS = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""Not for what is installed: it finds no code of ours, and compiles a module once."""
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
NEED_THE_SERVER = {
    **{command: f"{command} needs the server" for command in ("up", "serve", "worker", "demo")},
    "keys list": "keys needs the server",
    "generate --label blood": "generate needs --url, or the server",
    "paint model.py --label blood": "paint needs --url, or the server",
    "encode --mask mask.png --label blood": "encode needs --url, or the server",
    "pull blood=1": "pull needs --url, or the server",
    "verify drawn --regenerate": "verify --regenerate needs --url, or the server",
}
"""What the client alone cannot do, and how what it says begins."""
TOKENS = json.dumps(dict.fromkeys(("structure_tokens", "appearance_tokens"), [[0] * 8] * 8))
"""Of the test checkpoint, in a file as a pair has them."""
WITH_A_URL = (
    "generate --label blood --seed 7 --out drawn --url {url}",
    "paint mask.png --label blood --out painted --url {url}",
    "encode --mask mask.png --label blood --out encoded --url {url}",
    "decode tokens.json --label blood --out decoded --url {url}",
    "pull blood=2 --seed 7 --out pulled --url {url}",
    "pull --check pulled",
    "verify drawn pulled",
    "verify drawn pulled --regenerate --url {url}",
    "export pulled --to coco --out coco",
    "export drawn --to geojson --out geojson",
    "doctor",
    "completion bash",
)
"""What it can."""
WITH_AN_EXTRA = {
    "top": "top --once {url}",
    "sign": "sign drawn --key key.pem --out signed",
    "parquet": "pull blood=2 --format parquet --out table --url {url}",
}
"""What it can with an extra of that name."""
OUTSIDE = [name for name in PACKAGES if name != "pathar"]
"""What is never installed. Others may have packages of these names."""


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


CALLS = """
import contextlib, io, json, sys
from pathar.cli import main
ended = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    ended.append((code, said.getvalue()))
print(json.dumps(ended))"""


def called(
    python: Path, commands: Iterable[str], cwd: Path, code: int = 0, **settings: str
) -> dict[str, str]:
    """What each command of the installed `pathar` prints, which ends with `code`. One process runs
    them all, so that they are loaded once."""
    asked = list(commands)
    words = json.dumps([command.split() for command in asked])
    ended = json.loads(run(python, "-P", "-c", CALLS, words, cwd=cwd, **settings))
    assert [found for found, _ in ended] == [code] * len(asked), ended
    return {command: said for command, (_, said) in zip(asked, ended, strict=True)}


def made(python: Path, folder: Path) -> Path:
    """The commands of a new environment without any package."""
    run(python, "-m", "venv", "--without-pip", folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as it is cloned, but for tests and documents."""
    folder = tmp_path_factory.mktemp("checkout")
    parts = [*PACKAGES, "pyproject.toml", "LICENSE", "README.md"]
    for name in run("git", "ls-files", *parts).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before, folder = set(checkout.rglob("*")), tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, checkout)
    assert set(checkout.rglob("*")) == before, "building leaves nothing behind"
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install --editable` builds of it, built once and by what is installed here."""
    folder = tmp_path_factory.mktemp("editable")
    build = "import hatchling.build, sys; hatchling.build.build_editable(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=checkout)
    [path] = folder.iterdir()
    return path


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder of somebody who has modules of the server's names."""
    folder = tmp_path / "strange"
    folder.mkdir()
    not_ours(folder)
    return folder


def not_ours(folder: Path) -> None:
    for name in OUTSIDE:
        (folder / f"{name}.py").write_text("raise SystemExit('not ours')\n")


def installed(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """The programs and the packages of a new environment with a wheel. What that needs comes from
    where the tests have it, and our code from the wheel alone."""
    programs = made(Path(sys.executable), folder)
    run(*PIP, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    site = packages(programs)
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return programs, site


def packages(programs: Path) -> Path:
    """The folder of an environment's packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(programs / "python", "-c", code).strip())


def refuses_what_needs_the_server(python: Path, folder: Path) -> None:
    how = "run it in a checkout of PathAR (make up) or a container"
    assert called(python, NEED_THE_SERVER, folder, code=2) == {
        command: f"pathar: pathar {what}: {how}\n" for command, what in NEED_THE_SERVER.items()
    }


def test_every_command_is_tried_with_the_client_alone() -> None:
    tried = (*NEED_THE_SERVER, *WITH_A_URL, *WITH_AN_EXTRA.values())
    assert {command.split()[0] for command in tried} == set(commands())


def test_the_wheel_holds_the_client_and_is_for_any_machine(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if name.startswith(f"pathar-{VERSION}.dist-info/")}
    assert names - information == set(run("git", "ls-files", "pathar").splitlines())
    assert wheel.name == f"pathar-{VERSION}-py3-none-any.whl"


def test_the_client_alone_asks_a_service_and_leaves_packages_of_our_names_alone(
    wheel: Path, stack: Up, strange: Path, tmp_path: Path
) -> None:
    programs, site = installed(wheel, tmp_path / "env")
    not_ours(site)
    pathar, url = programs / "pathar", stack.run()["url"]
    assert run(pathar, "--version", cwd=strange) == f"pathar {VERSION}\n"
    write_key(strange / "key.pem", "P-256")
    Image.fromarray(painted(64)).save(strange / "mask.png")
    (strange / "tokens.json").write_text(TOKENS)
    asked = [each.format(url=url) for each in (*WITH_A_URL, *WITH_AN_EXTRA.values())]
    said = called(programs / "python", asked, strange, PATHAR_URL=url)
    assert len(list((strange / "drawn").glob("*_mask.png"))) == 1
    assert "This is the client alone" in said["doctor"]
    assert "\n0 failed" in said["doctor"]
    refuses_what_needs_the_server(programs / "python", strange)


def test_a_checkout_runs_all_of_it_whatever_folder_it_is_called_in(
    checkout: Path, editable: Path, strange: Path, test_checkpoint: Path, tmp_path: Path
) -> None:
    programs, site = installed(editable, tmp_path / "env")
    compiled = run(
        *(programs / "python", "-P", "-m", "model.native.build"),
        cwd=strange,
        code=0 if shutil.which("g++") else 1,
        CXX=str(old_compiler(tmp_path)),
    )
    assert ("portable" in compiled) == bool([*(checkout / "model/native").glob("_decode_p*.so")])
    settings = {"PATHAR_CHECKPOINT": str(test_checkpoint), "PATHAR_DEVICE": "cpu"}
    settings["PATHAR_HOME"] = str(tmp_path / "home")
    run(programs / "pathar", "demo", "--out", "drawn", cwd=strange, **settings)
    assert len(list((strange / "drawn").glob("*_mask.png"))) == 30
    not_ours(site)
    said = run(programs / "pathar", "worker", cwd=strange, code=2, **settings)
    assert said == (
        f"pathar: pathar worker needs model of {checkout}, and Python finds {site / 'model'}: "
        "give PathAR an environment of its own (make up)\n"
    )


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
            [python, "-P", "-W", "error", "-m", "pathar", "serve"],
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


def distributions(python: Path) -> dict[str, dict[str, list[str]]]:
    """What is installed, by name: what each package requires, and its folders and files."""
    code = """
import importlib.metadata as m, json
print(json.dumps({d.name: {"needs": d.requires or [], "holds": [f.parts[0] for f in d.files]}
                  for d in m.distributions()}))"""
    found: dict[str, dict[str, list[str]]] = json.loads(run(python, "-c", code))
    return {canonicalize_name(name): each for name, each in found.items()}


def required(found: Mapping[str, Mapping[str, list[str]]]) -> set[str]:
    """pathar and what it needs, without any extra, as far as it is installed."""
    known, todo = set[str](), ["pathar"]
    while todo:
        known.add(name := todo.pop())
        needs = [Requirement(line) for line in found[name]["needs"]]
        names = {canonicalize_name(each.name) for each in needs if "extra" not in str(each.marker)}
        todo += (names & set(found)) - known
    return known


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.name)
def test_client_and_service_run_on_the_oldest_and_the_newest_python(
    python: Path, editable: Path, wheel: Path, stack: Up, strange: Path, tmp_path: Path
) -> None:
    """Each with what it needs alone, and with the pinned versions; the worker is the stack's. The
    extras share no package, so they are installed together."""
    if os.environ.get("PATHAR_TEST_SYSTEM") != "1":
        missing("it installs packages, which PATHAR_TEST_SYSTEM=1 asks for")
    programs, url = made(python, tmp_path / "client"), stack.run()["url"]
    pip = (*PIP, "--python", programs / "python", *INSTALL)
    run(*pip, wheel)
    found = distributions(programs / "python")
    assert set(found) == required(found) >= {"pathar", "httpx", "h11"}
    held = {top for each in found.values() for top in each["holds"]}
    assert {path.name for path in packages(programs).iterdir()} <= held
    assert held.isdisjoint(OUTSIDE)
    pathar = programs / "pathar"
    assert run(pathar, "--version", cwd=strange) == f"pathar {VERSION}\n"
    Image.fromarray(painted(64)).save(strange / "mask.png")
    (strange / "tokens.json").write_text(TOKENS)
    client = programs / "python"
    called(client, [each.format(url=url) for each in WITH_A_URL], strange, PATHAR_URL=url)
    refuses_what_needs_the_server(client, strange)
    write_key(strange / "key.pem", "P-256")
    extras = {command.format(url=url): extra for extra, command in WITH_AN_EXTRA.items()}
    for command, said in called(client, extras, strange, code=2).items():
        needs = r"pathar: (pathar|format) {0} needs \w+: pip install 'pathar\[{0}\]'\n"
        assert re.fullmatch(needs.format(extras[command]), said)
    needed = [set(PROJECT["project"]["optional-dependencies"][extra]) for extra in WITH_AN_EXTRA]
    assert len(set[str]().union(*needed)) == sum(map(len, needed))
    run(*pip, f"pathar[{','.join(WITH_AN_EXTRA)}]")
    called(client, extras, strange)

    programs = made(python, tmp_path / "server")
    pip = (*PIP, "--python", programs / "python", *INSTALL)
    run(*pip, f"{editable}[service]")
    with served(programs / "python", stack, strange) as url:
        words = WITH_A_URL[0].replace("drawn", "both").format(url=url).split()
        run(pathar, *words, cwd=strange)
    drawn, both = (sorted((strange / name).glob("*.png")) for name in ("drawn", "both"))
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in drawn] != []
