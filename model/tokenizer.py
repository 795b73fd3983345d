"""Dual-VQ tokenizer: a patch and its mask to two grids of token ids, and back.

By default the structure encoder sees only the mask. So structure tokens cannot carry appearance,
and a mask without an image can be encoded. With `mask_borders` it also sees the borders between
nuclei (model/instances.py). The mask decoder sees only structure and outputs the same planes
(docs/method.md, section 2). Knows nothing of the prior, of files or of how the codebooks are
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import STEM, TokenizerConfig

NORM_CHANNELS = 8
"""Fewest channels a group of GroupNorm holds."""
MARGIN = 3
"""Places at 1 / STEM of the patch's side that the zeros around it reach in the finer layers."""


class GroupNorm(nn.GroupNorm):
    """Torch's, with bits that do not depend on the number of threads, except in training.

    On a CPU, torch sums a large map in channels_last by threads; any other map by groups.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        by_threads = x.device.type == "cpu" and not torch.is_grad_enabled()
        return super().forward(x.contiguous() if by_threads else x)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with up to 16 groups of at least NORM_CHANNELS channels."""
    return GroupNorm(max(1, min(16, channels // NORM_CHANNELS)), channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with one norm; the second starts small, so the block near identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)
            self.conv2.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        hidden = F.silu(self.conv1(F.silu(self.norm(x))))
        return x + self.conv2(hidden)  # type: ignore[no-any-return]


class GridAttention(nn.Module):
    """Full attention over the latent grid, where patches far apart meet."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).reshape(batch, channels, height, width)  # type: ignore[no-any-return]


def encoder(
    channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], dim: int, *, attention: bool
) -> nn.Sequential:
    """Pixels [B, channels, H, W] -> [B, dim, H / f, W / f]."""
    # Replicated borders in the stem: zeros there draw a line along the patch's edge.
    stem = nn.Conv2d(channels * STEM**2, widths[0], 3, padding=1, padding_mode="replicate")
    layers: list[nn.Module] = [nn.PixelUnshuffle(STEM), stem]
    for level, width in enumerate(widths):
        layers += [ResidualBlock(width) for _ in range(blocks[level])]
        if level + 1 < len(widths):
            layers.append(nn.Conv2d(width, widths[level + 1], 4, stride=2, padding=1))
    if attention:
        layers.append(GridAttention(widths[-1]))
    head = [group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], dim, 1)]
    return nn.Sequential(*layers, *head)


class SmoothShuffle(nn.Module):
    """A pixel shuffle by 2, then a binomial 3 x 3 window, which at the edge counts what there is.

    The window (1, 2, 1 along each side) has a zero where a shuffle leaves its lattice: of a map
    whose four phases differ alike everywhere nothing but their mean is left.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4 C, H, W] -> [B, C, 2 H, 2 W]."""
        shuffled = F.pixel_shuffle(x, 2)
        wider = F.avg_pool2d(shuffled, 2, stride=1, padding=1, count_include_pad=False)
        return F.avg_pool2d(wider, 2, stride=1)


def decoder(
    dim: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    channels: int,
    *,
    attention: bool,
    fine_widths: tuple[int, ...] = (),
) -> nn.Sequential:
    """[B, dim, h, w] -> pixels [B, channels, h * f, w * f]; `fine_widths` as configured."""
    layers: list[nn.Module] = [nn.Conv2d(dim, widths[-1], 3, padding=1)]
    if attention:
        layers += [ResidualBlock(widths[-1]), GridAttention(widths[-1])]
    rising = list(zip(widths, blocks, strict=True))[::-1]
    for (width, count), (next_width, _) in pairwise([*rising, (0, 0)]):
        layers += [ResidualBlock(width) for _ in range(count)]
        if next_width:
            doubled = SmoothShuffle() if fine_widths else nn.PixelShuffle(2)
            layers += [nn.Conv2d(width, next_width * 4, 1), doubled]
    layers += [group_norm(widths[0]), nn.SiLU()]
    if fine_widths:
        return nn.Sequential(*layers, *_doubled(widths[0], fine_widths, channels))
    return nn.Sequential(*layers, *_shuffled(widths[0], channels))


def _shuffled(width: int, channels: int) -> list[nn.Module]:
    """From 1 / STEM of the patch's side to pixels in one step."""
    out = nn.Conv2d(width, channels * STEM**2, 3, padding=1, padding_mode="replicate")
    return [out, nn.PixelShuffle(STEM)]


def _doubled(width: int, fine_widths: tuple[int, ...], channels: int) -> list[nn.Module]:
    """From 1 / STEM of the patch's side to pixels, twice by 2, smoothed each time."""
    # Zeros at the edge would draw a line along it. Replicating it before every convolution costs
    # more than a margin that is wide enough for all of them and is cut off at the end.
    layers: list[nn.Module] = [nn.ReplicationPad2d(MARGIN)]
    for fine in fine_widths:
        layers += [nn.Conv2d(width, fine * 4, 3, padding=1), SmoothShuffle(), nn.SiLU()]
        width = fine
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
    return [*layers, nn.Conv2d(width, channels, 3, padding=1), nn.ZeroPad2d(-MARGIN * STEM)]


class Codebook(nn.Module):
    """K unit vectors; a location takes the nearest by cosine.

    Latents are normalised by channel over the batch before they are compared (running statistics
    in eval mode), which keeps more entries in use. Entries are trained outside, by moving
    averages; here they are only looked up.
    """

    entries: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(dim, affine=False, momentum=0.05)
        self.register_buffer("entries", F.normalize(nn.init.normal_(torch.empty(size, dim)), dim=1))

    def project(self, latents: Tensor) -> Tensor:
        """[B, dim, h, w] -> unit vectors [B * h * w, dim], raster order, of at least fp32."""
        wide = latents if latents.dtype == torch.float64 else latents.float()
        flat = wide.permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(self.normalise(flat), dim=1)

    def assign(self, unit: Tensor) -> Tensor:
        """Nearest entries of unit vectors [M, dim]: ids [M]; ties go to the lowest id."""
        return (unit @ self.entries.t()).argmax(1)

    def look_up(self, ids: Tensor) -> Tensor:
        """Ids [B, h, w] -> embeddings [B, dim, h, w]."""
        return self.entries[ids].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Quantised:
    """One stream of a training batch.

    `embeddings` [B, dim, h, w] carries the straight-through gradient; `ids` [B, h, w]; `latents`
    [B * h * w, dim] the unit vectors before assignment; `commitment` the scalar loss
    ||z - sg(e)||^2 (the codebook's own term is replaced by the moving average).
    """

    embeddings: Tensor
    ids: Tensor
    latents: Tensor
    commitment: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """A training forward: `image` [B, 3, H, W] about -1..1, `mask_logits` [B, P, H, W]."""

    image: Tensor
    mask_logits: Tensor
    structure: Quantised
    appearance: Quantised


def quantised(codebook: Codebook, latents: Tensor, quantise: bool) -> Quantised:
    """One stream of latents [B, dim, h, w]; `quantise` False lets raw unit vectors through."""
    batch, dim, height, width = latents.shape
    unit = codebook.project(latents)
    ids = codebook.assign(unit.detach())
    nearest = codebook.entries[ids]
    commitment = (unit - nearest).square().sum(1).mean()
    chosen = unit + (nearest - unit).detach() if quantise else unit
    grid = chosen.view(batch, height, width, dim).permute(0, 3, 1, 2)
    return Quantised(grid, ids.view(batch, height, width), unit.detach(), commitment)


class Tokenizer(nn.Module):
    """The Dual-VQ tokenizer. Images are in -1..1, masks 0 or 1 (nuclei = 1), both float.

    Masks have P = `config.structure_planes` planes: nuclei, then borders where structure has them.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim, widths = config.codebook_dim, config.widths
        self.appearance_encoder = encoder(3, widths, config.encoder_blocks, dim, attention=True)
        self.structure_encoder = encoder(
            config.structure_planes + (3 if config.structure_input == "image_mask" else 0),
            config.structure_widths,
            config.structure_blocks,
            dim,
            attention=False,
        )
        self.structure_codebook = Codebook(config.codebook_size, dim)
        self.appearance_codebook = Codebook(config.codebook_size, dim)
        self.mask_decoder = decoder(
            dim,
            config.structure_widths,
            config.structure_blocks,
            config.structure_planes,
            attention=False,
        )
        self.structure_projection = nn.Conv2d(dim, widths[-1], 1)
        self.appearance_projection = nn.Conv2d(dim, widths[-1], 1)
        self.structure_scale = nn.Parameter(torch.ones(()))
        self.fusion = nn.Conv2d(2 * widths[-1], widths[-1], 1)
        self.image_decoder = decoder(
            widths[-1],
            widths,
            config.decoder_blocks,
            3,
            attention=True,
            fine_widths=config.fine_widths,
        )

    @torch.no_grad()
    def encode(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [B, 3, H, W] and mask [B, P, H, W] -> structure and appearance ids [B, h, w]."""
        return self.encode_structure(mask, image), self.encode_appearance(image)

    @torch.no_grad()
    def encode_structure(self, mask: Tensor, image: Tensor | None = None) -> Tensor:
        """Mask [B, P, H, W] -> ids [B, h, w]; `image` is read only by `image_mask` models."""
        return self._ids(self.structure_codebook, self._structure_latents(mask, image))

    @torch.no_grad()
    def encode_appearance(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] -> ids [B, h, w]."""
        return self._ids(self.appearance_codebook, self.appearance_encoder(image))

    def decode(self, structure_ids: Tensor, appearance_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, h, w] each -> image [B, 3, H, W] about -1..1, mask logits [B, P, H, W]."""
        structure = self.structure_codebook.look_up(structure_ids)
        appearance = self.appearance_codebook.look_up(appearance_ids)
        return self.decode_image(structure, appearance), self.mask_decoder(structure)

    def decode_image(self, structure: Tensor, appearance: Tensor) -> Tensor:
        """Embeddings [B, dim, h, w] of both streams -> image: D_x(fuse(z_s, z_a))."""
        condition = self.structure_scale * self.structure_projection(structure)
        both = torch.cat([condition, self.appearance_projection(appearance)], 1)
        return self.image_decoder(self.fusion(both))  # type: ignore[no-any-return]

    def forward(self, image: Tensor, mask: Tensor, *, quantise: bool = True) -> Reconstruction:
        """The training pass; `quantise` False lets raw latents through (before k-means)."""
        structure = quantised(
            self.structure_codebook, self._structure_latents(mask, image), quantise
        )
        appearance = quantised(self.appearance_codebook, self.appearance_encoder(image), quantise)
        return Reconstruction(
            self.decode_image(structure.embeddings, appearance.embeddings),
            self.mask_decoder(structure.embeddings),
            structure,
            appearance,
        )

    def _structure_latents(self, mask: Tensor, image: Tensor | None) -> Tensor:
        if mask.shape[1] != self.config.structure_planes:
            raise ValueError(
                f"mask: got {mask.shape[1]} planes, this tokenizer's structure has "
                f"{self.config.structure_planes}"
            )
        seen = mask * 2 - 1
        if self.config.structure_input == "image_mask":
            if image is None:
                raise ValueError("this tokenizer's structure encoder needs the image too")
            seen = torch.cat([image, seen], 1)
        return self.structure_encoder(seen)  # type: ignore[no-any-return]

    @staticmethod
    def _ids(codebook: Codebook, latents: Tensor) -> Tensor:
        batch, _, height, width = latents.shape
        return codebook.assign(codebook.project(latents)).view(batch, height, width)
