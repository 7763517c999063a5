"""`labelcycle doctor` on a whole campaign against the real servers: all is well, and what is broken is found."""

import json

import httpx
import mlflow
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows import books
from tests.system.test_serve import Serve

EXTRA = 'schedule = "0 0 * * *"\ntimezone = "UTC"'
TOKEN = "LABEL_STUDIO_API_KEY"


@pytest.fixture
def served(make_campaign, servers):
    """A campaign whose first batch is out, in a Label Studio that wants a token, and that is served."""
    campaign = make_campaign(EXTRA, label_studio=servers.label_studio_url)
    campaign.run()
    campaign.folder.path.chmod(0o700)
    serve = Serve(campaign)
    serve.said("serving")
    yield campaign
    serve.end()


def examine(campaign, *, expect: int = 0) -> dict[str, dict[str, str]]:
    """What the doctor finds, by the name of the check."""
    told = json.loads(campaign.command("doctor", str(campaign.file), "--json", expect=expect))
    assert told["well"] == (expect == 0)
    return {check["name"]: check for check in told["checks"]}


def failing(found: dict[str, dict[str, str]]) -> dict[str, str]:
    """What fails, with its mend."""
    return {name: check["mend"] for name, check in found.items() if check["status"] == "failure"}


def test_all_is_well_and_what_is_broken_is_found(served, servers):
    before = state_of(served, servers)
    found = examine(served)
    assert {name for name, check in found.items() if check["status"] != "ok"} <= {"disk"}, found
    assert found.keys() >= {"images shown", "artefacts", "serve", "scheduler", "late runs", "lock", "pool"}
    assert "loads as an annotator's browser loads it" in found["images shown"]["found"]
    assert state_of(served, servers) == before

    login = servers.prefect_login
    with SyncPrefectClient(servers.prefect_api_url, auth_string=login) as client:
        deployment = client.read_deployment_by_name(f"{books.FLOW}/{served.name}")
        client.pause_deployment(deployment.id)
    images = served.file.parent / "images"
    images.rename(images.with_name("elsewhere"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(served.environment, TOKEN, "0" * 40)
        mends = failing(examine(served, expect=1))
    assert mends.keys() == {"schedule", "pool", "Label Studio"}
    assert "labelcycle serve" in mends["schedule"]
    assert "`pool`" in mends["pool"]
    assert TOKEN in mends["Label Studio"]
    assert failing(examine(served, expect=1)).keys() == {"schedule", "pool", "images shown"}


def state_of(campaign, servers) -> dict[str, object]:
    """All that the doctor could have changed."""
    folder = campaign.folder.path
    files = {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    headers = {"Authorization": f"Token {campaign.token}"}
    with httpx.Client(base_url=servers.label_studio_url, headers=headers, timeout=60) as http:
        [project] = http.get("/api/projects/", params={"title": campaign.name}).json()["results"]
        tasks = http.get("/api/tasks/", params={"project": project["id"], "fields": "all"}).json()
        storages = http.get("/api/storages/localfiles/", params={"project": project["id"]}).json()
    client = mlflow.MlflowClient(servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = client.search_runs([experiment.experiment_id]).to_list()
    artefacts = sorted(path for path in (servers.home / "mlflow").rglob(f"*{experiment.experiment_id}*/**/*"))
    return {
        "files": files,
        "project": project,
        "tasks": tasks,
        "storages": storages,
        "experiment": dict(experiment),
        "runs": [run.to_dictionary() for run in runs],
        "artefacts": artefacts,
    }
