"""Whole campaigns through real Label Studio, MLflow and Prefect servers."""

import base64
import json
from contextlib import suppress

import httpx
import psutil
from mlflow import MlflowClient

from flows.artefacts import ANSWERS, AUDIT, CANDIDATES, LABELLED, METRICS
from tests.system.conftest import words_of


def test_campaign_runs_from_the_first_label_to_the_spent_budget(make_campaign):
    campaign = make_campaign()
    labelled = []
    assert "Round 0 asks for 22 labels" in campaign.fresh_command("run", str(campaign.file))
    assert "Round 0 awaits labels: 0 of 22 labelled" in campaign.run(expect=3)
    labelled += campaign.label(5).item_ids
    assert "5 of 22 labelled" in campaign.run(expect=3)
    labelled += campaign.label().item_ids
    assert "Round 1 asks for 8 labels" in campaign.run()
    served = campaign.label().item_ids
    assert list(served) == campaign.batch(1), "Label Studio serves the most wanted first"
    labelled += served
    assert "Round 2 asks for 8 labels" in campaign.run()
    labelled += campaign.label().item_ids
    assert "finished after round 3: the budget is spent" in campaign.run()
    assert "finished after round 3" in campaign.run()

    truth = campaign.labels()
    last, audit = words_of(campaign.folder.round(3), LABELLED), words_of(campaign.folder.round(3), AUDIT)
    assert len(labelled) == len(set(labelled)) == 38
    assert last.keys() | audit.keys() == set(labelled)
    assert not last.keys() & audit.keys()
    assert all(truth[item_id] == word for item_id, word in (last | audit).items())
    for number in (1, 2):
        candidates = set(campaign.folder.round(number).read(CANDIDATES).table["item_id"])
        known = set(campaign.folder.round(number).read(LABELLED).item_ids)
        assert set(campaign.batch(number)) <= candidates
        assert not candidates & (known | audit.keys())
        assert len(candidates) + len(known) + len(audit) == 80

    check_status(campaign)
    check_label_studio(campaign)
    check_mlflow(campaign)
    check_prefect(campaign)
    check_that_no_secret_is_written(campaign)


def check_status(campaign):
    shown = campaign.fresh_command("status")
    state = json.loads(campaign.command("status", str(campaign.file), "--json"))
    metrics = campaign.folder.round(3).read(METRICS)
    assert state["rounds_closed"] == 4
    assert state["awaiting"] is None
    assert (state["n_labels_paid"], state["budget_left"]) == (38, 0)
    assert state["metrics"]["value"] == metrics.value
    assert state["metrics"]["low"] <= metrics.value <= state["metrics"]["high"]
    assert state["urls"]["mlflow"].startswith(f"{campaign.servers.mlflow_url}/#/experiments/")
    assert state["urls"]["label_studio"] in shown.replace("\n", "")


def check_label_studio(campaign):
    pulled = campaign.pull(0, 1, 2)
    assert campaign.pulled_tasks(0, 1, 2) == campaign.tasks(0) | campaign.tasks(1) | campaign.tasks(2)
    assert len(pulled.answers) == 38


def check_mlflow(campaign):
    client = MlflowClient(campaign.servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = {run.data.tags.get("labelcycle.round"): run for run in client.search_runs([experiment.experiment_id])}
    assert {"0", "1", "2", "3"} <= runs.keys()
    metrics = campaign.folder.round(3).read(METRICS)
    history = client.get_metric_history(runs["3"].info.run_id, "audit_accuracy")
    assert [(point.step, point.value) for point in history] == [(38, metrics.value)]
    assert runs["3"].info.status == "FINISHED"
    assert runs["3"].data.params["strategy"] == "auto"
    assert runs["3"].data.tags["device"]
    artifacts = {file.path for file in client.list_artifacts(runs["3"].info.run_id)}
    assert {"batch.parquet", "confusion_matrix.png", "confusion_matrix.csv"} <= artifacts
    best = max((1, 2, 3), key=lambda n: (campaign.folder.round(n).read(METRICS).value, n))
    champion = client.get_model_version_by_alias(campaign.name, "champion")
    assert champion.run_id == runs[str(best)].info.run_id
    parent = next(run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == campaign.name)
    curve = client.get_metric_history(parent.info.run_id, "audit_accuracy")
    assert [point.step for point in sorted(curve, key=lambda point: point.step)] == [22, 30, 38]


def check_prefect(campaign):
    wanted = {"artifacts": {"key": {"like_": f"{campaign.name}-round"}}}
    address = f"{campaign.servers.prefect_api_url}/artifacts/latest/filter"
    login = tuple(campaign.servers.prefect_login.split(":"))
    pages = httpx.post(address, json=wanted, timeout=30, auth=login).raise_for_status().json()
    assert {page["key"] for page in pages} == {f"{campaign.name}-round-000{number}" for number in range(4)}
    assert all(page["type"] == "markdown" for page in pages)
    assert "Audit accuracy" in next(page["data"] for page in pages if page["key"].endswith("3"))


def check_that_no_secret_is_written(campaign):
    """Files, logs, databases and arguments; Label Studio's own database holds its tokens, as it must."""
    home, password = campaign.servers.home, campaign.servers.password
    login = base64.b64encode(campaign.servers.mlflow_login[0].encode() + b":" + password.encode())
    secrets = {"token": campaign.token.encode(), "password": password.encode(), "login": login}
    secrets["key of the store"] = campaign.environment["AWS_SECRET_ACCESS_KEY"].encode()
    written = [campaign.file.parent, *(home / name for name in ("mlflow", "prefect", "logs"))]
    files = [path for folder in written for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"campaign.toml", "metrics.json", "mlflow.db", "prefect.db", "label-studio.log"} <= names
    texts = {str(path): path.read_bytes() for path in files}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            texts[f"process {process.pid}"] = " ".join(process.cmdline()).encode()
    assert not [(where, name) for where, text in texts.items() for name, secret in secrets.items() if secret in text]


def test_campaign_goes_on_where_guesses_were_lost_the_pool_moved_and_answers_cannot_be_used(make_campaign):
    campaign = make_campaign("max_unused = 0.4")
    campaign.run()
    campaign.label(20)
    pool = campaign.file.parent / "images"
    pool.rename(pool.with_name("moved"))
    campaign.file.write_text(campaign.file.read_text().replace('pool = "images"', 'pool = "moved"'))
    with httpx.Client(
        base_url=campaign.servers.label_studio_url, headers={"Authorization": f"Token {campaign.token}"}, timeout=60
    ) as client:
        task_ids = campaign.tasks(0)
        held = campaign.pull(0)
        answered = {answer.item_id for answer in held.answers}
        lost, copied = (
            client.get(f"/api/tasks/{task_ids[item]}/").json() for item in sorted(task_ids.keys() - answered)
        )
        client.delete(f"/api/predictions/{lost['predictions'][0]['id']}/").raise_for_status()
        told = campaign.run(expect=3)
        assert "1 open tasks had lost the model's guess and their place in the order, and have them again" in told
        assert client.get(lost["data"]["image"]).content, "addresses do not depend on where the pool lies"

        chosen = {"selectedItems": {"all": False, "included": [copied["id"]]}}
        action = {"id": "predictions_to_annotations", "project": copied["project"]}
        client.post("/api/dm/actions", params=action, json=chosen).raise_for_status()
        told = campaign.run(expect=3)
        assert "20 of 22 labelled" in told
        assert "1 answers are copies of the model's guesses" in told
        for annotation in client.get(f"/api/tasks/{copied['id']}/annotations/").json():
            client.delete(f"/api/annotations/{annotation['id']}/").raise_for_status()
        campaign.label()

        odd = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": 5}}]
        for answer in held.answers[:9]:
            client.patch(f"/api/annotations/{answer.answer_id}/", json={"result": odd}).raise_for_status()
        told = campaign.run(expect=1)
        assert "9 of 22 new answers cannot be used, more than max_unused = 0.4 allows" in told
        assert f"/data?task={held.answers[0].task_id}" in told
        assert not campaign.folder.round(0).has(ANSWERS)
        right = [part | {"value": {"choices": [campaign.labels()[held.answers[0].item_id]]}} for part in odd]
        client.patch(f"/api/annotations/{held.answers[0].answer_id}/", json={"result": right}).raise_for_status()
    told = campaign.run()
    assert "8 of 22 answers are not used" in told
    assert "Round 1 asks for 8 labels" in told
