"""Masks, images and regions of one's own through the front door: command, client, service, worker,
verify.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import load_checkpoint
from model.engine import TokenGrids, load_engine
from model.given import Stream
from pathar import Client, Pair, UsageError, errors
from pathar.client import GenerateSettings
from pathar.contract import FILE_NAMES
from pathar.provenance import verify_files
from pathar.records import read_png
from pathar.redraw import model_at
from tests.model.test_given_png import HOSTILE
from tests.pathar.test_cli import called
from tests.pathar.test_generate import contents
from tests.running import Up, painted
from worker.images import kept_dice

pytestmark = pytest.mark.processes

SIDE, GRID = 64, 8
LABELS = ("histology", "blood")


MASK = painted(SIDE)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
PIXELS = np.stack([4 * ROWS, 4 * COLUMNS, MASK // 2 + ROWS], 2).astype(np.uint8)
"""An image of the mask's nuclei."""
REGION = np.full((SIDE, SIDE), 255, np.uint8)
REGION[17:39, 17:47] = 0
"""What is kept: all but a rectangle, whose locations are those that it touches."""
KEPT = np.ones((GRID, GRID), bool)
KEPT[2:5, 2:6] = False


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask") / "my mask.png"
    Image.fromarray(MASK).save(path)
    return path


def test_a_mask_is_painted_here_and_by_a_service_into_the_same_files(
    stack: Up, test_checkpoint: Path, mask: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    words = ["paint", str(mask), "--n", "3", "--seed", "9", "--out"]
    labels = [word for label in LABELS for word in ("--label", label)]
    local = called(*words, str(here), "--labels", *LABELS, **_here(test_checkpoint))
    remote = called(*words, str(there), *labels, "--url", stack.run()["url"])
    assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
    assert contents(here) == contents(there)
    assert len(contents(here)) == 2 * 3 * len(FILE_NAMES)
    tokens = load_checkpoint(test_checkpoint).tokenizer.encode_structure(_planes(MASK))
    appearances = set()
    for path in here.glob("*_image.png"):
        png = read_png("image.png", path.read_bytes())
        assert png.tokens is not None
        assert np.array_equal(png.tokens[0], tokens[0].numpy()), "one layout for all"
        appearances.add(png.tokens[1].tobytes())
    assert len(appearances) == 6, "each with an appearance of its own"
    again = called(*words, str(here), *labels, **_here(test_checkpoint))
    assert again.returncode == 0, "it goes on"
    with Client(stack.run()["url"]) as client:
        pairs = client.generate(LABELS, n=3, seed=9, structure=mask, job_id="both-labels")
        pairs.save(tmp_path / "in one request")
        assert client.job("both-labels").labels == LABELS
        for label in LABELS:
            assert "both-labels" in [job.id for job in client.jobs(label=label)]
        assert "both-labels" not in [job.id for job in client.jobs(label="cervix")]
    assert contents(tmp_path / "in one request") == contents(there)
    assert "Dice of" in local.stderr
    assert "Dice of" in remote.stderr


def _here(checkpoint: Path) -> dict[str, str]:
    """The settings of an engine in this process."""
    fixed = {"PATHAR_DEVICE": "cpu", "PATHAR_THREADS": "1"}
    return {"PATHAR_CHECKPOINT": str(checkpoint), **fixed}


def _planes(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask > 0)[None, None].float()


def test_other_structure_has_other_names_and_without_a_seed_the_command_is_told(
    stack: Up, mask: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(MASK[::-1]).save(other)
    words = ("--label", "blood", "--seed", "3", "--url", stack.run()["url"], "--out")
    out = str(tmp_path / "out")
    for command in (["generate"], ["paint", str(mask)], ["paint", str(other)]):
        done = called(*command, *words, out)
        assert done.returncode == 0, done.stderr
    assert len(contents(tmp_path / "out")) == 3 * len(FILE_NAMES)
    free = called("paint", str(mask), "--label", "blood", "--out", out, "--url", words[5])
    assert f"to go on: pathar paint '{mask}' --label blood" in free.stderr
    assert "--structure" not in free.stderr


def test_what_is_no_mask_is_named_by_command_and_client(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(MASK).save(path, "TIFF")
    words = ("paint", str(path), "--label", "blood", "--out", str(tmp_path / "out"))
    for more in ((), ("--url", stack.run()["url"])):
        done = called(*words, *more, **_here(test_checkpoint))
        assert done.returncode == 2
        assert "structure.mask_png" in done.stderr
        assert "found a TIFF file" in done.stderr
        assert "64 x 64 pixels" in done.stderr
    assert not (tmp_path / "out").exists()
    many = called("paint", str(path), "--label", "blood", "--n", "1001")
    assert (many.returncode, "for more: another --seed" in many.stderr) == (2, True)
    path.write_bytes(bytes(11_000_000))
    for wrong, what in ((path, "too large"), (tmp_path / "none.png", "No such file")):
        done = called("paint", str(wrong), "--label", "blood", "--url", stack.run()["url"])
        assert (done.returncode, what in done.stderr) == (2, True)
    with Client(stack.run()["url"]) as client:
        with pytest.raises(errors.InvalidRequest, match="RGB colours"):
            client.generate("blood", structure=Image.fromarray(MASK).convert("RGB"))
        with pytest.raises(UsageError, match="got mode F"):
            client.generate("blood", structure=Image.new("F", (SIDE, SIDE)))
        with pytest.raises(UsageError, match="got ndarray"):
            client.generate("blood", structure=MASK)  # type: ignore[arg-type]


def test_hostile_masks_are_refused_by_the_service_and_take_no_memory_of_it(stack: Up) -> None:
    def memory() -> int:
        """Kilobytes that the service has taken at most."""
        told = Path(f"/proc/{stack.pid('service')}/status").read_text()
        return int(told.partition("VmHWM:")[2].split()[0])

    before = memory()
    for name, make, found in HOSTILE:
        structure = {"mask_png": base64.b64encode(make()).decode()}
        answer = stack.http.post("/generate", json={"label": "blood", "structure": structure})
        assert answer.status_code == 422, name
        [error] = answer.json()["errors"]
        assert error["field"] == "structure.mask_png"
        assert name in ("nothing", "large file") or found in answer.json()["detail"]
        appearance = {"image_png": structure["mask_png"]}
        answer = stack.http.post("/generate", json={"label": "blood", "appearance": appearance})
        assert answer.status_code == (200 if name in ("rgb", "alpha") else 422), name
    assert memory() - before < 32_000


def test_every_form_of_one_structure_gives_the_same_tokens_whatever_the_label(
    stack: Up, mask: Path
) -> None:
    with Client(stack.run()["url"]) as client:
        [first] = client.generate("histology", seed=5, structure=mask, job_id="painted")
        forms = (
            {"job_id": "painted", "index": 0},
            {"tokens": first.structure_tokens.tolist()},
            first,
            Image.open(mask),
        )
        for form in forms:
            for label in LABELS:
                [pair] = client.generate(label, seed=5, structure=form)
                assert pair.structure == first.structure
                assert (pair.appearance == first.appearance) is (label == "histology")
                masks = (np.asarray(pair.mask), np.asarray(first.mask))
                assert np.array_equal(*masks)
        bits = Stream("mask", np.packbits(MASK).tobytes())
        assert first.mask_dice == kept_dice(bits, np.asarray(first.mask), (GRID, GRID))
        assert pair.mask_dice == first.mask_dice
        assert client.generate("blood", structure=first)[0].mask_dice is None


def test_a_painted_pair_is_drawn_again_from_its_tokens_here_and_by_a_service(
    stack: Up, test_checkpoint: Path, mask: Path
) -> None:
    with Client(stack.run()["url"]) as client:
        [pair] = client.generate("histology", seed=6, structure=mask)
    files = pair.files()
    for name in ("image.png", "mask.png", "instances.png"):
        record = read_png(name, files[name]).record
        assert record["given_structure"] is True
        assert record["mask_dice"] == pair.mask_dice
        pixels = f"{SIDE} {SIDE}\n".encode() + MASK.tobytes()
        assert record["given_mask_sha256"] == hashlib.sha256(pixels).hexdigest()
    for url in (None, stack.run()["url"]):
        with model_at(url, _here(test_checkpoint)) as model:
            verdict = verify_files(files, model)
            assert (verdict.kind, verdict.text) == ("authentic", "drawn again bit for bit")
            mask_alone = verify_files({"mask.png": files["mask.png"]}, model)
            assert mask_alone.text.startswith("consistent")


def test_encode_then_decode_is_the_reconstruction_of_the_tokenizer_and_streams_can_be_swapped(
    stack: Up, test_checkpoint: Path
) -> None:
    image, mask = Image.fromarray(PIXELS), Image.fromarray(MASK)
    with Client(stack.run()["url"]) as client:
        pair = client.encode("histology", image, mask)
        other = client.encode(
            "blood", Image.fromarray(PIXELS[::-1]), model="test-random", job_id="other"
        )
        again = client.decode("histology", pair.structure_tokens, pair.appearance_tokens)
        swapped = client.decode("histology", pair.structure_tokens, other.appearance_tokens)
        on_mask = client.encode("histology", mask=mask)
        [by_streams] = client.generate("histology", structure=pair, appearance=other)
        with pytest.raises(UsageError, match="neither"):
            client.encode("histology")
        with pytest.raises(UsageError, match="rows of token ids"):
            client.decode("histology", [1, 2], pair.appearance_tokens)
    checkpoint = load_checkpoint(test_checkpoint)
    tokenizer = checkpoint.tokenizer.double()
    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].double() / 127.5 - 1
    structure, appearance = tokenizer.encode(pixels, _planes(MASK).double())
    assert np.array_equal(pair.structure_tokens, structure[0].numpy())
    assert np.array_equal(pair.appearance_tokens, appearance[0].numpy())
    assert checkpoint.segmenter is not None
    found = checkpoint.segmenter.find(PIXELS[::-1].copy())
    of_found = tokenizer.encode_structure(_planes(found).double())
    assert np.array_equal(other.structure_tokens, of_found[0].numpy())
    assert on_mask.structure == pair.structure
    engine = load_engine(test_checkpoint, device="cpu", slots=1, threads=1)
    ours = (pair.structure_tokens, pair.appearance_tokens)
    both = (pair.structure_tokens, other.appearance_tokens)
    for drawn, tokens in ((pair, ours), (again, ours), (swapped, both), (by_streams, both)):
        patch = engine.render(TokenGrids(*tokens))
        assert np.array_equal(np.asarray(drawn.image), patch.image)
        assert np.array_equal(np.asarray(drawn.mask), patch.mask)
        assert np.array_equal(np.asarray(drawn.instances), patch.instances)
        assert (drawn.log_likelihood, drawn.agreement) == (None, patch.agreement)
    assert on_mask.log_likelihood is not None
    assert pair.mask_dice is not None


def test_the_best_of_several_draws_is_that_of_as_many_images_which_fits_best(
    stack: Up, test_checkpoint: Path, mask: Path, tmp_path: Path
) -> None:
    image, region, url = tmp_path / "patch.png", tmp_path / "keep.png", stack.run()["url"]
    Image.fromarray(PIXELS).save(image)
    Image.fromarray(REGION).save(region)
    given: GenerateSettings = {"structure": mask, "appearance": image, "keep": region, "seed": 4}
    with Client(url) as client:
        drawn = client.generate("histology", n=6, **given)
        best = client.generate("histology", n=2, best_of=3, **given)
        with pytest.raises(errors.InvalidRequest, match="1 unless a part") as refused:
            client.generate("histology", best_of=2, structure=mask)
        assert refused.value.errors[0]["field"] == "best_of"
    wanted = [max(three, key=_fit) for three in (drawn[:3], drawn[3:])]
    for found, one in zip(best, wanted, strict=True):
        assert (found.files(), found.seed) == (one.files(), one.seed)
    assert any(drawn[k].seed != best[k // 3].seed for k in (0, 3)), "the first is not always best"
    out = tmp_path / "out"
    words = ["paint", str(mask), "--image", str(image), "--keep", str(region), "--seed", "4"]
    words += ["--label", "histology", "--n", "2", "--best-of", "3", "--out", str(out)]
    assert called(*words, **_here(test_checkpoint)).returncode == 0
    best.save(out)  # the same names and bytes
    assert len(contents(out)) == 2 * len(FILE_NAMES)
    told = called("verify", str(out), "--regenerate", "--url", url)
    assert told.stdout.count("drawn again bit for bit") >= 1, told.stdout


def _fit(pair: Pair) -> float:
    assert pair.kept_log_likelihood is not None
    return sum(pair.kept_log_likelihood)


def test_a_hole_is_filled_anew_here_and_by_a_service_and_all_else_stays(
    stack: Up, test_checkpoint: Path, mask: Path, tmp_path: Path
) -> None:
    image, region, pairs = tmp_path / "patch.png", tmp_path / "keep.png", {}
    Image.fromarray(PIXELS).save(image)
    Image.fromarray(REGION).save(region)
    given = [str(mask), "--image", str(image), "--keep", str(region), "--n", "2", "--seed", "4"]
    whole = ["--image", str(image), "--mask", str(mask)]
    for where, more in (("here", ()), ("there", ("--url", stack.run()["url"]))):
        out = str(tmp_path / where)
        for words in (["paint", *given], ["encode", *whole]):
            done = called(
                *words, "--label", "histology", "--out", out, *more, **_here(test_checkpoint)
            )
            assert done.returncode == 0, done.stderr
            assert done.stderr.count("nats") == (2 if words[0] == "paint" else 0)
        pairs[where] = contents(tmp_path / where)
    assert pairs["here"] == pairs["there"]
    pngs = [read_png("image.png", data) for name, data in sorted(pairs["here"].items())
            if name.endswith("_image.png")]  # fmt: skip
    [encoded] = [png for png in pngs if "log_likelihood" not in png.record]
    filled = [png for png in pngs if png is not encoded]
    assert encoded.tokens is not None
    for png in filled:
        assert png.tokens is not None
        assert np.array_equal(png.tokens[:, KEPT], encoded.tokens[:, KEPT])
        assert (png.tokens[:, ~KEPT] != encoded.tokens[:, ~KEPT]).any()
        bits = base64.b64encode(np.packbits(KEPT).tobytes()).decode()
        assert png.record["kept_structure"] == png.record["kept_appearance"] == bits
        assert png.record["mask_dice"] >= encoded.record["mask_dice"] - 0.2
        pixels = hashlib.sha256(f"{SIDE} {SIDE} 3\n".encode() + PIXELS.tobytes()).hexdigest()
        assert png.record["given_image_sha256"] == pixels
    assert filled[0].tokens is not None
    assert not np.array_equal(filled[0].tokens, filled[1].tokens)
    verdict = called("verify", str(tmp_path / "here"), "--regenerate", "--url", stack.run()["url"])
    assert (verdict.returncode, verdict.stdout.count("bit for bit")) == (0, 3), verdict.stdout
    tokens = next((tmp_path / "here").glob("*_tokens.json"))
    words = ["decode", str(tokens), "--label", "blood", "--out", str(tmp_path / "decoded")]
    done = called(*words, **_here(test_checkpoint))
    assert done.returncode == 0, done.stderr
    [drawn] = (tmp_path / "decoded").glob("*_tokens.json")
    assert drawn.read_bytes() == tokens.read_bytes()


def test_regions_and_images_of_a_pair_are_taken_by_the_client(stack: Up) -> None:
    with Client(stack.run()["url"]) as client:
        [first] = client.generate("histology", seed=8)
        keep = Image.fromarray(REGION)
        [drawn] = client.generate("histology", seed=9, structure=first, appearance=first, keep=keep)
        [painted] = client.generate("histology", seed=9, structure=first, appearance=first.image)
        with pytest.raises(UsageError, match="structure or appearance beside it"):
            client.generate("histology", keep=keep)
        with pytest.raises(errors.InvalidRequest, match="RGB with 8 bits"):
            client.generate("histology", appearance=Image.fromarray(MASK))
    for ours, theirs in zip(_grids(drawn), _grids(first), strict=True):
        assert np.array_equal(ours[KEPT], theirs[KEPT])
        assert not np.array_equal(ours, theirs)
    assert painted.structure == first.structure
    assert painted.log_likelihood is None


def _grids(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return pair.structure_tokens, pair.appearance_tokens
