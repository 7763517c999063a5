import pytest
import torch
from sklearn.linear_model import LogisticRegression

import pipeline.learning.regression
from pipeline.learning.regression import linear_head
from pipeline.training.fit import TrainingError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_linear_head_is_scikit_learns_regression(n_classes):
    features, targets = torch.randn(60, 5, generator=seeded()), torch.arange(60) % n_classes
    features[:, 0] += targets
    weights, biases = linear_head(features, targets, n_classes=n_classes, l2=0.1)
    ours = (features.double() @ weights.T + biases).softmax(dim=1)
    reference = LogisticRegression(C=10, max_iter=5000).fit(features.double().numpy(), targets.numpy())
    assert ours.numpy() == pytest.approx(reference.predict_proba(features.double().numpy()), abs=1e-6)


def test_linear_head_is_at_the_minimum_of_its_loss():
    features = torch.randn(80, 6, generator=seeded(), dtype=torch.float64)
    targets = torch.randint(0, 3, (80,), generator=seeded(1))
    weights, biases = (part.requires_grad_() for part in linear_head(features, targets, n_classes=3, l2=0.5))
    loss = torch.nn.functional.cross_entropy(features @ weights.T + biases, targets, reduction="sum")
    (loss + 0.25 * weights.square().sum()).backward()
    assert max(weights.grad.abs().max(), biases.grad.abs().max()) < 0.02


def test_class_without_a_label_has_no_probability():
    features = torch.randn(40, 3, generator=seeded())
    for targets in (torch.arange(40) % 2 * 2 + 1, torch.full((40,), 1)):
        weights, biases = linear_head(features, targets, n_classes=5, l2=0.1)
        probs = (features.double() @ weights.T + biases).softmax(dim=1)
        absent = [label for label in range(5) if label not in targets.unique()]
        assert probs[:, absent].sum() == 0
        assert probs.sum(dim=1).numpy() == pytest.approx(1)


def test_fit_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(pipeline.learning.regression, "ITERATIONS", (1, 2))
    with pytest.raises(TrainingError, match="does not converge on 90 labels in 2 iterations"):
        linear_head(torch.randn(90, 8, generator=seeded()), torch.arange(90) % 3, n_classes=3, l2=0.01)


def test_fit_gets_more_iterations_until_it_converges(monkeypatch):
    features, targets = torch.randn(90, 8, generator=seeded()), torch.arange(90) % 3
    wanted = linear_head(features, targets, n_classes=3, l2=0.01)
    monkeypatch.setattr(pipeline.learning.regression, "ITERATIONS", (1, 2, 1000))
    for ours, theirs in zip(linear_head(features, targets, n_classes=3, l2=0.01), wanted, strict=True):
        assert torch.equal(ours, theirs)
