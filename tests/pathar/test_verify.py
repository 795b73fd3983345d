"""`pathar verify`: what it finds in folders, what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pathar import Client
from pathar.cli import main
from pathar.contract import FILE_NAMES
from tests.pathar.tampering import Files, edited, flipped, foreign, pixels, place, texts
from tests.running import Up
from worker.png import encode_png

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def pairs(test_checkpoint: Path) -> list[Files]:
    """Three of them."""
    from model.engine import load_engine
    from model.request import ImageRequest, SamplingSettings
    from worker.drawing import draw

    engine = load_engine(test_checkpoint, device="cpu", slots=3, threads=1)
    requests = [ImageRequest("histology", seed, SamplingSettings()) for seed in range(3)]
    return [files for _, files in sorted(draw(engine, requests), key=lambda each: each[0])]


@pytest.fixture
def folder(pairs: list[Files], tmp_path: Path) -> Path:
    """A folder as `pathar generate` writes it."""
    for index, files in enumerate(pairs):
        place(tmp_path / "out", index, files)
    return tmp_path / "out"


@pytest.fixture
def verify(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command; its exit code and its lines."""
    for name, value in (("CHECKPOINT", str(test_checkpoint)), ("DEVICE", "cpu"), ("THREADS", "1")):
        monkeypatch.setenv(f"PATHAR_{name}", value)

    def run(*words: object) -> tuple[int, list[str]]:
        code = main(["verify", *map(str, words)])
        told = capsys.readouterr()
        return code, (told.out + told.err).splitlines()

    return run


def test_pairs_of_a_folder_have_a_line_each_and_a_summary(folder: Path, verify: Run) -> None:
    code, lines = verify(folder)
    assert code == 0
    assert len(lines) == 5
    assert all(line.startswith("authentic ") and "consistent" in line for line in lines[:3])
    assert lines[-1] == "3 authentic; nothing was drawn again"
    code, lines = verify(folder, "--regenerate")
    assert code == 0
    assert all(line.endswith("drawn again bit for bit") for line in lines[:3])
    assert lines[-1] == "3 authentic"


def test_what_is_not_authentic_is_named_and_the_exit_code_is_1(
    folder: Path, pairs: list[Files], verify: Run
) -> None:
    changed = flipped(pairs[1], "mask.png", 5, 6, forged=True)
    place(folder, 1, changed)
    (folder / "photo.png").write_bytes(foreign())
    assert verify(folder)[1][-1] == "3 authentic, 1 not-pathar; nothing was drawn again"
    code, lines = verify(folder, "--regenerate")
    assert code == 1
    (line,) = [line for line in lines if line.startswith("altered")]
    assert "histology_0_00001_image.png: mask.png has 1 other pixel in (5, 6, 6, 7)" in line
    code, lines = verify(folder, "--regenerate", "--json")
    told = json.loads("\n".join(lines))
    assert (code, told["regenerated"]) == (1, True)
    assert told["counts"] == {"authentic": 2, "altered": 1, "not-pathar": 1}
    (altered,) = [each for each in told["files"] if each["verdict"] == "altered"]
    (change,) = altered["changes"]
    assert (change["file"], change["pixels"], change["box"]) == ("mask.png", 1, [5, 6, 6, 7])


def test_a_file_is_verified_with_the_others_of_its_pair(
    folder: Path, pairs: list[Files], verify: Run
) -> None:
    mask = folder / "histology_0_00000_mask.png"
    assert verify(mask)[0] == 0
    mask.write_bytes(pairs[1]["mask.png"])
    code, lines = verify(folder / "histology_0_00000_image.png")
    assert code == 1
    assert "mask.png belongs to another image" in lines[0]
    assert verify(mask)[0] == 1


def test_files_of_any_name_and_folders_of_images_and_masks(
    pairs: list[Files], verify: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.png").write_bytes(pairs[0]["mask.png"])
    assert verify(tmp_path / "mine.png", "--regenerate")[0] == 0
    for name in ("image", "mask"):
        path = tmp_path / "histology" / f"{name}s" / "000001.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(pairs[1][f"{name}.png"])
    code, lines = verify(tmp_path / "histology", "--regenerate")
    assert (code, lines[-1]) == (0, "1 authentic")
    path.write_bytes(pairs[2]["mask.png"])
    assert verify(tmp_path / "histology")[0] == 1


def write_nnunet(folder: Path, name: str, files: Files) -> None:
    """As nnU-Net has it: a mask of 0 and 1, with its texts."""
    labels = encode_png(pixels(files["mask.png"]) // 255, texts(files["mask.png"]))
    places = {f"imagesTr/{name}_0000.png": files["image.png"], f"labelsTr/{name}.png": labels}
    for path, data in places.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def write_tar(folder: Path, pairs: Mapping[str, Files]) -> None:
    """As WebDataset has it, with what each pair was drawn from."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "000000.tar", "w") as archive:
        for name, files in pairs.items():
            for role, data in {**files, "json": b"{}"}.items():
                entry = tarfile.TarInfo(f"{name}.{role}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def write_parquet(folder: Path, pairs: Mapping[str, Files]) -> None:
    """As Hugging Face's `datasets` has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    rows = [
        {
            "name": name,
            "image": {"bytes": files["image.png"], "path": f"{name}.image.png"},
            "mask": {"bytes": files["mask.png"], "path": f"{name}.mask.png"},
            "tokens": files["tokens.json"].decode(),
        }
        for name, files in pairs.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "000000.parquet")


@pytest.mark.parametrize("form", ["nnunet", "webdataset", "parquet"])
def test_data_sets_of_every_format_are_verified_pair_by_pair(
    pairs: list[Files], verify: Run, tmp_path: Path, form: str
) -> None:
    def write(folder: Path, several: Mapping[str, Files]) -> None:
        if form == "nnunet":
            for name, files in several.items():
                write_nnunet(folder, name, files)
        else:
            (write_tar if form == "webdataset" else write_parquet)(folder, several)

    named = {f"histology-{at:06d}": files for at, files in enumerate(pairs)}
    write(tmp_path / "whole", named)
    code, lines = verify(tmp_path / "whole", "--regenerate")
    assert (code, lines[-1]) == (0, "3 authentic")
    assert "histology-000000" in lines[0]
    named["histology-000001"] = flipped(pairs[1], "mask.png", 2, 3, forged=False)
    named["histology-000002"] = {**pairs[2], "mask.png": pairs[0]["mask.png"]}
    write(tmp_path / "changed", named)
    code, lines = verify(tmp_path / "changed", "--regenerate")
    assert (code, lines[-1]) == (1, "2 altered, 1 authentic")
    assert "mask.png has 1 other pixel in (2, 3, 3, 4)" in lines[1]
    assert "mask.png belongs to another image" in lines[2]


@pytest.mark.parametrize("name", ["000000.tar", "000000.parquet"])
def test_a_shard_that_cannot_be_read_is_named(
    pairs: list[Files], verify: Run, tmp_path: Path, name: str
) -> None:
    write = write_tar if name.endswith("tar") else write_parquet
    write(tmp_path, {"histology-000000": pairs[0]})
    shard = tmp_path / name
    shard.write_bytes(shard.read_bytes()[:4000])
    code, lines = verify(tmp_path)
    assert code == 1
    assert lines[-1].startswith(f"pathar: {shard}: cannot be read")


def test_another_checkpoint_is_an_unknown_model(
    folder: Path, organ_checkpoint: Path, verify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHAR_CHECKPOINT", str(organ_checkpoint))
    code, lines = verify(folder, "--regenerate")
    assert (code, lines[-1]) == (1, "3 unknown-model")
    assert "drawn by test-random" in lines[0]


def test_what_cannot_be_verified_is_refused_with_the_reason(
    folder: Path, verify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    assert verify(tmp_path / "empty") == (
        2,
        [f"pathar: {tmp_path}/empty: holds no PNG, shard or archive"],
    )
    assert verify(tmp_path / "none.png") == (2, [f"pathar: {tmp_path}/none.png: does not exist"])
    assert verify(folder, "--url", "http://127.0.0.1:1")[0] == 2
    monkeypatch.setenv("PATHAR_CHECKPOINT", str(tmp_path / "nowhere"))
    code, lines = verify(folder, "--regenerate")
    assert code == 2
    assert "nowhere" in lines[-1]


def test_a_service_draws_again(stack: Up, verify: Run, tmp_path: Path) -> None:
    url = stack.run()["url"]
    with Client(url) as client:
        for pair in client.generate("blood", n=2, seed=5, progress=False, cfg_scale=2.0, top_k=9):
            place(tmp_path, pair.index, pair.files())
    changed = flipped(pair.files(), "image.png", 7, 8, forged=True)
    place(tmp_path, 9, changed)
    code, lines = verify(tmp_path, "--regenerate", "--url", url)
    assert (code, lines[-1]) == (1, "1 altered, 2 authentic")
    assert "image.png has 1 other pixel in (7, 8, 8, 9)" in lines[2]


def test_a_service_says_which_models_it_does_not_have(
    stack: Up,
    folder: Path,
    pairs: list[Files],
    verify: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATHAR_URL", stack.run()["url"])
    assert verify(folder, "--regenerate")[1][-1] == "3 authentic"
    made = {"model": "another", "model_version": "1" * 64, "label": "a cloud"}
    for index, (field, value) in enumerate(made.items()):
        files = edited(pairs[index], field, value, forged=True)
        place(folder, index, files)
    code, lines = verify(folder, "--regenerate")
    assert (code, lines[-1]) == (1, "1 altered, 2 unknown-model")
    assert "no model of this name" in lines[0]


@pytest.fixture
def archive(stack: Up, tmp_path: Path) -> Path:
    """What the service gives as pairs.zip of a job."""
    path = tmp_path / "pairs.zip"
    with Client(stack.run()["url"]) as client:
        job = client.submit("blood", 3, seed=5)
        list(client.pairs(job.id))
        client.archive(job.id, path)
    return path


def repacked(archive: Path, name: str, changes: Mapping[str, bytes], top: str = "") -> Path:
    """The archive with other contents of some files, compressed, in a folder `top`."""
    path = archive.with_name(name)
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in whole.namelist():
            new.writestr(top + entry, changes.get(entry, whole.read(entry)))
    return path


def of_pair(archive: Path, index: int) -> Files:
    with zipfile.ZipFile(archive) as whole:
        return {name: whole.read(f"{index:04d}/{name}") for name in FILE_NAMES}


def test_the_archive_of_a_job_is_verified_pair_by_pair(
    archive: Path, stack: Up, verify: Run
) -> None:
    code, lines = verify(archive)
    assert (code, lines[-1]) == (0, "3 authentic; nothing was drawn again")
    assert f"{archive}/0000: consistent" in lines[0]
    assert verify(archive, "--regenerate")[1][-1] == "3 authentic"
    url = ("--url", stack.run()["url"])
    assert verify(archive.parent, "--regenerate", *url)[1][-1] == "3 authentic"
    again = repacked(archive, "again.zip", {}, top="pairs/")
    code, lines = verify(again, "--regenerate")
    assert (code, lines[-1]) == (0, "3 authentic")
    assert f"{again}/pairs/0002: drawn again bit for bit" in lines[2]


def test_what_was_altered_in_an_archive_is_named(archive: Path, verify: Run) -> None:
    pairs = [of_pair(archive, index) for index in range(3)]
    flip = flipped(pairs[1], "mask.png", 5, 6, forged=True)
    changes = {f"0001/{name}": content for name, content in flip.items()}
    changes["0002/mask.png"] = pairs[0]["mask.png"]
    changed = repacked(archive, "changed.zip", changes)
    code, lines = verify(changed)
    assert (code, lines[-1]) == (1, "1 altered, 2 authentic; nothing was drawn again")
    code, lines = verify(changed, "--regenerate")
    assert (code, lines[-1]) == (1, "2 altered, 1 authentic")
    assert f"{changed}/0001: mask.png has 1 other pixel in (5, 6, 6, 7)" in lines[1]
    assert "mask.png belongs to another image" in lines[2]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_is_cut_or_says_two_things_is_named(archive: Path, verify: Run) -> None:
    cut = archive.with_name("cut.zip")
    cut.write_bytes(archive.read_bytes()[:4000])
    damaged = archive.with_name("damaged.zip")
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    damaged.write_bytes(content)
    twice = repacked(archive, "twice.zip", {})
    with zipfile.ZipFile(twice, "a") as more:
        more.writestr("0000/mask.png", b"")
    for path in (cut, damaged, twice):
        code, lines = verify(path)
        assert code == 1
        assert lines[-1].startswith(f"pathar: {path}: cannot be read")


def test_an_archive_of_something_else_holds_nothing_to_verify(
    archive: Path, verify: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as made:
        made.writestr("photo.png", foreign())
    assert verify(other) == (2, [f"pathar: {other}: no pair is in it"])
    code, lines = verify(tmp_path)
    assert (code, lines[-1]) == (0, "3 authentic; nothing was drawn again")


def test_hidden_files_of_a_folder_do_not_count(
    folder: Path, pairs: list[Files], verify: Run
) -> None:
    (folder / ".partial").mkdir()
    (folder / ".partial" / "000000.zip").write_bytes(b"half of it")
    (folder / ".partial" / "photo.png").write_bytes(foreign())
    assert verify(folder)[1][-1] == "3 authentic; nothing was drawn again"
    assert verify(folder / ".partial" / "photo.png")[0] == 1
