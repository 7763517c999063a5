import gc
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import PIL
import pyarrow as pa
import pytest
import torch
from PIL import Image

from connectors import frozen_features as module
from connectors.feature_store import shrink, usage
from connectors.frozen_features import cached_features, open_cache
from connectors.images.pixels import load_images
from connectors.images.reading import Range
from pipeline.networks.build import build_model
from pipeline.networks.features import BATCH, extract, feature_bytes
from pipeline.pool.reasons import PoolError

CPU = torch.device("cpu")


def network(name="small_cnn", *, size=16, channels=1, seed=0):
    return build_model(name, n_classes=3, image_size=size, channels=channels, seed=seed)


def pictures(n, *, channels=1, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def names(n, prefix="item"):
    return [f"{prefix}{number:04d}" for number in range(n)]


def files(folder, pattern="*.arrow"):
    return sorted(folder.rglob(pattern))


def test_key_changes_with_the_release_of_pillow_and_the_ranges_of_deep_pixels(tmp_path, monkeypatch):
    def key(*ranges):
        return open_cache(tmp_path, network(), image_size=16, ranges=ranges).folder.name

    keys = [key(), key(Range("16-bit grey", 340.0, 600.0, 9)), key(Range("16-bit grey", 341.0, 600.0, 9))]
    monkeypatch.setattr(PIL, "__version__", "0.0")
    assert len({*keys, key()}) == 4


def test_a_network_whose_features_were_asked_for_is_not_kept_alive(tmp_path):
    model = network()
    alive = weakref.ref(model)
    open_cache(tmp_path, model, image_size=16)
    feature_bytes(model, image_size=16)
    del model
    gc.collect()
    assert alive() is None


FILL = """
import sys
from pathlib import Path
import torch
from connectors import frozen_features as features
from pipeline.networks.build import build_model

features.CHUNK_BYTES = 1  # one batch in each append
folder, images = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
model = build_model("small_cnn", n_classes=3, image_size=16, channels=1, seed=0)
cache = features.open_cache(folder, model, image_size=16)
print("ready", flush=True)
sys.stdin.readline()


def tell(done, total):
    print(done, flush=True)
    if done == int(sys.argv[4]) * features.BATCH:
        sys.stdin.readline()


filled = features.cached_features(
    cache, model, [path.stem for path in images], [str(path) for path in images], image_size=16, on_progress=tell,
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
    cache = open_cache(folder, model, image_size=16)
    ids, uris = [path.stem for path in paths], [str(path) for path in paths]
    return cached_features(cache, model, ids, uris, image_size=16, **options)


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
        first = cached(tmp_path / "cache", images, model, on_progress=lambda *counts: done.append(counts))
        loaded = load_images([str(path) for path in sorted(images.iterdir())], size=16, channels=1)
        assert torch.equal(first, extract(model, loaded, device=CPU))
        assert done == [(6 * BATCH, 6 * BATCH)]
        for path in images.iterdir():
            path.write_bytes(b"no image any more")
        assert torch.equal(cached(tmp_path / "cache", images, model, on_progress=None), first)

    def test_computes_only_what_is_new(self, tmp_path, images):
        done = []
        kept = tmp_path / "kept"
        kept.mkdir()
        for path in sorted(images.iterdir())[::2]:
            path.rename(kept / path.name)
        some = cached(tmp_path / "cache", kept)
        for path in kept.iterdir():
            path.rename(images / path.name)
        both = cached(tmp_path / "cache", images, on_progress=lambda *counts: done.append(counts))
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
        open_cache(tmp_path / "cache", network(), image_size=16).append([path.stem for path in kept], undisturbed[::9])
        calls = []

        def advance(done, total):
            calls.append(done)
            if len(calls) == removed_after:
                shrink(tmp_path / "cache", 0)
                assert not files(tmp_path / "cache")

        assert torch.equal(cached(tmp_path / "cache", images, on_progress=advance), undisturbed)
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
