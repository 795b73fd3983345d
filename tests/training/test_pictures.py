"""What images and masks mean: each is read as it was meant, by every reader, or refused.

One nucleus-bearing patch is drawn; its truth is known. It is then written in the ways that people's
tools write it, and read by the importer, from a manifest and from plain folders.
"""

from __future__ import annotations

import csv
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.training.phantoms import COLOURS
from training.data import Dataset, read_dataset
from training.importing import Import, import_patches
from training.pictures import Rules, read_image, read_painting
from training.rasters import SourceError
from training.run import StageError

SIZE = 256
GROUND, NUCLEUS = COLOURS["histology"]


def cells() -> np.ndarray:
    """[256, 256]: 0 ground, 1 cytoplasm around the nuclei, 2 nuclei; nothing is symmetric."""
    y, x = np.mgrid[:SIZE, :SIZE]
    drawn = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for row, column, radius in ((60, 70, 18), (60, 180, 11), (190, 150, 25), (150, 40, 9)):
        distance = (y - row) ** 2 + (x - column) ** 2
        drawn[distance < (1.5 * radius) ** 2] = 1
        drawn[distance < radius**2] = 2
    return drawn


CELLS = cells()
NUCLEI = CELLS == 2


def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(-20, 20, (SIZE, SIZE, 3))
    return (np.where(NUCLEI[..., None], NUCLEUS, GROUND) + noise).clip(0, 255).astype(np.uint8)


IMAGE = image()
WHITE = NUCLEI.astype(np.uint8) * 255


def save(path: Path, pixels: np.ndarray | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


def source(root: Path) -> Path:
    """A pair in plain folders, in which a test then replaces a file."""
    save(root / "source/histology/images/a.png", IMAGE)
    save(root / "source/histology/masks/a.png", WHITE)
    return root / "source"


def imported(root: Path, rules: Rules = Rules(), **more: Any) -> Dataset:  # noqa: B008 - frozen
    out = root / "out"
    import_patches(
        Import("folders", root / "source", out, "histology", "", "MIT", SIZE, rules=rules, **more)
    )
    return read_dataset(out, [], SIZE)


def listed(root: Path) -> Dataset:
    """The same pair by a manifest."""
    [one] = (root / "source/histology/images").iterdir()
    [other] = (root / "source/histology/masks").iterdir()
    with (root / "source/manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "modality", "organ", "group", "licence"])
        writer.writerow([one, other, "histology", "", "a", "MIT"])
    return read_dataset(root / "source", [], SIZE)


READERS: dict[str, Callable[[Path], Dataset]] = {
    "import": imported,
    "manifest": listed,
    "folders": lambda root: read_dataset(root / "source", [], SIZE),
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[Path], Dataset]:
    return READERS[request.param]


def refusal(read: Callable[[Path], Dataset], root: Path, err: pytest.CaptureFixture[str]) -> str:
    """The one line about the file; nothing was written."""
    with pytest.raises(StageError) as refused:
        read(root)
    assert not (root / "out/manifest.csv").exists()
    lines = [*err.readouterr().err.splitlines(), *str(refused.value).splitlines()]
    return lines[0]


def assert_truth(dataset: Dataset, pixels: np.ndarray = IMAGE) -> None:
    assert np.array_equal(dataset.images[0].numpy(), pixels)
    assert np.array_equal(dataset.masks[0].numpy(), NUCLEI)


def replaced(root: Path, kind: str, name: str) -> Path:
    """Where the image or the mask goes, its old file taken away."""
    folder = source(root) / "histology" / kind
    (folder / "a.png").unlink()
    return folder / name


# -- orientation (1) -------------------------------------------------------------------------------

UNDO = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE}


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_turned_picture_is_read_as_viewers_show_it(
    kind: str, ending: str, orientation: int, tmp_path: Path
) -> None:
    pixels = IMAGE if kind == "images" else WHITE
    stored = Image.fromarray(pixels).transpose(UNDO[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = replaced(tmp_path, kind, f"a.{ending}")
    save(path, stored, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    assert_truth(imported(tmp_path))


def test_a_turned_jpeg_lies_on_the_mask_that_was_drawn_on_it(
    read: Callable[[Path], Dataset], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(IMAGE).transpose(UNDO[6])
    save(replaced(tmp_path, "images", "a.jpg"), stored, exif=exif, quality=95)
    dataset = read(tmp_path)
    dark = dataset.images[0].float().mean(-1).numpy() < 150
    assert (dark == NUCLEI).mean() > 0.98


# -- values (2, 9) ---------------------------------------------------------------------------------

LEVELS = np.array([0, 128, 255], dtype=np.uint8)[CELLS]
REGIONS = CELLS + 1


@pytest.mark.parametrize(
    ("values", "nucleus", "says"),
    [
        (LEVELS, "255", r"values ground \(87\.\d%\), 128 \(7\.\d%\), 255 \(5\.\d%\).* --nuclei"),
        (CELLS, "2", r"values ground \(87\.\d%\), 1 \(7\.\d%\), 2 \(5\.\d%\).* --nuclei"),
        (
            REGIONS,
            "3",
            r"no background \(0 or black\): values 1 \(87\.\d%\), 2 .*--nuclei .* --background",
        ),
    ],
)
def test_classes_need_a_word_on_which_of_them_is_nucleus(
    values: np.ndarray,
    nucleus: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(replaced(tmp_path, "masks", "a.png"), values)
    line = refusal(imported, tmp_path, capsys)
    assert "a.png" in line
    assert re.search(says, line), line
    assert_truth(imported(tmp_path, Rules(nuclei=(nucleus,))))
    (tmp_path / "out/import.json").unlink()
    (tmp_path / "out/manifest.csv").unlink()
    with pytest.raises(SourceError, match="--nuclei: got 77, but the masks hold"):
        imported(tmp_path, Rules(nuclei=("77",)))


def test_a_file_with_one_class_is_not_read_apart_from_the_others(tmp_path: Path) -> None:
    """By itself, a mask of cytoplasm alone would be a mask of nuclei."""
    root = source(tmp_path) / "histology"
    save(root / "masks/a.png", np.where(CELLS == 1, 128, 0).astype(np.uint8))
    save(root / "images/b.png", IMAGE)
    save(root / "masks/b.png", LEVELS)
    with pytest.raises(SourceError, match="hold values ground"):
        imported(tmp_path)
    dataset = imported(tmp_path, Rules(nuclei=("255",)))
    assert [int(mask.sum()) for mask in dataset.masks] == [0, int(NUCLEI.sum())]


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


BLACK, PAPER, RED = (0, 0, 0), (255, 255, 255), (200, 0, 0)


@pytest.mark.parametrize("first", [BLACK, PAPER])
def test_index_0_of_a_palette_is_ground_whether_it_is_shown_black_or_white(
    first: tuple[int, int, int], tmp_path: Path
) -> None:
    save(replaced(tmp_path, "masks", "a.png"), palette(NUCLEI, first, RED))
    assert_truth(imported(tmp_path))


@pytest.mark.parametrize(
    ("indices", "colours", "ground"),
    [
        (NUCLEI, (PAPER, BLACK), "0"),  # QuPath's ground, a class that it shows black
        (~NUCLEI, (PAPER, BLACK), "1"),  # black and white, its colours in another order
        (~NUCLEI, (RED, BLACK), "1"),
        (NUCLEI, (RED, (0, 200, 0)), "0"),
    ],
)
def test_a_palette_whose_colours_and_indices_disagree_needs_a_word(
    indices: np.ndarray,
    colours: tuple[tuple[int, int, int], ...],
    ground: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(replaced(tmp_path, "masks", "a.png"), palette(indices, *colours))
    assert "--background 0" in refusal(imported, tmp_path, capsys)
    assert_truth(imported(tmp_path, Rules(background=ground)))


def test_a_white_ground_in_colour_needs_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = np.where(NUCLEI[..., None], RED, PAPER).astype(np.uint8)
    save(replaced(tmp_path, "masks", "a.png"), drawn)
    line = refusal(imported, tmp_path, capsys)
    assert "colours '#ffffff' (94" in line
    assert_truth(imported(tmp_path, Rules(background="#ffffff")))


def test_ids_without_a_word_are_told_from_classes_by_many_whole_nuclei(tmp_path: Path) -> None:
    ids = np.zeros((SIZE, SIZE), dtype=np.uint16)
    for number in range(36):
        row, column = divmod(number, 6)
        ids[20 + row * 40 : 38 + row * 40, 20 + column * 40 : 45 + column * 40] = 7 * number + 3
    save(replaced(tmp_path, "masks", "a.png"), ids)
    imported(tmp_path)
    written = np.array(Image.open(next((tmp_path / "out/instances").iterdir())))
    assert np.array_equal(written, ids)


def test_the_edges_of_a_scaled_mask_are_not_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Image.fromarray(WHITE).resize((100, 100), Image.Resampling.LANCZOS)
    save(replaced(tmp_path, "masks", "a.png"), small.resize((SIZE, SIZE)))
    assert "--nuclei" in refusal(imported, tmp_path, capsys)
    blurred = imported(tmp_path, Rules(threshold=128)).masks[0].numpy()
    assert (blurred != NUCLEI).mean() < 0.005


# -- pages, depth, loss, transparency (5, 6, 7) ----------------------------------------------------


def stack(path: Path, pages: list[np.ndarray]) -> None:
    tifffile.imwrite(path, np.stack(pages), photometric="minisblack", metadata=None)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_more_than_one_page_is_refused(
    kind: str,
    read: Callable[[Path], Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = [WHITE, WHITE // 2] if kind == "masks" else [IMAGE[..., 0], IMAGE[..., 1]]
    stack(replaced(tmp_path, kind, "a.tif"), pages)
    assert f"has 2 pages or channels, expected one; --{kind[:-1]}-page" in refusal(
        read, tmp_path, capsys
    )


GREY = np.full((20, 20), 7, np.uint8)
OTHER_PAGES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "16 bits": (GREY.astype(np.uint16) * 100, {"photometric": "minisblack"}),
    "colours": (np.dstack([GREY] * 3), {"photometric": "rgb"}),
    "0 is white": (GREY, {"photometric": "miniswhite"}),
    "a palette": (GREY, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    "lossy": (GREY, {"photometric": "minisblack", "compression": "jpeg"}),
    "another size": (GREY[:16, :16], {"photometric": "minisblack"}),
}


@pytest.mark.parametrize("other", OTHER_PAGES)
@pytest.mark.parametrize("read", [read_image, read_painting])
def test_pages_of_several_kinds_are_refused(
    read: Callable[[Path, Rules], object], other: str, tmp_path: Path
) -> None:
    """All pages are read by the rules of the first, which would not be those of the other."""
    path, (pixels, options) = tmp_path / "a.tif", OTHER_PAGES[other]
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, photometric="minisblack", metadata=None)
        file.write(pixels, metadata=None, **options)
    rules = Rules(image_page="1", mask_page="1")
    with pytest.raises(SourceError, match=r"a\.tif: has pages of several kinds \(") as refused:
        read(path, rules)
    assert len(str(refused.value).splitlines()) == 1


def test_pages_mean_what_an_option_says(tmp_path: Path) -> None:
    left = WHITE.copy()
    left[:, 128:] = 0
    stack(replaced(tmp_path, "masks", "a.tif"), [left, WHITE - left])
    assert_truth(imported(tmp_path, Rules(mask_page="union")))
    path = tmp_path / "b.tif"
    stack(path, [IMAGE[..., 0], IMAGE[..., 1]])
    assert np.array_equal(read_image(path, Rules(image_page="1"))[..., 2], IMAGE[..., 1])
    brightest = IMAGE[..., :2].max(-1)
    assert np.array_equal(read_image(path, Rules(image_page="max"))[..., 0], brightest)
    with pytest.raises(SourceError, match="--image-page 2, expected 0 to 1 or max"):
        read_image(path, Rules(image_page="2"))


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_is_refused(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.fromarray(WHITE), Image.fromarray(255 - WHITE)]
    path = replaced(tmp_path, "masks", f"a.{ending}")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "a." in refusal(imported, tmp_path, capsys)


def deep_png(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("ending", ["png", "tif", "jp2", "npy"])
def test_16_bits_a_channel_are_refused_or_scaled_as_asked(
    ending: str,
    grey: bool,
    read: Callable[[Path], Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deep = IMAGE.astype(np.uint16) * 16
    deep = np.ascontiguousarray(deep[..., 0]) if grey else deep
    path = replaced(tmp_path, "images", f"a.{ending}")
    if ending == "tif":
        tifffile.imwrite(path, deep, photometric="minisblack" if grey else "rgb")
    elif ending == "npy":
        np.save(path, deep)
    else:
        encode = imagecodecs.png_encode if ending == "png" else imagecodecs.jpeg2k_encode
        path.write_bytes(encode(deep, **({} if ending == "png" else {"level": 0})))
    assert "type uint16 from" in refusal(read, tmp_path, capsys)
    scaled = imported(tmp_path, Rules(white=255 * 16))
    assert_truth(scaled, np.repeat(IMAGE[..., :1], 3, 2) if grey else IMAGE)


LOSSY = {
    "a.jpg": {"quality": 75},
    "a.webp": {"quality": 60},
    "a.jp2": {"quality_mode": "rates", "quality_layers": [30]},
}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("values", [WHITE, CELLS, LEVELS])
def test_masks_in_lossy_files_need_a_threshold_in_every_format(
    values: np.ndarray,
    name: str,
    read: Callable[[Path], Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(replaced(tmp_path, "masks", name), values, **LOSSY[name])
    line = refusal(read, tmp_path, capsys)
    assert "which changes values" in line
    assert "--threshold" in line


@pytest.mark.parametrize("name", LOSSY)
def test_a_threshold_says_what_a_lossy_mask_means(name: str, tmp_path: Path) -> None:
    save(replaced(tmp_path, "masks", name), WHITE, **LOSSY[name])
    mask = imported(tmp_path, Rules(threshold=128)).masks[0].numpy()
    assert (mask != NUCLEI).mean() < 0.01


def test_lossless_webp_and_compressed_tiff_are_exact(tmp_path: Path) -> None:
    save(replaced(tmp_path, "masks", "a.webp"), WHITE, lossless=True)
    assert_truth(imported(tmp_path))
    for compression in ("lzw", "deflate", "zstd", "packbits"):
        (root := tmp_path / compression).mkdir()
        path = replaced(root, "masks", "a.tif")
        tifffile.imwrite(path, WHITE, compression=compression)
        assert_truth(imported(root))


def test_transparent_pixels_are_refused_unless_they_are_the_ground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = replaced(tmp_path, "masks", "a.png")
    save(path, np.dstack([WHITE] * 4))
    assert_truth(imported(tmp_path))
    save(path, np.dstack([np.zeros_like(WHITE)] * 3 + [WHITE]))
    (tmp_path / "out/manifest.csv").unlink()
    assert "transparent" in refusal(imported, tmp_path, capsys)
    path = replaced(tmp_path / "of image", "images", "a.png")
    save(path, np.dstack([IMAGE, WHITE]))
    assert "transparent" in refusal(imported, tmp_path / "of image", capsys)


# -- files that are no pictures, or not whole ------------------------------------------------------


def png(depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of 256 x 256 from its raw rows, each with a filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_few_bits_keep_their_values(tmp_path: Path) -> None:
    """Pillow spreads 4 bits over 0 to 255; then class 2 would be 34."""
    pairs = (CELLS[:, ::2] << 4) | CELLS[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in pairs)
    replaced(tmp_path, "masks", "a.png").write_bytes(png(4, 0, rows))
    assert_truth(imported(tmp_path, Rules(nuclei=("2",))))


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda whole: whole[: len(whole) // 2], "cannot be read"),
    "empty": (lambda whole: b"", "is empty"),
    "a page of HTML": (lambda whole: b"<!DOCTYPE html><html>404</html>", "is not an image"),
    "a head alone": (lambda whole: whole[:40], "cannot be read|is not an image"),
    "a TIFF without pages": (lambda whole: b"II*\0\0\0\0\0", "cannot be read"),
    "an array cut short": (lambda whole: b"\x93NUMPY\x01\x00v\x00{'descr'", "is not a .npy array"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_broken_file_is_one_line(
    kind: str,
    case: str,
    read: Callable[[Path], Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, says = BROKEN[case]
    path = source(tmp_path) / "histology" / kind / "a.png"
    path.write_bytes(change(path.read_bytes()))
    line = refusal(read, tmp_path, capsys)
    assert re.search(rf"{kind}/a\.png: ({says})", line), line
