import importlib

import pytest
import torch
import torchvision
from torch import nn

from pipeline.networks import classifier as models
from pipeline.networks import features as module
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier, half_precision
from pipeline.networks.features import BATCH, extract, feature_key

CPU = torch.device("cpu")


def network(name="small_cnn", *, size=16, channels=1, seed=0):
    return build_model(name, n_classes=3, image_size=size, channels=channels, seed=seed)


def with_statistics_of(images, model):
    """The network with the images' own batch-norm statistics, so that its features are far from zero."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train().features(images)
    return model.eval()


def pictures(n, *, channels=1, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


class TestExtract:
    @pytest.mark.parametrize(
        ("name", "half_from"), [("torchvision:resnet18", 0), ("torchvision:efficientnet_b0", 10**12)]
    )
    def test_gives_an_image_the_same_bits_whatever_is_beside_it(self, name, half_from, monkeypatch):
        monkeypatch.setattr(models, "HALF_FROM", half_from)
        images = pictures(BATCH + 5, channels=3, size=64)
        model = with_statistics_of(images, network(name, size=64, channels=3))
        features = extract(model, images, device=CPU)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        assert torch.equal(extract(model, images[order], device=CPU), features[order])
        for part in (slice(BATCH + 2, BATCH + 3), slice(3, 20), slice(BATCH - 1, BATCH + 1)):
            assert torch.equal(extract(model, images[part], device=CPU), features[part])
        assert len(features.unique(dim=0)) == len(images)

    def test_rounds_what_the_tail_reads(self):
        model = network(size=16)
        images = pictures(BATCH + 3)
        with torch.no_grad():
            one_by_one = torch.cat([model.trunk(model.normalise(image[None])) for image in images])
        features = extract(model, images, device=CPU)
        assert features.dtype == torch.float16
        assert not features.requires_grad
        torch.testing.assert_close(features.float(), one_by_one, rtol=2**-10, atol=1e-5)

    def test_evaluates_and_leaves_the_network_as_it_was(self):
        model = network("torchvision:mobilenet_v3_small", size=32, channels=3).train()
        before = {name: values.clone() for name, values in model.state_dict().items()}
        images = pictures(3, channels=3, size=32)
        features = extract(model, images, device=CPU)
        assert all(part.training for part in model.modules())
        assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
        assert torch.equal(extract(model.eval(), images, device=CPU), features)

    def test_of_no_images_has_the_width_of_features(self):
        model = network()
        assert extract(model, pictures(0), device=CPU).shape == (0, *extract(model, pictures(1), device=CPU).shape[1:])

    def test_can_train_a_head(self):
        model = network()
        model.read(extract(model, pictures(2), device=CPU)).sum().backward()
        assert model.tail[-1].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("scale", [1e6, float("nan")])
    def test_refuses_numbers_that_float16_cannot_hold(self, scale):
        model = network()
        with torch.no_grad():
            model.trunk[0].weight.mul_(scale)
        with pytest.raises(ValueError, match="features of Sequential do not fit into float16"):
            extract(model, pictures(2), device=CPU)


class TestKey:
    def test_is_the_same_for_what_does_not_touch_the_features(self):
        model = network("torchvision:resnet18", size=64, channels=3)
        key = feature_key(model, image_size=64)
        with torch.no_grad():
            model.tail[-1].weight.add_(1)
            model.temperature.mul_(2)
        model.train()
        model.freeze("trunk")
        assert feature_key(model, image_size=64) == key
        assert feature_key(model, image_size=64, device=CPU) == key
        assert feature_key(network("torchvision:resnet18", size=64, channels=3), image_size=64) == key

    def test_changes_with_the_last_bit_of_any_tensor_of_the_trunk(self):
        model = network("torchvision:mobilenet_v3_small", size=32)
        key = feature_key(model, image_size=32)
        for values in list(model.trunk.state_dict().values())[::9]:
            last = tuple(size - 1 for size in values.shape)
            before = values[last].clone()
            values[last] = torch.nextafter(before, before + 1) if values.is_floating_point() else before + 1
            assert feature_key(model, image_size=32) != key
            values[last] = before
        assert feature_key(model, image_size=32) == key

    def test_changes_with_preprocessing_device_and_version(self, monkeypatch):
        model = network()
        keys = {feature_key(model, image_size=16), feature_key(model, image_size=17)}
        keys.add(feature_key(model, image_size=16, device=torch.device("cuda")))
        for buffer in (model.mean, model.std):
            buffer.mul_(1.001).add_(0.001)
            keys.add(feature_key(model, image_size=16))
        model.channels = 3
        keys.add(feature_key(model, image_size=16))
        monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
        keys.add(feature_key(model, image_size=16))
        assert len(keys) == 7

    def test_changes_with_the_ranges_of_deep_pixels_and_not_for_a_pool_of_8_bits(self):
        model = network()
        key = feature_key(model, image_size=16)
        assert feature_key(model, image_size=16, ranges=()) == key
        ranges = [("16-bit grey", low, 600.0) for low in (340.0, 341.0)]
        assert len({key, *(feature_key(model, image_size=16, ranges=[one]) for one in ranges)}) == 3

    def test_changes_with_the_type_that_the_network_computes_in(self, monkeypatch):
        model = network()
        monkeypatch.setattr(models, "HALF_FROM", 0)
        with half_precision(model, CPU):
            if not torch.is_autocast_enabled("cpu"):
                pytest.skip("this processor has no bfloat16")
        key = feature_key(model, image_size=16)
        monkeypatch.setattr(models, "HALF_FROM", 10**12)
        assert feature_key(model, image_size=16) != key

    def test_tells_layers_without_weights_apart(self):
        def key(activation):
            trunk = nn.Sequential(nn.Conv2d(1, 2, 3), activation, nn.Flatten())
            nn.init.ones_(trunk[0].weight)
            nn.init.zeros_(trunk[0].bias)
            tail = nn.Sequential(nn.Linear(2 * 14 * 14, 3))
            return feature_key(Classifier(trunk, tail, n_classes=3, channels=1), image_size=16)

        assert key(nn.ReLU()) == key(nn.ReLU())
        assert len({key(nn.ReLU()), key(nn.GELU()), key(nn.Hardtanh(-1, 1)), key(nn.Hardtanh(-2, 1))}) == 4

    def test_changes_with_the_source_of_layers_of_ones_own_and_of_those_they_extend(self, tmp_path, monkeypatch):
        source = """
from torch import nn

class Before(nn.Module):
    def forward(self, images):
        return images.{before}().flatten(1)

class Own(Before):
    def forward(self, images):
        return super().forward(images).{after}()
"""
        monkeypatch.syspath_prepend(tmp_path)
        keys = {}
        for name, before, after in (
            ("a", "relu", "abs"),
            ("b", "relu", "neg"),
            ("c", "exp", "abs"),
            ("d", "relu", "abs"),
        ):
            (tmp_path / f"own_layers_{name}.py").write_text(source.format(before=before, after=after))
            trunk = importlib.import_module(f"own_layers_{name}").Own()
            model = Classifier(trunk, nn.Sequential(nn.Linear(256, 3)), n_classes=3, channels=1)
            keys[name] = feature_key(model, image_size=16)
        assert keys["d"] == keys["a"]
        assert len(set(keys.values())) == 3

    def test_changes_with_the_release_of_the_libraries(self, monkeypatch):
        small, resnet = network(), network("torchvision:resnet18", size=64, channels=3)
        for library, changed in ((torch, (True, True)), (torchvision, (False, True))):
            before = [feature_key(model, image_size=16) for model in (small, resnet)]
            with monkeypatch.context() as patch:
                patch.setattr(library, "__version__", "0.0")
                after = [feature_key(model, image_size=16) for model in (small, resnet)]
            assert tuple(one != other for one, other in zip(before, after, strict=True)) == changed

    def test_changes_with_the_release_of_what_decodes_the_images(self):
        keys = {feature_key(network(), image_size=16, releases=told) for told in ((), ("Pillow 1",), ("Pillow 2",))}
        assert len(keys) == 3
