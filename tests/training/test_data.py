from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.request import Label
from tests.training.phantoms import write_phantoms
from training import data as patches
from training.rasters import SourceError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_phantoms(tmp_path)


def test_a_patch_with_several_labels_trains_each(root: Path) -> None:
    dataset = patches.read_dataset(root, [], 64)
    names = [label.name for label in dataset.labels]
    assert names == ["cytology", "fluorescence", "histology", "blood"]
    assert dataset.labels[3] == Label("blood", "organ")
    assert dataset.label_table().sum(0).tolist() == [12, 12, 12, 12]


def test_two_labels_of_one_name_are_refused(root: Path) -> None:
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",blood,", ",histology,"))
    with pytest.raises(patches.DataError, match="histology: is both a modality and an organ"):
        patches.read_dataset(root, [], 64)


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


def with_instances(root: Path) -> None:
    """Gives nuclei of every mask the ids 300, on the left, and 700, and lists the maps."""
    lines = (root / "manifest.csv").read_text().splitlines()
    listed = [lines[0] + ",instances"]
    for line in lines[1:]:
        mask = np.array(Image.open(root / line.split(",")[1])) > 0
        ids = np.where(np.arange(64) < 32, 300, 700) * mask
        name = line.split(",")[1].replace("masks", "instances")
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(ids.astype(np.uint16)).save(root / name)
        listed.append(f"{line},{name}")
    (root / "manifest.csv").write_text("\n".join(listed))


def test_instance_maps_are_read_and_give_borders(root: Path) -> None:
    plain = patches.read_dataset(root, [], 64)
    assert plain.samples[0].instances is None
    assert plain.instances[0].max() > 0
    with_instances(root)
    dataset = patches.read_dataset(root, [], 64)
    assert dataset.instances.unique().tolist() == [0, 1, 2]
    assert torch.equal(dataset.instances > 0, dataset.masks)
    views = torch.arange(8)
    _, masks = patches.batch(dataset, torch.zeros(8, dtype=torch.long), views, 2)
    assert torch.equal(masks[:, :1], patches.batch(dataset, torch.zeros_like(views), views)[1])
    columns = masks[0, 1].nonzero()[:, 1].unique().tolist()
    assert set(columns) <= {30, 31, 32, 33}
    assert patches.batch(dataset, torch.arange(8), views, 2)[1][:, 1].any()
    for view in range(8):
        assert torch.equal(masks[view], patches.dihedral(masks[0], view))


def test_licences_choose_what_is_read(root: Path) -> None:
    assert len(patches.read_dataset(root, ["CC0-1.0"], 64).samples) == 36
    with pytest.raises(patches.DataError, match="licence"):
        patches.read_dataset(root, ["MIT"], 64)


def test_what_states_no_licence_is_unstated(root: Path) -> None:
    assert patches.read_dataset(root, [], 64).licences() == ["CC0-1.0"]
    manifest = root / "manifest.csv"
    lines = manifest.read_text().replace("CC0-1.0", "MIT", 1).splitlines()
    manifest.write_text("\n".join([*lines[:-1], lines[-1].replace("CC0-1.0", "")]))
    assert patches.read_dataset(root, [], 64).licences() == ["CC0-1.0", "MIT", "unstated"]


def test_plain_folders_by_label_need_no_manifest(root: Path) -> None:
    (root / "manifest.csv").unlink()
    dataset = patches.read_dataset(root, [], 64)
    assert [label.name for label in dataset.labels] == ["cytology", "fluorescence", "histology"]
    (root / "histology" / "masks" / "003.png").unlink()
    with pytest.raises(SourceError, match=r"003\.png: has no mask"):
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


def in_palette(nuclei: np.ndarray, *colours: int) -> Image.Image:
    """A mask by indices: 0 outside nuclei, 1 in them."""
    picture = Image.fromarray(nuclei.astype(np.uint8))
    picture.putpalette(colours)
    return picture


def numbered(nuclei: np.ndarray, first: int) -> np.ndarray:
    """A mask in which nuclei have a number in every row, from `first` on."""
    return nuclei * (np.arange(64)[:, None] + first)


MEANT: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "one bit": Image.fromarray,
    "white on black": lambda nuclei: in_palette(nuclei, 0, 0, 0, 255, 255, 255),
    "colour": lambda nuclei: Image.fromarray(nuclei.astype(np.uint8) * 255).convert("RGBA"),
    "16 bits": lambda nuclei: Image.fromarray(nuclei.astype(np.uint16) * 255),
    "all 16 bits": lambda nuclei: Image.fromarray(nuclei.astype(np.uint16) * 65535),
}


@pytest.mark.parametrize("kind", MEANT)
def test_a_mask_that_is_black_and_white_is_read_in_every_mode(kind: str, root: Path) -> None:
    before = patches.read_dataset(root, [], 64).masks
    for path in root.glob("*/masks/*.png"):
        with Image.open(path) as file:
            nuclei = np.array(file) > 0
        MEANT[kind](nuclei).save(path)
    assert torch.equal(patches.read_dataset(root, [], 64).masks, before)


NOT_MEANT: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "0 and 1": (
        lambda nuclei: Image.fromarray(nuclei.astype(np.uint8)),
        "has grey values 1 besides",
    ),
    "numbers around 127": (
        lambda nuclei: Image.fromarray(numbered(nuclei, 100).astype(np.uint8)),
        r"has grey values 1\d\d, 1\d\d",
    ),
    "numbers of 16 bits": (
        lambda nuclei: Image.fromarray(numbered(nuclei, 300).astype(np.uint16)),
        r"has grey values 3\d\d, 3\d\d",
    ),
    "blue too dark to be grey": (
        lambda nuclei: in_palette(nuclei, 0, 0, 0, 0, 0, 2),
        "has palette values 1 besides",
    ),
    "green": (
        lambda nuclei: in_palette(nuclei, 0, 0, 0, 0, 255, 0),
        "has palette values 1 besides",
    ),
}


@pytest.mark.parametrize("kind", NOT_MEANT)
def test_a_mask_with_other_values_is_named_and_told_the_way_in(kind: str, root: Path) -> None:
    """Read as grey, nuclei numbered up to 127 would be background."""
    draw, says = NOT_MEANT[kind]
    path = root / "histology" / "masks" / "003.png"
    with Image.open(path) as file:
        nuclei = np.array(file) > 0
    draw(nuclei).save(path)
    with pytest.raises(SourceError, match=rf"003\.png: .*{says}.*import_patches folders"):
        patches.read_dataset(root, [], 64)


def test_an_image_of_16_bits_is_named(root: Path) -> None:
    """Made 8 bits by Pillow, all that is brighter than 255 of 65,535 would be white."""
    deep = Image.fromarray(np.full((64, 64), 20000, dtype=np.uint16))
    deep.save(root / "histology" / "images" / "003.png")
    with pytest.raises(
        SourceError,
        match=r"003\.png: has values of type uint16 from 20000 to 20000, expected 8 bits",
    ):
        patches.read_dataset(root, [], 64)


def test_what_is_no_picture_or_not_there_is_named(root: Path) -> None:
    image = root / "histology" / "images" / "003.png"
    image.write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"003\.png: is not an image"):
        patches.read_dataset(root, [], 64)
    image.unlink()
    with pytest.raises(SourceError, match=r"003\.png: cannot be read \(No such file"):
        patches.read_dataset(root, [], 64)


def test_black_patches_stay_finite_in_every_variation() -> None:
    black, empty = torch.full((64, 3, 64, 64), -1.0), torch.zeros(64, 1, 64, 64)
    for step in range(4):
        seen, wanted = patches.varied(black, empty, patches.generator(0, "varied", step))
        assert torch.allclose(seen, black, atol=1e-4)
        assert not wanted.any()
