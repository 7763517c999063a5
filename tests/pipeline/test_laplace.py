import math

import pytest
import torch
from torch import nn

from pipeline.members.laplace import PRIOR_PRECISIONS, choose_by_evidence, fit_posterior
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier
from pipeline.networks.posterior import Posterior
from pipeline.networks.weights import load_weights, save_weights


def network(n_features, n_classes, seed=0):
    torch.manual_seed(seed)
    tail = nn.Sequential(nn.Dropout(0.5), nn.Linear(n_features, n_classes))
    return Classifier(nn.Flatten(), tail, n_classes=n_classes, channels=1).eval()


def weights_of(model):
    last = model.tail[-1]
    return torch.cat([last.weight, last.bias[:, None]], dim=1).detach().double()


def dense_curvature(weights, embeddings):
    """Sum over images of (diag p - p p^T) (x) h h^T, of weights `(C, D + 1)` row by row: a textbook loop."""
    size = weights.numel()
    curvature = torch.zeros(size, size, dtype=torch.float64)
    for embedding in embeddings.double():
        inputs = torch.cat([embedding, torch.ones(1).double()])
        probs = (weights @ inputs).softmax(dim=0)
        curvature += torch.kron(torch.diag(probs) - torch.outer(probs, probs), torch.outer(inputs, inputs))
    return curvature


def covariance_of(posterior, n=40_000):
    draws = posterior.draw(n, torch.Generator().manual_seed(1)).flatten(1).double()
    return draws.T @ draws / n


def with_precision(posterior, tau):
    posterior.prior_precision.fill_(tau)
    return posterior


def test_draws_of_one_image_have_the_inverse_of_the_dense_curvature_as_covariance():
    model, embeddings, tau = network(3, 3), torch.randn(1, 3, generator=torch.Generator().manual_seed(0)), 0.7
    posterior = with_precision(fit_posterior(model, embeddings), tau)
    dense = dense_curvature(weights_of(model), embeddings) + tau * torch.eye(12)
    expected = torch.linalg.inv(dense)
    torch.testing.assert_close(covariance_of(posterior), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("n", [2, 40])
def test_two_classes_with_the_same_probabilities_for_all_images_are_exact_too(n):
    model = network(4, 2)
    nn.init.zeros_(model.tail[-1].weight)
    embeddings = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    posterior = with_precision(fit_posterior(model, embeddings), 0.5)
    expected = torch.linalg.inv(dense_curvature(weights_of(model), embeddings) + 0.5 * torch.eye(10))
    torch.testing.assert_close(covariance_of(posterior), expected, rtol=0, atol=0.06)


def test_the_covariance_of_draws_is_that_of_the_two_factors():
    model, embeddings, tau = network(5, 3), torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), 2.0
    posterior = with_precision(fit_posterior(model, embeddings), tau)
    inputs = torch.cat([embeddings, torch.ones(30, 1)], dim=1).double()
    probs = (inputs @ weights_of(model).T).softmax(dim=1)
    mean = torch.stack([torch.diag(p) - torch.outer(p, p) for p in probs]).mean(dim=0)
    expected = torch.linalg.inv(torch.kron(mean, inputs.T @ inputs) + tau * torch.eye(18))
    torch.testing.assert_close(covariance_of(posterior), expected, rtol=0, atol=0.02)


def test_more_draws_leave_the_first_ones_and_the_same_generator_gives_the_same():
    posterior = fit_posterior(network(5, 3), torch.randn(7, 5))
    few, many = (posterior.draw(n, torch.Generator().manual_seed(3)) for n in (2, 5))
    assert many.shape == (5, 3, 6)
    torch.testing.assert_close(many[:2], few)


def test_images_that_are_not_judged_have_no_say_in_the_prior_but_in_the_curvature():
    model, embeddings = network(3, 4), torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    logits = 9 * embeddings @ weights_of(model)[:, :3].T.float()
    targets = logits.argmax(dim=1)
    alone = torch.tensor([False] * 38 + [True] * 2)
    spoilt, others = logits.clone(), targets.clone()
    spoilt[alone], others[alone] = torch.tensor([30.0, 0, 0, -30]), 3
    taus = {
        name: fit_posterior(model, embeddings, logits=said, targets=labels, judged=judged).prior_precision
        for name, said, labels, judged in (
            ("all", spoilt, others, None),
            ("judged", spoilt, others, ~alone),
            ("without", logits, targets, ~alone),
            ("none", spoilt, others, alone & ~alone),
        )
    }
    assert taus["judged"] == taus["without"] != taus["all"]
    assert taus["none"] == fit_posterior(model, embeddings).prior_precision
    fitted = fit_posterior(model, embeddings, logits=spoilt, targets=others, judged=~alone)
    torch.testing.assert_close(fitted.input_curvature, fit_posterior(model, embeddings).input_curvature)


def test_the_evidence_is_the_log_marginal_likelihood_of_the_dense_curvature():
    model, embeddings = network(3, 3), 4 * torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    weights = weights_of(model)
    dense = dense_curvature(weights, embeddings)
    evidence = [
        12 / 2 * math.log(tau) - tau / 2 * weights.square().sum() - torch.logdet(dense + tau * torch.eye(12)) / 2
        for tau in PRIOR_PRECISIONS.tolist()
    ]
    expected = float(PRIOR_PRECISIONS[torch.stack(evidence).argmax()])
    assert PRIOR_PRECISIONS[0] < expected < PRIOR_PRECISIONS[-1]
    assert choose_by_evidence(torch.linalg.eigvalsh(dense).clamp(min=0), weights) == expected
    assert float(fit_posterior(model, embeddings).prior_precision) == pytest.approx(expected)


def test_the_evidence_finds_the_precision_that_weights_were_drawn_with():
    generator = torch.Generator().manual_seed(0)
    curvature = torch.full((4000,), 100.0, dtype=torch.float64)
    for tau in (0.1, 1.0, 10.0):
        weights = torch.randn(4000, generator=generator, dtype=torch.float64) * (1 / tau - 1 / (100 + tau)) ** 0.5
        assert choose_by_evidence(curvature, weights) == pytest.approx(tau, rel=0.8)


def test_prediction_chooses_by_the_variance_without_the_image_itself():
    generator = torch.Generator().manual_seed(0)
    n, n_classes, temperature = 6, 3, 1.5
    model, embeddings = network(8, n_classes), 2 * torch.randn(n, 8, generator=generator)
    targets = torch.randint(n_classes, (n,), generator=generator)
    logits = 15 * torch.randn(n, n_classes, generator=generator).double()
    inputs = torch.cat([embeddings, torch.ones(n, 1)], dim=1).double()
    probs = (inputs @ weights_of(model).T).softmax(dim=1)
    mean = torch.stack([torch.diag(p) - torch.outer(p, p) for p in probs]).mean(dim=0)
    losses = []
    for tau in PRIOR_PRECISIONS.tolist():
        loss = 0.0
        for left_out in range(n):
            rest = torch.cat([inputs[:left_out], inputs[left_out + 1 :]])
            covariance = torch.linalg.inv(torch.kron(mean, rest.T @ rest) + tau * torch.eye(9 * n_classes))
            reads = torch.kron(torch.eye(n_classes).double(), inputs[left_out : left_out + 1])
            variance = (reads @ covariance @ reads.T).diag() / temperature**2
            predicted = logits[left_out] / temperature / (1 + math.pi / 8 * variance).sqrt()
            loss -= float(predicted.log_softmax(dim=0)[targets[left_out]])
        losses.append(loss)
    expected = float(PRIOR_PRECISIONS[torch.tensor(losses).argmin()])
    assert PRIOR_PRECISIONS[0] < expected < PRIOR_PRECISIONS[-1]
    model.temperature.fill_(temperature)
    assert float(fit_posterior(model, embeddings, logits=logits, targets=targets).prior_precision) == pytest.approx(
        expected
    )


def test_logits_that_are_right_choose_draws_that_are_narrower_than_logits_that_are_wrong():
    model, embeddings = network(20, 3), torch.randn(15, 20, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(15) % 3
    sure = 6.0 * nn.functional.one_hot(targets, 3)
    chosen = [
        float(fit_posterior(model, embeddings, logits=logits, targets=targets).prior_precision)
        for logits in (sure, sure.roll(1, dims=1))
    ]
    assert chosen[0] == PRIOR_PRECISIONS[-1]
    assert chosen[1] == pytest.approx(float(PRIOR_PRECISIONS[0]))


def test_few_images_make_a_small_posterior_that_is_as_wide_as_the_prior_elsewhere():
    posterior = with_precision(fit_posterior(network(50, 3), torch.randn(4, 50)), 4.0)
    assert posterior.input_directions.shape == (51, 4)
    draws = posterior.draw(2000, torch.Generator().manual_seed(0))
    outside = torch.linalg.qr(posterior.input_directions, mode="complete").Q[:, 4:]
    assert (draws @ outside).std() == pytest.approx(0.5, rel=0.01)


def test_a_posterior_is_saved_with_the_weights_and_read_again(tmp_path):
    options = {"n_classes": 3, "image_size": 12, "channels": 1}
    model, other = (build_model("small_cnn", **options, seed=seed) for seed in (0, 1))
    images = torch.randint(0, 256, (9, 1, 12, 12), dtype=torch.uint8)
    model.posterior = fit_posterior(model, model.embed(images))
    save_weights(model, tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    draws = [each.posterior.draw(2, torch.Generator().manual_seed(0)) for each in (model, other)]
    assert torch.equal(*draws)
    assert isinstance(Posterior.empty_like(model.posterior.state_dict()), Posterior)


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (torch.rand(4, 3), {}, r"\(n, 5\)"),
        (torch.rand(0, 5), {}, "n >= 1"),
        (torch.rand(4, 5), {"logits": torch.rand(4, 3)}, "both or neither"),
    ],
)
def test_impossible_arguments_are_refused(embeddings, options, message):
    with pytest.raises(ValueError, match=message):
        fit_posterior(network(5, 3), embeddings, **options)


def test_a_network_without_a_linear_end_is_refused():
    model = Classifier(nn.Identity(), nn.Sequential(nn.Conv2d(1, 3, 1)), n_classes=3, channels=1)
    with pytest.raises(ValueError, match="ends in a Linear layer"):
        fit_posterior(model, torch.rand(4, 1))
