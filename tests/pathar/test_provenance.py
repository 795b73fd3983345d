"""Verdicts on what people and programs do to pairs; with a model and without."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from model import engine as engines
from model import torch_decoder
from model.checkpoint import load_checkpoint
from model.engine import Engine, Kernel
from model.given import Given, Stream, keep_bits, of_tokens
from model.native_decoder import libraries
from model.request import ByStream, ImageRequest, SamplingSettings
from model.segmenter import read_segmenter
from pathar.contract import FILE_NAMES
from pathar.provenance import Kind, verify_all, verify_files, verify_png
from pathar.redraw import EngineHere
from tests.pathar.tampering import (
    Files,
    edited,
    flipped,
    foreign,
    of_one,
    pixels,
    record,
    repainted,
    saved_by_pillow,
    texts,
    with_chunk,
)
from tests.segmenters import write_segmenter
from worker.drawing import draw
from worker.images import numerics
from worker.png import encode_png

CASES = 200
IMAGE, MASK, INSTANCES, TOKENS = FILE_NAMES
PNGS = [IMAGE, MASK, INSTANCES]
SETTINGS = (
    SamplingSettings(),
    SamplingSettings(2.0, ByStream(0.8, 1.1), ByStream(20, 0), 0.9),
    SamplingSettings(temperature=0),
)


def drawn(engine: Engine, count: int, *, first_seed: int = 0) -> list[Files]:
    """Pairs of all labels, with several settings."""
    labels = [label.name for label in engine.config.labels]
    requests = [
        ImageRequest(labels[at % len(labels)], first_seed + at, SETTINGS[at % 3])
        for at in range(count)
    ]
    return [files for _, files in sorted(draw(engine, requests), key=lambda each: each[0])]


@dataclass(frozen=True)
class Pairs:
    """Pairs by what drew them, and the model that verifies."""

    model: EngineHere
    here: list[Files]
    other_threads: list[Files]
    other_numerics: list[Files]
    other_model: list[Files]


@pytest.fixture(scope="module")
def pairs(test_checkpoint: Path, organ_checkpoint: Path) -> Pairs:
    def engine(path: Path, kernel: Kernel = "auto", threads: int = 1) -> Engine:
        return Engine(load_checkpoint(path), device="cpu", slots=16, threads=threads, kernel=kernel)

    other_threads = drawn(engine(test_checkpoint, threads=2), 8)
    other_model = drawn(engine(organ_checkpoint), 8)
    with pytest.MonkeyPatch.context() as patched:
        usual = engines._pixel_dtype(torch.device("cpu"))
        other = torch.float32 if usual == torch.bfloat16 else torch.bfloat16
        patched.setattr(engines, "_pixel_dtype", lambda _: other)
        other_numerics = drawn(engine(test_checkpoint), 8)
    here = engine(test_checkpoint)
    return Pairs(
        EngineHere(here, here.info(numerics(here))),
        drawn(here, 8),
        other_threads,
        other_numerics,
        other_model,
    )


@dataclass(frozen=True)
class Case:
    """Files, and the verdicts that are right, without a model and with it."""

    name: str
    files: Files
    consistent: Kind
    drawn_again: Kind


def cases(pairs: Pairs) -> list[Case]:
    """CASES of them, of each kind about as many; places and pairs are drawn from a fixed seed."""
    chance = random.Random(20)
    found = []
    while len(found) < CASES:
        for kind in KINDS:
            found.append(kind(pairs, chance))
    return found[:CASES]


def untouched(pairs: Pairs, chance: random.Random) -> Case:
    files = chance.choice(pairs.here)
    names = chance.choice(
        [FILE_NAMES, PNGS, [IMAGE, MASK], [MASK, TOKENS], *([png] for png in PNGS)]
    )
    return Case("untouched", {name: files[name] for name in names}, "authentic", "authentic")


def pixel(pairs: Pairs, chance: random.Random, *, forged: bool) -> Case:
    name, x, y = chance.choice(PNGS), chance.randrange(64), chance.randrange(64)
    files = flipped(chance.choice(pairs.here), name, x, y, forged=forged)
    return Case(f"pixel of {name}", files, "authentic" if forged else "altered", "altered")


def faint_pixel(pairs: Pairs, chance: random.Random) -> Case:
    files = chance.choice(pairs.here)
    painted = pixels(files[IMAGE])
    painted[chance.randrange(64), chance.randrange(64), 1] ^= 1
    return Case(
        "faint pixel", repainted(files, IMAGE, painted, forged=True), "authentic", "altered"
    )


def swapped(pairs: Pairs, chance: random.Random) -> Case:
    one, other = chance.sample(pairs.here, 2)
    name = chance.choice([MASK, INSTANCES, TOKENS])
    return Case(f"{name} swapped", {**one, name: other[name]}, "altered", "altered")


def metadata(pairs: Pairs, chance: random.Random, *, forged: bool) -> Case:
    field, value = chance.choice(
        [
            *(("label", "blood"), ("label", "cytology"), ("seed", 999), ("note", "real tissue")),
            *(("synthetic", False), ("settings", vars(SamplingSettings(3.0)))),
            *(("generator", "a microscope"), ("agreement", 0.999), ("nuclei", 9999)),
            ("log_likelihood", {"structure": -1.0, "appearance": -1.0}),
        ]
    )
    told = [(each, record(each[IMAGE])) for each in pairs.here]
    others = [(each, said) for each, said in told if said[field] != value]
    if field == "seed":  # which greedy sampling does not use
        others = [(each, said) for each, said in others if said["settings"]["temperature"]]
    files, _ = chance.choice(others)
    made = edited(files, field, value, forged=forged)
    return Case(f"{field} edited", made, "authentic" if forged else "altered", "altered")


def forged_numerics(pairs: Pairs, chance: random.Random) -> Case:
    """Of the digits alone: they are a hash of the facts."""
    files = edited(chance.choice(pairs.here), "numerics", "0" * 12, forged=True)
    return Case("numerics edited", files, "altered", "altered")


def other_threads(pairs: Pairs, chance: random.Random) -> Case:
    at = chance.randrange(len(pairs.other_threads))
    files, here = pairs.other_threads[at], pairs.here[at]
    same = all((pixels(files[name]) == pixels(here[name])).all() for name in PNGS)
    return Case("other threads", files, "authentic", "authentic" if same else "other-numerics")


def other_numerics(pairs: Pairs, chance: random.Random) -> Case:
    files = chance.choice(pairs.other_numerics)
    return Case("other numerics", files, "authentic", "other-numerics")


def other_numerics_and_pixel(pairs: Pairs, chance: random.Random, *, forged: bool) -> Case:
    x, y = chance.randrange(64), chance.randrange(64)
    files = flipped(chance.choice(pairs.other_numerics), IMAGE, x, y, forged=forged)
    consistent: Kind = "authentic" if forged else "altered"
    return Case("other numerics, pixel", files, consistent, "altered")


def other_model(pairs: Pairs, chance: random.Random) -> Case:
    return Case("other model", chance.choice(pairs.other_model), "authentic", "unknown-model")


def other_model_and_pixel(pairs: Pairs, chance: random.Random) -> Case:
    files = flipped(chance.choice(pairs.other_model), MASK, 3, 4, forged=False)
    return Case("other model, pixel", files, "altered", "altered")


def cut(pairs: Pairs, chance: random.Random) -> Case:
    name, files = chance.choice(PNGS), chance.choice(pairs.here)
    at = chance.randrange(len(files[name]))
    return Case(f"{name} cut", {**files, name: files[name][:at]}, "altered", "altered")


def cut_alone(pairs: Pairs, chance: random.Random) -> Case:
    """What is left of a lone file says that it is PathAR's, or does not."""
    whole = chance.choice(pairs.here)[IMAGE]
    begins = whole.index(b"pathar\0") + len(b"pathar\0")
    at = chance.choice([chance.randrange(begins), chance.randrange(begins, len(whole))])
    kind: Kind = "not-pathar" if at < begins else "altered"
    return Case(f"lone image cut at {at}", {IMAGE: whole[:at]}, kind, kind)


def damaged(pairs: Pairs, chance: random.Random) -> Case:
    name, files = chance.choice(PNGS), chance.choice(pairs.here)
    data = bytearray(files[name])
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return Case(f"{name} damaged", {**files, name: bytes(data)}, "altered", "altered")


def of_others(pairs: Pairs, chance: random.Random) -> Case:
    """Files that other software made, or left nothing of PathAR in."""
    data = chance.choice(
        [
            *(foreign(), foreign("JPEG"), foreign("GIF"), b"", b"a text\n"),
            saved_by_pillow(pairs.here[0][IMAGE], keep=False),
            saved_by_pillow(pairs.here[0][IMAGE], keep=False, Software="an editor"),
        ]
    )
    return Case("of others", {chance.choice(PNGS): data}, "not-pathar", "not-pathar")


def in_a_pair_of_ours(pairs: Pairs, chance: random.Random) -> Case:
    name = chance.choice(PNGS)
    return Case(
        "one of others", {**chance.choice(pairs.here), name: foreign()}, "altered", "altered"
    )


def packed_again(pairs: Pairs, chance: random.Random) -> Case:
    """The same pixels and texts, compressed by other software."""
    change = of_one(IMAGE, partial(saved_by_pillow, keep=True))
    return Case("packed again", change(chance.choice(pairs.here)), "authentic", "authentic")


def added(pairs: Pairs, chance: random.Random) -> Case:
    change: Callable[[bytes], bytes] = chance.choice(
        [
            partial(saved_by_pillow, keep=True, Comment="mine"),
            lambda png: png + b"more",
            lambda png: with_chunk(png, b"gAMA", (100).to_bytes(4, "big")),
            lambda png: png.replace(texts(png)["XML:com.adobe.xmp"].encode(), b"")[:-1],
        ]
    )
    made = of_one(chance.choice(PNGS), change)(chance.choice(pairs.here))
    return Case("added", made, "altered", "altered")


KINDS: tuple[Callable[[Pairs, random.Random], Case], ...] = (
    *(untouched, partial(pixel, forged=False), partial(pixel, forged=True), faint_pixel, swapped),
    *(partial(metadata, forged=False), partial(metadata, forged=True), forged_numerics),
    *(other_threads, other_numerics, other_model, other_model_and_pixel),
    *(partial(other_numerics_and_pixel, forged=False), cut, cut_alone, damaged, of_others),
    *(partial(other_numerics_and_pixel, forged=True), in_a_pair_of_ours, packed_again, added),
)


def test_every_verdict_is_right_in_200_mixed_cases(pairs: Pairs) -> None:
    mixed = cases(pairs)
    again = [verdict for _, verdict in verify_all([(c.name, c.files) for c in mixed], pairs.model)]
    wrong = [
        (case.name, case.drawn_again, verdict)
        for case, verdict in zip(mixed, again, strict=True)
        if verdict.kind != case.drawn_again
    ]
    assert wrong == []
    found = Counter(verdict.kind for verdict in again)
    assert set(found) == {"authentic", "other-numerics", "altered", "unknown-model", "not-pathar"}


def test_without_a_model_every_verdict_is_about_consistency(pairs: Pairs) -> None:
    wrong = [
        (case.name, case.consistent, verdict)
        for case in cases(pairs)
        if (verdict := verify_files(case.files)).kind != case.consistent
    ]
    assert wrong == []
    assert "only --regenerate" in verify_files(pairs.here[0]).text.lower()


@pytest.mark.parametrize(
    ("name", "x", "y"), [(IMAGE, 0, 0), (IMAGE, 63, 63), (MASK, 5, 9), (INSTANCES, 5, 9)]
)
def test_a_flipped_pixel_is_found_where_it_is(pairs: Pairs, name: str, x: int, y: int) -> None:
    for forged in (False, True):
        files = flipped(pairs.here[0], name, x, y, forged=forged)
        verdict = verify_files(files, pairs.model)
        (change,) = verdict.changes
        assert (change.file, change.pixels, change.box) == (name, 1, (x, y, x + 1, y + 1))


def test_a_mask_of_another_image_is_named_with_what_it_belongs_to(pairs: Pairs) -> None:
    one, other = pairs.here[:2]
    said = record(other[MASK])
    verdict = verify_files({**one, MASK: other[MASK]})
    assert f"another image (label {said['label']}, seed {said['seed']})" in verdict.text


def test_another_pixel_size_than_the_record_names_is_altered(pairs: Pairs) -> None:
    files = next(each for each in pairs.here if "mpp" in record(each[MASK]))
    data = files[MASK]
    assert data.count(b"pHYs") == 1
    size = data[data.index(b"pHYs") + 4 :][:9]
    said = data.replace(size, b"\0\0\0\1\0\0\0\1\1")
    at = said.index(b"pHYs")
    checksum = zlib.crc32(said[at : at + 13]).to_bytes(4, "big")
    verdict = verify_files({**files, MASK: said[: at + 13] + checksum + said[at + 17 :]})
    assert verdict.text == "mask.png has another pixel size (pHYs) than its record"
    bare = data[: at - 4] + data[at + 17 :]
    assert verify_files({**files, MASK: bare}).kind == "authentic"


def test_other_numerics_are_spelled_out(pairs: Pairs) -> None:
    verdict = verify_files(pairs.other_numerics[0], pairs.model)
    assert "pixels torch.float32" in verdict.text or "pixels torch.bfloat16" in verdict.text
    assert "tried" in verdict.text
    assert "decoder" not in verdict.text


def test_quality_follows_from_the_numerics_and_is_compared_with_the_same_alone(
    pairs: Pairs, test_checkpoint: Path, tmp_path: Path
) -> None:
    for name, value in (("agreement", 0.999), ("log_likelihood", {"structure": 0.0})):
        forged = verify_files(edited(pairs.here[0], name, value, forged=True), pairs.model)
        assert forged.text.count(f"has a record that is not the model's in {name}") == 3
        files = edited(pairs.other_numerics[0], name, value, forged=True)
        assert verify_files(files, pairs.model).kind == "other-numerics"
    checkpoint = load_checkpoint(test_checkpoint)
    other = replace(checkpoint, segmenter=read_segmenter(write_segmenter(tmp_path, seed=1)))
    [files] = drawn(Engine(other, device="cpu", slots=1, threads=1), 1)
    assert record(files[IMAGE])["agreement"] != record(pairs.here[0][IMAGE])["agreement"]
    verdict = verify_files(files, pairs.model)
    assert (verdict.kind, verdict.changes) == ("authentic", ())
    assert "with other numerics" in verdict.text
    assert "segmenter" in verdict.text


@pytest.mark.parametrize("name", PNGS)
def test_a_lone_png_is_verified_whichever_it_is(pairs: Pairs, name: str) -> None:
    assert verify_png(pairs.here[0][name], pairs.model).kind == "authentic"
    files = flipped(pairs.here[0], name, 1, 1, forged=False)
    assert verify_png(files[name], pairs.model).kind == "altered"


def test_what_is_given_of_a_pair_is_given_when_it_is_drawn_again(
    pairs: Pairs, test_checkpoint: Path
) -> None:
    engine = Engine(load_checkpoint(test_checkpoint), device="cpu", slots=1, threads=1)
    size = engine.config.tokenizer.codebook_size
    side, chance = engine.config.tokenizer.image_size, random.Random(3)
    ids = [chance.randrange(size) for _ in range(engine.layout.locations)]
    part, keep = [None, *ids[1:-1], None], keep_bits([at % 5 > 0 for at in range(len(ids))])
    mask = Stream("mask", chance.randbytes(side * side // 8), keep)
    image = Stream("image", chance.randbytes(3 * side * side))
    given = [
        Given(of_tokens(ids)),
        Given(of_tokens(part)),
        Given(None, of_tokens(part)),
        Given(of_tokens(part), of_tokens(ids)),
        Given(mask, replace(image, keep=keep)),
        Given(mask, image),
        Given(of_tokens(ids), image),
        *([Given(Stream("segmented"), image)] if engine.info("").segments else []),
    ]
    wanted = [ImageRequest("histology", 3, SamplingSettings(), each) for each in given]
    for _, files in draw(engine, wanted):
        assert verify_files(files, pairs.model).text == "drawn again bit for bit"
        assert verify_files({MASK: files[MASK]}, pairs.model).text.startswith("consistent")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("label", "a cloud", "label"),
        ("seed", -1, "seed"),
        (
            "settings",
            {"cfg_scale": 99.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            "cfg_scale",
        ),
        ("settings", {}, "settings"),
        ("settings", {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_q": 1.0}, "top_q"),
        ("settings", [], "settings"),
        ("structure_tokens", "", "tokens_sha256"),
        ("structure_tokens", "***", "tokens_sha256"),
    ],
)
def test_a_record_of_no_request_is_altered(
    pairs: Pairs, field: str, value: object, words: str
) -> None:
    files = {IMAGE: edited(pairs.here[0], field, value, forged=True)[IMAGE]}
    verdict = verify_files(files, pairs.model)
    assert verdict.kind == "altered"
    assert words in verdict.text


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a":1}', "[" * 100_000, '{"a": NaN}'])
def test_a_record_that_is_none_is_altered(pairs: Pairs, text: str) -> None:
    data = pairs.here[0][MASK]
    made = encode_png(pixels(data), {**texts(data), "pathar": text})
    assert verify_png(made, pairs.model).kind == "altered"


def test_damage_of_any_kind_raises_nothing(pairs: Pairs) -> None:
    chance = random.Random(1)
    for _ in range(300):
        data = bytearray(pairs.here[0][MASK])
        for _ in range(chance.randrange(1, 20)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        assert verify_png(bytes(data)).kind != "authentic" or bytes(data) == pairs.here[0][MASK]


@pytest.mark.skipif(not torch_decoder.has_bf16() or not libraries(), reason="threads matter here")
def test_the_number_of_threads_is_no_part_of_the_numerics(pairs: Pairs) -> None:
    one, two = record(pairs.here[0][IMAGE]), record(pairs.other_threads[0][IMAGE])
    assert "threads" not in one["made_with"]
    assert one["numerics"] == two["numerics"]
    assert pairs.here == pairs.other_threads
