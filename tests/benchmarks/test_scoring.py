"""What is measured of scoring; the peers and the weights of EfficientNet-Lite0 are not needed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import peers, photos, rounds, scoring
from connectors.frozen_features import open_cache
from pipeline.learning.settings import MemberSettings
from pipeline.networks.build import build_model
from pipeline.selection.acquisition import margin


def test_the_gap_of_a_disagreement_is_that_of_the_peer():
    ours = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    theirs = torch.tensor([[0.48, 0.52, 0.0], [0.9, 0.1, 0.0], [0.7, 0.1, 0.2]])
    assert scoring.gaps_of_disagreement(ours, theirs).tolist() == pytest.approx([0.04, 0.5])
    assert scoring.gaps_of_disagreement(ours, ours).tolist() == []


def test_crops_are_the_same_each_time_and_have_the_class_of_their_place(tmp_path):
    crops = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        uris, targets = photos.write_crops(folder, 60)
        crops.append((targets.tolist(), [Path(uri).read_bytes() for uri in uris]))
    assert crops[0] == crops[1]
    with Image.open(uris[0]) as crop:
        assert crop.size == (400, 400)
    assert set(targets.tolist()) <= set(range(10))
    assert len(set(targets.tolist())) >= 8


def test_the_float32_loop_gives_what_the_network_says_of_each_file(tmp_path):
    uris = []
    for row, colour in enumerate(["red", "green", "blue"]):
        uris.append(str(tmp_path / f"{row}.png"))
        Image.new("RGB", (10, 6), colour).save(uris[-1])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    files = peers.Files(network, uris, size=8, mean=[0.5] * 3, std=[0.5] * 3)
    colours = torch.tensor([[255, 0, 0], [0, 128, 0], [0, 0, 255]]) / 255
    wanted = ((colours - 0.5) / 0.5).softmax(dim=1)
    assert torch.allclose(peers.evaluation_loop(0, files, 0), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def images():
    return scoring.make_images(2, "cpu")


def test_both_sides_of_the_comparison_on_a_gpu_compute_the_same(images):
    with torch.inference_mode():
        logits = images.model(images.images)
    scores = margin(logits.softmax(dim=1).unsqueeze(1))
    assert torch.allclose(scoring.score_on_gpu(images, 0), scores, atol=0.02)
    assert float(scoring.bare_forward(scoring.moved(images), 0)) == pytest.approx(float(logits.sum()), abs=0.1)


def test_both_sides_of_the_comparison_of_training_train_everything(images):
    for train, data in ((scoring.train_on_gpu, images), (scoring.bare_training, scoring.moved(images))):
        before = {name: values.clone() for name, values in images.model.named_parameters()}
        train(data, 0)
        assert all(not torch.equal(values, before[name]) for name, values in images.model.named_parameters())


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    body = build_model("torchvision:resnet18", n_classes=photos.N_CLASSES, image_size=photos.SIZE, channels=3, seed=0)
    body.train_only("head")
    monkeypatch.setattr(rounds, "trunk", lambda: body)
    monkeypatch.setattr(rounds, "MEMBERS", MemberSettings(ensemble=2))
    ids = [f"{row:04d}" for row in range(240)]
    features = torch.randn(len(ids), 512, generator=torch.Generator().manual_seed(0))
    open_cache(tmp_path, body, image_size=photos.SIZE).append(ids, features.half())
    return rounds.Round(None, tmp_path, ids, ids, torch.arange(20) % photos.N_CLASSES)


def test_a_round_asks_for_candidates_and_tells_the_seconds_of_its_parts(prepared, monkeypatch):
    done = rounds.whole_round(prepared, 0)
    assert len(done.batch.ids) == 100
    assert set(done.batch.ids) < set(prepared.ids[20:])
    monkeypatch.setattr(rounds, "SHARD", 64)
    assert rounds.whole_round(prepared, 0).batch.ids == done.batch.ids
    seconds = {"train": 1.0, "score": 0.25, "select": 0.5}
    assert list(done.seconds) == list(seconds)
    said = rounds.waits(prepared, rounds.Done(done.batch, seconds), 1.7, None)
    assert "1.75 s = train 1.00 s, score 0.25 s, select 0.50 s" in said
