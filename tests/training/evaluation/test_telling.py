import torch

from training.evaluation.telling import halves, told_apart


def test_what_differs_is_told_apart_and_what_does_not_is_not() -> None:
    draws = torch.Generator().manual_seed(0)
    seen, again, unseen, others = torch.randn(4, 200, 6, generator=draws)
    alike = told_apart((seen, again), (unseen, others), "told_apart", "network", "blood")
    assert 0.4 < alike.value < 0.6
    assert (alike.floor, alike.n, alike.label) == (0.5, 400, "blood")
    shifted = told_apart((seen, again + 3), (unseen, others + 3), "told_apart", "network", "blood")
    assert shifted.value > 0.98


def test_each_kind_counts_alike_however_few() -> None:
    """Real patches are all taken for drawn: half of what is told is wrong."""
    real, drawn = torch.zeros(40, 2), torch.ones(40, 2)
    found = told_apart((real, drawn), (torch.ones(2, 2), drawn), "told_apart", "network", "blood")
    assert found.value == 0.5


def test_halves_share_nothing_and_hold_everything() -> None:
    rows = torch.arange(7.0)[:, None]
    first, second = halves(rows)
    assert sorted(torch.cat([first, second])[:, 0].tolist()) == list(range(7))
