"""Object storage that hangs, has no such bucket, or cannot be reached with its settings."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.objects import Objects, ObjectsAway, open_objects
from runtime.settings import SettingsError, results_url
from tests.s3 import TIMEOUT_S, Folder, S3Server

READERS = 40


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
