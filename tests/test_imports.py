"""Who may import whom, read from the source; and that the service never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACT = "pathar.contract"
RECIPE = {"pathar.recipe", "pathar.errors"}
FILES = ("contact_sheet", "manifest", "quality", "shards", "spool")
DATASET = {*RECIPE, *(f"pathar.{name}" for name in FILES)}
"""What client and server share of data sets: their plan, and the bytes of their files."""
DOMAIN = ("model.request", "model.given", "model.given_png", "model.given_forms")
"""The modules of `model` that need no torch."""
ALLOWED = {
    "model": {"model", CONTRACT},
    "training": {"training", "model", CONTRACT},
    "runtime": {"runtime", CONTRACT},
    "store": {"store", "runtime", *DOMAIN, CONTRACT, *RECIPE},
    "worker": {"worker", "model", "runtime", "store", CONTRACT, *DATASET},
    "service": {"service", "runtime", "store", *DOMAIN, CONTRACT, *RECIPE},
    "pathar": {"pathar"},
}
LAZILY = {"pathar": {"service", "worker", "model", "runtime", "store"}}
"""What a package may import inside its functions, beside what it may import anywhere."""
OURS = {*ALLOWED, "benchmarks", "tests"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way_only(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        top_level = set(_imported(tree, functions=False))
        for module in set(_imported(tree, functions=True)):
            allowed = set(ALLOWED[package])
            if module not in top_level:
                allowed |= LAZILY.get(package, set())
            fits = any(module == name or module.startswith(f"{name}.") for name in allowed)
            assert fits, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.processes
def test_the_service_and_the_command_start_without_torch() -> None:
    check = (
        "import sys, service.app, service.__main__, pathar.cli, pathar.up, pathar.generate;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.processes
def test_importing_the_service_reads_no_setting_and_needs_no_redis() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import service.app, service.__main__"],
        cwd=ROOT,
        env={"PATHAR_PORT": "not a port"},
    )
    assert done.returncode == 0


def _imported(tree: ast.Module, *, functions: bool) -> Iterator[str]:
    """The modules of ours that a file imports; those inside functions, or for type
    checkers alone, only if asked for."""
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module in OURS:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] in OURS)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_alone(node)
        if functions or not lazy:
            nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]


def _for_types_alone(node: ast.AST) -> bool:
    """Whether it is an `if TYPE_CHECKING:`, which never runs."""
    test = node.test if isinstance(node, ast.If) else None
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
