"""Groups of pairs whose worth to a segmenter is known, and the sentence said about scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.evaluation.pairs import Pairs
from training.evaluation.segmentation import (
    CEILING,
    GROUPS,
    Group,
    GroupScore,
    group_scores,
    verdict,
)

pytestmark = pytest.mark.slow

SIDE, STEPS = 32, 80


def pairs_of(count: int, seed: int, stains: int) -> Pairs:
    """Discs on a ground, each patch in one of so many stains. Who has seen one stain knows little
    of the others."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    images, masks = [], []
    for number in range(count):
        mask = np.zeros((SIDE, SIDE), bool)
        for _ in range(random.integers(2, 5)):
            centre, radius = random.integers(0, SIDE, 2), random.integers(3, 7)
            mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        colours = np.random.default_rng(number % stains).integers(20, 235, (2, 3))
        image = np.where(mask[..., None], *colours) + random.normal(0, 6, (SIDE, SIDE, 3))
        images.append(image.clip(0, 255).astype(np.uint8))
        masks.append(mask)
    ids = torch.zeros(count, 1, dtype=torch.long)
    return Pairs(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), ids, ids)


FEW = pairs_of(2, 0, stains=1)
REAL = pairs_of(40, 1, stains=4)
AS_GOOD = pairs_of(40, 2, stains=4)
VALIDATION = pairs_of(16, 3, stains=4)
SHUFFLED = replace(AS_GOOD, masks=AS_GOOD.masks.roll(1, 0))


def dice_of(
    training: Pairs,
    synthetic: Pairs,
    groups: dict[str, Group],
    steps: int = STEPS,
    seeds: int = 1,
) -> dict[str, tuple[float, ...]]:
    scores = group_scores(
        "a", training, synthetic, VALIDATION, groups=groups, steps=steps, seeds=seeds
    )
    return {score.group: score.dice for score in scores}


@pytest.fixture(scope="module")
def groups() -> dict[str, tuple[float, ...]]:
    """Two real patches of one stain, forty synthetic pairs as good as real ones of every stain."""
    return dice_of(FEW, AS_GOOD, {"I": Group(2, 0), "II": Group(0, 40), "V": Group(2, 40)})


def test_synthetic_pairs_as_good_as_real_ones_help_a_few_real_ones(
    groups: dict[str, tuple[float, ...]],
) -> None:
    assert groups["V"][0] > groups["I"][0] + 0.1
    assert groups["II"][0] > groups["I"][0] + 0.1


def test_masks_that_belong_to_other_images_lower_the_dice(
    groups: dict[str, tuple[float, ...]],
) -> None:
    shuffled = dice_of(FEW, SHUFFLED, {"II": Group(0, 40), "V": Group(2, 40)})
    assert shuffled["II"][0] < groups["II"][0] - 0.2
    assert shuffled["V"][0] < groups["V"][0] - 0.1


def test_all_real_patches_show_how_much_there_is_to_gain() -> None:
    dice = dice_of(REAL, AS_GOOD, {"I": Group(1, 0), CEILING: Group(None, 0)})
    assert dice[CEILING][0] > dice["I"][0] + 0.1


def test_of_pairs_some_of_which_are_wrong_the_agreeing_ones_train_better() -> None:
    right = torch.arange(len(AS_GOOD)) >= 10
    mixed = replace(AS_GOOD, masks=torch.where(right[:, None, None], AS_GOOD.masks, SHUFFLED.masks))
    groups = {"first": Group(0, 20), "best": Group(0, 20, best=True)}
    scores = group_scores(
        "a", FEW, mixed, VALIDATION, agreeing=right.float(), groups=groups, steps=STEPS, seeds=1
    )
    first, best = (score.mean for score in scores)
    assert best > first + 0.05


def test_a_few_real_patches_count_for_more_when_half_of_each_batch_is_real() -> None:
    groups = {"halves": Group(10, 40), "numbers": Group(10, 40, halves=False)}
    scores = group_scores("a", REAL, SHUFFLED, VALIDATION, groups=groups, steps=STEPS, seeds=1)
    halves, numbers = (score.mean for score in scores)
    assert halves > numbers + 0.1


def test_no_best_pairs_without_a_segmenter_to_judge_them() -> None:
    groups = {"I": Group(1, 0), "best": Group(1, 20, best=True)}
    assert dice_of(REAL, AS_GOOD, groups, steps=1).keys() == {"I"}


def test_the_same_seed_gives_the_same_dice_and_another_does_not() -> None:
    groups = {"III": Group(10, 20)}
    one = dice_of(REAL, AS_GOOD, groups, steps=3)["III"]
    two = dice_of(REAL, AS_GOOD, groups, steps=3, seeds=2)["III"]
    assert one[0] == two[0], "a seed never depends on how many there are"
    assert two[0] != two[1]


def test_a_label_with_fewer_real_patches_than_a_group_asks_for_uses_all() -> None:
    dice = dice_of(FEW, AS_GOOD, {"I": Group(30, 0), CEILING: Group(None, 0)}, steps=3)
    assert dice["I"] == dice[CEILING]


def test_too_few_synthetic_pairs_are_an_error_that_says_how_many_are_needed() -> None:
    with pytest.raises(ValueError, match=r"group V: 40 synthetic pairs, needs 400"):
        dice_of(FEW, AS_GOOD, {"V": GROUPS["V"]}, steps=1)


def scores_of(real: tuple[float, ...], both: tuple[float, ...]) -> list[GroupScore]:
    return [GroupScore("I", "a", real, 50), GroupScore("V", "a", both, 50)]


def test_the_verdict_says_that_pairs_help_when_the_gain_is_outside_the_noise() -> None:
    # Seeds differ by more than the gain, which is much the same for each of them.
    said = verdict(scores_of((0.60, 0.70, 0.80), (0.63, 0.74, 0.85)))
    assert "synthetic pairs help:" in said
    assert "gain +0.040 (+0.030, +0.040, +0.050)" in said
    # The standard error is 0.01 / sqrt(3); 4.303 is Student's quantile for two degrees of freedom.
    assert "noise 0.025" in said


@pytest.mark.parametrize(
    ("real", "both", "gain"),
    [
        ((0.70, 0.71, 0.72), (0.70, 0.81, 0.77), "+0.050"),
        ((0.80, 0.81, 0.82), (0.70, 0.71, 0.72), "-0.100"),
        ((0.70, 0.71, 0.72), (0.70, 0.71, 0.72), "+0.000"),
    ],
    ids=["gain within the noise", "loss", "no difference"],
)
def test_the_verdict_says_that_pairs_do_not_help(
    real: tuple[float, ...], both: tuple[float, ...], gain: str
) -> None:
    said = verdict(scores_of(real, both))
    assert "do not help beyond noise" in said
    assert f"gain {gain}" in said


def test_the_verdict_of_one_seed_is_that_nothing_is_beyond_its_noise() -> None:
    assert "do not help beyond noise" in verdict(scores_of((0.70,), (0.90,)))


@pytest.mark.parametrize(
    ("both", "all_real", "end"),
    [
        (0.71, 0.71, "no better than 30 of them beyond noise: these seeds show no room for a gain"),
        (0.81, 0.91, "all real training patches 0.910"),
        (0.91, 0.91, "no better than 30 of them with synthetic pairs"),
    ],
    ids=["nothing to gain", "part of it gained", "all of it gained"],
)
def test_the_verdict_says_how_much_there_was_to_gain(
    both: float, all_real: float, end: str
) -> None:
    scores = scores_of((0.70, 0.71, 0.72), (both - 0.01, both, both + 0.01))
    ceiling = (all_real - 0.01, all_real, all_real + 0.01)
    assert verdict([*scores, GroupScore(CEILING, "a", ceiling, 50)]).endswith(end)


@pytest.mark.parametrize(
    ("alone", "few", "end"),
    [
        (
            0.60,
            0.72,
            "(II) reach 0.600, less than 30 real ones, and 100 beside them (III) do 0.720, no less "
            "than 400: the samples are too unlike real patches, not too few (see the distances)",
        ),
        (
            0.60,
            0.70,
            "less than 30 real ones: the samples are too unlike real patches, not too few",
        ),
        (0.71, 0.70, "(II) reach 0.710, what 30 real ones reach already"),
    ],
    ids=["poor and not too few", "poor", "as good as the real ones"],
)
def test_the_verdict_says_why_there_was_room_and_nothing_gained(
    alone: float, few: float, end: str
) -> None:
    scores = scores_of((0.70, 0.71, 0.72), (0.70, 0.71, 0.72))
    for name, dice in (("II", alone), ("III", few), (CEILING, 0.90)):
        scores.append(GroupScore(name, "a", (dice - 0.001, dice, dice + 0.001), 50))
    said = verdict(scores)
    assert "there is room, but 100 synthetic pairs alone" in said
    assert end in said


def test_a_score_becomes_a_metric_with_student_s_interval() -> None:
    metric = GroupScore("V", "a", (0.80, 0.81, 0.82), 50).metric()
    assert metric.name == "segmenter Dice, group V"
    assert metric.value == pytest.approx(0.81)
    assert metric.n == 50
    half = 4.303 * 0.01 / 3**0.5
    assert metric.interval == pytest.approx((0.81 - half, 0.81 + half), abs=1e-5)
    assert GroupScore("V", "a", (0.80,), 50).metric().interval is None
