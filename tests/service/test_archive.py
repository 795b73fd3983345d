"""pairs.zip as others read it: while it comes, in parts, and after it broke off."""

from __future__ import annotations

import io
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from model.request import GenerationRequest
from pathar.contract import FILE_NAMES
from service.archive import Archive
from store.job import Job, ModelRef, Part
from tests.service.conftest import FILES, MODEL, LoneService
from tests.system import program

BODY = {"label": "blood", "n": 3, "seed": 1}
PATH = "/jobs/a/pairs.zip"
NAMES = [*(f"{at:04d}/{name}" for at in range(3) for name in FILE_NAMES), "manifest.json"]


@pytest.fixture(scope="module")
def made(shared: LoneService) -> LoneService:
    """A service with a finished job `a`."""
    shared.publish()
    assert shared.http.put("/jobs/a", json=BODY).is_success
    shared.work()
    return shared


@pytest.fixture
def whole(made: LoneService) -> httpx.Response:
    return made.http.get(PATH)


def test_a_python_reads_it_while_it_comes(made: LoneService) -> None:
    from stream_unzip import stream_unzip

    with made.http.stream("GET", PATH) as answer:
        read = [
            (name.decode(), sum(map(len, pieces)))
            for name, _, pieces in stream_unzip(answer.iter_raw())
        ]
    assert [name for name, _ in read] == NAMES
    assert dict(read)["0001/image.png"] == len(FILES["image.png"])


@pytest.mark.system
def test_java_reads_it_while_it_comes(whole: httpx.Response) -> None:
    source = Path(__file__).with_name("StreamReader.java")
    command = [program("java"), "-Xshare:auto", str(source)]
    program("javac")
    done = subprocess.run(command, input=whole.content, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == NAMES


@pytest.mark.system
def test_funzip_reads_it_while_it_comes(whole: httpx.Response) -> None:
    done = subprocess.run([program("funzip")], input=whole.content, capture_output=True)
    assert (done.returncode, done.stdout) == (0, FILES["image.png"]), done.stderr.decode()


def test_its_length_is_known_before_it_is_sent(made: LoneService, whole: httpx.Response) -> None:
    assert int(whole.headers["content-length"]) == len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    body = {**BODY, "n": 1}
    answer = made.http.post("/generate?wait=0", json=body, headers={"Accept": "application/zip"})
    job = answer.json()["job_id"]
    made.work()
    assert "content-length" in made.http.get(f"/jobs/{job}/pairs.zip").headers


def test_it_is_had_in_parts(made: LoneService, whole: httpx.Response) -> None:
    size, tag = len(whole.content), whole.headers["etag"]
    for first, last in ((0, 0), (1, 99), (size // 2, size - 1), (size - 30, size + 99)):
        headers = {"Range": f"bytes={first}-{last}", "If-Range": tag}
        part = made.http.get(PATH, headers=headers)
        assert part.status_code == 206
        assert part.content == whole.content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{min(last, size - 1)}/{size}"
    stale = made.http.get(PATH, headers={"Range": "bytes=1-2", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, whole.content)
    assert made.http.get(PATH, headers={"If-None-Match": tag}).status_code == 304
    assert made.http.get(PATH, headers={"Range": f"bytes={size}-"}).status_code == 416


@pytest.mark.system
def test_curl_goes_on_with_what_it_has(
    made: LoneService, whole: httpx.Response, tmp_path: Path
) -> None:
    begun = tmp_path / "pairs.zip"
    begun.write_bytes(whole.content[:700])
    command = [program("curl"), "-sS", "--fail", "-C", "-", "-o", str(begun), made.url + PATH]
    subprocess.run(command, check=True)
    assert begun.read_bytes() == whole.content


def test_the_length_is_right_beyond_what_32_bits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 4000)  # in place of 2 GiB
    request = GenerationRequest(("blood",), 3, 1, (MODEL.defaults,))
    parts = tuple(Part(at, "blood", at, "finished", 0, None, None, None) for at in range(3))
    ref = ModelRef("stub", "ab" * 32, "0123456789ab")
    job = Job(
        "a", "00000000", "finished", "interactive", request, ref, 1.0, 1.0, 2.0, None, None, None,
        0, 0, parts, None,
    )  # fmt: skip
    files = [dict.fromkeys(FILE_NAMES, bytes(1500)), *[dict(FILES)] * 2]
    sizes = [{name: len(data) for name, data in of.items()} for of in files]
    archive = Archive.of(job, sizes)
    assert sum(map(len, archive.read(iter(files)))) == archive.size
    small = Archive.of(replace(job, parts=parts[:1]), sizes[1:2])
    with zipfile.ZipFile(io.BytesIO(b"".join(small.read(iter(files[1:2]))))) as found:
        assert found.testzip() is None
