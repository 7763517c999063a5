import math

import numpy as np
import pytest
import scipy.special
import torch
from torch.nn import functional

from pipeline.tasks import classification
from pipeline.training.calibration import COLDEST, HOTTEST, PRIOR_IMAGES, calibrate, fit_temperature


def predictions(n, *, temperature=2.5, n_classes=4, seed=0):
    """Logits, and labels drawn from their probabilities at `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, n_classes, generator=generator)
    return logits, (logits / temperature).softmax(dim=1).multinomial(1, generator=generator).flatten()


def best_of_grid(logits, targets, *, prior=PRIOR_IMAGES):
    grid = np.exp(np.linspace(math.log(COLDEST), math.log(HOTTEST), 601))
    objective = prior * (1 / grid - 1 + np.log(grid))
    for row, target in zip(logits.double().numpy(), targets.tolist(), strict=True):
        objective -= row[target] / grid - scipy.special.logsumexp(row[:, None] / grid, axis=0)
    return grid[np.argmin(objective)]


@pytest.mark.parametrize(("n", "truth"), [(1, 1.0), (3, 0.4), (25, 2.5), (200, 6.0), (200, 0.5)])
def test_temperature_is_the_lowest_point_of_a_grid(n, truth):
    logits, targets = predictions(n, temperature=truth)
    assert fit_temperature(logits, targets) == pytest.approx(best_of_grid(logits, targets), rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_temperature_agrees_with_lbfgs(seed):
    logits, targets = predictions(80, temperature=1.7, seed=seed)
    logits, log_temperature = logits.double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def objective():
        optimiser.zero_grad()
        temperature = log_temperature.exp()
        prior = PRIOR_IMAGES * (1 / temperature - 1 + temperature.log())
        value = functional.cross_entropy(logits / temperature, targets, reduction="sum") + prior
        value.backward()
        return value

    optimiser.step(objective)
    assert fit_temperature(logits, targets) == pytest.approx(math.exp(log_temperature.item()), rel=1e-6)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_many_images_give_the_temperature_that_their_labels_were_drawn_at(truth):
    logits, targets = predictions(5000, temperature=truth)
    assert fit_temperature(logits, targets) == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize("margin", [1.0, 4.0, 10.0])
def test_twenty_images_that_are_all_right_leave_some_doubt(margin):
    targets = torch.arange(20) % 5
    logits = margin * functional.one_hot(targets, 5).float()
    temperature = fit_temperature(logits, targets)
    assert best_of_grid(logits, targets, prior=0.0) < temperature <= 1.0
    sure, was_sure = ((logits / T).softmax(dim=1).max() for T in (temperature, 1.0))
    assert sure < max(0.995, was_sure + 1e-4)  # one mistake in 200 is still thought possible


def test_an_image_or_two_hardly_move_the_temperature():
    logits, targets = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    assert 0.9 < fit_temperature(logits, targets) < 1.0
    assert 1.0 < fit_temperature(logits, 1 - targets) < 3.0


def test_labels_that_are_all_wrong_end_at_the_limit():
    logits = torch.tensor([[6.0, 0.0, 0.0]]).repeat(500, 1)
    assert fit_temperature(logits, torch.ones(500, dtype=torch.long)) == pytest.approx(HOTTEST)


@pytest.mark.parametrize("seed", range(20))
def test_likelihood_is_never_worse_after_calibration(seed):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 40, (), generator=generator))
    logits = 10 * torch.rand((), generator=generator) * torch.randn(n, 3, generator=generator)
    calibration = calibrate(logits, torch.randint(0, 3, (n,), generator=generator))
    assert calibration.nll_after <= calibration.nll_before + 1e-12


def test_only_differences_of_logits_count():
    logits, targets = predictions(100)
    shifted = logits.double() + 1000 * torch.randn(100, 1, generator=torch.Generator().manual_seed(1))
    assert fit_temperature(shifted, targets) == pytest.approx(fit_temperature(logits, targets), rel=1e-6)


def test_calibration_reports_what_evaluation_measures():
    logits, targets = predictions(300, temperature=4.0)
    calibration = calibrate(logits, targets)
    logits = logits.double()
    before = classification.measure(logits.softmax(dim=1)[:, None], targets, "abcd")
    after = classification.measure((logits / calibration.temperature).softmax(dim=1)[:, None], targets, "abcd")
    assert calibration.n == 300
    assert (calibration.nll_before, calibration.ece_before) == (before.nll, before.ece)
    assert (calibration.nll_after, calibration.ece_after) == (after.nll, after.ece)
    assert calibration.ece_after < calibration.ece_before / 2


@pytest.mark.parametrize(
    ("logits", "targets"),
    [(torch.zeros(0, 3), torch.zeros(0).long()), (torch.zeros(2, 3), torch.zeros(3).long())],
)
def test_refuses_logits_without_a_label_each(logits, targets):
    with pytest.raises(ValueError, match=r"logits \(n, C\) and targets \(n,\)"):
        fit_temperature(logits, targets)


def test_refuses_logits_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.tensor([[0.0, math.inf]]), torch.tensor([0]))
