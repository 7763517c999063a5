import numpy as np
import pytest
import torch
from PIL import Image

from connectors import kept_images
from connectors.feature_store import clear, usage
from connectors.images.pixels import load_images
from connectors.images.reading import Range
from connectors.kept_images import open_images
from pipeline.pool.reasons import PoolError

SIDE = 6


@pytest.fixture
def pool(tmp_path):
    """Item ids and paths of images of noise."""
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, size=(9, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return [f"item-{path.stem}" for path in paths], [str(path) for path in paths]


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in order."""
    paths, stream = [], kept_images.stream_images

    def watched(uris, **how):
        paths.extend(uris)
        return stream(uris, **how)

    monkeypatch.setattr(kept_images, "stream_images", watched)
    return paths


def kept(folder, ids, uris, channels=3, **more):
    cache = open_images(folder, size=SIDE, channels=channels)
    return kept_images.kept_images(cache, ids, uris, size=SIDE, channels=channels, **more)


def whole(rows):
    return rows[torch.arange(len(rows))]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_those_that_are_decoded_and_only_new_ones_are(tmp_path, pool, decoded, monkeypatch, channels):
    ids, uris = pool
    monkeypatch.setattr(kept_images, "CHUNK_BYTES", 2 * channels * SIDE**2)
    first = kept(tmp_path / "cache", ids[2:5], uris[2:5], channels)
    assert decoded == uris[2:5]
    order = [4, 0, 6, 2, 5, 3, 1]
    told = []
    again = kept(
        tmp_path / "cache",
        [ids[place] for place in order],
        [uris[place] for place in order],
        channels,
        on_progress=lambda *counts: told.append(counts),
    )
    assert decoded[3:] == [uris[place] for place in (0, 6, 5, 1)]
    assert told == [(5, 7), (7, 7)]
    right = load_images(uris, size=SIDE, channels=channels)
    assert torch.equal(whole(first), right[2:5])
    assert torch.equal(whole(again), right[order])


def test_other_sizes_channels_and_ranges_are_kept_apart(tmp_path):
    ways = [{"size": 6, "channels": 3}, {"size": 7, "channels": 3}, {"size": 6, "channels": 1}]
    ways.append({"size": 6, "channels": 3, "ranges": (Range("I;16", 0.0, 1.0, 1),)})
    assert len({open_images(tmp_path, **way).folder for way in ways}) == 4
    assert open_images(tmp_path, **ways[0]) is open_images(tmp_path, **ways[0])


def test_images_stay_readable_when_their_files_are_removed_and_are_decoded_again_then(tmp_path, pool, decoded):
    ids, uris = pool
    rows = kept(tmp_path / "cache", ids, uris)
    clear(tmp_path / "cache")
    right = load_images(uris, size=SIDE, channels=3)
    assert torch.equal(whole(rows), right)
    assert torch.equal(whole(kept(tmp_path / "cache", ids, uris)), right)
    assert decoded == uris * 2
    assert usage(tmp_path / "cache")[0].n_items == 7


def test_what_another_process_removes_meanwhile_is_no_harm(tmp_path, pool, monkeypatch):
    ids, uris = pool
    monkeypatch.setattr(kept_images, "CHUNK_BYTES", 2 * 3 * SIDE**2)
    cache = open_images(tmp_path / "cache", size=SIDE, channels=3)
    append = cache.append

    def and_remove(*what):
        append(*what)
        clear(tmp_path / "cache")

    kept(tmp_path / "cache", ids[:3], uris[:3])
    monkeypatch.setattr(cache, "append", and_remove)
    assert torch.equal(whole(kept(tmp_path / "cache", ids, uris)), load_images(uris, size=SIDE, channels=3))


def test_an_image_that_cannot_be_read_is_named_and_what_was_decoded_is_kept(tmp_path, pool, decoded, monkeypatch):
    ids, uris = pool
    monkeypatch.setattr(kept_images, "CHUNK_BYTES", 2 * 3 * SIDE**2)
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(PoolError, match=r"5\.png"):
        kept(tmp_path / "cache", ids, uris)
    decoded.clear()
    kept(tmp_path / "cache", ids[:4], uris[:4])
    assert decoded == []
