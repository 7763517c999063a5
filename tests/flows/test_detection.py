"""A campaign of boxes: from the first question to a model, its labels and its predictions."""

import pandas as pd
import pytest

from flows.artefacts import BATCH, CONFUSION_TABLE, GUESSES, METRICS, REVIEW
from flows.config import load_settings
from flows.reports.round_page import round_markdown
from flows.reports.status import campaign_status, status_lines
from flows.results import predict_files, write_labels
from pipeline.tasks import detection
from pipeline.types import Region
from tests.flows.region_campaign import RegionCampaign, write_images
from tests.pipeline.test_detection import shapes

CLASSES = ("cat", "dog")


def drawn(n: int, *, seed: int):
    """Images of full and hollow squares, and the boxes around them."""
    images, targets = shapes(n, seed=seed)
    found = [
        tuple(Region("box", CLASSES[int(row[0])], tuple(row[1:])) for row in rows if row[0] >= 0)
        for rows in targets.tolist()
    ]
    return images[:, 0].numpy(), found


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """A campaign in memory after three rounds, and its people, who make no mistakes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("boxes")
        patch.setenv("LABELCYCLE_HOME", str(folder / "home"))
        campaign = RegionCampaign(folder, "detection", detection.asks, CLASSES, *drawn(70, seed=0), max_epochs=7)
        return campaign.after(3)


def test_audit_measures_the_average_precision(boxes):
    for number in (1, 2):
        metrics = boxes.folder.round(number).read(METRICS)
        assert metrics.headline == "AP50"
        assert 0 <= metrics.low <= metrics.value <= metrics.high <= 1
        assert set(metrics.by_class["AP50"]) == set(CLASSES)
        assert {"AP", "recall"} <= set(metrics.scalars)
    assert metrics.value > 0.5
    assert not boxes.folder.round(2).has(CONFUSION_TABLE)
    assert {"audit_AP50", "audit_AP50_low", "AP50/cat"} <= boxes.tracker.runs["round-2"].metrics.keys()
    assert "Audit AP50 **" in round_markdown(boxes.folder.round(2), "boxes")
    assert boxes.folder.round(2).read(REVIEW).text


def test_people_see_boxes_and_where_the_model_is_unsure(boxes):
    folder = boxes.folder.round(2)
    batch, seen = folder.read(BATCH).table, folder.read(GUESSES).by_item()
    assert batch["uncertainty"].between(0, 1).all()
    asked = [one for one in boxes.tool.tasks.values() if one.ask.round_number == 2]
    assert len(asked) == 8
    for question in asked:
        assert question.guess == seen[question.item_id]
        assert {region.kind for region in question.guess} <= {"box"}
        first, second = str(question.columns["confused_classes"]).split(" / ")
        assert first.split(" at ")[1] == second.split(" at ")[1], "two answers about one place"
    assert any(seen.values())


def test_labels_and_predictions_come_out_as_regions(boxes, tmp_path):
    out = tmp_path / "labels.csv"
    n = write_labels(load_settings(boxes.file), out)
    rows = pd.read_csv(out, keep_default_na=False)
    assert len(rows) == n == 36
    for uri, label in zip(rows["uri"], rows["label"], strict=True):
        assert detection.read_label(label) == boxes.found(uri)
    images, found = drawn(8, seed=9)
    write_images(tmp_path / "new", images)
    predict_files(load_settings(boxes.file), tmp_path / "new", tmp_path / "predicted.csv")
    predicted = pd.read_csv(tmp_path / "predicted.csv").sort_values("uri")
    seen = [detection.read_label(text) for text in predicted["regions"]]
    assert all(region.score > detection.SHOWN for regions in seen for region in regions)
    agreements = [detection.consensus(pair)[1] for pair in zip(found, seen, strict=True)]
    assert sum(agreements) / len(agreements) > 0.5


def test_budget_in_boxes_ends_the_campaign_when_the_boxes_are_paid_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))
    images, found = drawn(70, seed=0)
    told = {"max_epochs": 1, "budget": 120, "more": 'budget_in = "regions"'}
    people = RegionCampaign(tmp_path, "detection", detection.asks, CLASSES, images, found, **told)
    n_asked, n_boxes = [], []
    while (message := people.run()).startswith("round"):
        batch = people.folder.rounds()[-1].read(BATCH).table
        n_asked.append(len(batch))
        n_boxes.append(sum(max(1, len(people.found(uri))) for uri in batch["uri"]))
        people.answer()
    assert message.endswith(f"the budget is spent, with {sum(n_boxes)} of 120 boxes paid for")
    assert n_asked[:2] == [28, 8]
    last_but_one = sum(n_boxes[:-1])
    assert n_asked[-1] == (120 - last_but_one) * sum(n_asked[:-1]) // last_but_one < 8
    state = campaign_status(people.folder, tmp_path)
    assert (state.n_regions_paid, state.budget, state.paid_in, state.budget_left) == (sum(n_boxes), 120, "boxes", 0)
    lines = "\n".join(status_lines(state))
    assert f"{sum(n_boxes)} of 120 boxes paid for, which leaves 0 images to ask for" in lines
    assert f"Stops when 120 boxes are paid for ({sum(n_boxes)} now)" in lines
    assert people.tracker.runs["round-1"].metrics["n_regions_paid"] == (n_boxes[0], 28)
    assert f"28 of them paid for, which hold {n_boxes[0]} boxes." in round_markdown(people.folder.round(1), "boxes")
