"""A campaign that was destroyed, its project in a real Label Studio with it, comes back from its backup."""

import json
import shutil
import zipfile

import httpx

from flows.artefacts import ANSWERS, AUDIT, LABELLED
from tests.system.conftest import words_of


def status_of(campaign) -> dict:
    told = json.loads(campaign.command("status", "--json", str(campaign.file)))
    del told["urls"]
    return told


def known_labels(campaign, number: int) -> dict[str, str]:
    return words_of(campaign.folder.round(number), LABELLED) | words_of(campaign.folder.round(number), AUDIT)


def test_a_destroyed_campaign_is_restored_with_its_project_and_goes_on(make_campaign):
    campaign = make_campaign()
    campaign.run()
    campaign.label()
    campaign.run()
    campaign.label(3)
    campaign.run(expect=3)
    before, answers, tasks = status_of(campaign), campaign.pull(0, 1).answers, campaign.pulled_tasks(0, 1)
    backup = campaign.file.with_name("pets.zip")
    assert "30 tasks with all their answers" in campaign.command("backup", str(campaign.file), str(backup))
    with zipfile.ZipFile(backup) as archive:
        assert not [name for name in archive.namelist() if campaign.token.encode() in archive.read(name)]

    headers = {"Authorization": f"Token {campaign.token}"}
    with httpx.Client(base_url=campaign.servers.label_studio_url, headers=headers, timeout=60) as api:
        [project] = api.get("/api/projects", params={"title": campaign.name}).json()["results"]
        api.delete(f"/api/projects/{project['id']}/").raise_for_status()
    shutil.rmtree(campaign.folder.path)
    shutil.rmtree(campaign.servers.images / campaign.name)
    campaign.file.unlink()

    told = campaign.command("restore", str(backup), str(campaign.file))
    assert "Made 30 tasks with 25 answers again" in told
    assert status_of(campaign) == before
    again = campaign.pull(0, 1)
    assert [(one.ask, one.annotation, one.updated_at, one.annotator) for one in again.answers] == [
        (one.ask, one.annotation, one.updated_at, one.annotator) for one in answers
    ]
    assert campaign.pulled_tasks(0, 1).keys() == tasks.keys()

    assert "3 of 8 labelled" in campaign.run(expect=3)
    assert campaign.label().n_labelled == 5, "what was open is open, and nothing else"
    campaign.run()
    assert known_labels(campaign, 2) == {item_id: campaign.labels()[item_id] for item_id in tasks}
    collected = campaign.folder.round(1).read(ANSWERS)
    assert {one.item_id for one in collected} == set(campaign.batch(1)), "no old answer was taken for a new one"
    assert not set(campaign.batch(2)) & tasks.keys(), "no image is asked for twice"
