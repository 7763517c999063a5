import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pipeline.members.predict import predict_from_features
from pipeline.members.swag import draw_weights, swag_draws
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier
from pipeline.tasks import classification
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe

CPU = torch.device("cpu")
PLAIN = Recipe()


def pictures(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    noise = torch.randint(0, 60, (n, 1, 12, 12), generator=generator)
    noise[torch.arange(n), 0, 4 * targets] += 180
    return noise.to(torch.uint8), targets


def batch_norm_model():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    tail = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 3))
    return Classifier(trunk, tail, n_classes=3, channels=1).to(memory_format=torch.channels_last).eval()


def draws(model, inputs, targets, recipe=PLAIN, *, n_draws=3, **options):
    options = {"seed": 0, "n_columns": 4} | options
    return swag_draws(model, inputs, targets, recipe, task=classification, n_draws=n_draws, device=CPU, **options)


def weights(model):
    return torch.cat([values.detach().reshape(-1) for values in model.parameters()])


def test_a_draw_has_half_the_covariance_of_the_path_and_half_its_diagonal():
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(10, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    mean = path.mean(dim=0)
    diagonal = path.var(dim=0, correction=0).sqrt()
    drawn = torch.stack([draw_weights(mean, diagonal, path - mean, generator) for _ in range(10_000)])
    expected = path.T.cov() / 2 + torch.diag(path.var(dim=0, correction=0)) / 2
    torch.testing.assert_close(drawn.mean(dim=0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), expected, rtol=0.08, atol=0.15)


def test_each_draw_differs_and_the_trained_weights_come_back():
    model, (images, targets) = batch_norm_model(), pictures()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    seen = [weights(drawn) for drawn in draws(model, images, targets)]
    assert len(seen) == 3
    assert all((one - other).abs().max() > 1e-4 for one, other in itertools.pairwise(seen))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_weights_come_back_where_the_draws_are_not_taken_to_the_end():
    model, (images, targets) = batch_norm_model(), pictures()
    before = weights(model)
    some = draws(model, images, targets)
    next(some)
    assert not torch.equal(weights(model), before)
    some.close()
    assert torch.equal(weights(model), before)


def test_the_same_seed_gives_the_same_draws():
    images, targets = pictures()
    first, again, other = (
        [weights(drawn) for drawn in draws(batch_norm_model(), images, targets, seed=seed)] for seed in (0, 0, 1)
    )
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_what_is_frozen_is_in_every_draw_as_it_was():
    model, (images, targets) = batch_norm_model(), pictures()
    model.freeze("trunk.0", "trunk.1")
    state = {name: values.clone() for name, values in model.state_dict().items()}
    for drawn in draws(model, images, targets):
        changed = {name for name, values in drawn.state_dict().items() if not torch.equal(values, state[name])}
        assert {name.rpartition(".")[0] for name in changed} == {"trunk.3", "trunk.4", "tail.2"}


def test_batch_norm_has_the_statistics_of_the_images_under_each_draw():
    model, (images, targets) = batch_norm_model(), pictures(40)
    for drawn in draws(model, images, targets, Recipe(batch_size=10)):
        with torch.no_grad():
            parts = [drawn.trunk[0](drawn.normalise(part)) for part in images.split(10)]
        means = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
        variances = torch.stack([part.transpose(0, 1).flatten(1).var(dim=1) for part in parts]).mean(dim=0)
        torch.testing.assert_close(drawn.trunk[1].running_mean, means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(drawn.trunk[1].running_var, variances, rtol=1e-4, atol=1e-5)
    assert drawn.trunk[1].momentum == 0.1


def test_draws_are_spread_around_their_path_as_its_covariance_says():
    features, targets = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    torch.manual_seed(0)
    model = Classifier(nn.Identity(), nn.Sequential(nn.Linear(5, 3)), n_classes=3, channels=1, pretrained=True)
    model.freeze("trunk")
    options = {"from_features": True, "learning_rate": 0.1}
    path = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            path.append(weights(model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Watched)
        drawn = torch.stack([weights(each) for each in draws(model, features, targets, n_draws=4000, **options)])
    columns = torch.stack(path[len(path) // 4 - 1 :: len(path) // 4])
    expected = columns.T.cov() / 2 + torch.diag(columns.var(dim=0, correction=0)) / 2
    torch.testing.assert_close(drawn.mean(dim=0), columns.mean(dim=0), rtol=0, atol=0.1 * expected.max().sqrt().item())
    torch.testing.assert_close(drawn.T.cov(), expected, rtol=0, atol=0.08 * expected.max().item())


def test_one_labelled_image_is_enough():
    images, targets = pictures(1)
    assert len([weights(drawn) for drawn in draws(batch_norm_model(), images, targets)]) == 3


def test_a_temperature_does_not_change_what_is_drawn():
    images, targets = pictures()
    cold, warm = batch_norm_model(), batch_norm_model()
    warm.temperature.fill_(3.0)
    for one, other in zip(*(draws(model, images, targets) for model in (cold, warm)), strict=True):
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-4)


def test_draws_on_features_predict_as_well_as_the_trained_head():
    digits = load_digits()
    features, targets = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
    trunk, tail = nn.Flatten(), nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10))
    model = Classifier(trunk, tail, n_classes=10, channels=1, pretrained=True)
    model.freeze("trunk")
    train, test = slice(0, 300), slice(300, None)
    how = {"task": classification, "device": CPU, "from_features": True, "seed": 0}
    fit(model, features[train], targets[train], Recipe(learning_rate=1e-2), **how)

    def loss(probs):
        return -probs[torch.arange(len(probs)), targets[test]].log().mean().item()

    plain = predict_from_features([model], features[test], task=classification, seed=0)[0][:, 0, 0]
    drawn = [
        predict_from_features([each], features[test], task=classification, seed=0)[0][:, 0, 0]
        for each in swag_draws(model, features[train], targets[train], Recipe(), n_draws=10, **how)
    ]
    together = torch.stack(drawn).mean(dim=0)
    assert loss(together) < loss(plain) + 0.02
    assert loss(together) < sum(loss(one) for one in drawn) / len(drawn)
    assert torch.stack(drawn).std(dim=0).mean() > 1e-3


@pytest.mark.parametrize("options", [{"n_draws": 0}, {"n_columns": 1}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(options):
    images, targets = pictures()
    with pytest.raises(ValueError, match="SWAG needs"):
        next(draws(batch_norm_model(), images, targets, **options))


def test_a_network_that_is_frozen_throughout_is_refused():
    model = build_model("small_cnn", n_classes=3, image_size=12, channels=1, seed=0)
    model.freeze("trunk", "tail")
    with pytest.raises(ValueError, match="weights that are not frozen"):
        next(draws(model, *pictures()))
