"""MLflow as the experiment tracker.

A campaign is an experiment. In it, one run stands for the campaign and holds the learning curve, a point for
each round. Each round has a run beside it, so that a table compares them, and the members' runs are nested in their
round's. Tags find a run again.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import requests
from google.protobuf import json_format  # type: ignore[import-untyped]
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from connectors.escaping import mlflow_key
from connectors.health import Finding
from connectors.mlflow.health import look
from connectors.mlflow.once import new_params, new_points
from connectors.mlflow.saved_model import save_model
from connectors.mlflow.server import SECONDS_TO_ANSWER, check_uri, logged_in
from connectors.tracking import LaterRounds, MemberHistory, TrackedModel, Tracker, TrackerError, TrackerUnavailable

CHAMPION = "champion"
KIND, ROUND, MEMBER, PARENT = "labelcycle.kind", "labelcycle.round", "labelcycle.member", "mlflow.parentRunId"
NOTE = "mlflow.note.content"
ABOUT = (
    "Rounds of the labelcycle campaign {name}. The run of that name draws the learning curve, a point for each round; "
    "the runs `round N` compare the rounds, with their settings, members, batch and model. What begins with "
    "`audit_` is measured on the audit set, which no model learns from. In Models the alias `champion` is the best by "
    "the lower end of its interval."
)
ABOUT_CURVE = "The learning curve: each metric over the labels that were paid for, those of the audit set included."
REPLAY, ARM = "labelcycle.replay", "labelcycle.arm"
SECONDS_BETWEEN_SAMPLES = 5
WORTH_A_RETRY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}


class MLflowTracker(Tracker):
    """One campaign in MLflow.

    Nothing of MLflow's global state is used, so several campaigns can live in one process.

    Args:
        uri: a server, `http://host:5000`, or an SQLite file, `sqlite:////path/mlflow.db`. A user name and a
            password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
        campaign: name of the campaign, of its experiment and of its registered model.
        login: user and password of this very server, in place of those of the environment.

    Raises:
        TrackerError: for a `uri` of another kind.
    """

    def __init__(self, *, uri: str, campaign: str, login: tuple[str, str] | None = None) -> None:
        self._login = login
        self._uri, self._artifact_root = check_uri(uri)
        self._campaign = campaign
        self._model_name = re.sub(r"[/:]+", "-", campaign)  # MLflow takes neither sign in a model's name
        # Retries belong to the caller: MLflow's take minutes, and after a lost answer they make a second run.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

    def start_round(
        self,
        round_number: int,
        *,
        params: Mapping[str, str | int | float | bool],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Find the round's run by its tag, or begin it; return its id.

        Args:
            params: logged once; a value too long for MLflow is shortened and kept whole as an artefact.
            tags: what may change when a round goes on elsewhere, such as the machine; the last value stays.

        Raises:
            TrackerError: when the run holds another value of a parameter, or a later round is there.
        """
        with self._talk() as client:
            self._refuse_later(round_number, self._experiment_id)
            campaign = self._campaign_run()
            run = self._find_or_create({KIND: "round", ROUND: str(round_number)}, name=f"round {round_number}")
            self._log(run, params=params, tags={mlflow_key(key): str(value) for key, value in tags.items()})
            if run.info.status == "RUNNING" != campaign.info.status:
                client.update_run(campaign.info.run_id, status="RUNNING")
            return str(run.info.run_id)

    def refuse_later(self, last: int) -> None:
        """See that MLflow has no later round; see `Tracker.refuse_later`."""
        with self._talk():
            experiment = self._find_experiment()
            if experiment is not None:
                self._refuse_later(last, experiment.experiment_id)

    def discard_rounds(self, first: int) -> int:
        """Delete the runs of rounds, and their members'; MLflow keeps them among the deleted ones."""
        with self._talk() as client:
            experiment = self._find_experiment()
            if experiment is None:
                return 0
            place = [experiment.experiment_id]
            rounds = client.search_runs(place, f"tags.`{KIND}` = 'round'")  # newest first, a thousand at most
            gone = [run for run in rounds if int(run.data.tags[ROUND]) >= first]
            for run in gone:
                members = client.search_runs(place, f"tags.`{PARENT}` = '{run.info.run_id}'")
                for one in (*members, run):
                    client.delete_run(one.info.run_id)
            return len(gone)

    def log_members(self, run_id: str, members: Sequence[MemberHistory]) -> None:
        """Log each member's epochs in a run of its own, nested in the round's; the first epoch is step 1.

        Raises:
            TrackerError: when a member's run holds other numbers.
        """
        with self._talk() as client:
            found = client.search_runs([self._experiment_id], f"tags.`{PARENT}` = '{run_id}'")
            known = {run.data.tags.get(MEMBER): run for run in found}
            for member in members:
                run = known.get(member.name) or self._create(
                    {KIND: "member", MEMBER: member.name, PARENT: run_id}, name=member.name
                )
                points = [
                    Metric(mlflow_key(name), value, run.info.start_time + epoch, epoch)
                    for epoch, row in enumerate(member.epochs, start=1)
                    for name, value in row.items()
                ]
                self._log(run, params={"seed": member.seed}, points=points)
                self._end(run)

    def log_model(
        self, run_id: str, *, weights: Sequence[Path], trunk: Path | None = None, description: Path
    ) -> TrackedModel:
        """Log the round's model, and register it under the campaign's name.

        `mlflow.pyfunc.load_model` loads it without a checkout of labelcycle and without a GPU.

        Args:
            weights: one file for each member, as `save_weights` writes it.
            trunk: what they share, as `save_trunk` writes it; None where each file holds all of its network.
            description: JSON, with classes, and with name, n_classes, image_size, channels, dropout and head as
                `build_model` takes them.
        """
        name = self._model_name
        with self._talk() as client:
            versions = [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.name == name]
            if not versions:
                run = client.get_run(run_id)
                logged = self._logged_model(run)
                if logged.status != LoggedModelStatus.READY:
                    with tempfile.TemporaryDirectory() as folder:
                        path = save_model(logged, Path(folder), weights=weights, trunk=trunk, description=description)
                        client.log_model_artifacts(logged.model_id, str(path))
                    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
                versions = [self._register(logged, run)]
            number = str(versions[0].version)
            return TrackedModel(run_id=run_id, model_uri=f"models:/{name}/{number}", version=number)

    def log_round(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        step: int,
        artifacts: Sequence[Path],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log a round's metrics once, at `step` = labels paid for, its artefacts, and tags.

        The campaign's run gets the metrics too: there MLflow draws them as one line over the labels.

        Raises:
            TrackerError: when the run holds other numbers.
        """
        with self._talk() as client:
            run = client.get_run(run_id)
            points = [Metric(mlflow_key(name), value, run.info.start_time, step) for name, value in metrics.items()]
            named = {NOTE if key == "description" else mlflow_key(key): value for key, value in tags.items()}
            self._log(run, points=points, tags=named)
            self._log(self._campaign_run(), points=points)
            sizes = {known.path: known.file_size for known in client.list_artifacts(run_id)}
            for path in artifacts:
                if sizes.get(path.name) != path.stat().st_size:
                    client.log_artifact(run_id, str(path))

    def name_champion(self, model: TrackedModel) -> None:
        """Make a registered model the campaign's champion, `models:/<campaign>@champion`."""
        with self._talk() as client:
            client.set_registered_model_alias(self._model_name, CHAMPION, model.version)

    def drop_models(self, models: Sequence[TrackedModel]) -> list[str]:
        """Remove versions of the campaign's model, with their files; one that has an alias stays, whoever gave it."""
        if not models:
            return []
        run_ids = {model.run_id for model in models}  # another MLflow has other models under the same numbers
        with self._talk() as client:
            found = client.search_model_versions(f"name = '{self._model_name}'")
            old = [version for version in found if version.run_id in run_ids]
            named = client.get_registered_model(self._model_name).aliases.values() if old else ()
            old = [version for version in old if version.version not in named]
            for version in old:
                get_artifact_repository(str(version.source), tracking_uri=self._uri).delete_artifacts()
                client.delete_model_version(self._model_name, version.version)
                query = f"source_run_id = '{version.run_id}'"
                for logged in client.search_logged_models([self._experiment_id], query):
                    client.delete_logged_model(logged.model_id)
            return [str(version.version) for version in reversed(old)]

    def address(self, run_id: str) -> str | None:
        """Where a browser shows the run; None for an SQLite file."""
        return None if self._artifact_root else f"{self._uri}/#/experiments/{self._experiment_id}/runs/{run_id}"

    def finish_round(self, run_id: str) -> None:
        """End the run."""
        with self._talk() as client:
            self._end(client.get_run(run_id))
            self._end(self._campaign_run())

    def check(self) -> Iterator[Finding]:
        """Look whether rounds can be logged; see `Tracker.check`."""
        return look(self._uri, self._talk, self._find_experiment)

    def ping(self) -> None:
        """See that MLflow answers and takes our login.

        Raises:
            TrackerError: when it does not.
        """
        with self._talk() as client:
            client.search_experiments(max_results=1)

    def log_replay(
        self,
        replay_id: str,
        *,
        params: Mapping[str, str | int | float | bool],
        curves: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]],
        totals: Mapping[str, Mapping[str, float]],
        artifacts: Sequence[Path],
    ) -> str:
        """Log a replay on labelled data as one run, with a run nested in it for each arm; return its id.

        Args:
            replay_id: hash of the numbers: the same ones are logged once, other ones are another replay.
            curves: arm -> its mean curve, as (labels, metrics) points.
            totals: arm -> metrics of the curve as a whole.
        """
        with self._talk() as client:
            replay = self._find_or_create({KIND: "replay", REPLAY: replay_id}, name=f"replay {replay_id[:8]}")
            self._log(replay, params=params)
            for arm, line in curves.items():
                tags = {KIND: "arm", ARM: arm, PARENT: replay.info.run_id}
                run = self._find_or_create(tags, name=arm)
                points = [
                    Metric(mlflow_key(name), value, run.info.start_time + n_trained_on, n_trained_on)
                    for n_trained_on, metrics in (*line, (line[-1][0], totals[arm]))
                    for name, value in metrics.items()
                ]
                self._log(run, points=points)
                self._end(run)
            for path in artifacts:
                client.log_artifact(replay.info.run_id, str(path))
            self._end(replay)
            return str(replay.info.run_id)

    @contextmanager
    def monitor(self, run_id: str) -> Iterator[None]:
        """Log the machine's load to the run while the block lasts, even if the tracker fails meanwhile."""
        with self._talk():
            monitor = SystemMetricsMonitor(
                run_id,
                sampling_interval=SECONDS_BETWEEN_SAMPLES,
                resume_logging=True,
                tracking_uri=self._uri,
            )
        with logged_in(self._login):  # it talks from a thread of its own
            monitor.start()
            try:
                yield
            finally:
                monitor.finish()

    @cached_property
    def _client(self) -> MlflowClient:
        if self._artifact_root:
            self._artifact_root.parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    @cached_property
    def _experiment_id(self) -> str:
        root = self._artifact_root
        found = self._find_experiment()
        if found is not None:
            return str(found.experiment_id)
        return self._client.create_experiment(
            self._campaign,
            artifact_location=None if root is None else (root / self._model_name).as_uri(),
            tags={"mlflow.experimentKind": "custom_model_development", NOTE: ABOUT.format(name=self._campaign)},
        )

    def _find_experiment(self) -> Experiment | None:
        found = self._client.get_experiment_by_name(self._campaign)
        if found is None:
            return None
        self._check_told(found.experiment_id)
        if found.lifecycle_stage == "deleted":
            raise TrackerError(
                f"MLflow at {self._uri} holds a deleted experiment {self._campaign!r}: bring it back with "
                f"`MLFLOW_TRACKING_URI={self._uri} mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give the campaign another name"
            )
        return found

    @contextmanager
    def _talk(self) -> Iterator[MlflowClient]:
        """See that the server answers, and turn MLflow's errors into ours."""
        try:
            with logged_in(self._login):
                if self._artifact_root is None:
                    http_request(
                        get_default_host_creds(self._uri),
                        "/health",
                        "GET",
                        max_retries=0,
                        timeout=SECONDS_TO_ANSWER,
                    )
                yield self._client
        except MlflowException as exc:
            if exc.error_code in WORTH_A_RETRY:
                raise TrackerUnavailable(f"MLflow at {self._uri} does not answer: {exc}") from exc
            raise TrackerError(f"MLflow at {self._uri} refuses: {exc}") from exc
        except json_format.ParseError as exc:
            raise TrackerUnavailable(f"{self._uri} does not answer as MLflow does: {exc}; try again") from exc
        except (requests.HTTPError, SQLAlchemyError) as exc:
            raise TrackerError(f"MLflow at {self._uri} refuses: {exc}") from exc

    def _refuse_later(self, last: int, experiment_id: str) -> None:
        # Those that began last, and a few, as the clock that orders them may have been set back.
        rounds = self._client.search_runs([experiment_id], f"tags.`{KIND}` = 'round'", max_results=5)
        newest = max((int(run.data.tags[ROUND]) for run in rounds), default=last)
        if newest > last:
            raise LaterRounds(f"MLflow at {self._uri}", last=last, newest=newest)

    def _campaign_run(self) -> Run:
        return self._find_or_create({KIND: "campaign"}, name=self._campaign, more={NOTE: ABOUT_CURVE})

    def _find_or_create(
        self, tags: Mapping[str, str], *, name: str, more: Mapping[str, str] = MappingProxyType({})
    ) -> Run:
        """The run with these tags; a new one gets more of them."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self._client.search_runs([self._experiment_id], query, max_results=1)
        if found:
            return found[0]
        return self._create({**more, **tags}, name=name)

    def _create(self, tags: Mapping[str, str], *, name: str) -> Run:
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        self._check_told(run.info.run_id)
        return run

    def _check_told(self, id_: str) -> None:
        """MLflow's client takes an empty answer for one that tells nothing."""
        if not id_:
            raise TrackerUnavailable(f"{self._uri} does not answer as MLflow does: an empty answer; try again")

    def _log(
        self,
        run: Run,
        *,
        params: Mapping[str, Any] = MappingProxyType({}),
        points: Sequence[Metric] = (),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log what is not there yet, in one request where it fits into one.

        Raises:
            TrackerError: when the run holds other values of the parameters or points.
        """
        self._client.log_batch(
            run.info.run_id,
            metrics=new_points(self._client, run, points),
            params=new_params(self._client, run, params),
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def _logged_model(self, run: Run) -> LoggedModel:
        run_id, experiment_id = run.info.run_id, run.info.experiment_id
        found = self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                experiment_id, name=f"round-{run.data.tags[ROUND]}", source_run_id=run_id
            )
        )
        if not run.outputs or not run.outputs.model_outputs:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def _register(self, model: LoggedModel, run: Run) -> ModelVersion:
        try:
            self._client.create_registered_model(self._model_name)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._client.create_model_version(
            self._model_name,
            source=model.artifact_location,
            run_id=run.info.run_id,
            model_id=model.model_id,
            tags={ROUND: run.data.tags[ROUND]},
            await_creation_for=0,
        )

    def _end(self, run: Run) -> None:
        if run.info.status != "FINISHED":
            self._client.set_terminated(run.info.run_id)
