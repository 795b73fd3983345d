"""The tokenizers of the ablations, behind one surface of S streams: Dual-VQ and a single codebook.

Ids are [B, S, N] in raster order; S is 2 (structure, appearance) or 1. Knows no training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import TokenizerConfig
from model.tokenizer import Codebook, Quantised, Tokenizer, decoder, encoder, quantised


@dataclass(frozen=True)
class Pass:
    """A training forward: `image` [B, 3, H, W], `mask_logits` [B, 1, H, W], each stream."""

    image: Tensor
    mask_logits: Tensor
    streams: tuple[Quantised, ...]


class StreamTokenizer(nn.Module, ABC):
    """What training and drawing use of a tokenizer of `streams` streams. Images are in -1..1,
    masks 0 or 1, both float.
    """

    streams: int

    @abstractmethod
    def codebooks(self) -> tuple[Codebook, ...]:
        """One for each stream."""

    @abstractmethod
    def run(self, image: Tensor, mask: Tensor, *, quantise: bool) -> Pass:
        """The training pass; `quantise` False lets raw latents through (before k-means)."""

    @abstractmethod
    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """Image [B, 3, H, W] and mask [B, 1, H, W] -> ids [B, S, N]."""

    @abstractmethod
    def decode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, S, N] -> image [B, 3, H, W] about -1..1, mask logits [B, 1, H, W]."""


class DualTokenizer(StreamTokenizer):
    """The product's tokenizer (docs/method.md, section 2)."""

    streams = 2

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(config)
        self.grid = (config.grid_size, config.grid_size)

    def codebooks(self) -> tuple[Codebook, ...]:
        """Structure, appearance."""
        return self.tokenizer.structure_codebook, self.tokenizer.appearance_codebook

    def run(self, image: Tensor, mask: Tensor, *, quantise: bool) -> Pass:
        """See `StreamTokenizer`."""
        result = self.tokenizer(image, mask, quantise=quantise)
        return Pass(result.image, result.mask_logits, (result.structure, result.appearance))

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `StreamTokenizer`."""
        return torch.stack(self.tokenizer.encode(image, mask), 1).flatten(2)

    def decode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `StreamTokenizer`."""
        structure, appearance = ids.unflatten(2, self.grid).unbind(1)
        return self.tokenizer.decode(structure, appearance)


class SingleTokenizer(StreamTokenizer):
    """One encoder on image and mask, one codebook, one stream decoded into both (Table VII, the
    row without Dual-VQ). Encoder and decoders are as large as the dual one's.
    """

    streams = 1

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        dim, widths = config.codebook_dim, config.widths
        self.encoder = encoder(4, widths, config.encoder_blocks, dim, attention=True)
        self.codebook = Codebook(config.codebook_size, dim)
        self.image_decoder = decoder(dim, widths, config.decoder_blocks, 3, attention=True)
        self.mask_decoder = decoder(
            dim, config.structure_widths, config.structure_blocks, 1, attention=False
        )
        self.grid = (config.grid_size, config.grid_size)

    def codebooks(self) -> tuple[Codebook, ...]:
        """The one codebook."""
        return (self.codebook,)

    def run(self, image: Tensor, mask: Tensor, *, quantise: bool) -> Pass:
        """See `StreamTokenizer`."""
        stream = quantised(self.codebook, self._latents(image, mask), quantise)
        embeddings = stream.embeddings
        return Pass(self.image_decoder(embeddings), self.mask_decoder(embeddings), (stream,))

    @torch.no_grad()
    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `StreamTokenizer`."""
        unit = self.codebook.project(self._latents(image, mask))
        return self.codebook.assign(unit).view(len(image), 1, -1)

    def decode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `StreamTokenizer`."""
        embeddings = self.codebook.look_up(ids[:, 0].unflatten(1, self.grid))
        return self.image_decoder(embeddings), self.mask_decoder(embeddings)

    def _latents(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(torch.cat([image, mask * 2 - 1], 1))  # type: ignore[no-any-return]


def build_tokenizer(codebooks: str, config: TokenizerConfig) -> StreamTokenizer:
    """A row's tokenizer with fresh weights."""
    return SingleTokenizer(config) if codebooks == "single" else DualTokenizer(config)


def likeliest_structure(ids: Tensor, codebook_size: int) -> Tensor:
    """For each appearance token the structure token it is seen with most: [K] from ids [M, 2, N].

    What an appearance-only prior is decoded with: the image decoder needs both streams, and this is
    what appearance alone says of structure, location by location. An appearance token that was
    never seen takes the structure token that is most common of all.
    """
    structure, appearance = ids[:, 0].flatten(), ids[:, 1].flatten()
    together = torch.bincount(appearance * codebook_size + structure, minlength=codebook_size**2)
    counts = together.view(codebook_size, codebook_size)
    common = counts.sum(0).argmax()
    return torch.where(counts.sum(1) > 0, counts.argmax(1), common)
