"""Networks that keep places."""

import pytest
import torch
from torch import nn

from pipeline.members.predict import predict_from_features, predict_members
from pipeline.networks.build import build_model, with_new_head
from pipeline.networks.errors import ModelError
from pipeline.networks.features import extract, feature_key
from pipeline.networks.pyramid import Pyramid, find_pyramid
from pipeline.networks.weights import load_weights, save_weights
from pipeline.tasks import TASKS
from pipeline.tasks.task_type import outputs_of
from pipeline.types import Outputs

OUTPUTS = Outputs(n=7, n_logits=3, stride=4)


class Places:
    """A task that reads four numbers besides three logits."""

    stride = 4

    @staticmethod
    def logits(outputs):
        return outputs[:, :3].flatten(2).transpose(1, 2)

    @staticmethod
    def places(outputs):
        return outputs[:, 3:].flatten(2).transpose(1, 2)


def network(name="small_cnn", *, image_size=32, channels=3, seed=0, dropout=0.3):
    form = {"n_classes": 2, "image_size": image_size, "channels": channels, "dropout": dropout}
    return build_model(name, **form, outputs=OUTPUTS, seed=seed)


def pictures(n, *, size=32, channels=3):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("torchvision:resnet18", [64, 128, 256, 512]),
        ("torchvision:mobilenet_v2", [24, 32, 96, 1280]),
        ("torchvision:mobilenet_v3_small", [16, 24, 48, 576]),
        ("torchvision:efficientnet_b0", [24, 40, 112, 1280]),
        ("torchvision:convnext_tiny", [96, 192, 384, 768]),
    ],
)
def test_last_map_of_each_stride_is_found(name, channels):
    model = network(name, image_size=96)
    assert [shape[0] for shape in model.trunk.shapes] == channels
    assert [shape[1:] for shape in model.trunk.shapes] == [(24, 24), (12, 12), (6, 6), (3, 3)]
    assert model(pictures(2, size=96)).shape == (2, 7, 24, 24)


@pytest.mark.parametrize("size", [20, 33, 40, 48, 225])
def test_each_stride_has_a_map_of_its_own_at_any_size(size):
    pyramid = network("torchvision:resnet18", image_size=size).trunk
    assert list(pyramid.names) == [f"layer{n}" for n in range(1, 1 + len(pyramid.names))]
    assert pyramid.sides == {stride: -(-size // stride) for stride in pyramid.sides}


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (50, 3)])
def test_our_own_network_makes_maps_of_any_image(size, channels):
    outputs = network(image_size=size, channels=channels)(pictures(3, size=size, channels=channels))
    side = -(-size // 4)
    assert outputs.shape == (3, 7, side, side)


def test_a_coarser_map_reads_the_finer_ones_too():
    model = build_model("small_cnn", n_classes=2, image_size=64, channels=3, outputs=Outputs(5, 5, stride=8), seed=0)
    assert [shape[1] for shape in model.trunk.shapes] == [16, 8, 4]
    images = pictures(2, size=64)
    rows = model.features(images)
    assert model(images).shape == (2, 5, 8, 8)
    finest = model.trunk.shapes[0]
    rows[:, : finest[0] * finest[1] * finest[2]] = 0
    assert not torch.allclose(model.read(rows), model(images))


def test_what_has_no_maps_is_refused():
    with pytest.raises(ModelError, match=r"no map of a place for each 4 x 4 pixels.*convolutional"):
        network("torchvision:vit_b_16", image_size=32)
    with pytest.raises(ModelError, match="no published weights"):
        build_model("small_cnn", n_classes=2, image_size=32, channels=3, weights="x.pt", outputs=OUTPUTS, seed=0)


def test_maps_are_those_that_the_modules_put_out():
    body = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.ReLU(), nn.Conv2d(5, 6, 2, stride=2))
    found = find_pyramid(body, "ours", stride=4, channels=3, image_size=16)
    images = torch.randn(2, 3, 16, 16)
    first = body[1](body[0](images))
    assert torch.equal(found(images), torch.cat([first.flatten(1), body[2](first).flatten(1)], dim=1))


def test_members_decide_about_the_same_places_from_images_and_from_features():
    body = network()
    body.train_only("head")
    heads = [with_new_head(body, seed=seed) for seed in (0, 1)]
    assert heads[0].trunk is heads[1].trunk
    assert not torch.equal(heads[0].tail[-1].weight, heads[1].tail[-1].weight)
    images = pictures(5)
    how = {"task": Places(), "mc_dropout": 2, "seed": 3}
    seen = predict_members(heads, images, **how)
    assert (seen.decisions.shape, seen.places.shape) == ((5, 64, 4, 3), (5, 64, 4))
    read = predict_from_features(heads, extract(body, images, device=torch.device("cpu")), **how)
    for one, other in zip(seen, read, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=0)


def test_temperature_changes_logits_and_no_places():
    model, images = network(), pictures(2)
    before = model(images)
    model.temperature.fill_(2.0)
    after = model(images)
    torch.testing.assert_close(after[:, :3], before[:, :3] / 2)
    assert torch.equal(after[:, 3:], before[:, 3:])


def test_weights_come_back_and_the_key_of_features_knows_the_maps(tmp_path):
    model, again = network(seed=0), network(seed=1)
    save_weights(model, tmp_path / "member.pt")
    load_weights(again, tmp_path / "member.pt")
    assert torch.equal(model(pictures(2)), again(pictures(2)))
    key = feature_key(model, image_size=32)
    fewer = Pyramid(model.trunk.body, {4: (model.trunk.names[0], model.trunk.shapes[0])})
    model.trunk = fewer
    assert feature_key(model, image_size=32) != key


def test_tasks_that_read_maps_share_the_features_of_a_trunk():
    form = {"n_classes": 2, "image_size": 64, "channels": 3, "seed": 0}
    keys = {
        feature_key(build_model("torchvision:resnet18", **form, outputs=outputs_of(TASKS[name], 2)), image_size=64)
        for name in ("segmentation", "detection")
    }
    assert len(keys) == 1


def test_head_of_two_layers_is_refused_where_outputs_are_a_map():
    form = {"n_classes": 2, "image_size": 32, "channels": 3, "outputs": OUTPUTS, "seed": 0}
    for name in ("small_cnn", "torchvision:resnet18"):
        with pytest.raises(ModelError, match=r"head = 'mlp' is for labels of whole images.* leave head out"):
            build_model(name, **form, head="mlp")
