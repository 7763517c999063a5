"""Whether rounds can be logged in MLflow: the server, the experiment, its artefacts. What is written is taken back."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from connectors.health import Finding, beside_clock, in_order
from connectors.mlflow.server import LOGIN_VARIABLES, SECONDS_TO_ANSWER
from connectors.mlflow.settings import SQLITE
from connectors.tracking import TrackerError

PROOF = "labelcycle-doctor"

Talk = Callable[[], AbstractContextManager[MlflowClient]]
Find = Callable[[], Experiment | None]


def look(uri: str, talk: Talk, find: Find) -> Iterator[Finding]:
    """Look at all parts in order, until one fails; see `Tracker.check`.

    Args:
        uri: of a server, or of an SQLite file.
        talk: gives the client, and turns MLflow's errors into `TrackerError`.
        find: the campaign's experiment.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        yield Finding("MLflow", f"{uri} is not there yet: the first run makes it")
        return

    def see(name: str, part: Part) -> Finding | None:
        with talk() as client:
            return part(name, uri, client, find())

    yield from in_order(PARTS, see, TrackerError)


def _server(name: str, uri: str, _client: MlflowClient, _experiment: Experiment | None) -> Finding:
    if uri.startswith(SQLITE):
        return Finding(name, f"{uri} can be read")
    answer = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=SECONDS_TO_ANSWER)
    answer.raise_for_status()
    return beside_clock(name, f"{answer.text.strip()} at {uri} takes the login", answer.headers.get("date"))


def _experiment(name: str, _uri: str, client: MlflowClient, experiment: Experiment | None) -> Finding:
    """Write the experiment's description once more: only who may log to it can."""
    if experiment is None:
        return Finding(name, "is not there yet: the first run makes it")
    for key, value in experiment.tags.items():
        client.set_experiment_tag(experiment.experiment_id, key, value)
        break
    return Finding(name, f"{experiment.name!r} can be written to")


def _artefacts(name: str, uri: str, _client: MlflowClient, experiment: Experiment | None) -> Finding | None:
    """Write an artefact beside those of the runs, and delete it."""
    if experiment is None:
        return None
    store = get_artifact_repository(experiment.artifact_location, tracking_uri=uri)
    with tempfile.TemporaryDirectory() as folder:
        proof = Path(folder) / f"{PROOF}-{uuid4().hex}.txt"
        proof.write_text("`labelcycle doctor` looks whether artefacts can be written, and deletes this file.\n")
        store.log_artifact(str(proof))
    store.delete_artifacts(proof.name)
    return Finding(name, f"one was written to {experiment.artifact_location}, and deleted")


Part = Callable[[str, str, MlflowClient, Experiment | None], Finding | None]
PARTS: dict[str, tuple[Part, str]] = {
    "MLflow": (
        _server,
        "start it (`labelcycle up` where uri is 'local'); mend uri in [mlflow], or the login in "
        f"{' and '.join(LOGIN_VARIABLES)}",
    ),
    "experiment": (_experiment, "give the login of labelcycle the right to edit the experiment, and look at the disk"),
    "artefacts": (
        _artefacts,
        "look at the disk or bucket of MLflow's artefacts, and at the rights there; a file that begins with "
        f"{PROOF} may be deleted",
    ),
}
"""What is looked at, in order, and what to do where it fails."""
