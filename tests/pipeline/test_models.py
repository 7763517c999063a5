import argparse
import contextlib
import copy
import hashlib
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as zoo

from pipeline.networks.build import MODELS, build_model, check_model_name, default_image_size, with_new_head
from pipeline.networks.classifier import PHASES, Classifier, evaluating, half_precision
from pipeline.networks.errors import ModelError
from pipeline.networks.posterior import Posterior
from pipeline.networks.state_dicts import read_state_dict
from pipeline.networks.stochastic import drop_probability, is_stochastic, is_stochastic_depth
from pipeline.networks.weights import load_trunk, load_weights, save_trunk, save_weights, shrink_and_perturb

LIGHT = ["small_cnn", "torchvision:mobilenet_v3_small"]
CUT = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"]
FAMILIES = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:swin_t",
    "torchvision:shufflenet_v2_x0_5",
]


def build(name="small_cnn", **changes):
    options = {"n_classes": 3, "image_size": 32, "channels": 3, "seed": 0} | changes
    return build_model(name, **options)


def pictures(n=4, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def same_state(left, right):
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


class Batchy(nn.Sequential):
    """A trunk with everything in it that training could move."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())


def batchy_classifier():
    return Classifier(Batchy(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 2)), n_classes=2, channels=3)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 28, 61, 128])
def test_own_networks_take_any_size_and_grey_or_colour(name, channels, size):
    model = build(name, channels=channels, image_size=size)
    images = pictures(channels=channels, size=size)
    assert model(images).shape == (4, 3)
    assert model.embed(images).ndim == 2


@pytest.mark.parametrize("name", [*sorted(MODELS), *FAMILIES, "torchvision:vit_b_32"])
def test_a_network_is_a_trunk_and_a_tail_that_ends_in_a_linear_layer(name):
    model = build(name, channels=1, dropout=0.2)
    last = model.tail[-1]
    assert isinstance(last, nn.Linear)
    assert last.out_features == 3
    assert is_stochastic(model.tail[0])
    images = pictures(channels=1)
    embeddings = model.embed(images)
    assert embeddings.shape == (4, last.in_features)
    with torch.no_grad():
        torch.testing.assert_close(model(images), last(embeddings))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.split(":")[1] in CUT])
def test_a_cut_network_with_its_own_last_layer_back_computes_what_it_did(name, tmp_path):
    network = name.removeprefix("torchvision:")
    torch.manual_seed(1)
    whole = zoo.get_model(network, weights=None, num_classes=7).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    model = build(name, weights=str(tmp_path / "weights.pt"))
    own = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    model.tail[-1] = own
    images = pictures(n=2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = whole((images / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    logits = model.read(model.trunk(model.normalise(images)))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert model.pretrained


def test_a_classifier_with_hidden_layers_is_cut_at_its_first_dropout():
    with torch.device("meta"):
        whole = zoo.get_model("alexnet", weights=None)
    assert [type(layer) for layer in whole.classifier][:2] == [nn.Dropout, nn.Linear]
    model = build("torchvision:alexnet", image_size=64, dropout=0.3)
    assert [type(layer).__name__ for layer in model.tail] == [
        type(layer).__name__ for layer in whole.classifier[:6]
    ] + [
        "Dropout",
        "Linear",
    ]
    assert [layer.p for layer in model.tail if is_stochastic(layer)] == [0.5, 0.5, 0.3]
    assert not any(is_stochastic(layer) for layer in model.trunk.modules())
    assert model.embed(pictures(size=64)).shape == (4, 4096)


@pytest.mark.parametrize("name", LIGHT)
def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, again, other = build(name, seed=5), build(name, seed=5), build(name, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(first, again)
    assert not same_state(first, other)


@pytest.mark.parametrize("name", LIGHT)
def test_stored_images_and_their_fractions_give_the_same_logits(name):
    model, images = build(name), pictures()
    torch.testing.assert_close(model(images), model(images / 255))


def test_a_grey_image_is_repeated_for_a_network_of_colours():
    grey, colour = build(LIGHT[1], channels=1), build(LIGHT[1], channels=3)
    images = pictures(channels=1)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_have_mean_zero_and_variance_one_in_each_channel(channels):
    model, images = build(channels=channels), pictures(n=20, channels=channels)
    model.set_normalisation(images)
    plain = images.double() / 255
    torch.testing.assert_close(model.mean.flatten().double(), plain.mean(dim=(0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        model.std.flatten().double(), plain.std(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=1e-6
    )
    normalised = model.normalise(images)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(channels), rtol=1e-3, atol=0)


def test_grey_statistics_serve_all_channels_of_the_trunk():
    model, images = build(LIGHT[1], channels=1), pictures(channels=1)
    model.set_normalisation(images)
    assert model.mean.shape == (3, 1, 1)
    assert model.mean.unique().numel() == 1


def test_images_of_one_colour_stay_finite():
    model = build()
    black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model.set_normalisation(black)
    assert model(black).isfinite().all()
    assert model(pictures()).isfinite().all()


def test_embeddings_have_no_dropout_in_any_mode_and_modes_stay():
    model, images = batchy_classifier(), pictures(size=8)
    expected = model.eval().embed(images)
    model.train()
    model.trunk[1].eval()
    flags = [module.training for module in model.modules()]
    statistics = model.trunk[1].running_mean.clone()
    assert torch.equal(model.embed(images), expected)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model.trunk[1].running_mean, statistics)


def test_modes_come_back_after_an_error():
    model = batchy_classifier().train()
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.zeros(2, 3, 9, 9))  # the last layer is for images of 8 x 8
    assert all(module.training for module in model.modules())


def test_a_frozen_part_never_trains_and_the_rest_does():
    model = batchy_classifier()
    model.freeze("trunk")
    for frozen in (model, copy.deepcopy(model)):
        frozen.train()
        assert not any(module.training for module in frozen.trunk.modules())
        assert all(module.training for module in frozen.tail.modules())
        assert not any(parameter.requires_grad for parameter in frozen.trunk.parameters())
        assert all(parameter.requires_grad for parameter in frozen.tail.parameters())


def test_a_part_of_the_trunk_can_be_frozen():
    model = batchy_classifier().train()
    model.freeze("trunk.0", "trunk.1")
    assert [module.training for module in model.trunk] == [False, False, True, True, True]
    with pytest.raises(AttributeError):
        model.freeze("body")


def train_by_hand(model, *, steps=2, learning_rate=1e-2):
    """Every value that moved, by name."""
    torch.manual_seed(0)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameter_groups(learning_rate, 0.1), weight_decay=0.1)
    model.train()
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(pictures(n=8, seed=step)), torch.arange(8) % 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:efficientnet_b0"])
def test_no_weight_statistic_or_dropout_of_a_frozen_part_moves_and_all_of_the_rest_does(name):
    model = build(name)
    model.train_only("head")
    moved = train_by_hand(model)
    assert moved == {name for name in model.state_dict() if name.startswith("tail.")}
    assert model.is_trunk_frozen
    images = pictures()
    assert torch.equal(model.features(images), model.features(images))
    model.train_only("all")
    assert not model.frozen
    assert all(values.requires_grad for values in model.parameters())
    assert {"trunk", "tail"} <= {name.split(".")[0] for name in train_by_hand(model, steps=1)}
    if "efficientnet" in name:
        assert not torch.equal(model.features(images), model.features(images))


def test_a_frozen_transformer_keeps_the_weights_that_are_in_no_layer():
    with torch.device("meta"):
        model = Classifier(zoo.get_model("vit_b_32", weights=None), nn.Sequential(), n_classes=3, channels=3)
    model.train_only("head")
    assert not [name for name, values in model.trunk.named_parameters() if values.requires_grad]
    assert {"class_token", "encoder.pos_embedding"} <= {name for name, _ in model.trunk.named_parameters()}


def test_a_phase_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="head, all, got 'body'"):
        build().train_only("body")


def test_the_head_phase_trains_the_head_alone_where_the_tail_kept_layers_of_the_network():
    model = build("torchvision:vgg11", image_size=32)
    model.train_only("head")
    trained = [values for group in model.parameter_groups(0.02, 0.1) for values in group["params"]]
    assert {id(values) for values in trained} == {id(values) for values in model.tail[-1].parameters()}
    assert any(is_stochastic(layer) and layer.training for layer in model.train().tail[: model.n_kept])
    new = with_new_head(model, seed=1)
    assert [len(group["params"]) for group in new.parameter_groups(0.02, 0.1)] == [2]
    model.train_only("all")
    assert all(values.requires_grad for values in model.parameters())


@pytest.mark.parametrize(("pretrained", "rate"), [(True, 0.002), (False, 0.02)])
def test_weights_that_came_from_elsewhere_learn_at_their_share_of_the_rate(pretrained, rate):
    tail = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    model = Classifier(Batchy(), tail, n_classes=2, channels=3, pretrained=pretrained, n_kept=2)
    head, body = model.parameter_groups(0.02, 0.1)
    assert (head["lr"], body["lr"]) == (0.02, pytest.approx(rate))
    assert {id(values) for values in head["params"]} == {id(values) for values in tail[3].parameters()}
    assert len(body["params"]) == len([*model.trunk.parameters(), *tail[1].parameters()])
    model.freeze("trunk", "tail.1")
    assert [len(group["params"]) for group in model.parameter_groups(0.02, 0.1)] == [2]


def test_a_new_head_shares_the_trunk_and_draws_only_what_is_new():
    tail = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    model = Classifier(Batchy(), tail, n_classes=2, channels=3, pretrained=True, n_kept=2)
    model.set_normalisation(pictures(size=8))
    model.temperature.fill_(3)
    model.train_only("head")
    state = torch.get_rng_state()
    first, again, other = (with_new_head(model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(first, again)
    for new in (first, other):
        assert new.trunk is model.trunk
        assert new.is_trunk_frozen
        assert new.pretrained
        assert new.temperature == 1
        assert torch.equal(new.mean, model.mean)
        assert torch.equal(new.tail[1].weight, model.tail[1].weight)
        assert new.tail[1].weight is not model.tail[1].weight
        assert not torch.equal(new.tail[3].weight, model.tail[3].weight)
    assert not torch.equal(first.tail[3].weight, other.tail[3].weight)


def test_an_mlp_head_has_one_hidden_layer_of_its_own():
    model = build("torchvision:mobilenet_v3_small", head="mlp", dropout=0.3)
    assert [type(layer).__name__ for layer in model.tail] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.p for layer in model.tail if is_stochastic(layer)] == [0.3, 0.3]
    assert model.embed(pictures()).shape == (4, 256)
    with pytest.raises(ValueError, match="head='deep'"):
        build("torchvision:mobilenet_v3_small", head="deep")


def test_logits_are_divided_by_the_temperature():
    model, images = build(), pictures()
    logits = model(images)
    model.temperature.fill_(2.5)
    torch.testing.assert_close(model(images), logits / 2.5)
    torch.testing.assert_close(model.read(model.features(images).half()), logits / 2.5, rtol=1e-2, atol=1e-3)


def has_half_precision(model):
    return not isinstance(half_precision(model, torch.device("cpu")), contextlib.nullcontext)


@torch.no_grad()
def test_half_precision_is_for_large_networks_and_changes_no_clear_prediction():
    assert not has_half_precision(build())
    model = build("torchvision:resnet18", image_size=64)
    if not has_half_precision(model):
        pytest.skip("this processor does not compute in bfloat16")
    images = pictures(n=16, size=64)
    exact = model.read(model.trunk(model.normalise(images)))
    logits = model(images)
    assert logits.dtype == model.features(images).dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0, atol=0.05 * float(exact.std(dim=0).mean() + exact.std()))


def test_gradients_in_half_precision_are_those_of_float32_but_for_rounding():
    model = build("torchvision:resnet18", image_size=64)
    model.train_only("all")
    images = pictures(n=8, size=64)
    weight = model.trunk.layer4[1].conv2.weight
    gradients = []
    for features in (model.features, lambda images: model.trunk(model.normalise(images))):
        loss = nn.functional.cross_entropy(model.read(features(images)), torch.arange(8) % 3)
        gradients.append(torch.autograd.grad(loss, weight)[0])
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99


@pytest.mark.parametrize("phase", PHASES)
def test_a_trunk_of_depthwise_convolutions_is_computed_in_float32(monkeypatch, phase):
    monkeypatch.setattr("pipeline.networks.classifier._has_bfloat16", lambda device: True)
    assert has_half_precision(build("torchvision:resnet18"))
    model = build("torchvision:mobilenet_v3_small")
    model.train_only(phase)
    assert not has_half_precision(model)
    images = pictures(n=2)
    with torch.no_grad():
        assert torch.equal(model.features(images), model.trunk(model.normalise(images)))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("smal_cnn", "small_cnn"),
        ("resnet18", "torchvision:resnet18"),
        ("torchvision:resnt50", "torchvision:resnet50"),
        ("timm:resnt50", "timm:resnet50"),
    ],
)
def test_an_unknown_name_lists_near_ones(wrong, near):
    with pytest.raises(ModelError, match=f"no model '{wrong}'.*{near}"):
        build(wrong)


@pytest.mark.parametrize("network", ["googlenet", "squeezenet1_1"])
def test_a_network_that_cannot_be_cut_says_so(network):
    with pytest.raises(ModelError, match=f"{network} does not end in one Linear"):
        build(f"torchvision:{network}")


@pytest.mark.parametrize("name", ["torchvision:vit_b_32", "torchvision:maxvit_t"])
def test_a_size_that_a_network_cannot_take_is_found_when_it_is_built(name):
    with pytest.raises(ModelError, match=f"{name}.* cannot be built .*40"):
        build(name, image_size=40)


def test_a_size_that_shrinks_to_nothing_is_found_when_the_network_is_built():
    with pytest.raises(ModelError, match="does not take images of 8 x 8 pixels"):
        build("torchvision:alexnet", image_size=8)


@pytest.mark.parametrize("wrong", [{"n_classes": 0}, {"image_size": 7}, {"channels": 4}, {"dropout": 1.0}])
def test_impossible_settings_are_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        build(**wrong)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(N, 3, S, S\), got \(2, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), ValueError, r"got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), TypeError, "uint8 or floats"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        build()(images)


def test_weights_that_the_network_does_not_have_list_those_it_has():
    with pytest.raises(ModelError, match=r"neither a file nor weights of resnet18: IMAGENET1K_V1, DEFAULT"):
        build("torchvision:resnet18", weights="IMAGENET22K")


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.IMAGENET1K_V1"])
def test_weights_without_a_network_say_how_to_bring_a_file(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ModelError, match=r"could not be fetched.*bring the file here and give its path"):
        build("torchvision:resnet18", weights=weights)


def test_published_weights_are_for_one_size_where_the_network_says_so():
    with pytest.raises(ModelError, match=r"do not take 64 pixels.*224"):
        build("torchvision:vit_b_32", image_size=64, weights="DEFAULT")


@pytest.mark.parametrize("wanted", [{"weights": "DEFAULT"}, {"head": "mlp"}])
def test_own_networks_have_no_published_weights_and_their_own_head(wanted):
    with pytest.raises(ModelError, match="no published weights and a head of its own"):
        build("small_cnn", **wanted)


def test_densenet_weights_of_old_releases_are_read(tmp_path):
    torch.manual_seed(2)
    state = zoo.get_model("densenet121", weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): values for key, values in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pt")
    model = build("torchvision:densenet121", weights=str(tmp_path / "old.pt"))
    key = "features.denseblock1.denselayer2.conv1.weight"
    assert torch.equal(model.trunk.state_dict()[key], state[key])


def test_weights_in_safetensors_are_those_in_a_state_dict(tmp_path):
    torch.manual_seed(3)
    state = zoo.get_model("mobilenet_v3_small", weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    save_file(state, tmp_path / "weights.safetensors")
    name = "torchvision:mobilenet_v3_small"
    first, second = (build(name, weights=str(tmp_path / file)) for file in ("weights.pt", "weights.safetensors"))
    assert same_state(first, second)
    assert torch.equal(first.trunk.state_dict()["features.0.0.weight"], state["features.0.0.weight"])
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="not a safetensors file, or it is damaged"):
        build(name, weights=str(tmp_path / "weights.safetensors"))


WRAPPED = {
    "DataParallel": lambda state: {f"module.{name}": values for name, values in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": values for name, values in state.items()},
    "a checkpoint": lambda state: {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
    },
    "a checkpoint of DataParallel": lambda state: {"model": {f"module.{name}": v for name, v in state.items()}},
    "Lightning": lambda state: {"state_dict": {f"model.{name}": v for name, v in state.items()}, "callbacks": {}},
    "options beside": lambda state: {"args": argparse.Namespace(lr=0.1), "model_state_dict": state},
    "self-supervised": lambda state: {f"encoder_q.{n}": v for n, v in state.items()} | {"queue": torch.ones(2)},
    "an average of weights": lambda state: (
        {"n_averaged": torch.ones(())} | {f"module.{n}": v for n, v in state.items()}
    ),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_in_what_trainings_write_around_them(wrap, tmp_path):
    torch.manual_seed(3)
    state = zoo.get_model("mobilenet_v3_small", weights=None).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    model = build("torchvision:mobilenet_v3_small", weights=str(tmp_path / "weights.pth"))
    assert torch.equal(model.trunk.state_dict()["features.0.0.weight"], state["features.0.0.weight"])


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda state: {"student": state, "teacher": state}, "student, teacher"),
        (lambda state: {f"{side}.{n}": v for n, v in state.items() for side in ("q", "key")}, r"begin with q\., key\."),
    ],
)
def test_a_file_of_two_networks_names_both(wrap, named, tmp_path):
    torch.save(wrap(zoo.get_model("mobilenet_v3_small", weights=None).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"holds several networks.*{named}"):
        build("torchvision:mobilenet_v3_small", weights=str(tmp_path / "weights.pth"))


def test_a_pickle_in_the_hubs_folder_is_not_run(tmp_path, monkeypatch):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was run",)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = zoo.get_model_weights("resnet18").IMAGENET1K_V1
    planted = tmp_path / "hub" / "checkpoints" / Path(entry.url).name
    planted.parent.mkdir(parents=True)
    torch.save(Code(), planted)
    with pytest.raises(ModelError, match="its hash is another: delete it to fetch it anew"):
        build("torchvision:resnet18", weights="IMAGENET1K_V1")
    assert not (tmp_path / "was run").exists()


def test_weights_in_the_hubs_folder_are_used_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(3)
    state = zoo.get_model("mobilenet_v3_small", weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    digest = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    entry = zoo.get_model_weights("mobilenet_v3_small").DEFAULT
    monkeypatch.setattr(entry.value, "url", f"http://127.0.0.1:9/mobilenet-{digest[:8]}.pth")
    kept = tmp_path / "hub" / "checkpoints" / f"mobilenet-{digest[:8]}.pth"
    kept.parent.mkdir(parents=True)
    (tmp_path / "weights.pt").rename(kept)
    model = build("torchvision:mobilenet_v3_small", weights="DEFAULT")
    assert torch.equal(model.trunk.state_dict()["features.0.0.weight"], state["features.0.0.weight"])


OWN = """
import torch
from torch import nn

class Own(nn.Module):
    preprocessing = {"image_size": 96, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(6, 10)
        self.unused = nn.Linear(6, 10)
        nn.init.constant_(self.body[0].weight, 0.5)

    def forward(self, images):
        return self.fc(self.body(images).flatten(1))

def sequence():
    return nn.Sequential(Own().body, nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, 7), nn.Dropout(0.4), nn.Linear(7, 10))

def no_end(): return Own().body
def softmax_end(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 2), nn.Softmax(1))
def no_module(): return 3
def failing(): return nn.Linear(3, "many")
def bad_preprocessing():
    own = Own()
    own.preprocessing = {"size": 3}
    return own
number = 4
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_a_factory_gives_its_weights_and_preprocessing(own_module):
    model = build("own_networks:Own", weights="factory")
    assert model.pretrained
    assert (model.trunk.body[0].weight == 0.5).all()
    assert isinstance(model.trunk.fc, nn.Identity)
    assert model.tail[-1].in_features == 6
    assert default_image_size("own_networks:Own", "factory") == 96
    told = model.preprocessing
    assert (told["image_size"], told["channels"]) == (32, 3)
    assert told["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert told["std"] == pytest.approx([0.4, 0.5, 0.6])


def test_a_factory_without_weights_is_drawn_anew(own_module):
    model, again = (build("own_networks:Own") for _ in range(2))
    assert not model.pretrained
    assert not (model.trunk.body[0].weight == 0.5).any()
    assert same_state(model, again)
    assert model.preprocessing["mean"] == [0, 0, 0]


def test_a_factory_takes_a_file_of_weights(own_module, tmp_path):
    whole = sys.modules.get(own_module) or __import__(own_module)
    torch.manual_seed(9)
    network = whole.sequence()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = build("own_networks:sequence", weights=str(tmp_path / "weights.pt"))
    assert [type(layer).__name__ for layer in model.tail] == ["Dropout", "Linear", "Dropout", "Linear"]
    assert model.n_kept == 2
    assert not any(is_stochastic(layer) for layer in model.trunk.modules())
    model.tail[-1] = network[5]
    images = pictures()
    torch.testing.assert_close(model(images), network.eval()(model.normalise(images)))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("nowhere_at_all:f", None, "module 'nowhere_at_all' cannot be imported.*PYTHONPATH"),
        ("torchvison:resnet18", None, "'torchvison' cannot be imported.*Other names begin with torchvision: or timm:"),
        ("own_networks:sequense", None, "has no 'sequense'; near: sequence"),
        ("own_networks:number", None, "must be a function without arguments, got <class 'int'>"),
        ("own_networks:no_module", None, "must return an nn.Module, it returned <class 'int'>"),
        ("own_networks:failing", None, "its factory failed, TypeError: "),
        ("own_networks:no_end", None, "does not end in one Linear layer"),
        ("own_networks:softmax_end", None, "does not end in one Linear layer"),
        ("own_networks:Own", "DEFAULT", "no file; they may also be None or 'factory'"),
        ("own_networks:bad_preprocessing", "factory", "preprocessing must be a dict with image_size, mean and std"),
    ],
)
def test_a_factory_that_does_not_fit_says_why(own_module, name, weights, message):
    with pytest.raises(ModelError, match=message):
        build(name, weights=weights)


@pytest.mark.parametrize("network", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_timm_network_from_a_file_computes_what_it_did(network, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    size = {"img_size": 64} if network.startswith("vit") else {}
    whole = timm.create_model(network, num_classes=7, **size).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    model = build(f"timm:{network}", image_size=64, weights=str(tmp_path / "weights.pt"))
    images = pictures(n=2, size=64)
    features = model.trunk(model.normalise(images))
    expected = whole(model.normalise(images))
    torch.testing.assert_close(whole.get_classifier()(features), expected, rtol=1e-3, atol=1e-4)
    assert model(images).shape == (2, 3)
    assert [type(layer) for layer in model.tail] == [nn.Dropout, nn.Linear]
    settings = timm.models.get_pretrained_cfg(network)
    assert model.preprocessing["mean"] == pytest.approx(settings.mean)
    assert default_image_size(f"timm:{network}", "DEFAULT") == settings.input_size[-1]


def test_timm_weights_that_there_are_not_list_those_there_are():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"'a9_in1k' are neither a file nor weights of resnet18: DEFAULT, a1_in1k"):
        build("timm:resnet18", weights="a9_in1k")
    with pytest.raises(ModelError, match=r"'a9_in1k' are neither"):
        check_model_name("timm:resnet18.a9_in1k")


def test_timm_weights_without_a_network_say_how_to_bring_a_file(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be fetched.*timm/resnet18.tv_in1k.*give its path"):
        build("timm:resnet18", weights="tv_in1k")


def test_without_timm_its_names_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"need the package timm.*pip install '\.\[timm\]'"):
        check_model_name("timm:resnet18")


def test_dropped_paths_of_timm_are_stochastic():
    layers = pytest.importorskip("timm.layers")
    drop = layers.DropPath(0.25)
    assert is_stochastic(drop)
    assert is_stochastic_depth(drop)
    assert drop_probability(drop) == 0.25
    assert not is_stochastic(layers.DropPath(0.0))
    assert drop_probability(nn.Dropout(0.5)) == 0.5


@pytest.mark.parametrize(
    ("name", "weights", "size"),
    [
        ("small_cnn", None, 28),
        ("torchvision:resnet18", None, 224),
        ("torchvision:efficientnet_b1", "IMAGENET1K_V2", 240),
        ("torchvision:vit_b_16", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", 384),
    ],
)
def test_the_image_size_is_what_the_weights_were_trained_at(name, weights, size):
    assert default_image_size(name, weights) == size


class Code:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_with_code_is_refused_and_not_run(write, tmp_path):
    path = tmp_path / "weights.pt"
    write({"conv1.weight": Code(tmp_path / "was_run")}, path)
    with pytest.raises(ModelError, match="a pickle with code"):
        build("torchvision:resnet18", weights=str(path))
    with pytest.raises(ModelError, match="a pickle with code"):
        load_weights(build(), path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 torn", b".", b"(" * 9, b"L1L\n."])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a plain state dict"):
        read_state_dict(path)


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"weights": [torch.zeros(1)], "epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="it holds the keys weights, epoch"):
        read_state_dict(tmp_path / "checkpoint.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelError, match="it holds Tensor"):
        read_state_dict(tmp_path / "tensor.pt")


def test_the_weights_of_another_network_are_refused(tmp_path):
    torch.save(zoo.get_model("mobilenet_v3_large", weights=None).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="another network"):
        build("torchvision:mobilenet_v3_small", weights=str(tmp_path / "weights.pt"))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"another network: \d+ are missing"):
        build("torchvision:mobilenet_v3_small", weights=str(tmp_path / "part.pt"))


@pytest.mark.parametrize("name", LIGHT)
def test_saved_weights_come_back_bit_for_bit(name, tmp_path):
    model, other = build(name, seed=0), build(name, seed=1)
    model.set_normalisation(pictures())
    save_weights(model, tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    assert same_state(model, other)
    assert torch.equal(model(pictures()), other(pictures()))


def test_saved_weights_need_a_network_of_the_same_form(tmp_path):
    save_weights(build(n_classes=3), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"(?s)another network.*size mismatch"):
        load_weights(build(n_classes=4), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="no weights file"):
        load_weights(build(), tmp_path / "elsewhere.pt")


def test_members_on_one_trunk_save_their_heads_apart_from_it(tmp_path):
    model = build("torchvision:mobilenet_v3_small", seed=0)
    model.set_normalisation(pictures())
    member = with_new_head(model, seed=7)
    save_trunk(model, tmp_path / "trunk.pt")
    save_weights(member, tmp_path / "head.pt", with_trunk=False)
    assert (tmp_path / "head.pt").stat().st_size < (tmp_path / "trunk.pt").stat().st_size / 10
    other = build("torchvision:mobilenet_v3_small", seed=1)
    trunk = copy.deepcopy(other.trunk.state_dict())
    load_weights(other, tmp_path / "head.pt")
    assert all(torch.equal(values, trunk[name]) for name, values in other.trunk.state_dict().items())
    load_trunk(other, tmp_path / "trunk.pt")
    assert same_state(other, member)
    with pytest.raises(ModelError, match="another network"):
        load_trunk(build(), tmp_path / "trunk.pt")


def test_weights_from_before_there_was_a_temperature_have_one_of_one(tmp_path):
    model = build()
    state = model.state_dict()
    del state["temperature"]
    torch.save(state, tmp_path / "weights.pt")
    model.temperature.fill_(4)
    load_weights(model, tmp_path / "weights.pt")
    assert model.temperature == 1


def test_a_posterior_is_saved_with_the_weights(tmp_path):
    model, plain = build(), build(seed=1)
    save_weights(plain, tmp_path / "plain.pt")
    model.temperature.fill_(1.5)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "input_directions": (129, 4),
        "input_curvature": (4,),
        "class_directions": (3, 3),
        "class_curvature": (3,),
        "prior_precision": (),
    }
    model.posterior = Posterior(**{name: torch.rand(shape, generator=generator) for name, shape in shapes.items()})
    save_weights(model, tmp_path / "weights.pt")
    load_weights(plain, tmp_path / "weights.pt")
    assert same_state(plain, model)
    assert plain.temperature == 1.5
    load_weights(plain, tmp_path / "plain.pt")
    assert plain.posterior is None


@pytest.mark.parametrize("names", [("posterior.other",), ("posterior.prior_precision",)])
def test_a_posterior_of_another_form_is_refused(tmp_path, names):
    torch.save(build().state_dict() | dict.fromkeys(names, torch.zeros(())), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=f"posterior of another form: {names[0].removeprefix('posterior.')}"):
        load_weights(build(), tmp_path / "weights.pt")


def test_normalisation_may_come_from_some_rows():
    images = torch.randint(0, 256, (700, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.randperm(700, generator=torch.Generator().manual_seed(1))[:600]
    model = build()
    model.set_normalisation(images, rows)
    values = images[rows].double() / 255
    torch.testing.assert_close(model.mean.flatten(), values.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(model.std.flatten(), values.transpose(0, 1).flatten(1).std(dim=1, correction=0).float())


def test_shrink_and_perturb_is_the_mean_of_previous_and_fresh_weights():
    previous, model, fresh = (build("torchvision:mobilenet_v3_small", seed=seed) for seed in (1, 2, 2))
    train_by_hand(previous, steps=1)
    model.temperature.fill_(2)
    state = previous.state_dict() | {"temperature": torch.tensor(9.0), "posterior.prior_precision": torch.ones(())}
    shrink_and_perturb(model, state, shrink=0.75)
    learnt = dict(previous.named_parameters())
    for (name, values), new in zip(model.named_parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(values, 0.75 * learnt[name] + 0.25 * new)
    statistic = "features.0.1.running_mean"
    assert torch.equal(model.trunk.state_dict()[statistic], previous.trunk.state_dict()[statistic])
    assert model.temperature == 2


def test_shrink_and_perturb_leaves_a_trunk_that_never_moved_bit_for_bit():
    previous, model = batchy_classifier(), batchy_classifier()
    model.trunk.load_state_dict(previous.trunk.state_dict())
    shrink_and_perturb(model, previous.state_dict(), shrink=0.6)
    assert same_state(model.trunk, previous.trunk)
    assert not torch.equal(model.tail[1].weight, previous.tail[1].weight)
    heads = {name: values for name, values in batchy_classifier().state_dict().items() if "trunk" not in name}
    shrink_and_perturb(model, heads, shrink=1)
    assert same_state(model.trunk, previous.trunk)
    assert torch.equal(model.tail[1].weight, heads["tail.1.weight"])


class Tied(nn.Module):
    """One convolution under two names, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second = self.first
        self.register_buffer("passing", torch.zeros(1), persistent=False)

    def forward(self, images):
        return self.second(self.norm(self.first(images))).flatten(1)


def test_shrink_and_perturb_moves_a_weight_with_two_names_once():
    previous, model, fresh = (
        Classifier(Tied(), nn.Sequential(nn.Linear(192, 2)), n_classes=2, channels=3) for _ in range(3)
    )
    model.load_state_dict(fresh.state_dict())
    previous.trunk.norm.running_mean.fill_(7)
    shrink_and_perturb(model, previous.state_dict(), shrink=0.75)
    assert model.trunk.second is model.trunk.first
    expected = 0.75 * previous.trunk.first.weight + 0.25 * fresh.trunk.first.weight
    torch.testing.assert_close(model.trunk.first.weight, expected)
    assert model.trunk.norm.running_mean.tolist() == [7, 7, 7]


@pytest.mark.parametrize(("phase", "kept"), [("all", [0, 0, 0]), ("part", [7, 7, 7])])
def test_shrink_and_perturb_takes_over_the_statistics_that_training_moves(phase, kept):
    previous, model = (
        Classifier(Tied(), nn.Sequential(nn.Linear(192, 2)), n_classes=2, channels=3, pretrained=True) for _ in range(2)
    )
    previous.trunk.norm.running_mean.fill_(7)
    if phase == "part":
        model.frozen = ("trunk.first",)  # as where the part that has the batch-norm is open
    shrink_and_perturb(model, previous.state_dict())
    assert model.trunk.norm.running_mean.tolist() == kept


def test_shrink_and_perturb_refuses_another_network():
    with pytest.raises(ModelError, match=r"another network: .*tail"):
        shrink_and_perturb(build(n_classes=3), build(n_classes=4).state_dict())
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        shrink_and_perturb(build(), build().state_dict(), shrink=1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_saved_on_a_gpu_loads_without_one(tmp_path):
    model = build().to("cuda")
    save_weights(model, tmp_path / "weights.pt")
    assert all(values.device.type == "cpu" for values in read_state_dict(tmp_path / "weights.pt").values())
