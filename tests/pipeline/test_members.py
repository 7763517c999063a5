import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from pipeline.learning.predict import decide_on_features
from pipeline.learning.settings import MemberSettings
from pipeline.members.dropout import check_dropout, draw_mask, stochastic_layers
from pipeline.members.laplace import fit_posterior
from pipeline.members.predict import first_half, predict_from_features, predict_members
from pipeline.networks.build import build_model, with_new_head
from pipeline.networks.classifier import Classifier
from pipeline.randomness import derive_seed
from pipeline.tasks import classification, segmentation
from pipeline.tasks.task_type import outputs_of
from pipeline.training.augmentation import digits

LAYERS = {
    "Dropout": (nn.Dropout(0.3), (4, 6)),
    "Dropout of images": (nn.Dropout(0.3), (4, 3, 5, 5)),
    "Dropout1d": (nn.Dropout1d(0.3), (4, 6, 5)),
    "Dropout2d": (nn.Dropout2d(0.3), (4, 6, 3, 3)),
    "Dropout3d": (nn.Dropout3d(0.3), (4, 6, 2, 2, 2)),
    "AlphaDropout": (nn.AlphaDropout(0.3), (4, 6)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.3), (4, 6, 3, 3)),
    "StochasticDepth by row": (StochasticDepth(0.3, "row"), (4, 6, 3, 3)),
    "StochasticDepth by batch": (StochasticDepth(0.3, "batch"), (4, 6, 3, 3)),
}


def pictures(n=12, channels=1, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def small_model(seed=0, **changes):
    return build_model("small_cnn", **({"n_classes": 3, "image_size": 12, "channels": 1, "seed": seed} | changes))


def batch_norm_model(seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    tail = nn.Sequential(nn.Dropout(0.5), nn.Linear(800, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return Classifier(trunk, tail, n_classes=3, channels=1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(1, 1, 3, padding=1)
        self.stochastic_depth = StochasticDepth(0.5, "row")

    def forward(self, features):
        return features + self.stochastic_depth(self.branch(features))


def stochastic_depth_model(seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(Residual(), Residual(), Residual(), nn.Flatten())
    return Classifier(trunk, nn.Sequential(nn.Dropout(0.5), nn.Linear(144, 3)), n_classes=3, channels=1)


def predict(models, images, *, mc_dropout=0, seed=0, **options):
    return predict_members(models, images, task=classification, mc_dropout=mc_dropout, seed=seed, **options)


def close(left, right):
    return torch.allclose(left, right, rtol=1e-5, atol=1e-6)


def test_without_dropout_each_model_is_one_member():
    models, images = [small_model(0), small_model(1)], pictures()
    decisions, embeddings, _ = predict(models, images)
    assert decisions.shape == (12, 1, 2, 3)
    for number, model in enumerate(models):
        assert close(decisions[:, 0, number], model(images).softmax(dim=1))
    assert close(embeddings, models[0].embed(images))


def test_members_are_models_times_passes_and_those_of_the_first_model_come_first():
    models, images = [small_model(0), small_model(1)], pictures()
    decisions, embeddings, _ = predict(models, images, mc_dropout=3)
    alone, *_ = predict(models[:1], images, mc_dropout=3)
    assert decisions.shape == (12, 1, 6, 3)
    assert torch.equal(decisions[:, :, :3], alone)
    assert len({tuple(member.flatten().tolist()) for member in decisions.unbind(dim=2)}) == 6
    assert close(embeddings, models[0].embed(images))


def test_what_comes_back_is_plain_float32_on_the_processor():
    decisions, embeddings, _ = predict([small_model()], pictures(), mc_dropout=2)
    for values in (decisions, embeddings):
        assert (values.dtype, values.device.type, values.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(decisions.sum(dim=-1), torch.ones(12, 1, 2))


@pytest.mark.parametrize("build", [small_model, batch_norm_model, stochastic_depth_model])
def test_decisions_do_not_depend_on_how_the_pool_is_split_or_ordered(build):
    model, images = build(), pictures()
    whole, whole_embeddings, _ = predict([model], images, mc_dropout=3)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    parts = [predict([model], part, mc_dropout=3, batch_size=2) for part in images[order].split(5)]
    decisions, embeddings = (torch.cat(values) for values in list(zip(*parts, strict=True))[:2])
    torch.testing.assert_close(decisions, whole[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings, whole_embeddings[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [small_model, stochastic_depth_model])
def test_same_seed_same_members(build):
    model, images = build(), pictures()
    first, again, other = (predict([model], images, mc_dropout=2, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not close(first, other)


def test_more_passes_leave_the_first_ones_as_they_were():
    model, images = small_model(), pictures()
    assert torch.equal(predict([model], images, mc_dropout=5)[0][:, :, :2], predict([model], images, mc_dropout=2)[0])


def test_models_of_the_same_weights_get_masks_of_their_own():
    decisions, *_ = predict([small_model(0), small_model(0)], pictures(), mc_dropout=1)
    assert not close(decisions[:, :, 0], decisions[:, :, 1])


def test_a_member_keeps_one_mask_for_all_images():
    model = Classifier(
        nn.Flatten(), nn.Sequential(nn.Dropout(0.25), nn.Linear(64, 64, bias=False)), n_classes=64, channels=1
    )
    nn.init.eye_(model.tail[1].weight)
    images = pictures(20, size=8).clamp(min=1)

    class Logits:
        loss, metrics = classification.loss, classification.metrics

        @staticmethod
        def logits(outputs):
            return torch.stack([outputs, torch.zeros_like(outputs)], dim=-1)

        @staticmethod
        def places(outputs):
            return None

    decisions, *_ = predict_members([model], images, task=Logits(), mc_dropout=4, seed=0)
    seen = decisions.logit()[..., 0].transpose(1, 2)
    masks = seen / (images.flatten(1)[:, None] / 255)
    assert close(masks, masks[:1].expand_as(masks))
    torch.testing.assert_close(masks.unique().round(decimals=4).unique(), torch.tensor([0.0, 1.3333]))
    assert len(masks[0].unique(dim=0)) == 4


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_has_the_mean_and_the_variance_of_the_layer_in_training(name):
    layer, shape = LAYERS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    n = 3000
    generator = torch.Generator().manual_seed(1)
    masks = [draw_mask(layer, inputs.shape, generator) for _ in range(n)]
    ours = torch.stack([inputs * scale + shift for scale, shift in masks])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layer.train()
        theirs = torch.stack([layer(inputs) for _ in range(n)])
    spread = theirs.std(dim=0) * (2 / n) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * spread + 1e-6).all()
    torch.testing.assert_close(ours.var(dim=0), theirs.var(dim=0), rtol=0.2, atol=1e-6)
    values = [outcomes[:, 0].flatten(1)[:, 0].unique() for outcomes in (ours, theirs)]
    torch.testing.assert_close(*values)  # what a first input can become: dropped or kept


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_is_drawn_for_channels_where_the_layer_drops_channels(name):
    layer, shape = LAYERS[name]
    scale, shift = draw_mask(layer, torch.Size(shape), torch.Generator().manual_seed(0))
    assert scale.shape == shift.shape
    if isinstance(layer, StochasticDepth):
        assert scale.numel() == 1
    elif isinstance(layer, nn.Dropout | nn.AlphaDropout):
        assert scale.shape == (1, *shape[1:])
    else:
        assert scale.shape == (1, shape[1], *(1 for _ in shape[2:]))


@pytest.mark.parametrize("layer", [nn.Dropout(1.0), nn.AlphaDropout(1.0), StochasticDepth(1.0, "row")])
def test_a_layer_that_drops_everything_gives_zeros(layer):
    scale, shift = draw_mask(layer, torch.Size((2, 5)), torch.Generator())
    assert not scale.any()
    assert not shift.any()


def test_the_mean_over_many_passes_agrees_with_dropout_in_training():
    model, images, n = batch_norm_model(), pictures(6), 400
    ours = predict([model], images, mc_dropout=n)[0][:, 0]
    model.eval()
    for layer in stochastic_layers(model).values():
        layer.train()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(3)
        theirs = torch.stack([model(images).softmax(dim=1) for _ in range(n)], dim=1)
    spread = (ours.var(dim=1) / n + theirs.var(dim=1) / n).sqrt()
    assert spread.max() < 0.05
    assert ((ours.mean(dim=1) - theirs.mean(dim=1)).abs() < 5 * spread).all()


@pytest.mark.parametrize("mc_dropout", [0, 3])
def test_nothing_in_the_model_changes(mc_dropout):
    model = batch_norm_model().train()
    model.trunk[2].eval()
    flags = [module.training for module in model.modules()]
    state = {name: values.clone() for name, values in model.state_dict().items()}
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    predict([model], pictures(), mc_dropout=mc_dropout)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("mc_dropout", "n_batches"), [(0, 3), (1, 3), (20, 3)])
def test_a_deterministic_trunk_runs_once_for_each_image(mc_dropout, n_batches):
    model, runs = small_model(), []
    check_dropout(model, pictures())
    model.trunk.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    predict([model], pictures(12), mc_dropout=mc_dropout, batch_size=5)
    assert runs == [5, 5, 2]


def test_a_stochastic_trunk_runs_for_each_pass_and_one_that_is_frozen_does_not():
    images = pictures()
    model, runs = stochastic_depth_model(), []
    check_dropout(model, images)
    model.trunk.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    decisions, embeddings, _ = predict([model], images, mc_dropout=3)
    assert len(runs) == 1 + 3
    assert close(embeddings, model.embed(images))
    model.freeze("trunk")
    check_dropout(model, images)
    runs.clear()
    decisions, *_ = predict([model], images, mc_dropout=3)
    assert len(runs) == 1
    assert not close(decisions[:, :, 0], decisions[:, :, 1])
    assert list(stochastic_layers(model)) == ["tail.0"]


def test_a_pass_through_a_stochastic_trunk_is_the_network_with_some_blocks_taken_out():
    model, images = stochastic_depth_model(), pictures()
    model.tail[0].p = 0.0
    decisions, *_ = predict([model], images, mc_dropout=16)
    features, variants = model.normalise(images), []
    for kept in itertools.product((0.0, 2.0), repeat=3):
        outcome = features
        for share, block in zip(kept, model.trunk, strict=False):
            outcome = outcome + share * block.branch(outcome)
        variants.append(model.tail[1](outcome.flatten(1)).softmax(dim=1))
    found = [
        [number for number, variant in enumerate(variants) if close(member, variant)]
        for member in decisions[:, 0].unbind(1)
    ]
    assert all(len(numbers) == 1 for numbers in found)
    assert len({numbers[0] for numbers in found}) > 4


def test_a_network_without_dropout_is_refused():
    model = small_model(dropout=0.0)
    with pytest.raises(ValueError, match="needs a network with dropout"):
        predict([model], pictures(), mc_dropout=2)
    assert predict([model], pictures())[0].shape == (12, 1, 1, 3)


def test_a_network_whose_dropout_is_frozen_is_refused():
    model = small_model()
    model.freeze("tail")
    with pytest.raises(ValueError, match="in a part that is not frozen"):
        predict([model], pictures(), mc_dropout=2)


def test_passes_that_come_out_identical_are_an_error():
    model = small_model()
    nn.init.zeros_(model.tail[2].weight)  # dead: every image looks the same to what follows
    nn.init.constant_(model.tail[2].bias, -1.0)
    with pytest.raises(ValueError, match="the 2 dropout passes of model 1 come out identical"):
        predict([small_model(), model], pictures(), mc_dropout=2)


def test_members_may_be_none_of_an_empty_pool():
    decisions, embeddings, _ = predict([small_model()], pictures(0), mc_dropout=4)
    assert decisions.shape == (0, 1, 4, 3)
    assert embeddings.shape == (0, 128)


@pytest.mark.parametrize(("models", "mc_dropout", "message"), [([], 0, "at least one model"), ([0], -1, "got -1")])
def test_impossible_arguments_are_refused(models, mc_dropout, message):
    with pytest.raises(ValueError, match=message):
        predict([small_model(seed) for seed in models], pictures(), mc_dropout=mc_dropout)


class Head(nn.Module):
    """A trunk with a part of its own between two convolutions."""

    def __init__(self, part):
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(1, 4, 3), part, nn.Conv2d(4, 4, 3)

    def forward(self, images):
        return self.last(self.part(self.first(images))).flatten(1)


class FunctionalDropout(nn.Module):
    def forward(self, features):
        return functional.dropout(features, 0.3, training=self.training)


class Attention(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, dropout=dropout, batch_first=True)

    def forward(self, features):
        tokens = features.flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return attended.transpose(1, 2).reshape(features.shape)


def model_with(part):
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 64, 3))
    return Classifier(Head(part), tail, n_classes=3, channels=1)


def shared_heads(n=3, head="linear", name="torchvision:resnet18"):
    first = build_model(name, n_classes=3, image_size=32, channels=3, head=head, seed=0)
    first.train_only("head")
    return [first, *(with_new_head(first, seed=seed) for seed in range(1, n))]


def with_posterior(model, images):
    model.posterior = fit_posterior(model, model.embed(images))
    return model


@pytest.mark.parametrize(
    ("part", "name"),
    [(FunctionalDropout(), "trunk.part"), (Attention(0.2), "trunk.part"), (nn.RReLU(), "trunk.part")],
)
def test_random_numbers_that_no_mask_stands_for_are_refused_and_named(part, name):
    model = model_with(part)
    with pytest.raises(ValueError, match=f"'{name}.*draws others in training"):
        predict([model], pictures(), mc_dropout=2)
    model.freeze("trunk")
    check_dropout(model, pictures())  # what is frozen draws nothing


@pytest.mark.parametrize("part", [nn.Identity(), Attention(0.0), nn.Dropout2d(0.3), nn.BatchNorm2d(4)])
def test_networks_whose_random_numbers_are_all_known_pass_unchanged(part):
    model = model_with(part)
    state = {name: values.clone() for name, values in model.state_dict().items()}
    flags, generator = [module.training for module in model.modules()], torch.get_rng_state()
    check_dropout(model, pictures(1))
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_pass_keeps_or_drops_the_paths_of_timm_networks():
    layers = pytest.importorskip("timm.layers")
    model, images = model_with(layers.DropPath(0.4)), pictures()
    assert list(stochastic_layers(model)) == ["trunk.part", "tail.0"]
    model.tail[0].p = 0.0
    decisions, *_ = predict([model], images, mc_dropout=12)
    features = model.trunk.first(model.normalise(images))
    variants = [model.tail(model.trunk.last(features * share).flatten(1)).softmax(1) for share in (0.0, 1 / 0.6)]
    found = [[close(member, variant) for variant in variants] for member in decisions[:, 0].unbind(1)]
    assert all(sum(which) == 1 for which in found)
    assert 0 < sum(which[0] for which in found) < 12


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_from_features_members_are_those_from_images(head):
    models, images = shared_heads(head=head), pictures(9, channels=3, size=32)
    for model in models:
        with_posterior(model, images)
        model.temperature.fill_(2.0)
    for counts in ({}, {"mc_dropout": 3}, {"laplace": 2}, {"mc_dropout": 2, "laplace": 3}):
        seen, embedded, _ = predict(models, images, seed=5, **counts)
        with torch.no_grad():
            features = models[0].features(images)
        read, embedded_too, _ = predict_from_features(models, features.half(), task=classification, seed=5, **counts)
        torch.testing.assert_close(read, seen, rtol=0.02, atol=2e-3)
        torch.testing.assert_close(embedded_too, embedded, rtol=2e-3, atol=2e-3)
        exact, *_ = predict_from_features(models, features, task=classification, seed=5, **counts)
        torch.testing.assert_close(exact, seen, rtol=1e-4, atol=1e-5)


def test_one_product_for_all_members_gives_what_hooks_on_the_layers_give():
    models, images = shared_heads(2), pictures(6, channels=3, size=32)
    slow = [
        Classifier(m.trunk, nn.Sequential(*m.tail[:-1], nn.Identity(), m.tail[-1]), n_classes=3, channels=3)
        for m in models
    ]
    for fast, other in zip(models, slow, strict=True):
        with_posterior(fast, images)
        other.freeze("trunk")
        other.posterior = fast.posterior
        for each in (fast, other):
            each.temperature.fill_(0.5)
    ours, theirs = (predict(each, images, mc_dropout=3, laplace=2)[0] for each in (models, slow))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len({tuple(member.flatten().tolist()) for member in ours.unbind(dim=2)}) == 12


def test_blocks_of_features_change_nothing(monkeypatch):
    models, features = shared_heads(2), torch.rand(50, 512)
    whole = predict_from_features(models, features, task=classification, mc_dropout=2, seed=0)
    monkeypatch.setattr("pipeline.members.predict.BLOCK", 4000)
    for ours, theirs in zip(
        predict_from_features(models, features, task=classification, mc_dropout=2, seed=0), whole, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_blocks_and_parts_of_features_are_small_where_outputs_are_maps_and_no_pass_is_wasted(monkeypatch):
    how = {"n_classes": 3, "channels": 1, "outputs": outputs_of(segmentation, 3)}
    body = build_model("small_cnn", image_size=32, seed=0, **how)
    body.freeze("trunk")
    heads = [with_new_head(body, seed=seed) for seed in (0, 1)]
    features, read = body.features(pictures(20, size=32)), []
    made = 2 * 3 * 4 * 8 * 8  # networks, passes, answers, places
    assert heads[0].n_places == 64
    assert heads[0](pictures(1, size=32)).shape == (1, 4, 8, 8)
    monkeypatch.setattr("pipeline.members.predict.BLOCK", 4 * (features[0].numel() + made))
    monkeypatch.setattr("pipeline.learning.predict.MAX_PROBABILITIES", 8 * made)
    heads[0].tail[-1].register_forward_hook(lambda _layer, inputs, _output: read.append(len(inputs[0])))
    members = MemberSettings(mc_dropout=3)
    parts = [*decide_on_features(heads, features, members, task=segmentation, seed=0)]
    assert [part.decisions.shape for part in parts] == [(8, 64, 6, 4), (8, 64, 6, 4), (4, 64, 6, 4)]
    assert read == [4] * 5 * 3


def test_networks_that_share_a_trunk_run_it_once_for_all_passes_and_draws():
    models, images, runs = shared_heads(3), pictures(8, channels=3, size=32), []
    for model in models:
        with_posterior(model, images)
        check_dropout(model, images)
    models[0].trunk.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    decisions, *_ = predict(models, images, mc_dropout=4, laplace=2, batch_size=5)
    assert runs == [5, 3]
    assert decisions.shape == (8, 1, 24, 3)


def test_laplace_members_are_the_network_with_a_draw_added_to_its_last_layer():
    model, images = small_model(dropout=0.0), pictures(200)
    with_posterior(model, images)
    decisions, embeddings, _ = predict([model], images, laplace=3, seed=4)
    residual = decisions[:, 0].log() - model(images).log_softmax(1)[:, None]
    inputs = torch.cat([embeddings, torch.ones(200, 1)], dim=1).double()
    assert torch.linalg.matrix_rank(inputs) < 140
    centred = (residual - residual.mean(dim=2, keepdim=True)).double().flatten(1)
    found = torch.linalg.lstsq(inputs, centred, driver="gelsd").solution
    torch.testing.assert_close(inputs @ found, centred, rtol=1e-3, atol=1e-4)  # linear in the embedding and a 1
    assert centred.abs().max() > 1e-3


def test_laplace_without_a_posterior_is_refused():
    with pytest.raises(ValueError, match="networks with a posterior"):
        predict([small_model()], pictures(), laplace=2)


def test_views_are_the_network_on_images_that_are_all_changed_alike():
    models, images = [small_model(0), small_model(1)], pictures(7)
    decisions, embeddings, _ = predict(models, images, views=3, augmentation="digits", seed=2)
    assert decisions.shape == (7, 1, 6, 3)
    assert close(decisions[:, 0, 0], models[0](images).softmax(1))
    assert close(embeddings, models[0].embed(images))
    split, *_ = predict(models, images.flip(0), views=3, augmentation="digits", seed=2, batch_size=2)
    assert close(split.flip(0), decisions)
    assert not close(decisions[:, :, 1], decisions[:, :, 0])
    # another way: an augmentation of one image draws the same whenever it is seeded the same
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image in images:
            torch.manual_seed(derive_seed(2, 1, "view"))
            changed.append(digits(image[None]).images)
    assert close(decisions[:, 0, 4], models[1](torch.cat(changed)).softmax(1))


@pytest.mark.parametrize(("views", "augmentation"), [(2, "none"), (-1, "digits")])
def test_views_without_a_change_are_refused(views, augmentation):
    with pytest.raises(ValueError, match="views must be"):
        predict([small_model()], pictures(), views=views, augmentation=augmentation)


def test_products_are_nested_networks_views_draws_passes():
    images = pictures(6)
    models = [with_posterior(small_model(seed), images) for seed in (0, 1)]
    how = {"views": 2, "augmentation": "digits", "seed": 3}
    whole, *_ = predict(models, images, mc_dropout=3, laplace=2, **how)
    grid = whole.unflatten(2, (2, 2, 2, 3))
    fewer, *_ = predict(models, images, mc_dropout=1, laplace=1, **how)
    assert whole.shape == (6, 1, 24, 3)
    torch.testing.assert_close(grid[:, :, :, :, 0, 0].flatten(2, 3), fewer)
    plain, *_ = predict(models, images, mc_dropout=3, laplace=2, seed=3)
    torch.testing.assert_close(grid[:, :, :, 0].flatten(2, 4), plain)


def test_half_of_the_members_are_those_that_half_the_draws_give():
    models, images = [small_model(0), small_model(1)], pictures()
    whole, half = (predict(models, images, mc_dropout=passes)[0] for passes in (6, 3))
    torch.testing.assert_close(first_half(whole, 2), half)
    assert first_half(half, 2).shape[2] == 2
    with pytest.raises(ValueError, match="at least two of each network"):
        first_half(predict(models, images)[0], 2)


def test_decisions_at_places_and_embeddings_averaged_over_them():
    class Places:
        @staticmethod
        def logits(outputs):
            return outputs.flatten(2).transpose(1, 2)

        @staticmethod
        def places(outputs):
            return outputs[:, :2].flatten(2).transpose(1, 2)

    torch.manual_seed(0)
    trunk = nn.Conv2d(1, 5, 3, stride=2)
    models = [
        Classifier(trunk, nn.Sequential(nn.Dropout2d(0.3), nn.Conv2d(5, 3, 1)), n_classes=3, channels=1) for _ in "ab"
    ]
    images = pictures(4)
    decisions, embeddings, places = predict_members(models, images, task=Places(), mc_dropout=2, seed=0)
    assert places.shape == (4, 25, 2)
    parts = [predict_members([model], images, task=Places(), seed=0).places for model in models]
    assert close(predict_members(models, images, task=Places(), seed=0).places, torch.stack(parts).mean(dim=0))
    assert decisions.shape == (4, 25, 4, 3)
    assert close(embeddings, trunk(models[0].normalise(images)).mean(dim=(2, 3)))
    with torch.no_grad():
        features = models[0].features(images)
    read, *_ = predict_from_features(models, features, task=Places(), mc_dropout=2, seed=0)
    assert close(read, decisions)


def test_dropout_passes_of_an_open_trunk_cannot_come_from_features():
    with pytest.raises(ValueError, match="give the images"):
        predict_from_features([stochastic_depth_model()], torch.rand(3, 144), task=classification, mc_dropout=2, seed=0)


def test_features_of_no_images_give_no_decisions():
    decisions, embeddings, _ = predict_from_features(shared_heads(2), torch.rand(0, 512), task=classification, seed=0)
    assert (decisions.shape, embeddings.shape) == ((0, 1, 2, 3), (0, 512))
