"""Pictures of one pair for people: its overlay, and several pictures side by side.

Knows only pictures, nothing of where they come from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageFilter

GAP = 8
PAPER = (255, 255, 255)
OUTLINE = (0, 255, 0)


def overlay(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image (RGB) with a green outline, one pixel wide, just inside what the mask (mode L, the
    same size) has at 255.
    """
    drawn = image.copy()
    drawn.paste(OUTLINE, mask=ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3))))
    return drawn


def side_by_side(pictures: Sequence[Image.Image], cell: int) -> bytes:
    """Pictures in a row, each `cell` pixels wide and high, as PNG bytes."""
    row = Image.new("RGB", (len(pictures) * (cell + GAP) - GAP, cell), PAPER)
    for column, picture in enumerate(pictures):
        row.paste(fitted(picture, cell), (column * (cell + GAP), 0))
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    return buffer.getvalue()


def fitted(picture: Image.Image, cell: int) -> Image.Image:
    """The picture in RGB, `cell` pixels wide and high. Enlarged, its pixels stay visible."""
    enlarging = picture.width < cell
    method = Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((cell, cell), method)
