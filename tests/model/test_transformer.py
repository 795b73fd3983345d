"""The promises of the prior (docs/method.md, section 3), in fp32 at the test size."""

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import PriorConfig
from model.engine import Engine
from model.reference import recompute, sequential
from model.request import ImageRequest
from model.token_layout import NOWHERE, TokenLayout
from model.transformer import Prior, rotary_table, rotate
from tests.model.conftest import LABELS
from tests.model.decoding import draw

K, N = 64, 64


@pytest.fixture
def prior(checkpoint: Checkpoint) -> Prior:
    return checkpoint.prior


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (2,), generator=generator)
    ids = torch.randint(K, (2, 2, N), generator=generator)
    return labels, ids[0], ids[1]


@torch.no_grad()
def test_no_appearance_token_moves_any_structure_logit(
    prior: Prior, tokens: tuple[torch.Tensor, ...]
) -> None:
    labels, structure, appearance = tokens
    before, _ = prior(labels, structure, appearance)
    for location in range(N):
        changed = appearance.clone()
        changed[:, location] = (changed[:, location] + 1) % K
        after, _ = prior(labels, structure, changed)
        assert torch.equal(before, after), f"appearance token {location} moved a structure logit"
    _, other = prior(labels, structure, appearance)
    changed = appearance.clone()
    changed[:, 0] = (changed[:, 0] + 1) % K
    assert not torch.equal(prior(labels, structure, changed)[1], other)


@torch.no_grad()
def test_a_later_token_moves_no_earlier_logit(
    prior: Prior, tokens: tuple[torch.Tensor, ...]
) -> None:
    labels, structure, appearance = tokens
    base_s, base_a = prior(labels, structure, appearance)
    for location in (0, 1, 7, 8, 31, 62, 63):
        changed = structure.clone()
        changed[:, location] = (changed[:, location] + 1) % K
        s, a = prior(labels, changed, appearance)
        assert torch.equal(s[:, : location + 1], base_s[:, : location + 1])
        assert torch.equal(a[:, :location], base_a[:, :location])
        assert not torch.equal(a[:, location], base_a[:, location]), "s_i must reach a_i"
        changed = appearance.clone()
        changed[:, location] = (changed[:, location] + 1) % K
        s, a = prior(labels, structure, changed)
        assert torch.equal(s, base_s)
        assert torch.equal(a[:, : location + 1], base_a[:, : location + 1])
        if location + 1 < N:
            assert not torch.equal(a[:, location + 1], base_a[:, location + 1])


def test_pair_decode_sequential_decode_and_recompute_draw_the_same_tokens(
    checkpoint: Checkpoint, mixed_rows: list[ImageRequest]
) -> None:
    engine = Engine(checkpoint, device="cpu", slots=8, threads=1, kernel="torch")
    labels = [LABELS.index(row.label) for row in mixed_rows]
    order = [checkpoint.config.label_index(LABELS[label]) for label in labels]
    pair = draw(engine, mixed_rows)
    one_by_one = sequential(checkpoint.prior, mixed_rows, order)
    uncached = recompute(checkpoint.prior, mixed_rows, order)
    for i, grids in enumerate(pair):
        for stream, grid in enumerate((grids.structure, grids.appearance)):
            flat = torch.from_numpy(grid).flatten()
            assert torch.equal(flat, one_by_one[stream][i]), f"row {i}, stream {stream}"
            assert torch.equal(flat, uncached[stream][i]), f"row {i}, stream {stream}"


def test_predicting_appearance_meets_its_structure_at_relative_offset_zero() -> None:
    layout = TokenLayout(4)
    for p in range(1, layout.steps):
        assert layout.appearance_query_location(p) == layout.structure_key_location(p) == p - 1
    assert layout.structure_key_location(0) == NOWHERE
    assert layout.appearance_key_location(1) == NOWHERE


def test_rotary_scores_depend_on_the_offset_alone() -> None:
    layout = TokenLayout(8)
    cosine, sine = rotary_table(layout, 16)
    q, k = torch.randn(2, 16, dtype=torch.float64)

    def score(a: int, b: int) -> float:
        turned = rotate(q, cosine[a + 1].double(), sine[a + 1].double())
        return float(turned @ rotate(k, cosine[b + 1].double(), sine[b + 1].double()))

    assert score(9, 0) == pytest.approx(score(27, 18), abs=1e-5)
    assert score(9, 0) != pytest.approx(score(9, 1), abs=1e-5)


def test_the_label_reaches_the_streams_only_through_the_prefix() -> None:
    prior = Prior(PriorConfig(2, 2, 16), codebook_size=8, grid_size=2, labels=3)
    assert prior.null_label == 3
    assert prior.label.weight.shape == (4, 16)
