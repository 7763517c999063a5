"""The outlook after the rounds so far: what the next batch is worth, and whether to ask at all."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from flows.artefacts import METRICS, OUTLOOK, TRAINING
from flows.config import CampaignSettings
from flows.folder import RoundFolder
from flows.records import AuditMetrics, Look, Outlook, Training
from flows.task_types import HEADLINE, TASK
from pipeline.evaluation.stopping import (
    MeasuredRound,
    forecast,
    lacks_for_forecast,
    level_of_look,
    stop_reason,
    surely_reached,
)

Measured = tuple[RoundFolder, Training, AuditMetrics]


def measured(rounds: Sequence[RoundFolder]) -> list[Measured]:
    """The rounds whose model was measured on the audit set."""
    read = [(f, *_records(f.path, *(f.stamp_of(artefact) for artefact in (TRAINING, METRICS)))) for f in rounds]
    return [(f, training, metrics) for f, training, metrics in read if training is not None and metrics is not None]


@lru_cache(maxsize=10_000)
def _records(path: Path, *_stamps: object) -> tuple[Training | None, AuditMetrics | None]:
    """What a round was trained on and came to; read once, until a file changes: a run asks several times."""
    folder = RoundFolder(path)
    return folder.get(TRAINING), folder.get(METRICS)


def learning_curve(known: Sequence[Measured], settings: CampaignSettings) -> list[MeasuredRound]:
    """One point for each round whose model was measured on the audit set.

    It begins anew where classes came, went or were merged: an accuracy among others is another number.
    """
    classes = sorted(settings.classes)
    return [
        _point(training, metrics) for _, training, metrics in known if _present_classes(training, settings) == classes
    ]


def _present_classes(training: Training, settings: CampaignSettings) -> list[str]:
    """The classes of a round's model, by the names that they have now; sorted."""
    present = settings.former_classes
    return sorted(present.get(name, name) for name in training.model.classes)


def _point(training: Training, metrics: AuditMetrics) -> MeasuredRound:
    n = metrics.effective_n
    return MeasuredRound(n_trained_on=training.n_trained_on, n_correct=round(metrics.value * n), n_audit=n)


def headline_of(rounds: Sequence[RoundFolder], settings: CampaignSettings) -> str:
    """What models are judged by, in words for people."""
    return _headline(measured(rounds), settings)


def _headline(known: Sequence[Measured], settings: CampaignSettings) -> str:
    if known:
        return in_words(known[-1][2].headline)
    if settings.task == TASK:
        return HEADLINE
    from pipeline.tasks import TASKS  # loads torch

    return in_words(TASKS[settings.task].headline)


def in_words(headline: str) -> str:
    """The name of a measure for people.

    >>> in_words("macro_AP")
    'macro AP'
    """
    return headline.replace("_", " ")


def _looks(known: Sequence[Measured], rule: str, settings: CampaignSettings) -> int:
    """How often a stopping rule has been asked, the newest round included: rounds measured while it was on, at least 1.

    A round in which there can be no forecast yet is no look at `min_gain`.
    """
    n_looks, curves = 1, dict[tuple[str, ...], list[MeasuredRound]]()
    for folder, training, metrics in known[:-1]:
        curve = curves.setdefault(tuple(_present_classes(training, settings)), [])
        curve.append(_point(training, metrics))
        can_ask = rule != "min_gain" or lacks_for_forecast(curve) is None
        n_looks += can_ask and _was_on(folder, rule)
    return n_looks


def _was_on(folder: RoundFolder, rule: str) -> bool:
    return rule in folder.read(OUTLOOK).looks


def best_round(rounds: Sequence[RoundFolder]) -> RoundFolder | None:
    """The round with the best model by the lower end of its audit interval, of equals the latest; None before one.

    A model of other classes than the newest one's is not compared.
    """
    best = best_rounds(rounds)
    return best[-1] if best else None


def best_rounds(rounds: Sequence[RoundFolder]) -> list[RoundFolder]:
    """The best round of each set of classes that there was; that of the newest classes is the last."""
    alike: dict[tuple[str, ...], list[tuple[float, int, RoundFolder]]] = {}
    for folder, training, metrics in measured(rounds):
        classes = tuple(sorted(training.model.classes))
        alike[classes] = [*alike.pop(classes, []), (metrics.low, folder.number, folder)]
    return [max(each, key=lambda one: one[:2])[2] for each in alike.values()]


def outlook(rounds: Sequence[RoundFolder], settings: CampaignSettings) -> Outlook:
    """What the next labels are worth, and why not to ask for them.

    Args:
        rounds: oldest first.
    """
    rounds_measured = measured(rounds)  # read once: there may be hundreds
    known = learning_curve(rounds_measured, settings)
    target, min_gain, query_size = settings.target_accuracy, settings.min_gain, settings.query_size
    at_target = 1 if target is None else _looks(rounds_measured, "target_accuracy", settings)
    at_gain = 1 if min_gain is None else _looks(rounds_measured, "min_gain", settings)
    asked: dict[str, Look] = {}
    if target is not None:
        asked["target_accuracy"] = _look(at_target, surely_reached(known, look=at_target))
    if min_gain is not None:
        sure = forecast(known, query_size, alpha=level_of_look(at_gain))
        asked["min_gain"] = _look(at_gain, None if sure is None else sure.gain_high)
    return Outlook(
        forecast=forecast(known, query_size),
        no_forecast=lacks_for_forecast(known),
        stop=stop_reason(
            known,
            target_accuracy=target,
            min_gain=min_gain,
            query_size=query_size,
            looks_at_target=at_target,
            looks_at_gain=at_gain,
            headline=_headline(rounds_measured, settings) if known else HEADLINE,
        ),
        looks=asked,
    )


def _look(look: int, now: float | None) -> Look:
    return Look(look=look, level=level_of_look(look), now=now)
