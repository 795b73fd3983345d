import pytest
import torch
from torch import Tensor

from training.evaluation.style import StyleError, style_scores

CENTRES = 2 * torch.randn(3, 40, generator=torch.Generator().manual_seed(9))
LABELS = ("blood", "breast", "lung")


def clouds(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        label: centre + torch.randn(count, 40, generator=generator)
        for label, centre in zip(LABELS, CENTRES, strict=True)
    }


def test_samples_that_look_like_their_label_are_recognised_and_others_are_not() -> None:
    generated = clouds(25, 2)
    generated["lung"] = generated["blood"].clone()
    scores = {
        score.label: score for score in style_scores(clouds(60, 0), clouds(20, 1), generated, "Net")
    }
    assert list(scores) == [*LABELS, "all"]
    assert scores["blood"].value == scores["breast"].value == 1
    assert scores["lung"].value == 0
    assert scores["all"].value == pytest.approx(2 / 3)
    assert all(score.floor == 1 for score in scores.values())
    assert {score.features for score in scores.values()} == {"Net"}
    assert [score.n for score in scores.values()] == [25, 25, 25, 75]


def test_labels_that_cannot_be_told_apart_give_a_floor_near_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [{label: torch.randn(200, 8, generator=generator) for label in LABELS} for _ in range(3)]
    mean = style_scores(*sets, "Net")[-1]
    assert mean.floor == pytest.approx(1 / 3, abs=0.08)
    assert mean.value == pytest.approx(1 / 3, abs=0.08)


def test_a_rare_label_is_recognised_as_well_as_a_common_one() -> None:
    generator = torch.Generator().manual_seed(0)
    near = {"blood": 0.0, "lung": 1.5}
    training, validation = (
        {k: torch.randn(n, 1, generator=generator) + near[k] for k, n in counts}
        for counts in ((("blood", 900), ("lung", 30)), (("blood", 300), ("lung", 300)))
    )
    scores = style_scores(training, validation, validation, "Net")
    assert scores[1].value > 0.65


def test_one_label_has_nothing_to_be_told_from() -> None:
    alone = {"blood": torch.randn(10, 4)}
    assert style_scores(alone, alone, alone, "Net") == []


def test_other_labels_than_the_classifier_knows_are_named() -> None:
    known = clouds(5, 0)
    strange = {**clouds(5, 1), "colon": torch.randn(5, 40)}
    with pytest.raises(StyleError, match="colon"):
        style_scores(known, strange, strange, "Net")
