"""/openapi.json as others read it: a validator, and a client that is generated from it.

The generated client makes every call of the README's three ways to ask, and the rest.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.running import Up, painted, png_text
from tests.system import program

NAME = "generated_pathar"


@pytest.fixture(scope="module")
def document(stack: Up) -> dict[str, Any]:
    found: dict[str, Any] = stack.http.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def generated(
    document: dict[str, Any], stack: Up, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The generated package."""
    program("java")
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document))
    words = [
        str(Path(sys.executable).with_name("openapi-generator-cli")),
        "generate",
        "-g",
        "python",
    ]
    words += ["-i", str(folder / "openapi.json"), "-o", str(folder)]
    words += ["--additional-properties", f"packageName={NAME}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        package = __import__(NAME)
        yield package


def test_the_document_is_what_it_says(document: dict[str, Any]) -> None:
    from openapi_spec_validator import validate

    assert document["openapi"].startswith("3.1")
    validate(document)


def test_every_header_that_a_route_reads_is_declared(document: dict[str, Any]) -> None:
    def headers(path: str, method: str = "get") -> set[str]:
        parameters = document["paths"][path][method].get("parameters", ())
        return {each["name"].lower() for each in parameters if each["in"] == "header"}

    assert headers("/generate", "post") == {"prefer", "traceparent"}
    assert headers("/jobs/{job_id}/events") == {"last-event-id"}
    files = [path for path in document["paths"] if path.endswith((".png", ".json", ".zip"))]
    assert len(files) == 5
    for path in files:
        assert headers(path) == {"range", "if-range", "if-none-match"}, path


@pytest.mark.system
def test_a_generated_client_makes_every_call(generated: Any, stack: Up) -> None:
    configuration = generated.Configuration(host=stack.run()["url"])
    with generated.ApiClient(configuration) as http:
        jobs, files = generated.JobsApi(http), generated.FilesApi(http)
        service = generated.ServiceApi(http)
        body = generated.GenerateBody(label="histology", n=2, seed=7)
        drawn = jobs.generate(generate_body=body, wait=60)
        assert [image.index for image in drawn.images] == [0, 1]
        png = base64.b64decode(drawn.images[0].image_png)
        assert Image.open(io.BytesIO(png)).mode == "RGB"

        job = jobs.put_job("generated-1", body)
        assert job.job_id == "generated-1"
        told = jobs.get_events_without_preload_content("generated-1").data.decode()
        assert "event: finished" in told
        state = jobs.get_job("generated-1")
        assert (state.status, len(state.images)) == ("finished", 2)
        assert "generated-1" in [each.job_id for each in jobs.list_jobs(label="histology").jobs]
        assert files.get_pair("generated-1", 1).seed == state.images[1].seed
        image = bytes(files.get_image("generated-1", 0))
        assert image == png
        assert bytes(files.get_image("generated-1", 0, range="bytes=0-3")) == png[:4]
        assert Image.open(io.BytesIO(bytes(files.get_mask("generated-1", 0)))).mode == "L"
        ids = Image.open(io.BytesIO(bytes(files.get_instances("generated-1", 0))))
        assert ids.mode == "I;16"
        assert len(files.get_tokens("generated-1", 0).structure_tokens) == 8
        archive = zipfile.ZipFile(io.BytesIO(bytes(files.get_zip("generated-1"))))
        assert archive.read("0000/image.png") == png
        assert jobs.delete_job("generated-1", files=True).status == "finished"

        tokens = drawn.images[0].structure_tokens
        for given in (
            generated.GivenTokens(tokens=tokens),
            generated.EarlierPair(job_id=drawn.job_id, index=0),
            generated.GivenMask(mask_png=png_text(painted(64))),
        ):
            structure = generated.GenerateBodyStructure(given)
            on_it = generated.GenerateBody(label="blood", structure=structure)
            [painted_pair] = jobs.generate(generate_body=on_it, wait=60).images
            of_mask = isinstance(given, generated.GivenMask)
            assert (painted_pair.structure_tokens == tokens) is not of_mask
            assert (painted_pair.mask_dice is None) is not of_mask

        later = jobs.generate_with_http_info(generate_body=body, prefer="respond-async")
        assert later.status_code == 202
        assert later.headers["location"].endswith(later.data.job_id)
        with pytest.raises(generated.ApiException) as refused:
            jobs.generate(generate_body=generated.GenerateBody(label="granite"))
        assert json.loads(refused.value.body)["errors"][0]["field"] == "label"

        assert "blood" in [label.name for label in service.get_labels().labels]
        assert service.healthz().status == service.readyz().status == "ok"
        assert "pathar_http_requests_total" in service.metrics()
