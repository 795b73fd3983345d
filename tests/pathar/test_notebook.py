"""docs/notebook.ipynb, executed by a real kernel against a running service, and what it shows."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.conftest import DEADLINE_S
from tests.running import Up

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
MOST_TEXT, MOST_PNG = 2_000, 1_000_000
"""What one output may take, in characters and bytes."""


def executed(stack: Up, folder: Path, *more: str) -> list[list[Any]]:
    """The outputs of each code cell of the notebook, and of more cells, which may raise."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for source in more:
        notebook.cells.append(nbformat.v4.new_code_cell(source))
        notebook.cells[-1].metadata.tags = ["raises-exception"]
    env = {**stack.env, "PATHAR_URL": stack.run()["url"], "PYTHONPATH": str(NOTEBOOK.parents[1])}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=DEADLINE_S, resources=resources).execute(env=env)
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def pictures(outputs: list[Any]) -> list[Image.Image]:
    found = [
        base64.b64decode(out.data["image/png"]) for out in outputs if "image/png" in shown(out)
    ]
    assert all(len(content) < MOST_PNG for content in found)
    return [Image.open(io.BytesIO(content)) for content in found]


def shown(output: Any) -> dict[str, Any]:
    data: dict[str, Any] = output.get("data", {})
    return data


@pytest.fixture(scope="module")
def cells(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    folder = tmp_path_factory.mktemp("notebook")
    more = ('Client("http://127.0.0.1:9").generate("blood")', 'client.generate("granite")')
    found = executed(stack, folder, *more)
    assert len(list((folder / "out").glob("histology_7_*_mask.png"))) == 3
    return found


def test_its_pictures_are_a_contact_sheet_a_pair_and_an_overlay(cells: list[list[Any]]) -> None:
    _, drawn, one, overlay, saved, *_ = cells
    [sheet], [pair], [outlined] = pictures(drawn), pictures(one), pictures(overlay)
    assert sheet.width > sheet.height
    assert pair.width > 3 * pair.height
    assert outlined.width == outlined.height
    assert saved == []


def test_what_it_prints_is_short(cells: list[list[Any]]) -> None:
    for outputs in cells[:-2]:
        texts = [out.get("text", "") + shown(out).get("text/plain", "") for out in outputs]
        assert all(len(text) < MOST_TEXT for text in texts)
    _, drawn, one, *_ = cells
    [printed] = [shown(out)["text/plain"] for out in one]
    assert printed.startswith("Pair(job_id=")
    assert len(printed.splitlines()) == 1
    assert shown(drawn[-1])["text/plain"] == "<12 pairs of histology>"


def test_it_warns_of_nothing(cells: list[list[Any]]) -> None:
    """The bar is all that is on stderr."""
    outputs = [out for outputs in cells[:-2] for out in outputs if out.get("name") == "stderr"]
    lines = [line for line in re.split(r"[\r\n]+", "".join(out.text for out in outputs)) if line]
    assert "12/12" in lines[-1]
    assert [line for line in lines if not re.match(r" *\d+%\|", line)] == []


def test_errors_say_what_is_wrong_without_plumbing(cells: list[list[Any]]) -> None:
    nobody, unknown = ([out for out in outputs if "ename" in out] for outputs in cells[-2:])
    assert [out.ename for out in nobody] == ["ConnectionLost"]
    assert nobody[0].evalue.startswith("http://127.0.0.1:9 does not answer")
    assert [out.ename for out in unknown] == ["InvalidRequest"]
    for out in (*nobody, *unknown):
        text = "\n".join(out.traceback)
        assert not any(word in text for word in ("httpx", "flows.py", "retries.py", "During"))
        assert len(text.splitlines()) < 60
