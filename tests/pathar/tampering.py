"""What people and programs do to the files of a pair, each as a function from files to files.

A forger knows PathAR: digests and record agree with what was changed. Anybody else leaves them.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pathar.contract import canonical_json, pixels_sha256, sha256
from worker.png import encode_png

Files = Mapping[str, bytes]


def place(folder: Path, index: int, files: Files) -> None:
    """Write the files of a pair to a folder, over what is there."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"histology_0_{index:05d}_{name}").write_bytes(content)


def texts(png: bytes) -> dict[str, str]:
    """What a PNG says, by keyword."""
    with Image.open(io.BytesIO(png)) as image:
        return {key: str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]


def record(png: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(texts(png)["pathar"])
    return said


def pixels(png: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)


def said_again(png: bytes, said: Mapping[str, Any], *, forged: bool) -> bytes:
    """The PNG with another record."""
    of_record = dict(said)
    if forged:
        del of_record["record_sha256"]
        of_record["record_sha256"] = sha256(canonical_json(of_record))
    return encode_png(pixels(png), {**texts(png), "pathar": canonical_json(of_record)})


def edited(files: Files, field: str, value: object, *, forged: bool) -> Files:
    """One field of all records replaced."""
    return {
        name: said_again(data, {**record(data), field: value}, forged=forged)
        if name.endswith(".png")
        else data
        for name, data in files.items()
    }


def repainted(files: Files, name: str, painted: NDArray[Any], *, forged: bool) -> Files:
    """The pixels of one file replaced."""
    data = encode_png(painted, texts(files[name]))
    if not forged:
        return {**files, name: data}
    values = painted if painted.itemsize == 1 else painted.astype(">u2")
    digest = pixels_sha256(painted.shape, values.tobytes())
    made = {**files, name: said_again(data, {**record(data), "pixels_sha256": digest}, forged=True)}
    for other in {"mask.png", "instances.png"} & files.keys() if name == "image.png" else ():
        pointing = {**record(files[other]), "image_sha256": digest}
        made[other] = said_again(files[other], pointing, forged=True)
    return made


def flipped(files: Files, name: str, x: int, y: int, *, forged: bool) -> Files:
    """One pixel made as unlike as it can be."""
    painted = pixels(files[name])
    painted[y, x] = np.where(painted[y, x] < 128, 255, 0)
    return repainted(files, name, painted, forged=forged)


def saved_by_pillow(png: bytes, *, keep: bool, **more: str) -> bytes:
    """Opened and saved by other software, which keeps the texts or not, and adds others."""
    notes, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts(png).items() if keep else ():
        notes.add_itxt(key, text)
    for key, text in more.items():
        notes.add_text(key, text)
    with Image.open(io.BytesIO(png)) as image:
        Image.fromarray(np.array(image)).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def foreign(format: str = "PNG", side: int = 64) -> bytes:
    """A picture that PathAR has not seen."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 200, np.uint8)).save(buffer, format)
    return buffer.getvalue()


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A chunk added before the pixels."""
    at = png.index(b"IDAT") - 4
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return (
        png[:at]
        + struct.pack(">I", len(content))
        + kind
        + content
        + checksum.to_bytes(4, "big")
        + png[at:]
    )


def of_one(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    """A change of one file's bytes."""
    return lambda files: {**files, name: change(files[name])}
