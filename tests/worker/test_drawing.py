from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model.engine import Engine, TokenGrids, load_engine
from model.request import ModelInfo, RequestError
from pathar.provenance import CONSISTENT, verify_files
from pathar.records import read_png
from tests.model.decoding import draw as draw_tokens
from tests.worker.conftest import alone, ask
from worker.drawing import Finisher, draw


@pytest.mark.parametrize("threads", [0, 3])
def test_rows_come_back_in_order_with_the_bytes_that_they_have_alone(
    engine: Engine, info: ModelInfo, threads: int
) -> None:
    images = list(ask(6).images())
    finisher = Finisher[int](engine, info, threads=threads)
    for index, image in enumerate(images):
        finisher.give(index, image, draw_tokens(engine, [image])[0])
    finished = []
    while finisher.backlog:
        finished += finisher.collect(timeout=1.0)
    finisher.close()
    assert [one.key for one in finished] == list(range(6))
    assert [one.error for one in finished] == [None] * 6
    assert [one.files for one in finished] == alone(engine, ask(6))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_row_that_cannot_be_rendered_harms_no_other(
    engine: Engine, info: ModelInfo, threads: int
) -> None:
    (image,) = ask().images()
    good = draw_tokens(engine, [image])[0]
    bad = TokenGrids(good.structure + 10**6, good.appearance)
    finisher = Finisher[str](engine, info, threads=threads)
    for name, tokens in (("bad", bad), ("good", good)):
        finisher.give(name, image, tokens)
    finished = []
    while finisher.backlog:
        finished += finisher.collect(timeout=1.0)
    finisher.close()
    assert [(one.key, one.error is None, bool(one.files)) for one in finished] == [
        ("bad", False, False),
        ("good", True, True),
    ]


def test_more_images_than_slots_are_all_drawn_once(engine: Engine) -> None:
    drawn = [index for index, _ in draw(engine, ask(3).images())]
    assert sorted(drawn) == [0, 1, 2]
    assert engine.free == engine.slots


def test_stopping_half_way_or_a_bad_request_frees_the_slots(engine: Engine) -> None:
    drawing = draw(engine, ask(3).images())
    next(drawing)
    drawing.close()
    assert engine.free == engine.slots
    with pytest.raises(RequestError, match="label"):
        list(draw(engine, [*ask(1).images(), *ask(1, label="none").images()]))
    assert engine.free == engine.slots


def test_a_large_image_has_the_same_bytes_alone_and_among_others(
    test_checkpoint: Path,
) -> None:
    """Its windows share the slots with patches and with those of another large image."""
    few, many = (
        load_engine(test_checkpoint, device="cpu", slots=slots, threads=1) for slots in (1, 5)
    )
    large = [
        replace(image, size=size)
        for image, size in zip(ask(2).images(), ((112, 80), (64, 96)), strict=True)
    ]
    images = [ask(1, seed=3).images()[0], large[0], *ask(2, seed=2).images(), large[1]]
    alone = [files for image in images for _, files in draw(few, [image])]
    together = dict(draw(many, images))
    assert [together[index] for index in range(len(images))] == alone
    assert few.free == 1
    assert many.free == 5
    verdicts = [verify_files(files).text for files in alone]
    assert verdicts == [CONSISTENT] * len(images)
    image = read_png("image.png", alone[1]["image.png"])
    assert image.tokens is not None
    assert image.pixels is not None
    assert image.tokens.shape == (2, 10, 14)
    assert image.pixels.shape == (80, 112, 3)
    assert image.record["log_likelihood"]["structure"] < 0


def test_stopping_half_way_through_a_large_image_frees_its_slots(engine: Engine) -> None:
    image = replace(ask(1).images()[0], size=(256, 192))
    drawing = draw(engine, [*ask(1).images(), image])
    next(drawing)
    drawing.close()
    assert engine.free == engine.slots
