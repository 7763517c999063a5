import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from connectors import feature_store as module
from connectors.feature_store import BATCH, FeatureCache, cached_features, clear, extract, feature_key, shrink, usage
from connectors.images.deep_pixels import Range
from connectors.images.pixels import PoolError, load_images
from pipeline.networks import classifier as models
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier, half_precision

CPU = torch.device("cpu")
DAY = 86_400


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


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def names(n, prefix="item"):
    return [f"{prefix}{number:04d}" for number in range(n)]


def files(folder, pattern="*.arrow"):
    return sorted(folder.rglob(pattern))


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
        ranges = [Range("16-bit grey", low, 600.0, 9) for low in (340.0, 341.0)]
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
        for library, changed in ((torch, (True, True)), (PIL, (True, True)), (torchvision, (False, True))):
            before = [feature_key(model, image_size=16) for model in (small, resnet)]
            with monkeypatch.context() as patch:
                patch.setattr(library, "__version__", "0.0")
                after = [feature_key(model, image_size=16) for model in (small, resnet)]
            assert tuple(one != other for one, other in zip(before, after, strict=True)) == changed


class TestCache:
    @pytest.mark.parametrize("shape", [(8,), (2, 3, 3), (1,)])
    def test_gives_back_the_bits_in_the_order_asked(self, tmp_path, shape):
        features = numbers(30, *shape)
        ids = names(30)
        writer = FeatureCache(tmp_path, "key")
        for start in range(0, 30, 7):
            writer.append(ids[start : start + 7], features[start : start + 7])
        order = [*torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist(), 3, 3]
        for cache in (writer, FeatureCache(tmp_path, "key")):
            assert torch.equal(cache.read([ids[p] for p in order]).view(torch.int16), features[order].view(torch.int16))
            assert len(cache) == 30

    def test_finds_what_a_dictionary_finds(self, tmp_path):
        generator = np.random.default_rng(0)
        # Of every length, one the beginning of another.
        universe = sorted({"".join(generator.choice(list("ab0"), size=n)) for n in generator.integers(1, 6, 200)})
        known, cache = {}, FeatureCache(tmp_path, "key")
        for step in range(12):
            drawn = [str(item) for item in generator.choice(universe, size=5, replace=False)]
            new = [item for item in drawn if item not in known]
            rows = numbers(len(new), 4, seed=step)
            FeatureCache(tmp_path, "key").append(new, rows)
            known |= dict(zip(new, rows, strict=True))
            asked = [str(item) for item in generator.choice(universe, size=20)]
            assert cache.missing(asked).tolist() == [p for p, item in enumerate(asked) if item not in known]
            there = [item for item in asked if item in known]
            if there:
                assert torch.equal(cache.read(there), torch.stack([known[item] for item in there]))

    def test_keeps_keys_apart(self, tmp_path):
        FeatureCache(tmp_path, "one").append(["a"], numbers(1, 4))
        assert FeatureCache(tmp_path, "other").missing(["a"]).tolist() == [0]

    def test_takes_the_first_file_of_two_with_the_same_item(self, tmp_path):
        for value in (1.0, 2.0, 3.0):
            FeatureCache(tmp_path, "key").append(["a"], torch.full((1, 2), value).half())
        for path in files(tmp_path)[1:]:
            assert len(FeatureCache(tmp_path, "key")) == 1
            kept = FeatureCache(tmp_path, "key").read(["a"])
            path.unlink()
            assert torch.equal(FeatureCache(tmp_path, "key").read(["a"]), kept)

    def test_refuses_to_read_what_is_not_there(self, tmp_path):
        cache = FeatureCache(tmp_path, "key")
        cache.append(["a"], numbers(1, 4))
        with pytest.raises(KeyError, match="lacks 2 of 3 items: b, c"):
            cache.read(["b", "a", "c"])

    @pytest.mark.parametrize("features", [numbers(2, 4).float(), numbers(3, 4)])
    def test_refuses_to_append_another_type_or_number(self, tmp_path, features):
        with pytest.raises(ValueError, match="wanted float16 features of 2 items, got"):
            FeatureCache(tmp_path, "key").append(["a", "b"], features)

    def test_lets_go_of_a_file_that_was_removed(self, tmp_path):
        cache, features = FeatureCache(tmp_path, "key"), numbers(9, 4)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 9)):
            cache.append(names(9)[rows], features[rows])
            assert torch.equal(cache.read(names(9)[rows]), features[rows])
        cache.append(names(5), features[:5])  # some of them twice
        for path in files(tmp_path):
            if pa.ipc.open_file(path).read_all()["item_id"][0].as_py().decode() == names(9)[3]:
                path.unlink()
        assert cache.missing(names(9)).tolist() == [5]
        missing, kept = cache.read_kept(names(9))
        assert missing.tolist() == [5]
        rest = [0, 1, 2, 3, 4, 6, 7, 8]
        assert torch.equal(kept[rest], features[rest])
        clear(tmp_path)
        assert cache.missing(names(9)).tolist() == list(range(9))
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        cache.append(names(9), features)
        assert torch.equal(cache.read(names(9)), features)

    def test_appends_while_its_folder_is_removed_again_and_again(self, tmp_path):
        cache, stop, features = FeatureCache(tmp_path, "key"), threading.Event(), numbers(1, 4)

        def remove():
            while not stop.is_set():
                clear(tmp_path)

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            for _ in range(300):
                cache.append(["a"], features)
                cache.read_kept(["a"])
        finally:
            stop.set()
            remover.join()
        cache.append(["a"], features)
        assert torch.equal(cache.read(["a"]), features)

    def test_serves_threads(self, tmp_path):
        cache, features, errors = FeatureCache(tmp_path, "key"), numbers(200, 4), []

        def work(first):
            try:
                for start in range(first, 200, 40):
                    cache.append(names(200)[start : start + 10], features[start : start + 10])
                    assert torch.equal(cache.read(names(200)[start : start + 10]), features[start : start + 10])
            except Exception as exc:
                errors.append(exc)

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert torch.equal(cache.read(names(200)), features)


class TestDamage:
    def test_never_gives_wrong_numbers_whichever_byte_is_wrong(self, tmp_path, caplog):
        features = numbers(5, 6)
        FeatureCache(tmp_path, "key").append(names(5), features)
        (path,) = files(tmp_path)
        content = path.read_bytes()
        n_damaged = 0
        for position in range(0, len(content), 5):
            wrong = bytearray(content)
            wrong[position] ^= 1 << position % 8
            path.write_bytes(wrong)
            cache = FeatureCache(tmp_path, "key")
            if len(cache.missing(names(5))):
                n_damaged += 1
                assert len(cache.missing(names(5))) == 5
                assert not path.exists()
            else:  # a byte that carries nothing
                assert torch.equal(cache.read(names(5)), features)
        assert n_damaged > 30
        assert caplog.text.count("is damaged and is removed, its features are computed again") == n_damaged

    @pytest.mark.parametrize("content", [b"", b"no features", b"ARROW1\0\0" + bytes(5000)])
    def test_sets_a_file_aside_that_holds_something_else(self, tmp_path, content, caplog):
        cache, features = FeatureCache(tmp_path, "key"), numbers(2, 4)
        cache.append(["a", "b"], features)
        (tmp_path / "key" / "0.arrow").write_bytes(content)
        assert torch.equal(cache.read(["a", "b"]), features)
        assert "0.arrow is damaged" in caplog.text
        assert len(files(tmp_path)) == 1

    @pytest.mark.parametrize("n_damaged", [1, 2, 3])
    def test_falls_back_on_another_file_with_the_same_items_if_that_is_whole(self, tmp_path, n_damaged):
        features = numbers(4, 64)
        for _ in range(3):
            FeatureCache(tmp_path, "key").append(names(4), features)
        cache = FeatureCache(tmp_path, "key")
        for path in files(tmp_path)[:n_damaged]:
            content = bytearray(path.read_bytes())
            start = content.index(features.numpy().tobytes())
            content[start] ^= 1
            path.write_bytes(content)
        if n_damaged < 3:
            assert torch.equal(cache.read(names(4)), features)
        else:
            assert cache.missing(names(4)).tolist() == [0, 1, 2, 3]
        assert len(files(tmp_path)) == 3 - n_damaged

    def test_sets_a_file_aside_that_was_cut_off(self, tmp_path, caplog):
        FeatureCache(tmp_path, "key").append(names(50), numbers(50, 64))
        (path,) = files(tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
        cache = FeatureCache(tmp_path, "key")
        assert len(cache.missing(names(50))) == 50
        cache.append(names(50), numbers(50, 64))
        assert torch.equal(cache.read(names(50)), numbers(50, 64))


class TestCleaning:
    def fill(self, folder, key, *, n_files, used):
        """`n_files` of the same size, the oldest first, of a key used last at `used`."""
        paths = []
        for number in range(n_files):
            FeatureCache(folder, key).append(names(10, f"{key}{number}"), numbers(10, 32))
            (path,) = set(files(folder / key)) - set(paths)
            os.utime(path, (used - 1000 + number,) * 2)
            paths.append(path)
        os.utime(folder / key / "used", (used, used))
        return paths

    def test_usage_tells_keys_items_and_bytes_last_used_first(self, tmp_path):
        self.fill(tmp_path, "old", n_files=2, used=1_000_000)
        self.fill(tmp_path, "new", n_files=1, used=2_000_000)
        FeatureCache(tmp_path, "new").append(names(10, "new0"), numbers(10, 32))  # all of them twice
        os.utime(tmp_path / "new" / "used", (2_000_000, 2_000_000))
        new, old = usage(tmp_path)
        assert (new.key, new.n_items, new.last_used.timestamp()) == ("new", 10, 2_000_000)
        assert (old.key, old.n_items, old.last_used.timestamp()) == ("old", 20, 1_000_000)
        assert old.n_bytes == sum(path.stat().st_size for path in files(tmp_path / "old"))
        assert usage(tmp_path / "nowhere") == []

    def test_shrink_removes_the_key_not_used_for_longest_then_the_oldest_files(self, tmp_path):
        old = self.fill(tmp_path, "old", n_files=2, used=1_000_000)
        new = self.fill(tmp_path, "new", n_files=3, used=2_000_000)
        size = new[0].stat().st_size
        shrink(tmp_path, 5 * size)
        assert len(files(tmp_path)) == 5
        shrink(tmp_path, 5 * size - 1)
        assert files(tmp_path) == sorted([old[1], *new])
        shrink(tmp_path, 2 * size)
        assert files(tmp_path) == sorted(new[1:])
        assert not (tmp_path / "old").exists()
        shrink(tmp_path, 0)
        assert not list(tmp_path.iterdir())
        shrink(tmp_path / "nowhere", 0)

    def test_reading_is_use(self, tmp_path):
        read = self.fill(tmp_path, "read", n_files=1, used=1_000_000)
        self.fill(tmp_path, "unread", n_files=1, used=2_000_000)
        FeatureCache(tmp_path, "read").read(names(10, "read0"))
        shrink(tmp_path, read[0].stat().st_size)
        assert files(tmp_path) == read

    def test_temporary_files_are_ignored_and_removed_when_old(self, tmp_path):
        cache = FeatureCache(tmp_path, "key")
        cache.append(["a"], numbers(1, 4))
        young, old = (tmp_path / "key" / f".{name}.arrow.x.part" for name in ("young", "old"))
        for path, age in ((young, DAY / 2), (old, 2 * DAY)):
            path.write_bytes(b"half")
            os.utime(path, (time.time() - age,) * 2)
        assert cache.missing(["a"]).tolist() == []
        shrink(tmp_path, 10**9)
        assert young.exists()
        assert not old.exists()
        clear(tmp_path)
        assert young.exists()
        assert usage(tmp_path)[0].n_items == 0


FILL = """
import sys
from pathlib import Path
import torch
from connectors import feature_store as features
from pipeline.networks.build import build_model

features.CHUNK_BYTES = 1  # one batch in each append
folder, images = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
model = build_model("small_cnn", n_classes=3, image_size=16, channels=1, seed=0)
cache = features.FeatureCache(folder, features.feature_key(model, image_size=16))
print("ready", flush=True)
sys.stdin.readline()


def tell(done, total):
    print(done, flush=True)
    if done == int(sys.argv[4]) * features.BATCH:
        sys.stdin.readline()


filled = features.cached_features(
    cache, model, [path.stem for path in images], [str(path) for path in images], image_size=16, channels=1,
    device=torch.device("cpu"), advance=tell,
)
torch.save(filled, sys.argv[3])
"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in zip(names(6 * BATCH), pictures(6 * BATCH), strict=True):
        Image.fromarray(image[0].numpy()).save(folder / f"{name}.png")
    return folder


def cached(folder, images, model=None, **options):
    model = model or network()
    paths = sorted(images.iterdir())
    cache = FeatureCache(folder, feature_key(model, image_size=16))
    ids, uris = [path.stem for path in paths], [str(path) for path in paths]
    return cached_features(cache, model, ids, uris, image_size=16, channels=1, device=CPU, **options)


def start_fill(folder, images, result, *, chunks=1000):
    """Another process that fills the cache once it is told to, and after so many chunks waits for ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), str(images), str(result), str(chunks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(module.__file__).parent.parent,
    )
    return process


def let_go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


class TestFilling:
    def test_equals_a_computation_and_then_computes_nothing(self, tmp_path, images):
        done = []
        model = network()
        first = cached(tmp_path / "cache", images, model, advance=lambda *counts: done.append(counts))
        loaded = load_images([str(path) for path in sorted(images.iterdir())], size=16, channels=1)
        assert torch.equal(first, extract(model, loaded, device=CPU))
        assert done == [(6 * BATCH, 6 * BATCH)]
        for path in images.iterdir():
            path.write_bytes(b"no image any more")
        assert torch.equal(cached(tmp_path / "cache", images, model, advance=None), first)

    def test_computes_only_what_is_new(self, tmp_path, images):
        done = []
        kept = tmp_path / "kept"
        kept.mkdir()
        for path in sorted(images.iterdir())[::2]:
            path.rename(kept / path.name)
        some = cached(tmp_path / "cache", kept)
        for path in kept.iterdir():
            path.rename(images / path.name)
        both = cached(tmp_path / "cache", images, advance=lambda *counts: done.append(counts))
        assert done == [(6 * BATCH, 6 * BATCH)]
        assert torch.equal(both[::2], some)
        assert torch.equal(both, cached(tmp_path / "other", images))
        assert usage(tmp_path / "cache")[0].n_items == 6 * BATCH

    def test_keeps_what_came_before_a_broken_image(self, tmp_path, images, monkeypatch):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1)
        broken = sorted(images.iterdir())[2 * BATCH + 1]
        content = broken.read_bytes()
        broken.write_bytes(b"no image")
        before = threading.active_count(), list(warnings.filters)
        with pytest.raises(PoolError, match=broken.name):
            cached(tmp_path / "cache", images)
        assert (threading.active_count(), warnings.filters) == before
        assert usage(tmp_path / "cache")[0].n_items == 2 * BATCH
        broken.write_bytes(content)
        assert torch.equal(cached(tmp_path / "cache", images), cached(tmp_path / "other", images))

    @pytest.mark.parametrize("removed_after", [1, 3, 6])
    def test_goes_on_where_the_cache_is_emptied_meanwhile(self, tmp_path, images, monkeypatch, removed_after):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1)
        undisturbed = cached(tmp_path / "undisturbed", images)
        kept = sorted(images.iterdir())[::9]
        FeatureCache(tmp_path / "cache", feature_key(network(), image_size=16)).append(
            [path.stem for path in kept], undisturbed[::9]
        )
        calls = []

        def advance(done, total):
            calls.append(done)
            if len(calls) == removed_after:
                shrink(tmp_path / "cache", 0)
                assert not files(tmp_path / "cache")

        assert torch.equal(cached(tmp_path / "cache", images, advance=advance), undisturbed)
        assert calls[-1] == 6 * BATCH
        assert len(calls) == 6

    def test_of_no_images_is_empty(self, tmp_path):
        (tmp_path / "none").mkdir()
        empty = cached(tmp_path / "cache", tmp_path / "none")
        assert empty.shape == (0, *extract(network(), pictures(1), device=CPU).shape[1:])

    def test_is_shared_by_processes_and_goes_on_after_a_kill(self, tmp_path, images):
        undisturbed = cached(tmp_path / "undisturbed", images)
        shared, interrupted = tmp_path / "shared", tmp_path / "interrupted"
        other = start_fill(shared, images, tmp_path / "other.pt")
        killed = start_fill(interrupted, images, tmp_path / "killed.pt", chunks=2)
        for process in (killed, other):
            let_go(process)
        assert torch.equal(cached(shared, images), undisturbed)
        assert [killed.stdout.readline() for _ in range(2)] == [f"{BATCH}\n", f"{2 * BATCH}\n"]
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        other.communicate()
        assert other.returncode == 0
        assert torch.equal(torch.load(tmp_path / "other.pt"), undisturbed)
        assert torch.equal(cached(shared, images), undisturbed)

        n_kept = usage(interrupted)[0].n_items
        assert n_kept == 2 * BATCH
        assert torch.equal(cached(interrupted, images), undisturbed)
        n_rows = sum(len(pa.ipc.open_file(path).read_all()) for path in files(interrupted))
        assert n_rows == 6 * BATCH
