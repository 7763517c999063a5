import pytest
import torch

from connectors.store import write_json
from flows.batch_sizes import NAME, keep_batch_sizes, read_sizes, sizes_on
from pipeline.learning.networks import compute_in_parts
from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import device_name
from pipeline.networks.halving import FITTING
from tests.pipeline.test_halving import CPU, images, network


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path))
    monkeypatch.setattr(FITTING, "known", {})
    monkeypatch.setattr(FITTING, "on_found", None)
    return tmp_path


def compute(model):
    compute_in_parts(model, model, images())


def test_later_process_begins_with_the_size_that_an_earlier_one_found(capsys, monkeypatch):
    model = network(6).eval()
    keep_batch_sizes()
    compute(model)
    assert capsys.readouterr().err.startswith("memory is too small for more: 5 at a time from now on (inference, ")

    monkeypatch.setattr(FITTING, "known", {})  # another process
    model.trunk[0].seen.clear()
    keep_batch_sizes()
    compute(model)

    assert model.trunk[0].seen == [5, 5, 5, 5]
    assert [line.partition(",")[0] for line in sizes_on(device_name(CPU))] == ["inference"]
    assert sizes_on("another GPU") == []


@pytest.mark.parametrize("held", ["{", '["features"]', '{"features": "many", "training": 0}'])
def test_damaged_file_is_as_good_as_none(held, home):
    (home / NAME).write_text(held)

    assert read_sizes() == {}


def test_sizes_that_another_process_kept_meanwhile_stay(home):
    keep_batch_sizes()
    write_json(home / NAME, {"other work": 7})

    compute(network(6).eval())

    assert {"other work"} < read_sizes().keys()


def test_disk_that_keeps_nothing_stops_no_run(home):
    (home / NAME).mkdir()
    keep_batch_sizes()

    compute(network(6).eval())

    assert list(FITTING.known.values()) == [5]


def test_round_whose_device_has_little_memory_ends_as_any_other_and_its_record_tells(make_loop, monkeypatch):
    seen = []
    features = Classifier.features

    def with_room_for_three(model, images):
        seen.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return features(model, images)

    monkeypatch.setattr(Classifier, "features", with_room_for_three)
    loop = make_loop()
    loop.run()
    loop.label()

    assert "round 1 asks for 4 labels" in loop.run()

    told = loop.tracker.runs["round-1"].tags["batch_sizes"].splitlines()
    assert {line.partition(",")[0] for line in told} >= {"training", "inference", "2 members"}
    assert sum(n > 3 for n in seen) < 12, "each kind of work finds its size once"
