"""A campaign that changes its mind, through real Label Studio, MLflow and Prefect servers."""

import json

import httpx
import pandas as pd
from mlflow import MlflowClient

from connectors.label_studio.person import SimulatedAnnotator
from flows.artefacts import ANSWERS, AUDIT, BATCH, LABELLED, METRICS, MODEL, POOL
from flows.outlook import best_round
from tests.system.conftest import words_of


def change(campaign, *replacements: tuple[str, str]) -> None:
    text = campaign.file.read_text()
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    campaign.file.write_text(text)


def client_of(campaign) -> httpx.Client:
    headers = {"Authorization": f"Token {campaign.token}"}
    return httpx.Client(base_url=campaign.servers.label_studio_url, headers=headers, timeout=60)


def project_of(campaign, title: str | None = None) -> dict:
    with client_of(campaign) as client:
        [found] = client.get("/api/projects", params={"title": title or campaign.name}).json()["results"]
    return found


def shown_classes(campaign) -> dict[str, str]:
    """What the page lets people choose from, by the name that it keeps."""
    choices = project_of(campaign)["parsed_label_config"]["label"]["labels_attrs"]
    return {stored: choice["value"] for stored, choice in choices.items()}


def skip(campaign, number: int, item_ids: set[str]) -> None:
    with client_of(campaign) as client:
        for item_id in sorted(item_ids):
            body = {"result": [], "was_cancelled": True}
            path = f"/api/tasks/{campaign.tasks(number)[item_id]}/annotations/"
            client.post(path, json=body).raise_for_status()


def known_labels(campaign, number: int) -> dict[str, str]:
    return words_of(campaign.folder.round(number), LABELLED) | words_of(campaign.folder.round(number), AUDIT)


def test_classes_are_renamed_and_added_while_people_label_and_no_answer_is_lost(make_campaign):
    campaign = make_campaign()
    nine = json.dumps([*"012345678"])
    change(campaign, ('["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]', nine))
    campaign.run()
    truth, batch = campaign.labels(), set(campaign.batch(0))
    nines = {item_id for item_id in batch if truth[item_id] == "9"}
    audit = set(campaign.folder.read(POOL).table.query("split == 'audit'")["item_id"])
    assert nines & audit, "the audit set has a digit that people cannot name"
    skip(campaign, 0, nines)
    half = campaign.label(8).item_ids

    renamed = '[renamed]\n"7" = "seven"\n'
    classes = json.dumps([*"012345689", "seven"])
    change(campaign, (nine, classes), ("[label_studio]", f"{renamed}\n[label_studio]"))
    change(campaign, ("[label_studio]", '[label_studio]\ninstructions = "A 9 has a class now."'))
    waiting = campaign.run(expect=3)
    assert f"8 of 22 labelled, {len(nines)} skipped" in waiting
    assert "from round 1 on: classes:" in waiting
    assert project_of(campaign)["expert_instruction"] == "A 9 has a class now."
    assert shown_classes(campaign) == {**{name: name for name in "012345689"}, "7": "seven"}
    assert campaign.label().n_labelled == 22 - 8 - len(nines), "the annotator answers with 7, as the page keeps it"

    assert "changed since round 0: classes:" in campaign.run()
    labels = known_labels(campaign, 1)
    names = {item_id: "seven" if label == "7" else label for item_id, label in truth.items()}
    assert labels == {item_id: names[item_id] for item_id in batch - nines}
    assert {*half} <= labels.keys()
    assert "seven" in labels.values()
    again = campaign.folder.round(1).read(BATCH).table
    assert set(again["item_id"][: len(nines & audit)]) == nines & audit, "what measures the new class comes first"

    campaign.label()
    campaign.run()
    measured = words_of(campaign.folder.round(2), AUDIT)
    assert measured == {item_id: names[item_id] for item_id in audit}, "the audit set is whole"
    ledger = pd.concat(pd.read_parquet(campaign.folder.round(n).path_of(ANSWERS)) for n in (0, 1))
    assert not ledger.duplicated(["item_id", "answer_id"]).any(), "no answer was taken for a new one"
    client = MlflowClient(campaign.servers.mlflow_url)
    champion = client.get_model_version_by_alias(campaign.name, "champion")
    assert champion.run_id in {campaign.folder.round(n).read(MODEL).run_id for n in (1, 2)}
    run = client.get_run(campaign.folder.round(1).read(MODEL).run_id)
    assert "renamed: none -> 7 = seven" in run.data.tags["changes"]

    change(campaign, (classes, json.dumps([*"012345689"])), (renamed, ""))
    assert "of 'seven'" in campaign.run(expect=2)


def test_addresses_change_while_a_round_is_out(make_campaign):
    campaign = make_campaign()
    campaign.run()
    campaign.label()
    campaign.run()
    project = project_of(campaign)["id"]
    title = f"moved {campaign.name[-10:]}"
    tracker = f"sqlite:///{campaign.file.parent}/ml.db"
    change(campaign, ("[label_studio]", f'[mlflow]\nuri = "{tracker}"\n\n[label_studio]\nproject = "{title}"'))
    assert "0 of 8 labelled" in campaign.run(expect=3)
    assert project_of(campaign, title)["id"] == project
    options = {"url": campaign.servers.label_studio_url, "token": campaign.token, "project": title}
    assert SimulatedAnnotator(**options, answers=campaign.labels()).label().n_labelled == 8
    output = campaign.run()
    assert "Round 2 asks for 8 labels" in output
    assert f"mlflow.uri: local -> {tracker}" in output
    client = MlflowClient(tracker)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = client.search_runs([experiment.experiment_id], "tags.`labelcycle.kind` = 'round'")
    metrics = {run.data.tags["labelcycle.round"]: run.data.metrics for run in runs}
    assert metrics.keys() == {"1", "2"}
    assert metrics["1"]["audit_accuracy"] == campaign.folder.round(1).read(METRICS).value
    best = str(best_round(campaign.folder.rounds()).number)
    run_id = next(run.info.run_id for run in runs if run.data.tags["labelcycle.round"] == best)
    assert client.get_model_version_by_alias(campaign.name, "champion").run_id == run_id
