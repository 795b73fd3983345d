"""What a request gives of an image's two streams, and its compact form. Standard library only.

A job keeps it once; requests and parts have a `GivenRef` to it. Knows no PNG, no Redis and no
tensors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pathar.contract import pixels_sha256

StreamKind = Literal["mask", "tokens", "image", "segmented"]
Size = tuple[int, int]
"""Width and height in pixels."""
MOST_BYTES = 7 << 19
"""The most that a job keeps, uncompressed: a mask and an image of 1024 pixels a side, with the
regions that are kept of them."""
_PIXELS = [bytes(255 * (byte >> bit & 1) for bit in range(7, -1, -1)) for byte in range(256)]
"""The eight pixels of a byte of a mask."""


@dataclass(frozen=True)
class Stream:
    """What is given of one stream.

    - `tokens`: `content` is the ids, row-major, 0 where none is given.
    - `mask` (structure): bits, row by row without gaps, the highest bit of a byte first: 1 in
      nuclei.
    - `image` (appearance): RGB, 8 bits, row by row.
    - `segmented` (structure): nothing; it is what the checkpoint's segmenter finds in the image
      that gives the appearance.

    `keep` has a bit for each location, as a mask has for each pixel: where it is 0, the token is
    drawn. None keeps all.
    """

    kind: StreamKind
    content: tuple[int, ...] | bytes = b""
    keep: bytes | None = None

    def kept(self, locations: int) -> list[bool]:
        """Whether each of so many locations is given."""
        if self.keep is None:
            return [True] * locations
        return [bool(self.keep[at // 8] & 128 >> at % 8) for at in range(locations)]


@dataclass(frozen=True)
class StreamRef:
    """What kind of content is given of one stream, and digests of 64 hex digits.

    `sha256` of a mask or an image is `pixels_sha256`, of a mask's pixels 0 and 255; of tokens that
    of their ids as 16 bits each, little endian; of what is segmented that of the image.
    `keep_sha256` is that of the bits of `keep`; None where all is kept.
    """

    kind: StreamKind
    sha256: str
    keep_sha256: str | None = None


@dataclass(frozen=True)
class Given:
    """What all images of a request are given; None of a stream that is drawn."""

    structure: Stream | None = None
    appearance: Stream | None = None

    @property
    def in_part(self) -> bool:
        """Whether a part of a stream is kept, and the rest of it drawn."""
        return any(each is not None and each.keep for each in (self.structure, self.appearance))

    def kept(self, locations: int) -> tuple[list[bool], list[bool]]:
        """Of each stream, whether each of so many locations is given."""
        none = [False] * locations
        structure, appearance = self.structure, self.appearance
        return (
            none if structure is None else structure.kept(locations),
            none if appearance is None else appearance.kept(locations),
        )

    def whole(self, locations: int) -> list[bool]:
        """Whether each of so many locations is given both of its tokens."""
        return [all(both) for both in zip(*self.kept(locations), strict=True)]


@dataclass(frozen=True)
class GivenRef:
    """The references to what is given."""

    structure: StreamRef | None = None
    appearance: StreamRef | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GivenRef:
        """From the form that `asdict` makes. KeyError or TypeError on anything else."""
        found = {name: data.get(name) for name in ("structure", "appearance")}
        return cls(**{name: ref and StreamRef(**ref) for name, ref in found.items()})


def of_tokens(ids: Sequence[int | None]) -> Stream:
    """Given token ids, row-major; None where a token is drawn."""
    tokens = tuple(0 if token is None else token for token in ids)
    return Stream("tokens", tokens, keep_bits([token is not None for token in ids]))


def keep_bits(kept: Sequence[bool]) -> bytes | None:
    """`Stream.keep` for locations that are kept; None where all are."""
    if all(kept):
        return None
    padded = [*kept, *[False] * (-len(kept) % 8)]
    return bytes(
        sum(128 >> at for at in range(8) if padded[first + at])
        for first in range(0, len(padded), 8)
    )


def reference(given: Given, size: Size | None = None) -> GivenRef:
    """The references to what is given of images of this size, None for patches."""
    structure, appearance = given.structure, given.appearance
    return GivenRef(_reference(structure, given, size), _reference(appearance, given, size))


def _reference(stream: Stream | None, given: Given, size: Size | None) -> StreamRef | None:
    if stream is None:
        return None
    keep = None if stream.keep is None else hashlib.sha256(stream.keep).hexdigest()
    if stream.kind == "segmented" and given.appearance is not None:
        return StreamRef("segmented", _digest(given.appearance, size), keep)
    return StreamRef(stream.kind, _digest(stream, size), keep)


def _digest(stream: Stream, size: Size | None) -> str:
    content = _raw(stream)
    pixels = 8 * len(content) if stream.kind == "mask" else len(content) // 3
    side = math.isqrt(pixels)
    shape = (side, side) if size is None else (size[1], size[0])
    if stream.kind == "mask":
        return pixels_sha256(shape, b"".join(_PIXELS[byte] for byte in content))
    if stream.kind == "image":
        return pixels_sha256((*shape, 3), content)
    return hashlib.sha256(content).hexdigest()


def packed(given: Given) -> str:
    """What is given as a short text: base64 of the compressed bytes of both streams."""
    parts = []
    for stream in (given.structure, given.appearance):
        if stream is not None:
            parts += [_raw(stream), stream.keep or b""]
    told = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    return base64.b64encode(zlib.compress(told, 9)).decode()


def unpacked(text: str | bytes, ref: GivenRef, size: Size | None = None) -> Given:
    """Inverse of `packed`, for images of this size. ValueError for what is not what `ref` names."""
    try:
        unpacker = zlib.decompressobj()
        parts = _parts(unpacker.decompress(base64.b64decode(text, validate=True), MOST_BYTES))
        found = Given(_stream(ref.structure, parts), _stream(ref.appearance, parts))
    except (binascii.Error, zlib.error, struct.error, IndexError) as error:
        raise ValueError(f"what the job was given cannot be read: {error}") from None
    if parts or reference(found, size) != ref:
        raise ValueError("what the job was given is not what was asked for")
    return found


def _parts(told: bytes) -> list[bytes]:
    """The parts of which `packed` puts texts together: four at most."""
    parts: list[bytes] = []
    at = 0
    while at < len(told) and len(parts) <= 4:
        (length,) = struct.unpack_from("<I", told, at)
        parts.append(told[at + 4 : at + 4 + length])
        at += 4 + length
    return parts


def _stream(ref: StreamRef | None, parts: list[bytes]) -> Stream | None:
    """The next stream of `parts`, which it takes out of them."""
    if ref is None:
        return None
    raw, keep = parts.pop(0), parts.pop(0)
    content = struct.unpack(f"<{len(raw) // 2}H", raw) if ref.kind == "tokens" else raw
    return Stream(ref.kind, content, None if ref.keep_sha256 is None else keep)


def _raw(stream: Stream) -> bytes:
    content = stream.content
    return content if isinstance(content, bytes) else struct.pack(f"<{len(content)}H", *content)
