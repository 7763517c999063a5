"""A campaign whose images have several labels: from the first question to a model, its labels and its predictions."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copy, copytree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from connectors.image_folder.manifest import read_manifest
from connectors.memory import MemoryTool, MemoryTracker
from connectors.mlflow.loader import load_ensemble
from connectors.score_files import ScoreFiles
from flows.artefacts import (
    ANSWERS,
    AUDIT,
    BATCH,
    CANDIDATES,
    CONFUSION_TABLE,
    GUESSES,
    LABELLED,
    MEMBERS,
    METRICS,
    SCORES,
    STABILITY,
    TRAINING,
)
from flows.campaign import open_campaign
from flows.config import ConfigError, load_settings
from flows.replay.command import replay_strategies
from flows.replay.folder import Replay
from flows.replay.options import Options
from flows.reports.round_page import round_markdown
from flows.reports.status import campaign_status, rounds_table, status_lines
from flows.results import predict_files, write_labels
from flows.round import work_on
from flows.successor import write_successor
from pipeline.regions import OTHERS
from pipeline.tables import Labels
from pipeline.tasks import multi_label
from pipeline.types import Region

CLASSES = ("left", "middle", "right")
N_IMAGES = 150
FILE = """\
name = "marks"
task = "multi_label"
pool = "{pool}"
classes = {classes}
folder = "campaign"
budget = 120
audit_size = 40
seed_set_size = 16
query_size = 16
target_accuracy = 0.99
{extra}

[model]
name = "small_cnn"
image_size = 12
channels = 1
augmentation = "none"
max_epochs = 12
{model}

[members]
ensemble = 2
"""


def labels_of(uri: str) -> list[str]:
    """What is there: the number of the file tells it, in bits."""
    return [name for place, name in enumerate(CLASSES) if int(Path(uri).stem) >> place & 1]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Noise with a stripe for each class that is there."""
    folder = tmp_path_factory.mktemp("marks") / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(N_IMAGES):
        pixels = draw.integers(0, 200, size=(12, 12), dtype=np.uint8)
        for name in labels_of(f"{number}.png"):
            place = 4 * CLASSES.index(name)
            pixels[:, place : place + 3] += 25
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


class Marks:
    """A campaign in memory and its people, who make no mistakes."""

    def __init__(
        self, folder: Path, pool: Path, *, extra: str = "", model: str = "", classes: tuple[str, ...] = CLASSES
    ):
        self.file = folder / "marks.toml"
        self.file.write_text(FILE.format(pool=pool, classes=json.dumps(classes), extra=extra, model=model))
        self.tool, self.tracker = MemoryTool(classes, asks=multi_label.asks), MemoryTracker()
        self.folder = open_campaign(self.file, tool=self.tool, tracker=self.tracker).folder

    def run(self) -> str:
        work = open_campaign(self.file, tool=self.tool, tracker=self.tracker)
        with work.folder.lock():
            return work_on(work).message

    def label(self) -> None:
        for question in self.tool.served():
            self.tool.answer(question.ask, *labels_of(question.uri), annotator="ann")


@pytest.fixture(scope="module")
def after_three_rounds(images, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("campaign")
        patch.setenv("LABELCYCLE_HOME", str(folder / "home"))
        marks = Marks(folder, images)
        for number in range(4):
            assert f"round {number} asks for" in marks.run()
            marks.label()
        return marks


def test_macro_average_precision_rises_with_labels(after_three_rounds):
    measured = [after_three_rounds.folder.round(number).read(METRICS) for number in (1, 2, 3)]
    values = [metrics.value for metrics in measured]
    assert values[-1] > values[0]
    for metrics in measured:
        assert metrics.headline == "macro_AP"
        assert 0 < metrics.low <= metrics.value <= metrics.high <= 1
        assert set(metrics.by_class["average_precision"]) == set(CLASSES)
        assert {"macro_f1", "micro_f1", "exact_match"} == set(metrics.scalars)
    logged = after_three_rounds.tracker.runs["round-3"].metrics
    assert {"audit_macro_AP", "audit_macro_AP_low", "audit_macro_AP_high", "average_precision/left"} <= logged.keys()


def test_people_see_what_the_model_sees_and_what_it_is_unsure_of(after_three_rounds):
    folder = after_three_rounds.folder.round(2)
    batch, seen = folder.read(BATCH).table, folder.read(GUESSES).by_item()
    assert batch["uncertainty"].between(0, 1).all()
    pairs = {f"{one} / {other}" for name in CLASSES for one, other in ((name, f"no {name}"), (f"no {name}", name))}
    assert set(batch["confused_classes"]) <= pairs
    assert batch["reason"].str.contains("of 3 classes").sum() > len(batch) / 2, "the default strategy chose them"
    asked = [one for one in after_three_rounds.tool.tasks.values() if one.ask.round_number == 2]
    assert len(asked) == 16
    for question in asked:
        assert question.guess == seen[question.item_id], "an empty guess says that nothing is seen"
        assert "confused_classes" in question.columns
    assert any(len(regions) > 1 for regions in seen.values())
    assert {
        question.guess for question in after_three_rounds.tool.tasks.values() if question.ask.round_number == 0
    } == {None}


def test_pages_name_what_is_measured(after_three_rounds, tmp_path):
    folder = after_three_rounds.folder
    assert "Audit macro AP **" in round_markdown(folder.round(3), "marks")
    assert not folder.round(3).has(CONFUSION_TABLE)
    text = "\n".join(status_lines(campaign_status(folder, tmp_path)))
    assert "the audit macro AP is surely 99 %" in text
    assert "accuracy" not in text.replace("target_accuracy", "")
    assert "audit macro AP" in [column.header for column in rounds_table(folder).columns]


def test_labels_come_out_as_a_manifest_takes_them(after_three_rounds, tmp_path):
    out = tmp_path / "labels.csv"
    n = write_labels(load_settings(after_three_rounds.file), out)
    pd.read_csv(out)[["uri", "label"]].to_csv(tmp_path / "manifest.csv", index=False)  # it is not split as it was
    rows = read_manifest(tmp_path / "manifest.csv", CLASSES, asks=multi_label.asks).rows
    assert len(rows) == n > 80
    assert {"|", "left", "left|middle|right"} <= set(rows["label"])
    for uri, label in zip(rows["uri"], rows["label"], strict=True):
        assert label == ("|".join(labels_of(uri)) or "|")


def test_predictions_have_a_probability_for_each_class(after_three_rounds, images, tmp_path):
    out = tmp_path / "predictions.csv"
    predict_files(load_settings(after_three_rounds.file), images, out)
    table = pd.read_csv(out)
    assert list(table.columns) == ["uri", "labels", "p_left", "p_middle", "p_right", "reason"]
    above = [[name for name in CLASSES if row[f"p_{name}"] > 0.5] for row in table.to_dict("records")]
    assert table["labels"].tolist() == ["|".join(names) or "|" for names in above]
    right = [names == labels_of(uri) for names, uri in zip(above, table["uri"], strict=True)]
    assert np.mean(right) > 0.5


def test_saved_model_knows_its_task(after_three_rounds, images, tmp_path):
    folder = after_three_rounds.folder.round(3)
    training, networks = folder.read(TRAINING), folder.read(MEMBERS)
    copy(networks.describe(asdict(training.model)), tmp_path / "description.json")
    for number, file in enumerate(networks.files(training.weights)):
        copy(file, tmp_path / f"member-{number:03d}.pt")
    table = load_ensemble(tmp_path, device="cpu").predict([images / "007.png", images / "000.png"])
    assert list(table.columns) == ["labels", "p_left", "p_middle", "p_right"]
    assert table["labels"].tolist() == ["left|middle|right", "|"]
    assert load_ensemble(tmp_path, device="cpu").predict([]).shape == (0, 4)


def test_successor_has_all_labels(after_three_rounds, tmp_path):
    new = after_three_rounds.file.parent / "marks-two.toml"
    assert "labels of 150 images" in write_successor(new, after_three_rounds.file)[0]
    settings = load_settings(new)
    assert settings.task == "multi_label"
    rows = read_manifest(settings.pool, CLASSES, asks=settings.asks).rows
    given = rows.dropna(subset=["label"])
    assert all(
        label == ("|".join(labels_of(uri)) or "|") for uri, label in zip(given["uri"], given["label"], strict=True)
    )


def test_several_people_and_changed_minds(images, tmp_path):
    marks = Marks(tmp_path, images)
    marks.run()
    for question in marks.tool.served():
        for annotator, labels in (("ann", ["left"]), ("bob", ["left", "right"]), ("eve", [])):
            marks.tool.answer(question.ask, *labels, annotator=annotator)
    marks.run()
    out = tmp_path / "labels.csv"
    write_labels(load_settings(marks.file), out)
    table = pd.read_csv(out)
    assert set(table["label"]) == {"left"}
    assert table["agreement"].tolist() == pytest.approx([2 / 3] * len(table))
    assert len(marks.folder.round(0).read(ANSWERS)) == 3 * len(table)


def test_manifest_gives_several_labels_in_a_cell(images, tmp_path):
    copytree(images, tmp_path / "images")
    rows = [
        {"uri": f"images/{n:03d}.png", "label": "|".join(reversed(labels_of(f"{n}.png"))) or "|"} for n in range(60)
    ]
    rows += [{"uri": f"images/{n:03d}.png", "label": None} for n in range(60, N_IMAGES)]
    pd.DataFrame(rows).to_csv(tmp_path / "pool.csv", index=False)
    marks = Marks(tmp_path, tmp_path / "pool.csv", extra='renamed = { old = "left" }')
    assert "round 0 asks for" in marks.run()
    marks.label()
    assert "round 1 asks for" in marks.run()
    labelled = marks.folder.round(1).read(TRAINING).n_trained_on
    assert labelled == 60 + 16
    metrics = marks.folder.round(1).read(METRICS)
    assert metrics.value > 0.85


def listed(number: int) -> str:
    """A cell that lists one class of those that are there; the images differ in which."""
    names = labels_of(f"{number}.png")
    return names[number % len(names)] if names else ""


@pytest.fixture(scope="module")
def positives_only(images, tmp_path_factory):
    """A campaign whose manifest names a class for each image that has any, after two rounds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("positives")
        patch.setenv("LABELCYCLE_HOME", str(folder / "home"))
        copytree(images, folder / "images")
        rows = [{"uri": f"images/{n:03d}.png", "label": listed(n)} for n in range(N_IMAGES)]
        pd.DataFrame(rows).to_csv(folder / "pool.csv", index=False)
        marks = Marks(folder, folder / "pool.csv", extra='manifest_labels = "positives_only"\nrandom_slice = 0')
        for number in range(2):
            assert f"round {number} asks for" in marks.run()
            marks.label()
        assert "round 2 asks for" in marks.run()
        return marks


def by_item(labels: Labels) -> dict[str, list[str]]:
    return {
        Path(uri).stem: [one.label for one in r] for uri, r in zip(labels.table["uri"], labels.regions, strict=True)
    }


def test_images_of_which_only_positives_are_known_are_learnt_from_and_asked_for_all_the_same(positives_only):
    folder = positives_only.folder
    labelled = folder.round(2).read(LABELLED)
    n_open = len(labelled) - len(labelled.complete)
    assert (
        len(labelled.complete) == len([o for o in positives_only.tool.tasks.values() if o.ask.purpose != "audit"]) - 16
    )
    assert n_open > 60
    assert folder.round(2).read(TRAINING).n_trained_on == len(labelled)
    asked = {Path(one.uri).stem for one in positives_only.tool.tasks.values() if one.ask.round_number == 2}
    known = by_item(labelled)
    assert any(OTHERS in known.get(name, ()) for name in asked)
    assert folder.round(2).read(METRICS).value > 0.75


def test_what_people_answer_is_complete_and_wins_over_a_list_of_positives(positives_only):
    labelled = positives_only.folder.round(2).read(LABELLED)
    of_people = Labels(labelled.table[labelled.table["source"] == "annotators"])
    for name, labels in by_item(of_people).items():
        assert labels == labels_of(name)
    of_manifest = Labels(labelled.table[labelled.table["source"] == "manifest"])
    for name, labels in by_item(of_manifest).items():
        assert labels == [listed(int(name)), OTHERS]


def test_audit_set_has_complete_answers_alone(positives_only):
    audit = positives_only.folder.round(2).read(AUDIT)
    assert len(audit) == 40
    assert set(audit.table["source"]) == {"annotators"}
    for name, labels in by_item(audit).items():
        assert labels == labels_of(name)


def test_labels_and_successor_tell_which_labels_list_positives_only(positives_only, tmp_path):
    out = tmp_path / "labels.csv"
    write_labels(load_settings(positives_only.file), out)
    table = pd.read_csv(out)
    for uri, label, source in zip(table["uri"], table["label"], table["source"], strict=True):
        number = int(Path(uri).stem)
        assert label == (f"{listed(number)}|?" if source == "manifest" else "|".join(labels_of(uri)) or "|")
    new = positives_only.file.parent / "marks-two.toml"
    write_successor(new, positives_only.file)
    settings = load_settings(new)
    assert settings.manifest_labels == "complete"
    rows = read_manifest(settings.pool, CLASSES, asks=settings.asks).rows
    given = dict(zip(table["uri"].map(lambda uri: Path(uri).stem), table["label"], strict=True))
    assert {Path(uri).stem: label for uri, label in zip(rows["uri"], rows["label"], strict=True) if label} == given


def least_sure_of_a_rarest_class(folder) -> set[str]:
    """The images of which the model is least sure whether a class is in them, for each of those with fewest labels."""
    labels = [region.label for regions in folder.read(LABELLED).regions for region in regions]
    fewest = min(labels.count(name) for name in CLASSES)
    best = folder.read(SCORES).values("class_scores").argmax(dim=0).tolist()
    ids = folder.read(CANDIDATES).table["item_id"].tolist()
    return {ids[row] for row, name in zip(best, CLASSES, strict=True) if labels.count(name) == fewest}


def test_campaign_learns_from_positives_alone_until_people_answer(images, tmp_path, monkeypatch):
    monkeypatch.setattr(ScoreFiles, "forget_passing", lambda _: None)
    copytree(images, tmp_path / "images")
    rows = [{"uri": f"images/{n:03d}.png", "label": listed(n)} for n in range(N_IMAGES)]
    pd.DataFrame(rows).to_csv(tmp_path / "pool.csv", index=False)
    text = 'manifest_labels = "positives_only"\nbalance_classes = true\nstrategy = "top_k"'
    marks = Marks(tmp_path, tmp_path / "pool.csv", extra=text)
    marks.file.write_text(
        f"{marks.file.read_text().replace('seed_set_size = 16', 'seed_set_size = 0')}mc_dropout = 4\n"
    )
    for number in range(3):
        assert f"round {number} asks for" in marks.run()
        marks.label()
    first = marks.folder.round(1)
    assert len(first.read(LABELLED)) > 60
    assert {OTHERS} < {label for labels in by_item(first.read(LABELLED)).values() for label in labels}
    assert len(first.read(BATCH)) == 16
    assert first.read(BATCH).item_ids[0] in least_sure_of_a_rarest_class(first)
    assert 0 <= first.read(STABILITY).batch_kept_with_half_the_members <= 1
    assert {member.calibration for member in first.read(TRAINING).members} == {None}, "nothing can be judged yet"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("left|midle", r"row 1 .* has a label that is not one of the classes .*did you mean 'middle'\?"),
        ("left|", r"several labels of an image have | between them"),
        ("left;right", r"several labels of an image have | between them"),
        ("none", r"leave the field empty where there is no label"),
        ("?", r"leave the field empty where there is no label"),
        ("|?", r"not one of the classes"),
        ("?|left", r"not one of the classes"),
        ("left||?", r"several labels of an image have | between them"),
    ],
)
def test_manifest_of_several_labels_is_read_strictly(images, tmp_path, cell, message):
    (tmp_path / "pool.csv").write_text(f"uri,label\n{images}/000.png,{cell}\n{images}/001.png,left\n")
    with pytest.raises(Exception, match=message):
        read_manifest(tmp_path / "pool.csv", CLASSES, asks=multi_label.asks)


def test_manifest_lists_positives_only_where_a_cell_or_the_campaign_tells_so(tmp_path):
    cells = ["left", " right | left ", "|", "", "middle | ?", "left|?"]
    pd.DataFrame({"uri": [f"{n}.png" for n in range(6)], "label": cells}).to_csv(tmp_path / "pool.csv", index=False)

    def read(*, are_open: bool) -> list[str | None]:
        return (
            read_manifest(tmp_path / "pool.csv", CLASSES, asks=multi_label.asks, are_open=are_open)
            .rows["label"]
            .tolist()
        )

    assert read(are_open=False) == ["left", "left|right", "|", None, "middle|?", "left|?"]
    assert read(are_open=True) == ["left|?", "left|right|?", "|", None, "middle|?", "left|?"]


def test_manifest_of_one_label_each_takes_no_several(tmp_path):
    (tmp_path / "pool.csv").write_text("uri,label\na.png,left|right\nb.png,left\n")
    with pytest.raises(Exception, match=r"row 1 .*'left\|right'.*where the campaign's task takes several"):
        read_manifest(tmp_path / "pool.csv", CLASSES)
    named = ("left|right", "left")
    assert read_manifest(tmp_path / "pool.csv", named).rows["label"].tolist() == ["left|right", "left"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"classes": ("a|b", "c")}, "must not hold |, which stands between labels"),
        ({"classes": ("a", "?")}, r"no class can be called '\?': \|\? ends a label that leaves open"),
        ({"extra": 'strategy = "badge"'}, "need one decision for each image, and task = 'multi_label' takes several"),
        ({"model": "pseudo_labels.threshold = 0.1"}, "pseudo_labels needs one decision for each image"),
    ],
)
def test_what_does_not_go_with_several_labels_is_refused(images, tmp_path, how, message):
    with pytest.raises(ConfigError, match=message):
        Marks(tmp_path, images, **how).run()


def test_a_campaign_is_replayed_on_its_labels_and_measured_on_its_audit_set(after_three_rounds, tmp_path):
    options = Options(tmp_path / "replay", campaign=after_three_rounds.file, seeds=1, query_size=3, rounds=2, start=6)
    summary = replay_strategies(replace(options, strategies="random,entropy", workers=1))
    assert summary["headline"] == multi_label.headline
    labelled = after_three_rounds.folder.round(2).read(LABELLED), after_three_rounds.folder.round(2).read(AUDIT)
    assert summary["settings"]["test_size"] == len(labelled[1].item_ids)
    rows = Replay(options.out).labels.set_index("file")["label"]
    for labels in labelled:
        for item_id, regions in zip(labels.item_ids, labels.regions, strict=True):
            assert multi_label.read_label(rows[item_id]) == tuple(regions)


def test_an_audit_set_that_has_none_of_the_classes_measures_nothing(images, tmp_path):
    marks = Marks(tmp_path, images)
    marks.run()
    for question in marks.tool.served():
        labels = labels_of(question.uri) if question.ask.purpose == "seed" else []
        marks.tool.answer(question.ask, *labels)
    assert "round 1 asks for" in marks.run()
    assert marks.folder.round(1).read(METRICS) is None
    assert "nothing to measure by" in round_markdown(marks.folder.round(1), "marks")


def test_regions_are_sorted_by_name(after_three_rounds):
    answers = after_three_rounds.folder.round(0).read(ANSWERS)
    assert (Region("image", "left"), Region("image", "middle")) in [one.annotation.regions for one in answers]
