"""The contact sheet: one row of pairs a label, each image above its mask. Knows only PNGs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pathar.contract import IMAGE_NAME, MASK_NAME
from pathar.pictures import fitted

CELL = 192
"""Width and height of each image on a sheet that is a file, in pixels."""
GAP = 8
CAPTION = 36
FOOT = 32
INK = (28, 36, 48)
PAPER = (255, 255, 255)
FOOTNOTE = "PathAR: synthetic, not for diagnosis. Each image stands above its mask."


@dataclass(frozen=True)
class SheetRow:
    """One label and its pairs, each with `image.png` and `mask.png`."""

    label: str
    pairs: Sequence[Mapping[str, bytes]]


def contact_sheet(rows: Sequence[SheetRow], cell: int = CELL) -> bytes:
    """The sheet as PNG bytes, each image `cell` pixels wide and high."""
    columns = max((len(row.pairs) for row in rows), default=1)
    height = CAPTION + 2 * cell + 3 * GAP
    size = (GAP + columns * (cell + GAP), len(rows) * height + FOOT)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height
        pen.text((GAP, top + GAP), row.label, fill=INK, font=ImageFont.load_default(22))
        for column, pair in enumerate(row.pairs):
            left = GAP + column * (cell + GAP)
            sheet.paste(_shown(pair[IMAGE_NAME], cell), (left, top + CAPTION))
            sheet.paste(_shown(pair[MASK_NAME], cell), (left, top + CAPTION + cell + GAP))
    foot = (GAP, len(rows) * height + GAP)
    pen.text(foot, FOOTNOTE, fill=INK, font=ImageFont.load_default(14))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _shown(png: bytes, cell: int) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return fitted(image, cell)
