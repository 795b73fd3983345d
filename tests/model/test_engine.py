import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import native_decoder
from model.checkpoint import Checkpoint, create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.encoding import Encoding
from model.engine import Engine, choose_device, default_slots, load_engine
from model.given import Given, Stream, keep_bits, of_tokens, reference
from model.instances import borders, instances, separated
from model.request import ImageRequest, Label, RequestError, SamplingSettings
from tests.model.decoding import draw, finish, same


def given_mask(bits: bytes) -> Given:
    return Given(Stream("mask", bits))


def test_a_row_is_the_same_alone_and_among_others(
    make_engine: Callable[[int], Engine], mixed_rows: list[ImageRequest]
) -> None:
    together = draw(make_engine(8), mixed_rows)
    for slots in (1, 3):
        engine = make_engine(slots)
        for row, grids in zip(mixed_rows, together, strict=True):
            assert same(draw(engine, [row])[0], grids)


def test_a_row_joins_while_others_are_half_way_and_none_notices(
    engine: Engine, mixed_rows: list[ImageRequest]
) -> None:
    together = draw(engine, mixed_rows)
    numbers = {}
    drawn = {}
    for number, row in enumerate(mixed_rows):
        numbers[engine.admit(row)] = number
        for _ in range(9):
            for slot in engine.step():
                drawn[numbers.pop(slot)] = engine.retire(slot)
    drawn |= dict(zip(sorted(numbers.values()), finish(engine, numbers), strict=True))
    for number, grids in enumerate(together):
        assert same(grids, drawn[number])


def test_a_retired_row_frees_its_slot_and_harms_no_neighbour(
    engine: Engine, mixed_rows: list[ImageRequest]
) -> None:
    wanted = draw(engine, mixed_rows[:2])
    first = engine.admit(mixed_rows[0])
    dropped = engine.admit(mixed_rows[4])
    second = engine.admit(mixed_rows[1])
    for _ in range(20):
        engine.step()
    engine.retire(dropped)
    assert engine.free == 6
    again = engine.admit(mixed_rows[5])
    assert again == dropped
    drawn = finish(engine, {first: 0, second: 1, again: 2})
    assert same(drawn[0], wanted[0])
    assert same(drawn[1], wanted[1])
    assert same(drawn[2], draw(engine, [mixed_rows[5]])[0])


def test_given_structure_is_kept_and_only_appearance_is_drawn(engine: Engine) -> None:
    settings = SamplingSettings()
    first = draw(engine, [ImageRequest("histology", 1, settings)])[0]
    given = tuple(first.structure.flatten().tolist())
    kept, other = draw(
        engine,
        [
            ImageRequest("histology", 1, settings, given=Given(of_tokens(given))),
            ImageRequest("blood", 2, settings, given=Given(of_tokens(given))),
        ],
    )
    assert same(kept, first)
    assert np.array_equal(other.structure, first.structure)
    assert not np.array_equal(other.appearance, first.appearance)


def test_what_is_kept_of_a_pair_stays_and_the_rest_is_drawn_anew_from_what_lies_before(
    engine: Engine,
) -> None:
    settings = SamplingSettings()
    [first] = draw(engine, [ImageRequest("histology", 1, settings)])
    kept = np.ones((8, 8), bool)
    kept[3:5, 2:6] = False
    structure, appearance = (
        of_tokens(np.where(kept, ids, None).flatten().tolist())
        for ids in (first.structure, first.appearance)
    )
    given = (Given(structure, appearance), Given(structure), Given(None, appearance))
    both, of_structure, of_appearance = draw(
        engine, [ImageRequest("histology", 2, settings, each) for each in given]
    )
    for grids, streams in ((both, (0, 1)), (of_structure, (0,)), (of_appearance, (1,))):
        for stream, name in enumerate(("structure", "appearance")):
            ours, theirs = getattr(grids, name), getattr(first, name)
            assert np.array_equal(ours[kept], theirs[kept]) is (stream in streams)
            assert not np.array_equal(ours[~kept], theirs[~kept])
        assert grids.log_likelihood is not None
        for stream, name in enumerate(("structure", "appearance")):
            of_kept = getattr(grids.kept_log_likelihood, name)
            assert (of_kept < 0) is (stream in streams)
            assert getattr(grids.log_likelihood, name) < of_kept <= 0
    assert first.kept_log_likelihood is None
    # With its own seed a hole is filled as it was before.
    again = draw(engine, [ImageRequest("histology", 1, settings, each) for each in given])
    assert all(same(grids, first) for grids in again)


def test_a_row_that_is_given_whole_takes_no_step_and_disturbs_no_other(engine: Engine) -> None:
    settings = SamplingSettings()
    [first] = draw(engine, [ImageRequest("histology", 1, settings)])
    [other] = draw(engine, [ImageRequest("blood", 5, settings)])
    ids = [of_tokens(grid.flatten().tolist()) for grid in (first.structure, first.appearance)]
    whole = ImageRequest("cytology", 9, settings, Given(*ids))
    slot = engine.admit(whole)
    assert (engine.live, engine.free) == (0, engine.slots - 1)
    assert engine.step() == [slot]
    assert engine.step() == []
    grids = engine.retire(slot)
    assert same(grids, first)
    assert grids.log_likelihood is None
    drawn = engine.admit(ImageRequest("blood", 5, settings))
    engine.step()
    engine.retire(engine.admit(whole))  # before it was told
    slot = engine.admit(whole)
    assert engine.age(slot) == engine.steps_per_image
    assert engine.step() == [slot]
    engine.retire(slot)
    assert same(finish(engine, {drawn: 0})[0], other)


def test_what_is_encoded_is_what_the_tokenizer_makes_of_it(
    engine: Engine, checkpoint: Checkpoint
) -> None:
    chance = np.random.default_rng(2)
    pixels, mask = chance.integers(0, 256, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[5:20, 30:60] = 1
    given = Given(Stream("mask", np.packbits(mask).tobytes()), Stream("image", pixels.tobytes()))
    [grids] = draw(engine, [ImageRequest("blood", 1, SamplingSettings(), given)])
    tokenizer = copy.deepcopy(checkpoint.tokenizer).double()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 127.5 - 1
    structure, appearance = tokenizer.encode(image, torch.from_numpy(mask)[None, None].double())
    assert np.array_equal(grids.structure, structure[0].numpy())
    assert np.array_equal(grids.appearance, appearance[0].numpy())
    keep = keep_bits([at < 32 for at in range(64)])
    part = Given(None, Stream("image", pixels.tobytes(), keep))
    [partly] = draw(engine, [ImageRequest("blood", 1, SamplingSettings(), part)])
    assert np.array_equal(partly.appearance[:4], grids.appearance[:4])
    assert not np.array_equal(partly.appearance[4:], grids.appearance[4:])


def test_a_complete_image_tells_its_log_likelihood_before_it_leaves_its_slot(
    engine: Engine,
) -> None:
    told = []
    for _ in range(2):
        slot = engine.admit(ImageRequest("histology", 1, SamplingSettings(cfg_scale=2.0)))
        while slot not in engine.step():
            pass
        told.append(engine.log_likelihood(slot))
        assert engine.retire(slot).log_likelihood == told[-1]
    assert told[0] == told[1]
    assert told[0].structure < 0 > told[0].appearance
    slot = engine.admit(ImageRequest("histology", 1, SamplingSettings()))
    engine.step()
    assert engine.retire(slot).log_likelihood is None


def test_given_structure_that_does_not_fit_is_refused(engine: Engine) -> None:
    for structure in ((1, 2), (64,) * 64, (-1,) * 64):
        with pytest.raises(RequestError, match="64 ids from 0 to 63"):
            engine.admit(
                ImageRequest("blood", 0, SamplingSettings(), given=Given(of_tokens(structure)))
            )
    with pytest.raises(RequestError, match="cytology"):
        engine.admit(ImageRequest("brain", 0, SamplingSettings()))
    assert engine.free == engine.slots


def test_a_given_mask_is_encoded_as_the_tokenizer_does_and_only_appearance_is_drawn(
    engine: Engine, checkpoint: Checkpoint
) -> None:
    settings, side = SamplingSettings(), 64
    nuclei = np.zeros((2, side, side), np.float32)
    nuclei[0, 5:20, 30:60], nuclei[1, 40:, :9] = 1, 1
    masks = [np.packbits(mask != 0).tobytes() for mask in nuclei]
    wanted = checkpoint.tokenizer.encode_structure(torch.from_numpy(nuclei)[:, None])
    first, second = draw(
        engine,
        [
            ImageRequest("histology", 1, settings, given=Given(Stream("mask", masks[0]))),
            ImageRequest("blood", 1, settings, given=Given(Stream("mask", masks[1]))),
        ],
    )
    assert np.array_equal(first.structure, wanted[0].numpy())
    assert np.array_equal(second.structure, wanted[1].numpy())
    tokens = Given(of_tokens(first.structure.flatten().tolist()))
    assert same(draw(engine, [ImageRequest("histology", 1, settings, tokens)])[0], first)


def test_mask_and_image_give_the_same_tokens_on_any_number_of_threads(
    checkpoint: Checkpoint,
) -> None:
    chance = np.random.default_rng(1)
    mask, image = (
        chance.integers(0, 256, size, np.uint8).tobytes() for size in (64 * 64 // 8, 64 * 64 * 3)
    )
    given = Given(Stream("mask", mask), Stream("image", image))
    before = torch.get_num_threads()
    try:
        ids = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            encoding = Encoding(checkpoint)
            ids.append((encoding.structure(given), encoding.appearance(given)))
    finally:
        torch.set_num_threads(before)
    assert ids[0] == ids[1] == ids[2]
    assert min(len(set(of_stream)) for of_stream in ids[0]) > 1


def test_where_structure_has_borders_those_of_a_mask_are_between_its_nuclei(tmp_path: Path) -> None:
    sizes = NAMED_SIZES["test"]
    bordered = (replace(sizes[0], structure_input="mask_borders", fine_widths=(6, 4)), sizes[1])
    create_random_checkpoint(tmp_path, "bordered", bordered, labels=[Label("blood", "organ")])
    engine = load_engine(tmp_path, device="cpu", slots=1, threads=1)
    nuclei = np.zeros((64, 64), bool)
    nuclei[10:30, 10:30], nuclei[18:22, 30:34], nuclei[10:30, 34:54] = True, True, True
    between = borders(instances(nuclei, None))
    assert between.any()
    planes = torch.from_numpy(np.stack([nuclei, between]))[None].float()
    wanted = load_checkpoint(tmp_path).tokenizer.encode_structure(planes)[0].numpy()
    row = ImageRequest("blood", 1, SamplingSettings(), given_mask(np.packbits(nuclei).tobytes()))
    assert np.array_equal(draw(engine, [row])[0].structure, wanted)


def test_a_model_whose_structure_needs_the_image_takes_tokens_alone(tmp_path: Path) -> None:
    sizes = NAMED_SIZES["test"]
    both = (replace(sizes[0], structure_input="image_mask"), sizes[1])
    create_random_checkpoint(tmp_path, "both", both, labels=[Label("blood", "organ")])
    engine = load_engine(tmp_path, device="cpu", slots=1, threads=1)
    assert not engine.info("").takes_masks
    with pytest.raises(RequestError, match="encodes no mask without its image"):
        engine.admit(ImageRequest("blood", 1, SamplingSettings(), given_mask(bytes(512))))


def test_a_mask_that_does_not_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="64 x 64 pixels"):
        engine.admit(ImageRequest("blood", 0, SamplingSettings(), given_mask(bytes(100))))
    of_another = reference(given_mask(bytes(512)))
    with pytest.raises(RequestError, match="what the job keeps"):
        engine.admit(ImageRequest("blood", 0, SamplingSettings(), of_another))
    assert engine.free == engine.slots


def test_a_full_engine_refuses_another_row(make_engine: Callable[[int], Engine]) -> None:
    engine = make_engine(1)
    engine.admit(ImageRequest("blood", 0, SamplingSettings()))
    with pytest.raises(RuntimeError, match="slots are taken"):
        engine.admit(ImageRequest("blood", 1, SamplingSettings()))


def test_an_image_takes_n_plus_one_steps(engine: Engine) -> None:
    slot = engine.admit(ImageRequest("blood", 0, SamplingSettings(cfg_scale=2.0)))
    finished = [engine.step() for _ in range(engine.steps_per_image)]
    assert finished == [[]] * 64 + [[slot]]


def test_pixels_are_rgb_bytes_and_a_mask_of_0_and_255(engine: Engine) -> None:
    grids = draw(engine, [ImageRequest("blood", 0, SamplingSettings())])[0]
    patch = engine.render(grids)
    assert patch.image.shape == (64, 64, 3)
    assert patch.mask.shape == (64, 64)
    assert patch.image.dtype == patch.mask.dtype == np.uint8
    assert set(np.unique(patch.mask)) <= {0, 255}
    assert np.array_equal(engine.render(grids).image, patch.image)
    assert np.array_equal(patch.instances, separated(patch.mask > 0))
    assert patch.instances.dtype == np.uint16


def test_an_absent_device_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'tpu'"):
        choose_device("tpu")


def test_the_precision_of_pixels_is_the_processors_whatever_decoders_were_built(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels() -> str:
        engine = Engine(checkpoint, device="cpu", slots=1, threads=1, kernel="torch")
        return engine.facts["pixels"]

    built = pixels()
    monkeypatch.setattr(native_decoder, "libraries", dict)
    assert pixels() == built


def test_without_a_number_an_engine_has_slots_for_its_threads(tmp_path: Path) -> None:
    labels = [Label("blood", "organ")]
    create_random_checkpoint(tmp_path, "test", NAMED_SIZES["test"], labels=labels)
    assert load_engine(tmp_path, device="cpu", threads=1).slots == default_slots("cpu", 1) == 4
    assert default_slots("cpu", 24) == 24
    assert default_slots("cpu", 0) >= 4
