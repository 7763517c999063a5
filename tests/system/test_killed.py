"""Processes killed for real, at every artefact of a round: the next run goes on as if nothing had happened."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from flows.artefacts import (
    ANSWERS,
    AUDIT,
    AUDIT_PREDICTIONS,
    BATCH,
    CANDIDATES,
    CONFIG,
    CONFUSION_PICTURE,
    CONFUSION_TABLE,
    LABELLED,
    LABELLED_EMBEDDINGS,
    METRICS,
    MODEL,
    NOT_USED,
    OUT_OF_FOLD,
    OUTLOOK,
    PAGES,
    PLAN,
    POOL,
    PUSHED,
    PUSHING,
    REVIEW,
    ROUND,
    STABILITY,
    SUMMARY,
    SUSPICIOUS,
    TRAINING,
    WITHDRAWN,
    Artefact,
)

FIRST = (POOL, CONFIG, BATCH, PUSHED)
CLOSING = (NOT_USED, WITHDRAWN, ANSWERS, ROUND)
BEFORE_MEMBERS = (CONFIG, AUDIT, LABELLED, PAGES, CANDIDATES, PLAN, OUT_OF_FOLD)
MEMBER_FILES = ("member-0.pt", "member-0.json")
AFTER_MEMBERS = (
    *(TRAINING, AUDIT_PREDICTIONS, METRICS, CONFUSION_TABLE, CONFUSION_PICTURE, REVIEW, SUSPICIOUS, MODEL, OUTLOOK),
    LABELLED_EMBEDDINGS,
)
SHARD = "part-00000.parquet"
AT_THE_END = (BATCH, STABILITY, SUMMARY, PUSHING, PUSHED)


def names(artefacts: Sequence[Artefact]) -> list[str]:
    return [artefact.name for artefact in artefacts]


ASKING = [*names(BEFORE_MEMBERS), *MEMBER_FILES, *names(AFTER_MEMBERS), SHARD, *names(AT_THE_END)]
"""In the order in which a round writes them."""


def run_until_killed(file: str, victim: str) -> None:
    """Run a round; die when everything is done for `victim` and it is about to become visible."""
    rename = Path.replace

    def rename_or_die(self: Path, target: Path) -> Path:
        if Path(target).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = rename_or_die
    from flows.flow import run_round

    run_round(file)


@pytest.fixture
def kill_at(fork):
    """Run a campaign's round in a process of its own that is killed at an artefact."""

    def kill(campaign, victim: str) -> None:
        exit_code, message = fork(run_until_killed, str(campaign.file), victim)
        assert exit_code == -signal.SIGKILL, f"{victim} was never written: exit code {exit_code}, {message}"

    return kill


def test_killed_campaign_asks_for_the_same_images_and_loses_no_label(make_campaign, kill_at):
    undisturbed, killed = make_campaign(), make_campaign()
    undisturbed.run()
    undisturbed.label()
    undisturbed.run()

    for victim in names(FIRST):
        kill_at(killed, victim)
    killed.run()
    assert killed.batch(0) == undisturbed.batch(0)
    labelled = killed.label().item_ids
    assert sorted(labelled) == sorted(killed.batch(0))

    for victim in names(CLOSING):
        kill_at(killed, victim)
    for victim in ASKING:
        kill_at(killed, victim)
    killed.run()

    assert killed.batch(1) == undisturbed.batch(1)
    assert killed.pull(0, 1).task_ids == killed.tasks(0) | killed.tasks(1)
    assert n_tasks(killed) == len(killed.tasks(0)) + len(killed.tasks(1)), "no task twice"
    for campaign in (undisturbed, killed):
        assert campaign.folder.round(0).read(ROUND).outcomes == {"labelled": len(labelled)}
    metrics = [c.folder.round(1).read(METRICS) for c in (undisturbed, killed)]
    assert metrics[0] == metrics[1]
    check_one_run_for_each_round(killed)


def n_tasks(campaign) -> int:
    with httpx.Client(base_url=campaign.servers.label_studio_url, timeout=60) as client:
        client.headers["Authorization"] = f"Token {campaign.token}"
        found = client.get("/api/projects", params={"title": campaign.name}).json()["results"]
        return sum(project["task_number"] for project in found)


def check_one_run_for_each_round(campaign) -> None:
    client = MlflowClient(campaign.servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    assert names == [campaign.name, "member-0", "member-1", "round 0", "round 1"]
    of_round = next(run for run in runs if run.info.run_name == "round 1")
    for key in of_round.data.metrics:
        if not key.startswith("system/"):
            assert len(client.get_metric_history(of_round.info.run_id, key)) == 1, f"{key} was logged twice"
    assert len(client.search_model_versions(f"name = '{campaign.name}'")) == 1
