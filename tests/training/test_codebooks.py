import torch
import torch.nn.functional as F

from model.tokenizer import Codebook
from training.codebooks import CodebookTrainer, usage


def clusters(count: int, each: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(count, 8, generator=generator)
    noise = 0.02 * torch.randn(count * each, 8, generator=generator)
    return F.normalize(centres.repeat(each, 1) + noise, dim=1)


def test_k_means_finds_the_clusters() -> None:
    latents = clusters(16, 40)
    trainer = CodebookTrainer(Codebook(16, 8))
    trainer.start(latents, torch.Generator().manual_seed(0))
    nearest = (latents @ trainer.codebook.entries.t()).max(1).values
    assert nearest.mean() > 0.99


def test_unused_entries_come_back_into_use() -> None:
    latents = clusters(16, 40)
    generator = torch.Generator().manual_seed(0)
    codebook = Codebook(16, 8)
    # All entries but one start far from every latent.
    codebook.entries.copy_(F.normalize(-latents.mean(0, keepdim=True).repeat(16, 1), dim=1))
    trainer = CodebookTrainer(codebook)
    for _ in range(400):
        trainer.update(latents, codebook.assign(latents), generator)
    assert usage(codebook.assign(latents), 16)[0] > 0.9


def test_usage_and_perplexity_of_known_ids() -> None:
    share, perplexity = usage(torch.tensor([0, 0, 1, 1]), 4)
    assert share == 0.5
    assert abs(perplexity - 2.0) < 1e-6
