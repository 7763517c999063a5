"""Where a campaign stands, read from its folder alone: as a record, as lines for people, as a table of rounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from connectors.images.reading import Range
from deploy import servers
from flows.artefacts import (
    CAMPAIGN,
    DEPENDENCE,
    METRICS,
    PAGES,
    PIXEL_RANGES,
    POOL,
    PROGRESS,
    PUSHED,
    SECONDS,
    SUSPICIOUS,
    TRAINING,
)
from flows.config import CampaignSettings, unresolved
from flows.folder import Campaign, RoundFolder
from flows.ledger import read_ledger
from flows.outlook import headline_of, outlook
from flows.pixel_ranges import count_multipage, pages_text, range_text
from flows.records import AuditMetrics, Look, PixelRanges
from flows.reports.round_page import accuracy_text, n_labels_of, notes_of_plan, review_of, suspicious_rows
from flows.task_types import HEADLINE, word_for
from pipeline.evaluation.stopping import Forecast
from pipeline.pool.notes import unused_lines
from pipeline.pool.table import set_aside_counts
from pipeline.settings import LOCAL, Plain

STEPS = {
    "train": ("cross_validate", "train"),
    "score": ("score_shard", "embed_labelled"),
    "LS": ("push", "look", "collect"),
    "MLflow": ("start_tracking", "track_model", "log_summary", "close"),
}
"""Columns of the table of rounds and the steps whose seconds they add up."""
SHOWN = 3
"""Suspicious labels that `labelcycle status` shows."""


@dataclass(frozen=True)
class Awaiting:
    """How far the annotators were with the open round when a run last looked; `seen_at` is None before one did."""

    round_number: int
    n_labelled: int
    n_set_aside: int
    n_tasks: int
    seen_at: str | None


@dataclass(frozen=True)
class Headline:
    """How good the newest model is on the audit set."""

    round_number: int
    headline: str
    value: float
    low: float
    high: float
    nll: float
    ece: float
    n_audit: int


@dataclass(frozen=True)
class Suspicious:
    """Labels that are listed as wrong: how many, how many of them are on average, what that means, and the list."""

    count: int
    n_wrong: float
    text: str
    file: str


@dataclass(frozen=True)
class Limit:
    """A stopping rule: its limit and where it is; of one that is asked each round, the last look."""

    limit: float
    now: float | None
    look: int | None = None
    level: float | None = None

    def as_json(self) -> Plain:
        """The limit as JSON has it; a rule without looks has neither `look` nor `level`."""
        values: Plain = asdict(self)
        return values if self.look is not None else {"limit": self.limit, "now": self.now}


@dataclass(frozen=True)
class CampaignStatus:
    """The state of a campaign.

    Attributes:
        n_labels_paid: those of the audit set included.
        n_regions_paid: regions of these labels; an image in which nothing was found counts as one.
        n_trained_on: labels that the newest model learnt from.
        paid_in: what the budget counts, in a word: labels, boxes, polygons or masks.
        budget_left: images that may still be asked for.
        n_outstanding: images that are with the annotators and may still come back with a label.
        finished: why the campaign is finished; None while there is something to do.
        seconds_to_batch: from the last answer of a round to the next batch, the last time.
        set_aside: files of the pool that are not used, by reason; `pool_notes` are lines on them for people.
        files_of_several_pages: of which the first is used.
        dependence: lines on groups of images.
        metrics: of the newest model; None before there is one.
        judged_by: what models are judged by, in words.
        no_forecast: why there is no forecast.
        stop: why to stop; None to go on.
        notes: what to know of how the newest round is trained.
        suspicious: of the newest round that looked; None before one did.
        urls: straight to the campaign's own pages.
    """

    campaign: str
    folder: str
    round_number: int | None
    rounds_closed: int
    awaiting: Awaiting | None
    n_labels_paid: int
    n_regions_paid: int
    n_trained_on: int
    budget: int
    paid_in: str
    budget_left: int
    n_outstanding: int
    finished: str | None
    seconds_to_batch: float | None
    set_aside: dict[str, int]
    pool_notes: list[str]
    pixel_ranges: tuple[Range, ...]
    files_of_several_pages: int
    dependence: list[str]
    metrics: Headline | None
    judged_by: str
    forecast: Forecast | None
    no_forecast: str | None
    stop: str | None
    looks: dict[str, Look]
    stops_when: dict[str, Limit]
    notes: tuple[str, ...]
    suspicious: Suspicious | None
    urls: dict[str, str]

    def as_json(self) -> Plain:
        """The record as JSON has it; the forecast also in words."""
        values: Plain = TypeAdapter(CampaignStatus).dump_python(self, mode="json")
        if self.forecast is not None:
            values["forecast"] = asdict(self.forecast) | {"text": str(self.forecast)}
        values["stops_when"] = {name: rule.as_json() for name, rule in self.stops_when.items()}
        return values


def campaign_status(folder: Campaign, home: Path) -> CampaignStatus:
    """The state of a campaign, read from its folder alone."""
    held = folder.read(CAMPAIGN)
    settings = unresolved(held)
    rounds, ledger, pool = folder.rounds(), read_ledger(folder, settings), folder.get(POOL)
    ahead, dependence = outlook(rounds, settings), folder.get(DEPENDENCE)
    measured = [(f.number, metrics) for f in rounds if (metrics := f.get(METRICS)) is not None]
    budget_left = ledger.budget_left(settings.budget, settings.budget_in)
    return CampaignStatus(
        campaign=settings.name,
        folder=str(folder.path),
        round_number=rounds[-1].number if rounds else None,
        rounds_closed=sum(f.is_closed for f in rounds),
        awaiting=awaited_labels(rounds[-1]) if rounds else None,
        n_labels_paid=ledger.n_labels_paid,
        n_regions_paid=ledger.n_regions_paid,
        n_trained_on=next((t.n_trained_on for f in reversed(rounds) if (t := f.get(TRAINING)) is not None), 0),
        budget=settings.budget,
        paid_in=word_for(settings.task, settings.budget_in),
        budget_left=budget_left,
        n_outstanding=ledger.n_outstanding,
        finished=_why_finished(rounds[-1], ahead.stop, budget_left) if rounds and not ledger.n_outstanding else None,
        seconds_to_batch=ledger.seconds_to_batch(),
        set_aside=set_aside_counts(pool.table) if pool else {},
        pool_notes=unused_lines(pool.table) if pool else [],
        pixel_ranges=(folder.get(PIXEL_RANGES) or PixelRanges()).ranges,
        files_of_several_pages=count_multipage(pool) if pool else 0,
        dependence=dependence.notes if dependence else [],
        metrics=_headline(*measured[-1]) if measured else None,
        judged_by=headline_of(rounds, settings),
        forecast=ahead.forecast,
        no_forecast=ahead.no_forecast,
        stop=ahead.stop,
        looks=ahead.looks,
        stops_when=_limits(settings, ledger.n_paid(settings.budget_in), ahead.looks),
        notes=notes_of_plan(rounds[-1]) if rounds else (),
        suspicious=next((seen for f in reversed(rounds) if (seen := _suspicious(f)) is not None), None),
        urls=_addresses(rounds, settings, home),
    )


def awaited_labels(folder: RoundFolder) -> Awaiting | None:
    """How far the annotators were with the open round when a run last looked; None when no label is awaited."""
    pushed, seen = folder.get(PUSHED), folder.get(PROGRESS)
    if folder.is_closed or pushed is None or not pushed.tasks:
        return None
    if seen is None:
        return Awaiting(folder.number, 0, 0, len(pushed.tasks), None)
    return Awaiting(folder.number, seen.n_labelled, seen.n_set_aside, len(pushed.tasks), seen.seen_at)


def _why_finished(last: RoundFolder, stop: str | None, budget_left: int) -> str | None:
    """Why a campaign ended with a round, when nothing is out; None where a run has something to do."""
    pushed = last.get(PUSHED)
    if not last.is_closed or pushed is None or pushed.tasks:
        return None
    return stop or ("the budget is spent" if budget_left == 0 else "every image of the pool has been asked for")


def _headline(round_number: int, metrics: AuditMetrics) -> Headline:
    interval = metrics.value, metrics.low, metrics.high
    return Headline(round_number, metrics.headline, *interval, nll=metrics.nll, ece=metrics.ece, n_audit=metrics.n)


def _suspicious(folder: RoundFolder) -> Suspicious | None:
    review = review_of(folder)
    if review is None or review.text is None:
        return None
    return Suspicious(review.n_listed, review.n_wrong, review.text, str(folder.path_of(SUSPICIOUS)))


def _limits(settings: CampaignSettings, n_paid: int, looks: Mapping[str, Look]) -> dict[str, Limit]:
    """The rules that the campaign has; `now` is None where it is not known yet."""
    limits = {"target_accuracy": settings.target_accuracy, "min_gain": settings.min_gain}
    asked = {
        name: Limit(limit, looks[name].now, looks[name].look, looks[name].level)
        for name, limit in limits.items()
        if limit is not None and name in looks
    }
    return {"budget": Limit(settings.budget, n_paid)} | asked


def stopping_text(rules: Mapping[str, Limit], headline: str = HEADLINE, paid_in: str = "labels") -> str:
    """What stops the campaign, for people to read.

    Args:
        headline: what models are judged by, in words.
        paid_in: what the budget counts, in a word.
    """

    def now(rule: Limit, text: str) -> str:
        if rule.now is None or rule.level is None:
            return "not known yet"
        return f"{text.format(100 * rule.now)}, {100 * (1 - rule.level):.4g} % sure at look {rule.look}"

    told = [f"{rules['budget'].limit} {paid_in} are paid for ({rules['budget'].now} now)"]
    if "target_accuracy" in rules:
        rule = rules["target_accuracy"]
        told.append(f"the audit {headline} is surely {100 * rule.limit:g} % ({now(rule, 'at least {:.1f} % now')})")
    if "min_gain" in rules:
        rule = rules["min_gain"]
        told.append(
            f"the audit {headline} has risen and the next labels are surely worth less than "
            f"{100 * rule.limit:.2f} points ({now(rule, 'up to {:.1f} now')})"
        )
    return "Stops when " + ", or when ".join(told)


def _addresses(rounds: Sequence[RoundFolder], settings: CampaignSettings, home: Path) -> dict[str, str]:
    pushed = next((batch for f in reversed(rounds) if (batch := f.get(PUSHED)) is not None), None)
    pages = next((page for f in reversed(rounds) if (page := f.get(PAGES)) is not None), None)
    started = servers.addresses(home)
    uri = started.get("mlflow", LOCAL) if settings.mlflow.uri == LOCAL else settings.mlflow.uri
    addresses = {
        "label_studio": pushed.address if pushed else settings.label_studio.url,
        "mlflow": (pages.tracker if pages else None) or uri,
    }
    if "prefect" in started:
        run = f"/runs/flow-run/{pages.flow_run}" if pages and pages.flow_run else ""
        addresses["prefect"] = started["prefect"] + run
    return addresses


def status_lines(state: CampaignStatus) -> Iterator[str]:
    """The state for people, a line each, below the table of rounds."""
    if state.awaiting:
        seen = f", as of {state.awaiting.seen_at}" if state.awaiting.seen_at else ""
        yield (
            f"Round {state.awaiting.round_number} awaits labels: {state.awaiting.n_labelled} of "
            f"{state.awaiting.n_tasks} labelled{seen}"
        )
    if state.finished:
        yield f"The campaign is finished: {state.finished}"
    out = f", {state.n_outstanding} images are out" if state.n_outstanding else ""
    left = f"{state.budget_left} of {state.budget} left to ask for{out}"
    if state.paid_in != "labels":
        paid = f"{state.n_regions_paid} of {state.budget} {state.paid_in} paid for"
        left = f"{paid}, which leaves {state.budget_left} images to ask for{out}"
    yield (
        f"{state.n_labels_paid} labels paid for, the audit set's included; the newest model learnt from "
        f"{state.n_trained_on}; {left}"
    )
    if state.seconds_to_batch is not None:
        yield f"From the last answer to the next batch: {state.seconds_to_batch:.0f} s"
    yield (
        f"By the learning curve {state.forecast} of audit {state.judged_by}"
        if state.forecast
        else f"No forecast yet: {state.no_forecast}"
    )
    yield stopping_text(state.stops_when, state.judged_by, state.paid_in) + (
        f"; met: {state.stop}" if state.stop else ""
    )
    yield from (f"{note[0].upper()}{note[1:]}" for note in state.notes)
    yield from (f"Not used of the pool: {line}" for line in state.pool_notes)
    yield from (f"Pixels of {range_text(one)}" for one in state.pixel_ranges)
    if state.files_of_several_pages:
        yield pages_text(state.files_of_several_pages)
    yield from state.dependence
    if state.suspicious:
        yield from _suspicious_lines(state.suspicious)
    yield from (f"{name}: {url}" for name, url in state.urls.items())


def _suspicious_lines(suspicious: Suspicious) -> Iterator[str]:
    yield f"Labels: {suspicious.text}"
    for row in suspicious_rows(RoundFolder(Path(suspicious.file).parent), SHOWN):
        yield f"  {row['file']}: {row['label']}, rather {row['suggested']} (wrong with {row['wrong']}) {row['task']}"
    if suspicious.count > SHOWN:
        yield f"  all of them: {suspicious.file}"


def rounds_table(folder: Campaign, *, only: int | None = None) -> Table:
    """One row for each round, or for one: labels, headline with its interval, NLL, ECE, seconds of each step.

    Labels are those that the model learnt from, and those paid for, the audit set's included.
    """
    settings = unresolved(folder.read(CAMPAIGN))
    caption = f"labels: learnt from/paid for; {', '.join(STEPS)}: seconds"
    table = Table(
        title=settings.name, caption=caption, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True
    )
    names = ("round", "asked", "labels", f"audit {headline_of(folder.rounds(), settings)}", "NLL", "ECE", *STEPS)
    for column in names:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    for round_folder in folder.rounds() if only is None else [folder.round(only)]:
        table.add_row(*_round_row(round_folder))
    return table


def _round_row(folder: RoundFolder) -> list[str]:
    metrics, pushed, seconds = folder.get(METRICS), folder.get(PUSHED), folder.get(SECONDS) or {}
    n_trained_on, _, n_paid = n_labels_of(folder)
    return [
        str(folder.number),
        str(len(pushed.tasks) if pushed else 0),
        f"{n_trained_on}/{n_paid}",
        *([accuracy_text(metrics), f"{metrics.nll:.3f}", f"{metrics.ece:.3f}"] if metrics else ["", "", ""]),
        *(f"{sum(seconds.get(name, 0.0) for name in names):.1f}" for names in STEPS.values()),
    ]
