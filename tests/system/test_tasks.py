"""A whole campaign of each task that asks for several regions: people err, a process dies, and nothing is lost."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pandas as pd
import pytest
from mlflow import MlflowClient

from connectors.mistakes import Mistakes
from flows.artefacts import AUDIT, GUESSES, LABELLED, METRICS
from flows.scenes import CLASSES, compose_scenes, write_scenes
from pipeline.tasks import TASKS
from pipeline.types import Region
from tests.system.conftest import TestCampaign

N_SCENES = 30
N_FIRST, N_AUDIT, QUERY_SIZE = 16, 8, 6
FILE = """\
name = "{name}"
task = "{task}"
pool = "images"
classes = {classes}
folder = "campaign"
budget = {budget}
audit_size = 8
seed_set_size = 8
query_size = 6
{extra}

[model]
name = "small_cnn"
image_size = 64
augmentation = "digits"
max_epochs = 1
min_steps = 4

[members]
ensemble = 2
"""
MISTAKES = Mistakes(drop_rate=0.3, add_rate=0.2, shift=0.2)


class Story(NamedTuple):
    """What is special in a campaign: its budget, further lines of its file, before which files the process dies."""

    budget: int
    extra: str = ""
    before: Mapping[int, Sequence[str]] = {}


STORIES = {
    "multi_label": Story(22, 'balance_classes = true\nstrategy = "top_k"\nrandom_slice = 0.0'),
    "segmentation": Story(22),
    "detection": Story(
        44, 'budget_in = "regions"', {0: ("pushed.json",), 1: ("annotations.parquet", "guesses.parquet")}
    ),
}


@pytest.fixture
def make_scenes(servers, servers_home, environment, fork, label_studio_token):
    """Write the images and the file of a campaign on scenes."""

    def make(task: str) -> TestCampaign:
        name = f"{task.replace('_', '-')}-{uuid.uuid4().hex[:10]}"
        folder, asks = servers_home / "pools" / name, TASKS[task].asks
        scenes = write_scenes(folder / "images", compose_scenes(N_SCENES, seed=3), lambda *_: None)
        budget, extra, _ = STORIES[task]
        text = FILE.format(name=name, task=task, classes=json.dumps(list(CLASSES)), budget=budget, extra=extra)
        (folder / "campaign.toml").write_text(text, encoding="utf-8")
        return TestCampaign(
            folder / "campaign.toml",
            {file: scene.regions(asks.kind) for file, scene in scenes.items()},
            servers,
            label_studio_token,
            environment,
            fork,
            classes=tuple(CLASSES),
            asks=asks,
        )

    return make


@pytest.mark.parametrize("task", STORIES)
def test_labels_are_what_people_gave_after_mistakes_and_kills(task, make_scenes, kill_at):
    campaign, story = make_scenes(task), STORIES[task]
    given: dict[str, tuple[Region, ...]] = {}
    sizes: list[int] = []
    n_wrong = 0
    while (n_asked := n_paid_for(given, story)) > 0:
        number = len(sizes)
        for victim in story.before.get(number, ()):
            kill_at(campaign, victim)
        assert f"Round {number} asks for {n_asked} labels" in campaign.run()
        done = campaign.annotator(mistakes=MISTAKES, error_rate=0.1, seed=number).label()
        assert sorted(done.item_ids) == sorted(campaign.batch(number))
        n_wrong += done.n_wrong
        given |= dict(zip(done.item_ids, done.given, strict=True))
        sizes.append(len(given))
    last = len(sizes)
    assert last > 1, "a model chose images"
    assert f"finished after round {last}: the budget is spent" in campaign.run()

    assert n_wrong > 0, "people err"
    assert () in given.values(), "somebody found nothing"
    stand = regions_of(campaign, last)
    assert stand.keys() == given.keys()
    for item_id, regions in given.items():
        assert_same(stand[item_id], regions)
    check_guesses(campaign, last - 1)
    check_metrics(campaign, task, sizes)
    check_commands(campaign, task, given)


def n_paid_for(given: Mapping[str, Sequence[Region]], story: Story) -> int:
    """How many images the next round asks for: as many as the budget pays for, of regions by their mean so far."""
    if not given:
        return N_FIRST
    n_paid = n_counted(given) if "budget_in" in story.extra else len(given)
    return min(QUERY_SIZE, max(0, story.budget - n_paid) * len(given) // n_paid)


def n_counted(given: Mapping[str, Sequence[Region]]) -> int:
    """Regions as a budget counts them: an image in which nothing is found is one."""
    return sum(max(1, len(regions)) for regions in given.values())


def regions_of(campaign: TestCampaign, number: int) -> dict[str, tuple[Region, ...]]:
    """The labels that a round learns from and is measured on."""
    sets = [campaign.folder.round(number).read(artefact) for artefact in (LABELLED, AUDIT)]
    return {item_id: regions for each in sets for item_id, regions in zip(each.item_ids, each.regions, strict=True)}


def assert_same(found, given) -> None:
    """The same regions, in any order; coordinates go through percent."""
    assert len(found) == len(given)
    for one, other in zip(sorted(found, key=in_order), sorted(given, key=in_order), strict=True):
        assert (one.kind, one.label, one.mask) == (other.kind, other.label, other.mask)
        assert one.score is None
        if other.geometry is not None:
            assert one.geometry == pytest.approx(other.geometry, abs=1e-9)


def in_order(region: Region):
    return region.label, [round(value, 6) for value in region.geometry or ()], region.mask or b""


def check_guesses(campaign: TestCampaign, number: int) -> None:
    """What the model saw is what Label Studio shows, on each task of a batch."""
    seen = campaign.folder.round(number).read(GUESSES).by_item()
    assert sorted(seen) == sorted(campaign.batch(number))
    with httpx.Client(base_url=campaign.servers.label_studio_url, timeout=60) as client:
        client.headers["Authorization"] = f"Token {campaign.token}"
        for item_id, task_id in campaign.tasks(number).items():
            [prediction] = client.get(f"/api/tasks/{task_id}/").raise_for_status().json()["predictions"]
            shown = [part for part in prediction["result"] if part["from_name"] == "label"]
            labels = [label for part in shown for label in labels_of(part["value"])]
            assert sorted(labels) == sorted(region.label for region in seen[item_id])


def labels_of(value: dict) -> list[str]:
    """The labels of a region of any kind."""
    return next(names for key, names in value.items() if key == "choices" or key.endswith("labels"))


def check_metrics(campaign: TestCampaign, task: str, sizes: Sequence[int]) -> None:
    last = len(sizes)
    metrics = campaign.folder.round(last).read(METRICS)
    headline = TASKS[task].headline
    assert metrics.headline == headline
    assert 0 <= metrics.low <= metrics.value <= metrics.high <= 1
    client = MlflowClient(campaign.servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    logged = runs[f"round {last}"].data.metrics
    assert logged[f"audit_{headline}"] == pytest.approx(metrics.value)
    assert {f"audit_{headline}_low", f"audit_{headline}_high", *metrics.scalars} <= logged.keys()
    curve = client.get_metric_history(runs[campaign.name].info.run_id, f"audit_{headline}")
    assert [point.step for point in sorted(curve, key=lambda point: point.step)] == sizes
    assert client.get_model_version_by_alias(campaign.name, "champion")


def check_commands(campaign: TestCampaign, task: str, given: dict[str, tuple[Region, ...]]) -> None:
    """`status` and `labels` know the task."""
    told = campaign.command("status", str(campaign.file))
    assert f"audit {TASKS[task].headline.replace('_', ' ')}" in told
    state = json.loads(campaign.command("status", str(campaign.file), "--json"))
    assert state["n_labels_paid"] == len(given)
    if "budget_in" in STORIES[task].extra:
        assert state["n_regions_paid"] == n_counted(given)
    out = campaign.file.with_name("labels.csv")
    assert f"Wrote {len(given)} labels" in campaign.command("labels", str(campaign.file), str(out))
    table = pd.read_csv(out, keep_default_na=False)
    assert table["split"].value_counts().to_dict() == {"pool": len(given) - N_AUDIT, "audit": N_AUDIT}
    for item_id, label, uri in zip(table["item_id"], table["label"], table["uri"], strict=True):
        assert_same(TASKS[task].read_label(label), given[item_id])
        assert Path(uri).is_file()
