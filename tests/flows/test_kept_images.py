"""Labelled images that networks are trained on: decoded once for all rounds, and the same wherever they lie."""

import pytest
import torch

from connectors import kept_images
from connectors.feature_store import usage
from flows.artefacts import LABELLED
from flows.cache import features_folder
from pipeline.networks.state_dicts import read_state_dict
from tests.flows.conftest import ready_round
from tests.flows.rounds import change_labels, learn, networks_of, score_candidates, train_round, weight_files


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded to be kept."""
    uris, stream = [], kept_images.stream_images

    def watched(wanted, **how):
        uris.extend(wanted)
        return stream(wanted, **how)

    monkeypatch.setattr(kept_images, "stream_images", watched)
    return uris


def test_a_round_decodes_the_labelled_images_that_no_round_before_it_did(make_work, decoded):
    work = make_work()
    first = ready_round(work)
    labelled = change_labels(first, lambda table: table.iloc[:-3])["uri"].tolist()
    learn(work, first)
    assert sorted(decoded) == sorted(labelled)
    score_candidates(work, first)
    assert len(decoded) == len(labelled), "images of the pool are not kept"
    decoded.clear()
    every = train_round(work, 2).read(LABELLED).table["uri"].tolist()
    assert sorted(decoded) == sorted(set(every) - set(labelled))
    [kept] = usage(features_folder())
    assert kept.key.startswith("images-12x12x1-")
    assert kept.n_items == len(every) == len(labelled) + 3


def test_networks_and_what_they_predict_are_those_of_images_in_memory(make_work, decoded):
    found = []
    for number, bound in enumerate(("20.0", "0")):
        work = make_work(f"feature_cache_gb = {bound}", name=f"number-{number}")
        folder = train_round(work)
        weights = [values for path in weight_files(folder) for values in read_state_dict(path).values()]
        predicted = work.images.predict(networks_of(work, folder), folder.read(LABELLED).table)
        found.append([*weights, *(part.decisions for part in predicted)])
        assert bool(decoded) == (bound != "0"), "with no disk allowed, nothing is written"
        decoded.clear()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
