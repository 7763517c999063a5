"""What the rounds so far say about the next one: its worth, and whether to ask at all."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from connectors.store import Campaign, RoundFolder, read_json
from flows.config import present_names
from pipeline.evaluation.stopping import (
    MeasuredRound,
    forecast,
    lacks_for_forecast,
    level_of_look,
    stop_reason,
    surely_reached,
)


def measured_rounds(folder: Campaign, settings: Mapping[str, Any]) -> list[MeasuredRound]:
    """The learning curve: one point for each round whose model was measured on the audit set.

    It begins anew where classes came, went or were merged: an accuracy among others is another number.

    Args:
        settings: the campaign's, as plain values.
    """
    classes = sorted(settings["classes"])
    measured = [f for f in folder.rounds() if metrics_of(f) is not None]
    return [_point(f) for f in measured if _present_classes(f, settings) == classes]


def _present_classes(folder: RoundFolder, settings: Mapping[str, Any]) -> list[str]:
    """What the model of a round tells apart, by the names of now; sorted."""
    present = present_names(dict(settings.get("renamed", [])))
    return sorted(present.get(name, name) for name in classes_of(folder))


def classes_of(folder: RoundFolder) -> list[str]:
    """What the model of a round that trained one tells apart, by the names of then; sorted."""
    return sorted(read_json(folder / "training.json")["model"]["classes"])


def _point(folder: RoundFolder) -> MeasuredRound:
    metrics = read_json(folder / "metrics.json")
    return MeasuredRound(
        n_trained_on=read_json(folder / "training.json")["n_trained_on"],
        n_correct=round(metrics["accuracy"] * metrics["n"]),
        n_audit=metrics["n"],
    )


def looks(folder: Campaign, rule: str, settings: Mapping[str, Any]) -> int:
    """How often a stopping rule has been asked, the newest round included: rounds measured while it was on, at least 1.

    A round in which there can be no forecast yet is no look at `min_gain`. One that does not say what it was made with
    counts.
    """
    measured = [f for f in folder.rounds() if metrics_of(f) is not None]
    told = [(_point(f), _present_classes(f, settings)) for f in measured]
    curves = [[point for point, kind in told[: n + 1] if kind == told[n][1]] for n in range(len(told))]
    can_ask = [rule != "min_gain" or lacks_for_forecast(curve) is None for curve in curves]
    earlier = zip(measured[:-1], can_ask, strict=False)
    return 1 + sum(can and _was_on(f, rule) for f, can in earlier)


def _was_on(folder: RoundFolder, rule: str) -> bool:
    if folder.has("outlook.json") and "looks" in (seen := read_json(folder / "outlook.json")):
        return rule in seen["looks"]
    if not folder.has("config.json"):
        return True
    return read_json(folder / "config.json").get("settings", {rule: True}).get(rule) is not None


def metrics_of(folder: RoundFolder) -> dict[str, Any] | None:
    """How good the round's model is on the audit set; None where there is no model or no label to measure it on."""
    return read_json(folder / "metrics.json") if folder.has("metrics.json") else None


def best_round(folder: Campaign, *, until: int | None = None) -> RoundFolder | None:
    """The round with the best model by the lower end of its audit interval, of equals the latest; None before one.

    A model that does not tell the classes apart that the newest one does, or by other names, is not compared.

    Args:
        until: no later round than this.
    """
    lows = {
        f: metrics["accuracy_low"]
        for f in folder.rounds()
        if (until is None or f.number <= until) and (metrics := metrics_of(f)) is not None
    }
    newest = max(lows, key=lambda f: f.number, default=None)
    alike = [f for f in lows if newest is not None and classes_of(f) == classes_of(newest)]
    return max(alike, key=lambda f: (lows[f], f.number), default=None)


def outlook(folder: Campaign, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the next labels are worth, and why not to ask for them.

    Args:
        settings: the campaign's, as plain values.

    Returns:
        `forecast` (of accuracy, shares; None when `no_forecast` says why), `stop` (the reason, None to go on) and
        `looks` (of each stopping rule that is on: its number of the `look`, the `level` that it may err at, and where
        it is `now`, None where that is not known).
    """
    rounds = measured_rounds(folder, settings)
    target, min_gain = settings.get("target_accuracy"), settings.get("min_gain")
    at_target, at_gain = looks(folder, "target_accuracy", settings), looks(folder, "min_gain", settings)
    query_size = settings["query_size"]
    expected = forecast(rounds, query_size)
    asked: dict[str, Any] = {}
    if target is not None:
        asked["target_accuracy"] = _look(at_target, surely_reached(rounds, look=at_target))
    if min_gain is not None:
        sure = forecast(rounds, query_size, alpha=level_of_look(at_gain))
        asked["min_gain"] = _look(at_gain, None if sure is None else sure.gain_high)
    return {
        "forecast": asdict(expected) | {"text": str(expected)} if expected else None,
        "no_forecast": lacks_for_forecast(rounds),
        "stop": stop_reason(
            rounds,
            target_accuracy=target,
            min_gain=min_gain,
            query_size=query_size,
            looks_at_target=at_target,
            looks_at_gain=at_gain,
        ),
        "looks": asked,
    }


def _look(look: int, now: float | None) -> dict[str, Any]:
    return {"look": look, "level": level_of_look(look), "now": now}
