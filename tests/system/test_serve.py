"""A campaign on its schedule, as a Prefect deployment."""

import subprocess
import sys
import time

import httpx
import pytest


def wait_for(look, *, seconds=120):
    """What `look` returns, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return found


@pytest.fixture
def api(servers):
    """Prefect's API."""
    with httpx.Client(base_url=servers.prefect_api_url, timeout=30) as client:
        yield client


def test_served_campaign_runs_rounds_when_prefect_says_so(make_campaign, api):
    campaign = make_campaign('schedule = "0 0 1 1 *"')
    served = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", str(campaign.file)],
        env=campaign.environment | {"PREFECT_API_URL": campaign.servers.prefect_api_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        address = f"/deployments/name/labelcycle-round/{campaign.name}"
        deployment = wait_for(lambda: (answer := api.get(address)).status_code == 200 and answer.json())
        assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["0 0 1 1 *"]
        assert deployment["global_concurrency_limit"]["limit"] == 1
        states = [run_to_the_end(api, deployment["id"]) for _ in range(2)]
        assert [(state["type"], state["name"]) for state in states] == [
            ("COMPLETED", "AskedForLabels"),
            ("COMPLETED", "AwaitingLabels"),
        ]
        assert states[1]["message"] == "round 0 awaits labels: 0 of 22 labelled"
        assert len(campaign.tasks(0)) == 22
    finally:
        served.terminate()
        served.communicate(timeout=60)


def run_to_the_end(api: httpx.Client, deployment_id: str) -> dict:
    run = api.post(f"/deployments/{deployment_id}/create_flow_run", json={}).raise_for_status().json()

    def final_state():
        state = api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    return wait_for(final_state)
