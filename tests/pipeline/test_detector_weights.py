"""Weights of ready-made detectors and segmenters: their bodies become trunks."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from pipeline.networks.build import build_model
from pipeline.networks.errors import ModelError
from pipeline.types import Outputs

MAPS = Outputs(n=8, n_logits=4, stride=8)
DETECTORS = {
    "fasterrcnn_resnet50_fpn": "resnet50",
    "maskrcnn_resnet50_fpn_v2": "resnet50",
    "retinanet_resnet50_fpn": "resnet50",
    "fcos_resnet50_fpn": "resnet50",
    "fasterrcnn_mobilenet_v3_large_fpn": "mobilenet_v3_large",
}
TRUNKS = DETECTORS | {
    "deeplabv3_resnet50": "resnet50",
    "fcn_resnet50": "resnet50",
    "lraspp_mobilenet_v3_large": "mobilenet_v3_large",
}


def whole_network(name):
    """A detector or segmenter whose batch-norm statistics are not those that every network begins with."""
    torch.manual_seed(1)
    network = get_model(name, weights=None, weights_backbone=None)
    draw_statistics(network)
    return network.eval()


def draw_statistics(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)


def set_epsilon(network, value):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = value


def build(name, file, *, outputs=MAPS, image_size=64):
    form = {"n_classes": 3, "image_size": image_size, "channels": 3, "seed": 0}
    return build_model(f"torchvision:{name}", **form, weights=str(file), outputs=outputs)


def pictures(n=2, *, size=64):
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def maps_of(model, images):
    """The maps of a trunk, by stride; in float32, as the detector computes them."""
    rows = model.trunk(model.normalise(images))
    parts = rows.split([channels * height * width for channels, height, width in model.trunk.shapes], dim=1)
    maps = [part.unflatten(1, shape) for part, shape in zip(parts, model.trunk.shapes, strict=True)]
    return dict(zip(model.trunk.sides, maps, strict=True))


@pytest.mark.parametrize(("detector", "trunk"), DETECTORS.items())
def test_the_maps_of_a_trunk_are_those_of_the_detectors_own_body(detector, trunk, tmp_path):
    whole = whole_network(detector)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = build(trunk, tmp_path / "weights.pth")
    found = maps_of(model, pictures())
    if trunk != "resnet50":
        set_epsilon(whole, 1e-3)  # no weights file holds it, and it is another than that of the classifier
    with torch.no_grad():
        theirs = whole.backbone.body(model.normalise(pictures()))
    for expected in theirs.values() if trunk == "resnet50" else [list(theirs.values())[-1]]:
        torch.testing.assert_close(found[64 // expected.shape[-1]], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("segmenter", ["deeplabv3_resnet50", "fcn_resnet50"])
def test_a_segmenter_has_the_maps_of_its_trunk_at_more_places(segmenter, tmp_path):
    whole = whole_network(segmenter)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = build("resnet50", tmp_path / "weights.pth")
    with torch.no_grad():
        dense = whole.backbone(model.normalise(pictures()))["out"]
    assert dense.shape[-1] == 8, "dilated convolutions keep a map of stride 8"
    torch.testing.assert_close(maps_of(model, pictures())[32], dense[:, :, ::4, ::4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [*((name, MAPS) for name in TRUNKS), ("fcos_resnet50_fpn", None), ("lraspp_mobilenet_v3_large", None)],
)
def test_all_weights_of_the_body_are_taken_for_every_task(name, outputs, tmp_path):
    trunk = TRUNKS[name]
    whole = whole_network(name)
    body = getattr(whole.backbone, "body", whole.backbone).state_dict()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = build(trunk, tmp_path / "weights.pth", outputs=outputs)
    taken = (model.trunk if outputs is None else model.trunk.body).state_dict()
    own = "features." if trunk.startswith("mobilenet") else ""
    assert {own + name for name in body} == set(taken)
    assert all(torch.equal(taken[own + name], values) for name, values in body.items())
    assert model.pretrained


def test_what_is_left_out_is_told(tmp_path):
    torch.save(whole_network("fasterrcnn_mobilenet_v3_large_fpn").state_dict(), tmp_path / "weights.pth")
    assert build("mobilenet_v3_large", tmp_path / "weights.pth", outputs=None).weights_note == (
        "weights weights.pth: the trunk takes backbone.body (308); left out: backbone.fpn (8), rpn (6), roi_heads (8); "
        "not in the file: classifier.0"
    )


def test_weights_of_a_classifier_leave_nothing_to_tell(tmp_path):
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "weights.pth")
    assert build("resnet18", tmp_path / "weights.pth").weights_note is None
    assert build_model("small_cnn", n_classes=3, image_size=64, channels=3, seed=0).weights_note is None


def test_a_trunk_without_its_classifier_ends_before_it(tmp_path):
    """A Linear layer of drawn weights, which a frozen trunk would keep for ever, comes into no trunk."""
    torch.save(whole_network("fasterrcnn_mobilenet_v3_large_fpn").state_dict(), tmp_path / "weights.pth")
    model = build("mobilenet_v3_large", tmp_path / "weights.pth", outputs=None)
    assert not any(isinstance(module, nn.Linear) for module in model.trunk.modules())
    assert [type(layer) for layer in model.tail] == [nn.Dropout, nn.Linear]
    torch.testing.assert_close(model.embed(pictures()), model.trunk.features(model.normalise(pictures())).mean((2, 3)))


def test_a_norm_between_trunk_and_classifier_stays_where_it_is(tmp_path):
    torch.manual_seed(3)
    features = get_model("convnext_tiny", weights=None).features
    torch.save({f"backbone.{name}": values for name, values in features.state_dict().items()}, tmp_path / "weights.pth")
    model = build("convnext_tiny", tmp_path / "weights.pth", outputs=None)
    assert [type(layer).__name__ for layer in model.trunk.classifier] == ["LayerNorm2d", "Flatten", "Identity"]
    assert torch.equal(model.trunk.features[0][0].weight, features[0][0].weight)
    assert model.weights_note.endswith("; not in the file: classifier.0")


def test_frozen_batch_norms_of_a_detector_are_read(tmp_path):
    torch.manual_seed(2)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d)
    draw_statistics(backbone)
    whole = RetinaNet(backbone, 91).eval()
    state = whole.state_dict()
    assert not any(name.endswith("num_batches_tracked") for name in state)
    torch.save(state, tmp_path / "weights.pth")
    model = build("resnet18", tmp_path / "weights.pth")
    with torch.no_grad():
        expected = whole.backbone.body(model.normalise(pictures()))["3"]
    torch.testing.assert_close(maps_of(model, pictures())[32], expected, rtol=1e-3, atol=1e-4)


def test_a_detector_in_a_checkpoint_of_a_training_is_found(tmp_path):
    whole = whole_network("retinanet_resnet50_fpn")
    state = {f"module.{name}": values for name, values in whole.state_dict().items()}
    torch.save({"model": state, "epoch": 25, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "w.pth")
    model = build("resnet50", tmp_path / "w.pth")
    assert torch.equal(model.trunk.body.conv1.weight, whole.backbone.body.conv1.weight)
    assert model.weights_note == (
        "weights w.pth: the trunk takes module.backbone.body (318); left out: module.backbone.fpn (16), "
        "module.head (20)"
    )


@pytest.mark.parametrize(
    ("file", "trunk"),
    [
        ("fasterrcnn_resnet50_fpn", "resnet101"),
        ("fasterrcnn_resnet50_fpn", "mobilenet_v3_large"),
        ("ssdlite320_mobilenet_v3_large", "mobilenet_v3_large"),
    ],
)
def test_a_detector_with_another_body_is_refused(file, trunk, tmp_path):
    torch.save(whole_network(file).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"weights\.pth holds the weights of another network: \d+ are missing"):
        build(trunk, tmp_path / "weights.pth")
