"""A campaign of masks: from the first question to a model, its labels and its predictions."""

import pandas as pd
import pytest

from flows.artefacts import BATCH, CONFUSION_TABLE, GUESSES, METRICS, REVIEW
from flows.config import load_settings
from flows.reports.round_page import round_markdown
from flows.results import predict_files, write_labels
from pipeline.masks import mask_to_png
from pipeline.regions import regions_from_json
from pipeline.tasks import segmentation
from pipeline.types import Region
from tests.flows.region_campaign import RegionCampaign, write_images
from tests.pipeline.test_segmentation import rectangles

CLASSES = ("dim", "bright")


def drawn(n: int, *, seed: int):
    """Images of rectangles, and what people paint in each, at half of its size."""
    images, targets = rectangles(n, seed=seed)
    rasters = targets[:, ::8, ::8].numpy()
    found = [
        tuple(
            Region("mask", name, mask=mask_to_png(raster == 1 + place))
            for place, name in enumerate(CLASSES)
            if (raster == 1 + place).any()
        )
        for raster in rasters
    ]
    return images[:, 0].numpy(), found


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A campaign in memory after three rounds, and its people, who make no mistakes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("masks")
        patch.setenv("LABELCYCLE_HOME", str(folder / "home"))
        drawings = drawn(70, seed=0)
        return RegionCampaign(folder, "segmentation", segmentation.asks, CLASSES, *drawings, max_epochs=4).after(3)


def test_audit_measures_the_mean_intersection_over_union(masks):
    for number in (1, 2):
        metrics = masks.folder.round(number).read(METRICS)
        assert metrics.headline == "mIoU"
        assert 0 <= metrics.low <= metrics.value <= metrics.high <= 1
        assert set(metrics.by_class["IoU"]) == set(CLASSES)
        assert {"background_IoU", "pixel_accuracy"} <= set(metrics.scalars)
    assert metrics.value > 0.3
    assert not masks.folder.round(2).has(CONFUSION_TABLE)
    assert {"audit_mIoU", "audit_mIoU_low", "IoU/dim"} <= masks.tracker.runs["round-2"].metrics.keys()
    assert "Audit mIoU **" in round_markdown(masks.folder.round(2), "masks")
    assert masks.folder.round(2).read(REVIEW).text


def test_people_see_masks_and_where_the_model_is_unsure(masks):
    folder = masks.folder.round(2)
    batch, seen = folder.read(BATCH).table, folder.read(GUESSES).by_item()
    assert batch["uncertainty"].between(0, 1).all()
    asked = [one for one in masks.tool.tasks.values() if one.ask.round_number == 2]
    assert len(asked) == 8
    for question in asked:
        assert question.guess == seen[question.item_id]
        assert {region.kind for region in question.guess} <= {"mask"}
        first, second = str(question.columns["confused_classes"]).split(" / ")
        assert first.split(" at ")[1] == second.split(" at ")[1], "two answers about one place"
    assert any(seen.values())


def test_labels_and_predictions_come_out_as_regions(masks, tmp_path):
    out = tmp_path / "labels.csv"
    n = write_labels(load_settings(masks.file), out)
    rows = pd.read_csv(out, keep_default_na=False)
    assert len(rows) == n == 36
    for uri, label in zip(rows["uri"], rows["label"], strict=True):
        assert segmentation.read_label(label) == masks.found(uri)
    images, targets = rectangles(6, seed=9)
    write_images(tmp_path / "new", images[:, 0].numpy())
    predict_files(load_settings(masks.file), tmp_path / "new", tmp_path / "predicted.csv")
    predicted = pd.read_csv(tmp_path / "predicted.csv").sort_values("uri")
    seen = segmentation.targets([regions_from_json(text) for text in predicted["regions"]], CLASSES)
    assert (seen == targets).float().mean() > 0.9
