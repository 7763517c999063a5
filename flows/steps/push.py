"""The batch as questions, and their push to the annotators."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from connectors.annotation import AnnotationTool, Question
from flows.artefacts import PAGE, PUSHED, PUSHING
from flows.campaign import OpenCampaign
from flows.changes import refuse_lost_classes, wanted_page
from flows.config import CampaignSettings
from flows.records import AnnotatorsPage, Pushed, Pushing
from flows.step import step
from pipeline.labels.ledger import Ledger, count_labels
from pipeline.selection.reasons import purpose_of
from pipeline.tables import BatchRow, BatchTable, Guesses, PoolTable
from pipeline.types import Ask, Region


def questions_of(
    batch: BatchTable, guesses: Guesses | None, pool: PoolTable, settings: CampaignSettings, round_number: int
) -> list[Question]:
    """The batch as questions for the annotation tool; a cold start shows no guess."""
    seen = {} if guesses is None else {item_id: _present(each, settings) for item_id, each in guesses.by_item().items()}
    return [_question(row, seen.get(row.item_id), round_number) for row in batch.rows(pool)]


def _present(guess: Sequence[Region], settings: CampaignSettings) -> tuple[Region, ...] | None:
    """A guess in the classes of now, which may have changed since a push was broken off; None where none is left."""
    present = settings.former_classes
    renamed = [replace(region, label=present.get(region.label, region.label)) for region in guess]
    known = tuple(region for region in renamed if region.label in settings.classes)
    return known if known or not guess else None


def _question(row: BatchRow, guess: tuple[Region, ...] | None, round_number: int) -> Question:
    columns: dict[str, str | float] = {}
    if guess is not None and row.confused_classes is not None:
        columns["confused_classes"] = row.confused_classes
    if guess is not None and row.uncertainty is not None and row.novelty is not None:
        columns |= {"uncertainty": round(row.uncertainty, 4), "novelty": round(row.novelty, 4)}
    return Question(
        Ask(row.item_id, round_number, purpose_of(row.reason)),
        uri=row.uri,
        rank=row.rank,
        guess=guess,
        reason=row.why,
        columns=columns,
    )


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
    guesses: Guesses | None,
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
        questions_of(batch, guesses, pool, settings, round_number),
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
