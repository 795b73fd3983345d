"""`pathar export`: what annotation tools and other trainings get holds the pairs' instances."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from model.config import NAMED_SIZES
from pathar.annotations import WRITERS
from pathar.cli import TOOLS
from pathar.contract import FILE_NAMES, IMAGE_NAME, INSTANCES_NAME
from pathar.pull import pull_here
from pathar.recipe import FORMATS, Recipe
from tests.pathar.tampering import foreign, pixels
from tests.pathar.test_cli import called
from tests.pathar.test_outlines import inside
from tests.training.commands import run
from worker.png import encode_png

COUNTS = {"histology": 4, "blood": 2}
SIZE = NAMED_SIZES["test"][0].image_size
JSON = "annotations.json"
LAYOUTS = {"coco": "coco", "geojson": "geojson", "cellpose": "suffixes"}
"""As what the import of the training reads what was exported to a tool."""

Ids = Mapping[str, NDArray[np.uint16]]


@pytest.fixture(scope="module")
def sources(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pairs in every format of `pathar pull`."""
    root, folders = tmp_path_factory.mktemp("sources"), {}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATHAR_CHECKPOINT", str(test_checkpoint))
        environment.setenv("PATHAR_THREADS", "1")
        environment.setenv("PATHAR_DEVICE", "cpu")
        for form in FORMATS:
            recipe = Recipe.of(COUNTS, {"seed": 7, "format": form, "shard_size": 4})
            folders[form] = root / form
            for _ in pull_here(recipe, folders[form]):
                pass
    return folders


@pytest.fixture(scope="module")
def ids(sources: dict[str, Path]) -> Ids:
    """The instances of each pair, by its name."""
    paths = sorted(sources["folder"].rglob("instances/*.png"))
    found = {path.stem: pixels(path.read_bytes()) for path in paths}
    assert len(found) == sum(COUNTS.values())
    assert sum(int(each.max()) for each in found.values()) > len(found)
    return found


@pytest.fixture(scope="module")
def exported(sources: dict[str, Path]) -> dict[str, Path]:
    """What was exported to each tool, from the plain folders."""
    root = sources["folder"].parent
    return {tool: export(sources["folder"], tool, root / tool) for tool in TOOLS}


def export(source: Path, tool: str, out: Path) -> Path:
    done = called("export", str(source), "--to", tool, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_order(folder: Path) -> Any:
    """What was exported, whatever the order of the pairs was: that of folders is by label."""
    found: dict[str, Any] = {**contents(folder)}
    if JSON in found:
        coco = json.loads(found.pop(JSON))
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        for each in coco["annotations"]:
            of_image = found.setdefault(f"{names[each['image_id']]}, annotations", [])
            of_image.append({**each, "id": len(of_image), "image_id": 0})
    return found


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "folder"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_format_gives_the_same(
    form: str, tool: str, sources: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    found = export(sources[form], tool, tmp_path / "out")
    assert without_order(found) == without_order(exported[tool])


@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_pairs_give_the_same_bytes(
    tool: str, sources: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    assert contents(export(sources["folder"], tool, tmp_path / "out")) == contents(exported[tool])


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_pycocotools_finds_every_instance(exported: dict[str, Path], ids: Ids) -> None:
    from pycocotools.coco import COCO

    coco = COCO(exported["coco"] / "annotations.json")
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["nucleus"]
    assert len(coco.imgs) == len(ids)
    for image in coco.imgs.values():
        wanted = ids[Path(image["file_name"]).stem]
        with Image.open(exported["coco"] / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (SIZE, SIZE)
        found = np.zeros_like(wanted)
        for number, each in enumerate(coco.loadAnns(coco.getAnnIds(image["id"])), start=1):
            inner = coco.annToMask(each) > 0
            rows, columns = np.nonzero(inner)
            left, top = columns.min(), rows.min()
            box = [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert (each["area"], each["bbox"], each["iscrowd"]) == (inner.sum(), box, 0)
            found[inner] += number
        assert np.array_equal(found, wanted)


def test_shapely_finds_every_instance(exported: dict[str, Path], ids: Ids) -> None:
    for name, wanted in ids.items():
        text = (exported["geojson"] / f"{name}.geojson").read_text()
        assert shapely.from_geojson(text).is_valid
        found = np.zeros_like(wanted)
        for feature in json.loads(text)["features"]:
            told = feature["properties"]
            assert told["objectType"] == "annotation"
            # QuPath 0.5 refuses a file where one of both is missing (GsonTools).
            assert set(told["classification"]) == {"name", "color"}
            found[inside(shapely.geometry.shape(feature["geometry"]), SIZE, SIZE)] += int(
                told["name"]
            )
        assert np.array_equal(found, wanted)
        assert (exported["geojson"] / f"{name}.png").exists()


def test_cellpose_gets_images_and_ids_of_16_bits(exported: dict[str, Path], ids: Ids) -> None:
    assert len(contents(exported["cellpose"])) == 2 * len(ids)
    for name, wanted in ids.items():
        found = pixels((exported["cellpose"] / f"{name}_masks.png").read_bytes())
        assert found.dtype == np.uint16
        assert np.array_equal(found, wanted)
        image = pixels((exported["cellpose"] / f"{name}_img.png").read_bytes())
        assert image.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_pictures_still_say_where_they_came_from(
    tool: str, exported: dict[str, Path], ids: Ids
) -> None:
    done = called("verify", str(exported[tool]))
    assert done.returncode == 0, done.stdout
    assert f"{len(ids) * (1 + (tool == 'cellpose'))} authentic" in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_our_own_import_reads_it(
    tool: str, exported: dict[str, Path], ids: Ids, tmp_path: Path
) -> None:
    more = ("--nuclei", "ids") if tool == "cellpose" else ()
    words = ("--licence", "Apache-2.0", "--modality", "histology", "--size", SIZE, *more)
    run("import_patches", LAYOUTS[tool], exported[tool], "--out", tmp_path, *words)
    with (tmp_path / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ids)
    for row in rows:
        name = Path(row["image"]).name
        wanted = ids[row["group"]]
        assert np.array_equal(pixels((tmp_path / "instances" / name).read_bytes()), wanted)
        mask = pixels((tmp_path / "masks" / name).read_bytes())
        assert np.array_equal(mask > 0, wanted > 0)


def test_pairs_that_generate_drew_are_exported_under_their_names(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"PATHAR_CHECKPOINT": str(test_checkpoint), "PATHAR_DEVICE": "cpu"}
    words = ("generate", "--label", "blood", "--n", "2", "--seed", "3")
    drawn = tmp_path / "drawn"
    assert called(*words, "--out", str(drawn), **settings).returncode == 0
    (drawn / "notes.png").write_bytes(foreign())  # which is no pair
    out = export(drawn, "cellpose", tmp_path / "new" / "out")
    for path in drawn.glob(f"*_{IMAGE_NAME}"):
        name = path.name.removesuffix(f"_{IMAGE_NAME}")
        assert (out / f"{name}_img.png").read_bytes() == path.read_bytes()
        masks = drawn / f"{name}_{INSTANCES_NAME}"
        assert (out / f"{name}_masks.png").read_bytes() == masks.read_bytes()
    assert len(contents(out)) == 4


def test_a_picture_without_nuclei_is_exported_too(sources: dict[str, Path], tmp_path: Path) -> None:
    for name, content in pair_of(sources).items():
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"a_{name}").write_bytes(content)
    empty = encode_png(np.zeros((SIZE, SIZE), np.uint16), {})
    (tmp_path / "pairs" / f"a_{INSTANCES_NAME}").write_bytes(empty)
    coco = json.loads((export(tmp_path / "pairs", "coco", tmp_path / "coco") / JSON).read_text())
    assert (len(coco["images"]), coco["annotations"]) == (1, [])
    geojson = export(tmp_path / "pairs", "geojson", tmp_path / "geojson") / "a.geojson"
    assert json.loads(geojson.read_text()) == {"type": "FeatureCollection", "features": []}


# -- what is refused -------------------------------------------------------------------------------


def pair_of(sources: dict[str, Path]) -> dict[str, bytes]:
    folder = sources["folder"] / "blood"
    places = {name: next((folder / place).iterdir()) for name, place in PLACES.items()}
    return {name: path.read_bytes() for name, path in places.items()}


PLACES = dict(zip(FILE_NAMES, ("images", "masks", "instances", "tokens"), strict=True))


def missing(folder: Path) -> str:
    next((folder / "blood" / "instances").iterdir()).unlink()
    return "has no instances.png"


def damaged(folder: Path) -> str:
    path = next((folder / "blood" / "instances").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    return "instances.png cannot be read"


def binary(folder: Path) -> str:
    path = next((folder / "blood" / "instances").iterdir())
    path.write_bytes(encode_png(np.zeros((SIZE, SIZE), np.uint8), {}))
    return "instances.png has uint8"


def smaller(folder: Path) -> str:
    path = next((folder / "blood" / "instances").iterdir())
    path.write_bytes(encode_png(np.zeros((SIZE, 1), np.uint16), {}))
    return f"instances.png has 1 x {SIZE} pixels, its image {SIZE} x {SIZE}"


def twice(folder: Path) -> str:
    shutil.copytree(folder / "blood", folder / "blood again")
    return "blood-000004: is the name of two pairs"


def incomplete(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    (folder / ".partial").mkdir()
    return "is not complete"


@pytest.mark.parametrize("change", [missing, damaged, binary, smaller, twice, incomplete])
def test_what_cannot_be_exported_is_named_and_nothing_is_left(
    change: Callable[[Path], str], sources: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sources["folder"], tmp_path / "pairs")
    expected = change(tmp_path / "pairs")
    done = refused(tmp_path / "pairs", tmp_path / "out")
    assert expected in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def refused(source: Path, out: Path, code: int = 1) -> subprocess.CompletedProcess[str]:
    done = called("export", str(source), "--to", "coco", "--out", str(out))
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    return done


def test_a_name_that_leads_elsewhere_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in pair_of(sources).items():
            entry = tarfile.TarInfo(f"{tmp_path}/elsewhere.{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    done = refused(tmp_path / "a.tar", tmp_path / "out")
    assert "cannot be the name of a file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_nothing_is_written_over(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "corrected.json").write_text("by hand")
    done = refused(sources["folder"], tmp_path / "out", 2)
    assert "holds other files, expected a new folder" in done.stderr
    refused(sources["folder"], tmp_path / "out" / "corrected.json", 2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["corrected.json"]
    done = refused(sources["folder"], tmp_path / "out" / "corrected.json" / "new", 1)
    assert "cannot write to" in done.stderr
    (tmp_path / "empty").mkdir()
    export(sources["folder"], "geojson", tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "out").stat().st_mode


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_where_there_are_no_pairs_it_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert name in refused(tmp_path / name, tmp_path / "out", 2).stderr


def test_a_folder_of_other_pictures_has_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(foreign())
    assert "holds no pairs" in refused(tmp_path, tmp_path / "out", 2).stderr


def test_the_command_knows_every_tool() -> None:
    assert tuple(WRITERS) == TOOLS
    done = called("export", "pairs", "--to", "yolo", "--out", "out")
    assert done.returncode == 2
    assert "geojson" in done.stderr
