"""What must be true of a campaign at the end of a trial, each against servers and files as they are."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import httpx
import pandas as pd
from mlflow import MlflowClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)

from connectors.label_studio.kinds.table import kind_of
from flows.artefacts import ANSWERS, AUDIT, BATCH, LABELLED, MODEL, PUSHED
from flows.books import LIVE, books, campaign_tag
from flows.folder import BEFORE_THE_LOCK
from pipeline.regions import regions_from_json
from pipeline.tasks import TASKS
from tests.soak.people import Given
from tests.system.conftest import TestCampaign


def findings(campaign: TestCampaign, given: Given | None = None) -> list[str]:
    """All that is wrong, a line each; nothing where the campaign is as it must be.

    Args:
        given: what people did, where that is known; everybody has stopped, and a later round has begun.
    """
    tasks = tasks_of(campaign)
    found = [*tasks_of_images(campaign, tasks), *labelled_sets(campaign), *tracked(campaign), *files(campaign)]
    if given is not None:
        found += [*noted(tasks, given), *collected(campaign, tasks)]
    return [*found, *closed_books(campaign)]


def tasks_of(campaign: TestCampaign) -> list[dict]:
    """All tasks of the campaign's project with their answers, as Label Studio gives them."""
    headers = {"Authorization": f"Token {campaign.token}"}
    with httpx.Client(base_url=campaign.servers.label_studio_url, headers=headers, timeout=120) as client:
        found = client.get("/api/projects", params={"title": campaign.name, "page_size": 100}).json()["results"]
        held: list[dict] = []
        for project in found:
            if project["task_number"]:
                params = {"project": project["id"], "fields": "all", "page_size": 10_000}
                held += client.get("/api/tasks", params=params).raise_for_status().json()["tasks"]
    return held


def tasks_of_images(campaign: TestCampaign, tasks: list[dict]) -> Iterator[str]:
    """Each image that was asked for has one task, which is the one on record."""
    copies = Counter(task["data"]["item_id"] for task in tasks)
    yield from (f"image {item} has {n} tasks" for item, n in copies.items() if n > 1)
    asked = Counter(item for number in rounds(campaign) for item in batch(campaign, number))
    yield from (f"image {item} was asked for {n} times" for item, n in asked.items() if n > 1)
    recorded = {item: id_ for number in rounds(campaign) for item, id_ in pushed(campaign, number).items()}
    held = {task["data"]["item_id"]: task["id"] for task in tasks}
    if recorded != held:
        yield f"pushed.json and Label Studio differ in {len(set(recorded.items()) ^ set(held.items()))} tasks"


def noted(tasks: list[dict], given: Given) -> Iterator[str]:
    """Label Studio holds what people gave, and nothing that they took back."""
    held = {answer["id"] for task in tasks for answer in task["annotations"]}
    yield from (f"answer {one} was given and is gone from Label Studio" for one in given.standing.keys() - held)
    yield from (f"answer {one} was taken back and stands in Label Studio" for one in given.taken_back & held)
    yield from (f"answer {one} was given by nobody" for one in held - given.standing.keys())


def collected(campaign: TestCampaign, tasks: list[dict]) -> Iterator[str]:
    """The ledger holds the answers that stand in Label Studio, each with its value, and no other."""
    kind = kind_of(campaign.asks)
    ledger = last_records(campaign, len(rounds(campaign)))
    stand = {row.answer_id: row for row in ledger if row.outcome != "deleted"}
    held = {answer["id"]: (task, answer) for task in tasks for answer in task["annotations"]}
    yield from (f"answer {one} is not in the ledger" for one in held.keys() - stand.keys())
    yield from (f"answer {one} stands in the ledger and not in Label Studio" for one in stand.keys() - held.keys())
    for one in held.keys() & stand.keys():
        task, answer = held[one]
        row = stand[one]
        if row.item_id != task["data"]["item_id"]:
            yield f"answer {one} is of image {task['data']['item_id']}, in the ledger of {row.item_id}"
        if row.is_skip != answer["was_cancelled"]:
            yield f"answer {one} is {'a' if answer['was_cancelled'] else 'no'} skip, in the ledger it is otherwise"
        if not row.is_skip and shown(kind.write_all(row.regions, {})) != shown(answer["result"]):
            yield f"answer {one} has another value in the ledger"


def shown(result: list[dict]) -> list[str]:
    """Values of an answer in any order; coordinates to a millionth of a percent."""
    return sorted(str(_rounded(part["value"])) for part in result)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(float(value), 6) if isinstance(value, int | float) else value


class Record:
    """The last record of an answer."""

    def __init__(self, row) -> None:
        self.item_id, self.answer_id, self.outcome = row.item_id, row.answer_id, row.outcome
        self.annotator, self.time = row.annotator, datetime.fromisoformat(row.updated_at)
        self.is_skip = row.outcome == "skipped"
        self.regions = regions_from_json(row.regions) if isinstance(row.regions, str) else ()


def last_records(campaign: TestCampaign, before: int) -> list[Record]:
    """The last record of each answer in the rounds before one, oldest answer first; read from the files alone."""
    paths = [campaign.folder.round(number).path_of(ANSWERS) for number in range(before)]
    tables = [pd.read_parquet(path) for path in paths if path.exists()]
    last = {row.answer_id: Record(row) for table in tables for row in table.itertuples()}
    return sorted(last.values(), key=lambda record: (record.time, record.answer_id))


def labelled_sets(campaign: TestCampaign) -> Iterator[str]:
    """Each round learnt from the consensus of what was collected before it: of a person the last answer counts."""
    consensus = next(task for task in TASKS.values() if task.asks == campaign.asks).consensus
    for number in rounds(campaign):
        by_person: dict[tuple[str, str], Record] = {}
        for record in last_records(campaign, number):
            if record.outcome != "deleted":
                by_person.pop((record.item_id, record.annotator), None)  # the last answer also votes last
                by_person[record.item_id, record.annotator] = record
        votes: dict[str, list] = {}
        for record in by_person.values():
            if record.outcome == "labelled":
                votes.setdefault(record.item_id, []).append(record.regions)
        wanted = {item: consensus(found)[0] for item, found in votes.items()}
        sets = [campaign.folder.round(number).get(artefact) for artefact in (LABELLED, AUDIT)]
        if None in sets:
            continue
        learnt = {item: regions for each in sets for item, regions in zip(each.item_ids, each.regions, strict=True)}
        if learnt != wanted:
            differ = [item for item in learnt.keys() | wanted.keys() if learnt.get(item) != wanted.get(item)]
            yield f"round {number} learnt other labels than were given, of {len(differ)} images such as {differ[0]}"


def tracked(campaign: TestCampaign) -> Iterator[str]:
    """MLflow has one run for each round and member, one point for each metric of a round, a version for each model."""
    client = MlflowClient(campaign.servers.mlflow_url)
    experiment = client.get_experiment_by_name(campaign.name)
    runs = list(_pages(lambda token: client.search_runs([experiment.experiment_id], page_token=token)))
    kinds = Counter(
        (
            tags["labelcycle.kind"],
            tags.get("labelcycle.round"),
            tags.get("mlflow.parentRunId"),
            tags.get("labelcycle.member"),
        )
        for tags in (run.data.tags for run in runs)
    )
    yield from (f"MLflow has {n} runs of {' '.join(filter(None, kind))}" for kind, n in kinds.items() if n > 1)
    of_rounds = {int(run.data.tags["labelcycle.round"]) for run in runs if "labelcycle.round" in run.data.tags}
    if of_rounds != set(rounds(campaign)):
        yield f"MLflow has runs of the rounds {sorted(of_rounds)}, the folder has {rounds(campaign)}"
    for run in runs:
        if "labelcycle.round" in run.data.tags:
            names = [name for name in run.data.metrics if not name.startswith("system/")]
            several = [name for name in names if len(client.get_metric_history(run.info.run_id, name)) > 1]
            yield from (f"{run.info.run_name} has {name} more than once" for name in several)
    versions = list(_pages(lambda token: client.search_model_versions(f"name = '{campaign.name}'", page_token=token)))
    models = [number for number in rounds(campaign) if campaign.folder.round(number).has(MODEL)]
    if len(versions) != len(models):
        yield f"MLflow has {len(versions)} versions of the model, and {len(models)} rounds trained one"


def _pages(read):
    page = read(None)
    yield from page
    while page.token:
        page = read(page.token)
        yield from page


def files(campaign: TestCampaign) -> Iterator[str]:
    """Each file can be read, and nothing of a killed write is left."""
    yield from campaign.folder.check_files()
    left = [*campaign.folder.path.rglob("*.part"), *campaign.folder.path.rglob("*.put-away")]
    yield from (f"{path} was left by a kill" for path in left if not path.name.startswith(BEFORE_THE_LOCK))


def closed_books(campaign: TestCampaign) -> Iterator[str]:
    """Prefect calls no run of the campaign alive."""
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[campaign_tag(campaign.folder)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE)),
    )
    with books() as client:
        yield from (f"Prefect calls {run.name!r} alive" for run in client.read_flow_runs(flow_run_filter=alive))


def rounds(campaign: TestCampaign) -> list[int]:
    """The numbers of the rounds that have begun."""
    return [folder.number for folder in campaign.folder.rounds()]


def batch(campaign: TestCampaign, number: int) -> list[str]:
    """The images that a round asks for."""
    held = campaign.folder.round(number).get(BATCH)
    return [] if held is None else held.item_ids


def pushed(campaign: TestCampaign, number: int) -> dict[str, int]:
    """The tasks of a round."""
    held = campaign.folder.round(number).get(PUSHED)
    return {} if held is None else dict(held.tasks)
