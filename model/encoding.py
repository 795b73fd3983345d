"""Masks and images to token ids, the same on every machine.

Computes in 64 bits on the processor, whatever decodes: the nearest entry of a codebook is then the
same one everywhere. Always a batch of one, so ids never vary. Knows no requests and no slots.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.given import Given, Stream
from model.instances import borders, instances
from model.tokenizer import Codebook

ENCODED = 64
"""Masks and images whose tokens are kept: all images of a job have the same."""

Ids = tuple[int, ...]
Part = TypeVar("Part", bound=nn.Module)


class Encoding:
    """The encoders of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        tokenizer, segmenter = checkpoint.tokenizer, checkpoint.segmenter
        self._config = tokenizer.config
        self._structure = _wide(tokenizer.structure_encoder)
        self._structure_codebook = _wide(tokenizer.structure_codebook)
        self._appearance = _wide(tokenizer.appearance_encoder)
        self._appearance_codebook = _wide(tokenizer.appearance_codebook)
        self._segmenter = segmenter and segmenter.to(torch.device("cpu"), torch.float64)
        self._kept: dict[tuple[str, bytes], Ids] = {}

    def structure(self, given: Given) -> Ids:
        """The structure ids of what gives the structure, where it is no tokens itself."""
        stream, image = given.structure, given.appearance
        assert stream is not None
        if stream.kind == "segmented":
            assert image is not None
            return self._remembered("segmented", image, self._ids_of_segmented)
        return self._remembered("mask", stream, self._ids_of_mask)

    def appearance(self, given: Given) -> Ids:
        """The appearance ids of what gives the appearance, where it is no tokens itself."""
        assert given.appearance is not None
        return self._remembered("image", given.appearance, self._ids_of_image)

    def _remembered(self, what: str, stream: Stream, encode: Callable[[bytes], Ids]) -> Ids:
        """The ids of a mask or an image, kept for the next image of its job."""
        content = stream.content
        if isinstance(content, tuple):
            return content
        if (what, content) not in self._kept:
            if len(self._kept) == ENCODED:
                del self._kept[next(iter(self._kept))]
            self._kept[what, content] = encode(content)
        return self._kept[what, content]

    @torch.inference_mode()
    def _ids_of_mask(self, mask: bytes) -> Ids:
        side = self._config.image_size
        nuclei = np.unpackbits(np.frombuffer(mask, np.uint8)).reshape(side, side).astype(bool)
        planes = [nuclei]
        if self._config.structure_planes > 1:
            planes.append(borders(instances(nuclei, None)))
        latents = self._structure(torch.from_numpy(np.stack(planes))[None].double() * 2 - 1)
        return _ids(self._structure_codebook, latents)

    @torch.inference_mode()
    def _ids_of_image(self, image: bytes) -> Ids:
        side = self._config.image_size
        pixels = torch.frombuffer(bytearray(image), dtype=torch.uint8).view(1, side, side, 3)
        latents = self._appearance(pixels.permute(0, 3, 1, 2).double() / 127.5 - 1)
        return _ids(self._appearance_codebook, latents)

    def _ids_of_segmented(self, image: bytes) -> Ids:
        assert self._segmenter is not None
        side = self._config.image_size
        pixels = np.frombuffer(image, np.uint8).reshape(side, side, 3).copy()
        return self._ids_of_mask(np.packbits(self._segmenter.find(pixels)).tobytes())


def _wide(part: Part) -> Part:
    """A copy in 64 bits on the processor."""
    return copy.deepcopy(part).to("cpu", torch.float64)


def _ids(codebook: Codebook, latents: Tensor) -> Ids:
    return tuple(codebook.assign(codebook.project(latents)).tolist())
