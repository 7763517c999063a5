import shutil

import pytest
from mlflow import MlflowClient

from connectors.tracking import TrackerError
from flows.replay.command import replay_strategies
from flows.replay.inputs import ReplayError
from tests.flows.replay.conftest import options_of


@pytest.mark.parametrize(
    ("uri", "message"),
    [("local", "the server of `labelcycle up`, which is not running"), ("http://127.0.0.1:9", "--mlflow: MLflow at ")],
)
def test_mlflow_is_looked_for_before_anything_runs(digits, tmp_path, monkeypatch, uri, message):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))
    with pytest.raises((ReplayError, TrackerError), match=message):
        replay_strategies(options_of(digits, tmp_path / "out", mlflow=uri))
    assert not (tmp_path / "out").exists()


def test_replay_in_mlflow_has_its_settings_its_winner_and_the_areas(digits, replayed, tmp_path):
    shutil.copytree(replayed, tmp_path / "digits replay")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    summary = replay_strategies(options_of(digits, tmp_path / "digits replay", mlflow=uri))
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("replay digits replay")
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    replay = next(data for name, data in runs.items() if name.startswith("replay "))
    assert replay.params["members.ensemble"] == "1"
    assert (replay.params["winner"], replay.params["seeds"]) == ("none", "0,1,2")
    area = summary["strategies"]["margin"]["aulc"]
    assert {end: runs["margin"].metrics[f"aulc_{end}"] for end in area} == pytest.approx(area)
