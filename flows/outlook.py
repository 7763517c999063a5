"""What the rounds so far say about the next one: its worth, and whether to ask at all."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from connectors.store import Campaign, RoundFolder, read_json
from pipeline.stopping import MeasuredRound, forecast, lacks_for_forecast, stop_reason


def measured_rounds(folder: Campaign) -> list[MeasuredRound]:
    """The learning curve: one point for each round whose model was measured on the audit set."""
    return [
        MeasuredRound(
            n_labels=read_json(f / "training.json")["n_trained_on"],
            n_correct=round(metrics["accuracy"] * metrics["n"]),
            n_audit=metrics["n"],
        )
        for f in folder.rounds()
        if (metrics := metrics_of(f)) is not None
    ]


def metrics_of(folder: RoundFolder) -> dict[str, Any] | None:
    """How good the round's model is on the audit set; None where there is no model or no label to measure it on."""
    return read_json(folder / "metrics.json") if folder.has("metrics.json") else None


def best_round(folder: Campaign, *, until: int | None = None) -> RoundFolder | None:
    """The round with the best model by the lower end of its audit interval, of equals the latest; None before one.

    Args:
        until: no later round than this.
    """
    rounds = [f for f in folder.rounds() if until is None or f.number <= until]
    lows = {f.number: metrics["accuracy_low"] for f in rounds if (metrics := metrics_of(f)) is not None}
    return max((f for f in rounds if f.number in lows), key=lambda f: (lows[f.number], f.number), default=None)


def outlook(folder: Campaign, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the next labels are worth, and why not to ask for them.

    Args:
        settings: the campaign's; those that an older version of labelcycle did not know may be missing.

    Returns:
        `forecast` (of accuracy, shares; None when `no_forecast` says why) and `stop` (the reason, None to go on).
    """
    rounds = measured_rounds(folder)
    query_size = settings["query_size"]
    expected = forecast(rounds, query_size)
    return {
        "forecast": asdict(expected) | {"text": str(expected)} if expected else None,
        "no_forecast": lacks_for_forecast(rounds),
        "stop": stop_reason(
            rounds,
            target_accuracy=settings.get("target_accuracy"),
            min_gain=settings.get("min_gain"),
            query_size=query_size,
        ),
    }
