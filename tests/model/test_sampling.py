import math

import pytest
import torch

from model.request import SamplingSettings
from model.sampling import WORD, SamplingRows, guide, noise_table, philox, sample

CPU = torch.device("cpu")


def draw(logits: torch.Tensor, setting: SamplingSettings, count: int) -> torch.Tensor:
    """`count` draws of one row of logits with evenly spread uniforms."""
    rows = SamplingRows.of([setting] * count, "structure", CPU)
    uniform = (torch.arange(count) + 0.5) / count
    return sample(logits.expand(count, -1), rows, uniform)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (WORD,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_passes_the_random123_known_answers(
    key: int, counter: tuple[int, int, int, int], words: tuple[int, ...]
) -> None:
    got = philox(key, tuple(torch.tensor([word]) for word in counter))  # type: ignore[arg-type]
    assert tuple(int(word) for word in got) == words


def test_noise_depends_on_seed_location_and_stream_alone() -> None:
    table = noise_table(123456789012345, 64)
    assert torch.equal(table[:16], noise_table(123456789012345, 16))
    assert not torch.equal(table, noise_table(123456789012346, 64))
    assert len(table.unique()) == 128
    assert table.min() > 0
    assert table.max() < 1


def test_the_largest_of_all_uniforms_is_below_1() -> None:
    """1 would pass every token, and so take the last one that is kept, however unlikely."""
    assert float(noise_table(4696, 95)[94, 0]) == 1 - 2.0**-24


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    ids = draw(logits, SamplingSettings(temperature=0.7), 100_000)
    share = torch.bincount(ids, minlength=4) / len(ids)
    assert torch.allclose(share, (logits / 0.7).softmax(0), atol=1e-4)


def test_top_k_keeps_the_k_likeliest_with_ties_at_the_lowest_id() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0])
    ids = draw(logits, SamplingSettings(top_k=2), 1000)
    assert set(ids.tolist()) == {0, 1}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, SamplingSettings(top_p=0.5), 1000).tolist()) == {0}
    assert set(draw(logits, SamplingSettings(top_p=0.51), 1000).tolist()) == {0, 1}
    assert set(draw(logits, SamplingSettings(top_p=1.0), 1000).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1e-30, 1e-50])
def test_the_least_top_p_keeps_the_likeliest(top_p: float) -> None:
    logits = torch.tensor([0.0, -1.0, 5.0, 5.0])
    assert set(draw(logits, SamplingSettings(top_p=top_p), 100).tolist()) == {2}


def test_temperature_zero_is_greedy_whatever_the_noise() -> None:
    logits = torch.tensor([0.0, 5.0, 5.0, -1.0])
    assert set(draw(logits, SamplingSettings(temperature=0.0), 100).tolist()) == {1}


def test_rows_do_not_see_their_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 64, generator=generator)
    uniform = torch.rand(32, generator=generator)
    settings = [
        SamplingSettings(1.0, (0.0, 0.5, 1.0, 2.0)[i % 4], (0, 3, 50)[i % 3], (1.0, 0.6)[i % 2])
        for i in range(32)
    ]
    together = sample(logits, SamplingRows.of(settings, "structure", CPU), uniform)
    for i, setting in enumerate(settings):
        alone = sample(
            logits[i : i + 1], SamplingRows.of([setting], "structure", CPU), uniform[i : i + 1]
        )
        assert together[i] == alone[0]


def test_guidance_scale_one_is_the_label_alone_and_two_doubles_the_difference() -> None:
    label, null = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert torch.equal(guide(label, null, torch.tensor([2.0])), torch.tensor([[3.0, -1.0]]))


def test_log_probabilities_of_extreme_logits_do_not_break_a_draw() -> None:
    logits = torch.tensor([-math.inf, 1e30, -1e30, 0.0])
    assert set(draw(logits, SamplingSettings(temperature=2.0), 10).tolist()) == {1}
