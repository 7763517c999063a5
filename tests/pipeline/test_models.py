import copy
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models as zoo

from pipeline.models import (
    MODELS,
    Classifier,
    ModelError,
    build_model,
    evaluating,
    is_stochastic,
    load_weights,
    read_state_dict,
    save_weights,
)

LIGHT = ["small_cnn", "torchvision:mobilenet_v3_small"]
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
    torch.testing.assert_close(model(images), last(embeddings))


@pytest.mark.parametrize("name", [name for name in FAMILIES if "shufflenet" not in name])
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
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
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


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("smal_cnn", "small_cnn"), ("resnet18", "torchvision:resnet18"), ("torchvision:resnt50", "torchvision:resnet50")],
)
def test_an_unknown_name_lists_near_ones(wrong, near):
    with pytest.raises(ModelError, match=f"no model '{wrong}'.*{near}"):
        build(wrong)


def test_a_network_that_cannot_be_cut_says_so():
    with pytest.raises(ModelError, match="googlenet does not end in one Linear"):
        build("torchvision:googlenet")


@pytest.mark.parametrize("name", ["torchvision:vit_b_32", "torchvision:maxvit_t"])
def test_a_size_that_a_network_cannot_take_is_found_when_it_is_built(name):
    with pytest.raises(ModelError, match=f"{name}.* cannot be built .*40"):
        build(name, image_size=40)


def test_a_size_that_shrinks_to_nothing_is_found_when_the_network_is_built():
    with pytest.raises(ModelError, match="does not take images of 8 x 8 pixels"):
        build("torchvision:alexnet", image_size=8)


@pytest.mark.parametrize("wrong", [{"n_classes": 1}, {"image_size": 7}, {"channels": 4}, {"dropout": 1.0}])
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


def test_own_networks_have_no_published_weights():
    with pytest.raises(ModelError, match="no published weights"):
        build("small_cnn", weights="DEFAULT")


def test_densenet_weights_of_old_releases_are_read(tmp_path):
    torch.manual_seed(2)
    state = zoo.get_model("densenet121", weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): values for key, values in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pt")
    model = build("torchvision:densenet121", weights=str(tmp_path / "old.pt"))
    key = "features.denseblock1.denselayer2.conv1.weight"
    assert torch.equal(model.trunk.state_dict()[key], state[key])


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


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a plain state dict"):
        read_state_dict(path)


def test_a_file_with_more_than_a_state_dict_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="it holds the keys model, epoch"):
        read_state_dict(tmp_path / "checkpoint.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelError, match="it holds Tensor"):
        read_state_dict(tmp_path / "tensor.pt")


def test_the_weights_of_another_network_are_refused(tmp_path):
    torch.save(zoo.get_model("resnet34", weights=None).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="another network"):
        build("torchvision:resnet18", weights=str(tmp_path / "weights.pt"))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"another network: \d+ are missing"):
        build("torchvision:resnet18", weights=str(tmp_path / "part.pt"))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_saved_on_a_gpu_loads_without_one(tmp_path):
    model = build().to("cuda")
    save_weights(model, tmp_path / "weights.pt")
    assert all(values.device.type == "cpu" for values in read_state_dict(tmp_path / "weights.pt").values())
