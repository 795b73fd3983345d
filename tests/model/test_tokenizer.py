import torch

from model.checkpoint import Checkpoint
from model.config import NAMED_SIZES
from model.tokenizer import Tokenizer


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
