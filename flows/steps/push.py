"""The batch as questions, and their push to the annotators."""

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime

from connectors.annotation import AnnotationTool, Question
from flows.artefacts import PAGE, PUSHED, PUSHING, AnnotatorsPage, Pushed, Pushing
from flows.campaign import OpenCampaign
from flows.changes import refuse_lost_classes, wanted_page
from flows.config import CampaignSettings
from flows.step import step
from pipeline.labels.ledger import Ledger, count_labels
from pipeline.selection.reasons import purpose_of
from pipeline.tables import BatchTable, PoolTable
from pipeline.types import Ask, Region


def questions_of(batch: BatchTable, pool: PoolTable, settings: CampaignSettings, round_number: int) -> list[Question]:
    """The batch as questions for the annotation tool; a cold start shows no guess."""
    table = pool.located(batch.table)
    for name in table.columns.intersection(["guess"]):  # of classes that may have changed when the push was broken off
        present = table[name].replace(settings.former_classes)
        table[name] = present.where(present.isin(settings.classes), "")
    return [_question(row, round_number) for row in table.to_dict("records")]


def _question(row: Mapping[Hashable, object], round_number: int) -> Question:
    columns: dict[str, str | float] = {}
    guess = None
    if row.get("guess"):
        guess = Region(kind="image", label=str(row["guess"]), score=_number(row["guess_probability"]))
        columns["confused_classes"] = str(row["confused_classes"])
        columns |= {name: round(_number(row[name]), 4) for name in ("uncertainty", "novelty")}
    return Question(
        Ask(str(row["item_id"]), round_number, purpose_of(str(row["reason"]))),
        uri=str(row["uri"]),
        rank=int(_number(row["rank"])),
        guess=guess,
        reason=str(row["why"]),
        columns=columns,
    )


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"a batch holds {value!r} where a number was written")
    return float(value)


def model_version(name: str, round_number: int) -> str:
    """Name of the model that guessed in a round of a campaign, as the annotation tool shows it."""
    return f"{name}-round-{round_number:04d}"


@step(PUSHING)
def begin_push() -> Pushing:
    """Note that people may see some of the batch from now on."""
    return Pushing(datetime.now(UTC).isoformat(timespec="seconds"))


@step(PUSHED)
def push(
    batch: BatchTable,
    pool: PoolTable,
    ledger: Ledger,
    *,
    tool: AnnotationTool,
    settings: CampaignSettings,
    round_number: int,
    address: str,
) -> Pushed:
    """Make the batch exist in the annotation tool exactly once, prove it, and return which task is which item."""
    task_ids = tool.push(
        questions_of(batch, pool, settings, round_number),
        model_version=model_version(settings.name, round_number),
        asked=ledger.asked_tasks,
    )
    return Pushed.now(address, task_ids)


def prepare_page(work: OpenCampaign) -> str:
    """Make the annotators' page what the campaign needs, and return its address.

    Raises:
        CampaignChanged: a class is to go from the page that people have given.
    """
    page, settings = work.folder.get(PAGE), work.settings
    present = settings.former_classes
    gone = sorted({present.get(name, name) for name in page.classes} - set(settings.classes)) if page else []
    if gone:
        answers = work.connect([*settings.classes, *gone]).pull(work.ledger.asked_tasks).answers
        refuse_lost_classes(count_labels(answers), settings)
    address = work.tool.prepare()
    work.folder.write(PAGE, wanted_page(settings))
    return address


def renew_page(work: OpenCampaign) -> None:
    """Show the annotators of a round that is out what has changed; another server has another page."""
    page: AnnotatorsPage | None = work.folder.get(PAGE)
    wanted = wanted_page(work.settings)
    if page is not None and page != wanted and page.url == wanted.url:
        prepare_page(work)
