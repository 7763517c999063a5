"""Processes killed for real, with real servers: the next run goes on as if nothing had happened."""

import httpx
from mlflow import MlflowClient

from flows.artefacts import METRICS, ROUND

FIRST = ("pool.parquet", "batch.parquet", "pushed.json")
CLOSING = ("annotations.parquet", "round.json")
ASKING = ("member-0.json", "training.json", "model.json", "summary.json", "pushed.json")
"""Before these files a server was asked for something, or a network was trained; tests/flows/test_loop.py has all."""


def test_killed_campaign_asks_for_the_same_images_and_loses_no_label(make_campaign, kill_at):
    undisturbed, killed = make_campaign(), make_campaign()
    undisturbed.run()
    undisturbed.label()
    undisturbed.run()

    for victim in FIRST:
        kill_at(killed, victim)
    killed.run()
    assert killed.batch(0) == undisturbed.batch(0)
    labelled = killed.label().item_ids
    assert sorted(labelled) == sorted(killed.batch(0))

    for victim in (*CLOSING, *ASKING):
        kill_at(killed, victim)
    killed.run()

    assert killed.batch(1) == undisturbed.batch(1)
    assert killed.pulled_tasks(0, 1) == killed.tasks(0) | killed.tasks(1)
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


def check_one_run_for_each_round(campaign, n_rounds: int = 2) -> None:
    client = MlflowClient(campaign.servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    rounds = [f"round {number}" for number in range(n_rounds)]
    members = ["member-0", "member-1"] * (n_rounds - 1)
    assert names == sorted([campaign.name, *members, *rounds])
    for of_round in (run for run in runs if run.info.run_name in rounds):
        for key in of_round.data.metrics:
            if not key.startswith("system/"):
                assert len(client.get_metric_history(of_round.info.run_id, key)) == 1, f"{key} was logged twice"
    assert len(client.search_model_versions(f"name = '{campaign.name}'")) == n_rounds - 1
