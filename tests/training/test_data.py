from pathlib import Path

import pytest
import torch
from PIL import Image

from model.request import Label
from tests.training.phantoms import write_phantoms
from training import data as patches


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_phantoms(tmp_path)


def test_a_patch_with_several_labels_trains_each(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    names = [label.name for label in dataset.labels]
    assert names == ["cytology", "fluorescence", "histology", "blood"]
    assert dataset.labels[3] == Label("blood", "organ")
    assert dataset.label_table().sum(0).tolist() == [12, 12, 12, 12]


def test_a_group_is_never_split_and_every_label_has_both_sides(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    groups = [
        {dataset.samples[i].group for i in part.tolist()}
        for part in (dataset.training, dataset.validation)
    ]
    assert not groups[0] & groups[1]
    table = dataset.label_table()
    assert table[dataset.training].any(0).all()
    assert table[dataset.validation].any(0).all()
    again = patches.read_dataset(root, [], 64)
    assert torch.equal(again.validation, dataset.validation)


def test_licences_choose_what_is_read(root: Path) -> None:
    assert len(patches.read_dataset(root, ["CC0-1.0"], 64).samples) == 36
    with pytest.raises(patches.DataError, match="licence"):
        patches.read_dataset(root, ["MIT"], 64)


def test_plain_folders_by_label_need_no_manifest(root: Path) -> None:
    (root / "manifest.csv").unlink()
    dataset = patches.read_dataset(root, [], 64)
    assert [label.name for label in dataset.labels] == ["cytology", "fluorescence", "histology"]
    (root / "histology" / "masks" / "003.png").unlink()
    with pytest.raises(patches.DataError, match=r"003\.png: has no mask"):
        patches.read_dataset(root, [], 64)


def test_a_patch_of_another_size_is_named(root: Path) -> None:
    with pytest.raises(patches.DataError, match="is 64 x 64 pixels, expected 256 x 256"):
        patches.read_dataset(root, [], 256)


def test_image_and_mask_are_turned_together_and_all_eight_views_differ(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    views = torch.arange(8)
    images, masks = patches.batch(dataset, torch.zeros(8, dtype=torch.long), views)
    # In this phantom nuclei are bright on black, so the image tells where the mask must be.
    fluorescence = torch.full((8,), 12)
    images, masks = patches.batch(dataset, fluorescence, views)
    assert torch.equal((images.mean(1, keepdim=True) > -0.2).float(), masks)
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_an_epoch_visits_every_patch_once_and_a_step_is_the_same_after_a_restart() -> None:
    pool = torch.arange(100, 110)
    drawn = [patches.draw(pool, 0, step, 4)[0] for step in range(5)]
    first = torch.cat(drawn)[:10]
    assert sorted(first.tolist()) == pool.tolist()
    again = patches.draw(pool, 0, 3, 4)
    assert torch.equal(again[0], drawn[3])
    assert not torch.equal(patches.draw(pool, 1, 3, 4)[0], drawn[3])


def test_a_varied_batch_keeps_masks_on_their_nuclei_and_grey_patches_grey(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    fluorescence = torch.arange(12, 24)
    images, masks = patches.batch(dataset, fluorescence, torch.zeros(12, dtype=torch.long))
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    seen, wanted = patches.varied(grey, masks, patches.generator(0, "varied", 0))
    assert seen.shape == images.shape
    assert wanted.shape == masks.shape
    assert torch.allclose(seen[:, :1], seen[:, 1:2], atol=1e-5)
    assert seen.min() >= -1
    assert seen.max() <= 1
    assert set(wanted.unique().tolist()) == {0.0, 1.0}
    apart = ((seen[:, :1] > -0.2).float() != wanted).float().mean()
    assert apart < 0.01
    enlarged = [not torch.equal(*pair) for pair in zip(masks, wanted, strict=True)]
    assert 0 < sum(enlarged) < 12


def test_a_varied_batch_is_the_same_after_a_restart_and_no_two_alike(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    same = torch.zeros(12, dtype=torch.long)
    images, masks = patches.batch(dataset, same, same)
    one, again, other = (
        patches.varied(images, masks, patches.generator(0, "varied", step))[0] for step in (3, 3, 4)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len({image.numpy().tobytes() for image in one}) > 6
    assert len(one.mean((2, 3)).unique(dim=0)) > 6


def test_pixels_that_cannot_be_meant_are_named(root: Path) -> None:
    """A mask of 0 and 1 would read as a patch without nuclei."""
    image, mask = (root / "histology" / kind / "003.png" for kind in ("images", "masks"))
    with Image.open(mask) as file:
        file.point(lambda value: value // 255).save(mask)
    with pytest.raises(patches.DataError, match=r"003\.png: its brightest pixel is 1, nuclei"):
        patches.read_dataset(root, [], 64)
    image.write_bytes(b"no picture")
    with pytest.raises(patches.DataError, match=r"003\.png: is no picture"):
        patches.read_dataset(root, [], 64)
    image.unlink()
    with pytest.raises(patches.DataError, match=r"003\.png: No such file"):
        patches.read_dataset(root, [], 64)


def test_black_patches_stay_finite_in_every_variation() -> None:
    black, empty = torch.full((64, 3, 64, 64), -1.0), torch.zeros(64, 1, 64, 64)
    for step in range(4):
        seen, wanted = patches.varied(black, empty, patches.generator(0, "varied", step))
        assert torch.allclose(seen, black, atol=1e-4)
        assert not wanted.any()
