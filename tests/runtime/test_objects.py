"""Object storage that hangs, has no such bucket, or cannot be reached with its settings."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.bucket import PART_BYTES
from runtime.folder import STALE_S, WRITING
from runtime.objects import Objects, ObjectsAway, open_objects
from runtime.settings import SettingsError, results_url
from tests.s3 import TIMEOUT_S, Folder, S3Server

READERS = 40


def in_bucket(folder: Folder, _: Path) -> tuple[Objects, Callable[[], set[str]]]:
    return folder.open(), lambda: set(folder.names())


def in_folder(_: Folder, path: Path) -> tuple[Objects, Callable[[], set[str]]]:
    objects = open_objects(f"file://{path}")
    assert objects is not None
    return objects, lambda: {
        found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()
    }


@pytest.mark.parametrize("place", [in_bucket, in_folder])
def test_a_file_is_there_whole_or_not_at_all(
    place: Callable[..., tuple[Objects, Callable[[], set[str]]]],
    s3_folder: Folder,
    tmp_path: Path,
) -> None:
    objects, names = place(s3_folder, tmp_path)
    objects.check()
    assert names() == set()
    objects.put({"a/H&E 40%~#?.png": b"1", "a/b/c": b"2"})
    assert objects.get(["a/H&E 40%~#?.png", "none", "a/b/c", "a/b/c/d"]) == [b"1", None, b"2", None]
    piece = os.urandom(PART_BYTES // 3)

    def broken_off() -> None:
        with objects.writing("big") as file:
            for _ in range(7):
                file.write(piece)
            raise KeyError  # in the middle of an upload in parts

    with pytest.raises(KeyError):
        broken_off()
    assert "big" not in names()
    with objects.writing("big") as file:
        for _ in range(7):
            file.write(piece)
        assert objects.size("big") is None, "not before it is whole"
    assert objects.size("big") == 7 * len(piece)
    assert objects.read("big", len(piece) - 5, 10) == piece[-5:] + piece[:5]
    assert (objects.size("none"), objects.size("a")) == (None, None)
    objects.delete_below(["a/b", "never"])
    assert names() == {"a/H&E 40%~#?.png", "big"}


def test_a_folder_that_is_not_mounted_is_away_and_what_was_left_half_written_goes(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "share"
    objects = open_objects(f"file://{folder}")
    assert objects is not None
    for ask in (objects.check, lambda: objects.get(["a"]), lambda: objects.size("a")):
        with pytest.raises(ObjectsAway, match=r"share.*: No such file"):
            ask()
    assert not folder.exists()
    (folder / WRITING).mkdir(parents=True)
    for name, age in (("old", STALE_S + 9), ("young", 9)):
        (folder / WRITING / name).write_bytes(b"half")
        os.utime(folder / WRITING / name, (time.time() - age,) * 2)
    objects.check()
    assert [path.name for path in (folder / WRITING).iterdir()] == ["young"]


def test_storage_that_hangs_holds_up_one_reader_at_a_time(
    s3_server: S3Server, s3_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    objects = s3_folder.open()
    objects.put({"a": b"1", "b": b"2"})
    assert objects.get(["a", "none", "b"]) == [b"1", None, b"2"]
    caplog.set_level(logging.INFO, "pathar.runtime")
    s3_server.freeze()
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(READERS) as pool:
            for _ in range(2):
                for each in [pool.submit(read, objects) for _ in range(READERS)]:
                    assert each.result() is None
        assert time.monotonic() - began < 2 * TIMEOUT_S + 2
    finally:
        s3_server.thaw()
    assert read(objects) == b"1"
    told = [record.getMessage() for record in caplog.records]
    assert [text.rpartition(" ")[2] for text in told] == ["again"] * 2, "away, and back"


def read(objects: Objects) -> bytes | None:
    try:
        return objects.get(["a"])[0]
    except ObjectsAway:
        return None


def test_a_bucket_that_is_not_there_is_no_missing_file(s3_folder: Folder) -> None:
    objects = open_objects("s3://another")
    assert objects is not None
    with pytest.raises(ObjectsAway, match="NoSuchBucket"):
        objects.get(["a"])
    with pytest.raises(ObjectsAway, match="NoSuchBucket"):
        objects.check()


def test_settings_that_cannot_work_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    assert open_objects(None) is None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "without a secret")
    with pytest.raises(SettingsError, match=r"PATHAR_RESULTS_URL='s3://bucket': .*Secret[^\n]*$"):
        open_objects("s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL='nonsense'"):
        open_objects("s3://bucket")
    monkeypatch.setattr("runtime.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'pathar\[s3\]'"):
        results_url({"PATHAR_RESULTS_URL": "s3://bucket/prefix"})
    assert results_url({"PATHAR_RESULTS_URL": "file:///share/pairs/"}) == "file:///share/pairs"
    for wrong in ("file://share", "file:///", "file:///a/../b", "file:///a//b"):
        with pytest.raises(SettingsError, match=r"expected s3://BUCKET, .* or file:///FOLDER"):
            results_url({"PATHAR_RESULTS_URL": wrong})
