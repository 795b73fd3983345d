"""Swaps in a toy world where the answer is known: nuclei are bright cells of an 8 x 8 grid."""

import pytest
import torch
from torch import Tensor

from training.evaluation import swaps
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs
from training.evaluation.swaps import Decode
from training.run import StageError

GRID, CELL = 8, 4
NUCLEUS, GROUND = 0.8, -0.8


def masks_of(ids: Tensor) -> Tensor:
    """Ids [M, N] whose lowest bit is nucleus or not -> masks bool [M, H, W]."""
    cells = (ids % 2 == 1).view(-1, GRID, GRID)
    return cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)


def paint(masks: Tensor) -> Tensor:
    return torch.where(masks, NUCLEUS, GROUND)[:, None].expand(-1, 3, -1, -1)


def find(images: Tensor) -> Tensor:
    return images[:, 0] > 0


def structure_rules(structure: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
    return paint(masks_of(structure)), masks_of(structure)


def appearance_rules(structure: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
    return paint(masks_of(appearance)), masks_of(structure)


def patches(count: int, seed: int) -> Pairs:
    """Real patches whose streams both know the nuclei."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(count, GRID**2, generator=generator) < 0.3).long()
    masks = masks_of(ids)
    images = ((paint(masks) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return Pairs(images, masks, ids, ids + 2)


DONORS = {"a": patches(6, 0), "b": patches(5, 1)}


def study(decode: Decode) -> dict[tuple[str, str], Metric]:
    metrics = swaps.swap_metrics(swaps.swap_streams(decode, find, DONORS))
    return {(metric.name, metric.label): metric for metric in metrics}


@pytest.mark.parametrize("where", ["within", "across"])
@pytest.mark.parametrize("label", ["all", "a", "b"])
def test_where_structure_rules_there_is_no_gap(where: str, label: str) -> None:
    found = study(structure_rules)
    assert found[f"swap_{where}_dice", label].value == 1
    assert found[f"swap_{where}_gap", label].value == 0
    followed = found[f"swap_{where}_appearance_dice", label]
    assert followed.value == pytest.approx(followed.floor)
    assert followed.value < 0.6


@pytest.mark.parametrize("where", ["within", "across"])
def test_where_appearance_knows_the_nuclei_swaps_follow_it_and_the_gap_shows(where: str) -> None:
    found = study(appearance_rules)
    assert found["reconstruction_found_dice", "all"].value == 1, "unswapped nothing is seen"
    assert found["reconstruction_found_dice", "all"].floor == 1
    assert found[f"swap_{where}_appearance_dice", "all"].value == 1
    gap = found[f"swap_{where}_gap", "all"]
    assert gap.value == pytest.approx(1 - found[f"swap_{where}_dice", "all"].value, abs=1e-6)
    assert gap.value > 0.4
    assert gap.interval is not None
    assert gap.interval[0] < gap.value < gap.interval[1]


def test_nobody_is_its_own_partner() -> None:
    for count in range(2, 30):
        rounds = torch.stack(swaps.partners(count, count))
        assert (rounds != torch.arange(count)).all()
        assert len({tuple(places.tolist()) for places in rounds}) == len(rounds)


def test_one_patch_cannot_be_swapped() -> None:
    with pytest.raises(StageError, match="swaps, a: got 1 patches"):
        swaps.swap_streams(structure_rules, find, {"a": patches(1, 0)})


def test_agreement_is_one_for_pairs_that_match_and_falls_when_masks_are_shuffled() -> None:
    real = DONORS["a"]
    drawn = patches(8, 2)
    shuffled = Pairs(drawn.images, drawn.masks.roll(1, 0), drawn.structure, drawn.appearance)
    right = swaps.agreement_metric(find, drawn, real, "a")
    wrong = swaps.agreement_metric(find, shuffled, real, "a")
    assert right.value == right.floor == wrong.floor == 1
    assert wrong.value < 0.6
    assert right.interval == (1, 1)
    assert wrong.interval is not None
    assert wrong.interval[0] < wrong.value < wrong.interval[1]


def test_the_sheet_has_reconstructions_on_its_diagonal_and_donors_on_its_margins() -> None:
    sheet = swaps.swap_sheet(appearance_rules, DONORS)
    side = GRID * CELL
    assert sheet.size == (6 * side, 6 * side)

    def cell(row: int, column: int) -> bytes:
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        return sheet.crop(box).tobytes()

    for donor in range(2, 6):
        assert cell(donor, donor) == cell(0, donor) == cell(donor, 0)
    # Here appearance rules, so a column shows its donor's nuclei in every row.
    assert cell(2, 3) == cell(5, 3) != cell(2, 4)


def checkered(structure: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor]:
    """Nuclei that are a checkerboard of single pixels, on the ground's mean."""
    masks = masks_of(structure)
    y, x = torch.meshgrid(torch.arange(GRID * CELL), torch.arange(GRID * CELL), indexing="ij")
    checks = torch.where((y + x) % 2 == 0, 0.9, -0.9)
    return torch.where(masks, checks, 0.0)[:, None].expand(-1, 3, -1, -1), masks


def find_checks(images: Tensor) -> Tensor:
    """What takes rough places for nuclei."""
    rough = (images[:, 0] - torch.nn.functional.avg_pool2d(images[:, 0], 3, 1, 1)).abs()
    return rough > 0.3


def test_a_poor_copy_keeps_nuclei_in_their_places_but_no_pattern_of_pixels() -> None:
    masks = masks_of(DONORS["a"].structure)
    poor = swaps.through_a_poor_copy(find)(paint(masks))
    assert float((poor == masks).float().mean()) > 0.97
    givers = DONORS["a"]
    drawn, _ = checkered(givers.structure, givers.appearance)
    plain, copied = (find_checks(drawn), swaps.through_a_poor_copy(find_checks)(drawn))
    assert float((plain & masks).sum() / masks.sum()) > 0.9
    assert float((copied & masks).sum() / masks.sum()) < 0.1


def test_a_suffix_names_how_nuclei_were_found() -> None:
    found = swaps.swap_streams(structure_rules, find, DONORS)
    names = {metric.name for metric in swaps.swap_metrics(found, "_poor_copy")}
    assert "swap_within_gap_poor_copy" in names
    assert all(name.endswith("_poor_copy") for name in names)
