"""Every experiment tracker keeps what `Tracker` promises."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from connectors.memory import MemoryTracker
from connectors.mlflow.tracker import MLflowTracker
from pipeline.networks.build import build_model
from pipeline.networks.weights import save_weights
from tests.connectors.tracking_contract import KeptRound, TrackerContract

DESCRIPTION = {"name": "small_cnn", "n_classes": 2, "image_size": 8, "channels": 1, "dropout": 0.5}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A round's files: weights of two members, their description, one artefact."""
    folder = tmp_path_factory.mktemp("round")
    shape = {name: DESCRIPTION[name] for name in ("n_classes", "image_size", "channels", "dropout")}
    for seed in (0, 1):
        save_weights(build_model("small_cnn", **shape, weights=None, seed=seed), folder / f"member-{seed}.pt")
    (folder / "model.json").write_text(json.dumps(DESCRIPTION | {"classes": ["ant", "bee"]}))
    (folder / "confusion.csv").write_text("ant,bee\n1,0\n")
    return folder


class InMemory:
    def __init__(self):
        self.tracker = MemoryTracker()

    def open(self):
        return self.tracker

    def rounds(self):
        return [
            KeptRound(
                {name: str(value) for name, value in run.params.items()},
                run.tags,
                run.metrics,
                {name: len(member.epochs) for name, member in run.members.items()},
                frozenset(run.artifacts),
                run.is_finished,
            )
            for run in self.tracker.runs.values()
        ]

    def champion(self):
        return self.tracker.champion.version

    def n_models_with_files(self):
        return sum(run.model is not None and not run.is_model_dropped for run in self.tracker.runs.values())


class InMLflow:
    def __init__(self, uri):
        self.uri = uri
        self.client = MlflowClient(uri, uri)

    def open(self):
        return MLflowTracker(uri=self.uri, campaign="ants & bees")

    def rounds(self):
        experiment = self.client.get_experiment_by_name("ants & bees")
        runs = self.client.search_runs([experiment.experiment_id])
        rounds = [run for run in runs if run.data.tags["labelcycle.kind"] == "round"]
        return [self._kept(run, runs) for run in rounds]

    def _kept(self, run, runs):
        members = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        return KeptRound(
            run.data.params,
            {name: value for name, value in run.data.tags.items() if "." not in name},
            {name: (value, self._points(run, name)[0].step) for name, value in run.data.metrics.items()},
            {one.data.tags["labelcycle.member"]: len(self._points(one, "train_loss")) for one in members},
            frozenset(artifact.path for artifact in self.client.list_artifacts(run.info.run_id)),
            run.info.status == "FINISHED",
        )

    def _points(self, run, name):
        return self.client.get_metric_history(run.info.run_id, name)

    def champion(self):
        return str(self.client.get_model_version_by_alias("ants & bees", "champion").version)

    def n_models_with_files(self):
        database = Path(self.uri.removeprefix("sqlite:///"))
        return len(list((database.parent / "mlartifacts").rglob("MLmodel")))


class TestMemory(TrackerContract):
    @pytest.fixture
    def books(self):
        return InMemory()


class TestMLflow(TrackerContract):
    @pytest.fixture
    def books(self, tmp_path):
        return InMLflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
