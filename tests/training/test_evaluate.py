import torch

from model.request import Label
from training.evaluate import fit_classifier

LABELS = (Label("a", "modality"), Label("b", "modality"), Label("c", "modality"))


def test_the_classifier_names_what_it_was_shown_and_not_what_it_was_not() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 20, generator=generator)
    targets = torch.arange(300) % 3
    inputs = centres[targets] + torch.randn(300, 20, generator=generator)
    classifier = fit_classifier(inputs[:200], targets[:200], LABELS)
    assert (classifier.predict(inputs[200:]) == targets[200:]).float().mean() > 0.95
    shuffled = targets[torch.randperm(300, generator=generator)]
    blind = fit_classifier(inputs[:200], shuffled[:200], LABELS)
    assert (blind.predict(inputs[200:]) == shuffled[200:]).float().mean() < 0.6
