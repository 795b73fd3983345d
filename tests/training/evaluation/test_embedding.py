import pytest
import torch
from torch import Tensor

from model.config import TokenizerConfig
from model.tokenizer import Tokenizer
from training.evaluation.embedding import centroid_distances, project, tsne_picture
from training.evaluation.pair_tensors import Pairs
from training.run import StageError

TINY = TokenizerConfig(
    image_size=16,
    codebook_size=4,
    codebook_dim=8,
    widths=(8, 8),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    structure_widths=(8, 8),
    structure_blocks=(1, 1),
)


def cloud(centre: float, seed: int) -> Tensor:
    return torch.randn(25, 12, generator=torch.Generator().manual_seed(seed)) + centre


def test_clouds_apart_stay_apart_and_the_places_repeat() -> None:
    features = torch.cat([cloud(0, 0), cloud(20, 1)])
    places = project(features)
    assert places.shape == (50, 2)
    assert places.min() == 0
    assert places.max() == 1
    nearest = torch.cdist(places, places).fill_diagonal_(9).argmin(1)
    assert ((nearest < 25) == (torch.arange(50) < 25)).all()
    assert torch.equal(project(features), places)
    with pytest.raises(StageError, match="got 3 patches"):
        project(features[:3])


def test_the_picture_shows_every_label_in_its_own_colour_and_names_the_features() -> None:
    real = {"blood": cloud(0, 0), "lung": cloud(20, 1)}
    generated = {"blood": cloud(0, 2), "lung": cloud(20, 3)}
    picture = tsne_picture(real, generated, "Net")
    colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert tsne_picture(real, generated, "Other").tobytes() != picture.tobytes()


def tokens(structure: list[int], appearance: list[int]) -> Pairs:
    blank = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    ids = (torch.tensor([held, held]) for held in (structure, appearance))
    return Pairs(blank, blank[..., 0] > 0, *ids)


def test_centroids_are_means_of_the_codebooks_own_entries() -> None:
    tokenizer = Tokenizer(TINY)
    tokenizer.structure_codebook.entries.copy_(torch.eye(4, 8))
    tokenizer.appearance_codebook.entries.copy_(3 * torch.eye(4, 8))
    metrics = centroid_distances(
        {
            "blood": tokens([0, 0, 0, 0], [0, 0, 0, 0]),
            "breast": tokens([0, 0, 1, 1], [1, 1, 1, 1]),
            "lung": tokens([1, 1, 1, 1], [1, 1, 1, 1]),
        },
        tokenizer,
    )
    found = {(metric.name, metric.label): metric.value for metric in metrics}
    half, apart = 0.5**0.5, 2**0.5
    expected = {
        ("structure_centroid_distance", "blood - breast"): half,
        ("structure_centroid_distance", "blood - lung"): apart,
        ("structure_centroid_distance", "breast - lung"): half,
        ("structure_centroid_distance", "all"): 2 * apart / 3,
        ("structure_centroid_distance_deviation", "all"): apart / 18**0.5,
        ("appearance_centroid_distance", "blood - breast"): 3 * apart,
        ("appearance_centroid_distance", "blood - lung"): 3 * apart,
        ("appearance_centroid_distance", "breast - lung"): 0.0,
        ("appearance_centroid_distance", "all"): 2 * apart,
        ("appearance_centroid_distance_deviation", "all"): 2.0,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert [metric.n for metric in metrics[:4]] == [4, 4, 4, 6]


def test_one_label_has_no_distance() -> None:
    assert centroid_distances({"blood": tokens([0], [0])}, Tokenizer(TINY)) == []
