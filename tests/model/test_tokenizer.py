from dataclasses import replace

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import NAMED_SIZES, ConfigError
from model.tokenizer import Tokenizer, group_norm

FINE = replace(NAMED_SIZES["test"][0], structure_input="mask_borders", fine_widths=(6, 4))


def patch(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1
    return image, (torch.rand(count, 1, 64, 64, generator=generator) > 0.5).float()


def test_encode_quantise_look_up_and_decode_agree(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    image, mask = patch()
    with torch.no_grad():
        whole = tokenizer(image, mask)
        structure, appearance = tokenizer.encode(image, mask)
        drawn, logits = tokenizer.decode(structure, appearance)
    assert torch.equal(structure, whole.structure.ids)
    assert torch.equal(appearance, whole.appearance.ids)
    looked_up = tokenizer.structure_codebook.look_up(structure)
    assert torch.allclose(looked_up, whole.structure.embeddings, atol=1e-6)
    assert torch.allclose(drawn, whole.image, atol=1e-4)
    assert torch.allclose(logits, whole.mask_logits, atol=1e-4)


def test_a_latent_that_is_an_entry_is_given_that_entry(checkpoint: Checkpoint) -> None:
    codebook = checkpoint.tokenizer.structure_codebook
    assert torch.equal(codebook.assign(codebook.entries), torch.arange(64))


def test_structure_tokens_do_not_see_the_image(checkpoint: Checkpoint) -> None:
    image, mask = patch()
    structure, _ = checkpoint.tokenizer.encode(image, mask)
    assert torch.equal(checkpoint.tokenizer.encode(-image, mask)[0], structure)
    assert torch.equal(checkpoint.tokenizer.encode_structure(mask), structure)


def test_the_mask_is_decoded_from_structure_alone(checkpoint: Checkpoint) -> None:
    image, mask = patch()
    structure, appearance = checkpoint.tokenizer.encode(image, mask)
    with torch.no_grad():
        _, logits = checkpoint.tokenizer.decode(structure, appearance)
        _, other = checkpoint.tokenizer.decode(structure, (appearance + 1) % 64)
    assert torch.equal(logits, other)


def test_gradients_pass_straight_through_to_both_encoders() -> None:
    tokenizer = Tokenizer(NAMED_SIZES["test"][0])
    result = tokenizer(*patch())
    (result.image.sum() + result.mask_logits.sum()).backward()
    for encoder in (tokenizer.structure_encoder, tokenizer.appearance_encoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_structure_with_borders_has_two_planes_both_ways() -> None:
    tokenizer = Tokenizer(FINE).eval()
    image, mask = patch()
    both = torch.cat([mask, 1 - mask], 1)
    with torch.no_grad():
        ids = tokenizer.encode(image, both)
        drawn, logits = tokenizer.decode(*ids)
    assert drawn.shape == image.shape
    assert logits.shape == both.shape
    assert not torch.equal(tokenizer.encode_structure(both.flip(1)), ids[0])
    with pytest.raises(ValueError, match="got 1 planes, this tokenizer's structure has 2"):
        tokenizer.encode_structure(mask)


def test_smoothed_pixels_hold_no_lattice_of_a_coarser_grid() -> None:
    """A flat input leaves a flat picture; a pixel shuffle gives each phase a value of its own."""
    for config, flat in ((FINE, True), (NAMED_SIZES["test"][0], False)):
        torch.manual_seed(0)
        decode = Tokenizer(config).image_decoder
        with torch.no_grad():
            drawn = decode(torch.ones(1, 32, 8, 8))
        inner = drawn[..., 24:40, 24:40]
        assert (float(inner.std((2, 3)).max()) < 1e-3) is flat


def test_the_edge_of_a_smoothed_picture_is_drawn_as_the_inside() -> None:
    torch.manual_seed(0)
    decoder = Tokenizer(FINE).image_decoder
    first = next(i for i, m in enumerate(decoder) if isinstance(m, torch.nn.ReplicationPad2d))
    with torch.no_grad():
        drawn = decoder[first:](torch.ones(1, 16, 16, 16))
    assert drawn.shape[-2:] == (64, 64)
    assert float(drawn.std((2, 3)).max()) < 1e-6


def test_a_count_of_fine_widths_that_no_decoder_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fine_widths: got \[8\], expected 2 entries, or none"):
        replace(NAMED_SIZES["test"][0], fine_widths=(8,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_of_a_large_map_does_not_depend_on_the_number_of_threads(
    dtype: torch.dtype,
) -> None:
    norm = group_norm(32).to(dtype)
    torch.manual_seed(0)
    large = torch.randn(1, 32, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found.append(norm(large))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
