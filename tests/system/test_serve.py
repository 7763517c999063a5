"""A campaign on its schedule, as a Prefect deployment."""

import subprocess
import sys
import time

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound


def wait_for(look, *, seconds=120):
    """What `look` returns, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return found


@pytest.fixture
def prefect(servers):
    """Prefect's own client, which asks again where the server is busy (503)."""
    with SyncPrefectClient(servers.prefect_api_url, auth_string=servers.prefect_login) as client:
        yield client


def test_served_campaign_runs_rounds_when_prefect_says_so(make_campaign, prefect):
    campaign = make_campaign('schedule = "0 0 1 1 *"')
    served = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", str(campaign.file)],
        env=campaign.environment | {"PREFECT_API_URL": campaign.servers.prefect_api_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deployment = wait_for(lambda: find_deployment(prefect, f"labelcycle-round/{campaign.name}"))
        assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 0 1 1 *"]
        assert deployment.global_concurrency_limit.limit == 1
        states = [run_to_the_end(prefect, deployment.id) for _ in range(2)]
        assert [(state.type, state.name) for state in states] == [
            ("COMPLETED", "AskedForLabels"),
            ("COMPLETED", "AwaitingLabels"),
        ]
        assert states[1].message == "round 0 awaits labels: 0 of 22 labelled"
        assert len(campaign.tasks(0)) == 22
    finally:
        served.terminate()
        served.communicate(timeout=60)


def find_deployment(prefect, name):
    try:
        return prefect.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def run_to_the_end(prefect, deployment_id):
    run = prefect.create_flow_run_from_deployment(deployment_id)

    def final_state():
        state = prefect.read_flow_run(run.id).state
        return state if state.is_final() else None

    return wait_for(final_state)
