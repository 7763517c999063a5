"""What the rounds so far say about the next one: its worth, and whether to ask at all."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from connectors.store import Campaign, RoundFolder, read_json
from flows.config import present_names
from pipeline.stopping import MeasuredRound, forecast, lacks_for_forecast, stop_reason


def measured_rounds(folder: Campaign, settings: Mapping[str, Any]) -> list[MeasuredRound]:
    """The learning curve: one point for each round whose model was measured on the audit set.

    It begins anew where classes came, went or were merged: an accuracy among others is another number.

    Args:
        settings: the campaign's, as plain values.
    """
    present, classes = present_names(dict(settings["renamed"])), sorted(settings["classes"])
    rounds = []
    for f in folder.rounds():
        metrics = metrics_of(f)
        if metrics is None:
            continue
        training = read_json(f / "training.json")
        if sorted(present.get(name, name) for name in training["model"]["classes"]) == classes:
            n_correct = round(metrics["accuracy"] * metrics["n"])
            rounds.append(MeasuredRound(training["n_labelled"], n_correct, metrics["n"]))
    return rounds


def metrics_of(folder: RoundFolder) -> dict[str, Any] | None:
    """How good the round's model is on the audit set; None where there is no model or no label to measure it on."""
    return read_json(folder / "metrics.json") if folder.has("metrics.json") else None


def outlook(folder: Campaign, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the next labels are worth, and why not to ask for them.

    Args:
        settings: the campaign's, as plain values.

    Returns:
        `forecast` (of accuracy, shares; None when `no_forecast` says why) and `stop` (the reason, None to go on).
    """
    rounds = measured_rounds(folder, settings)
    query_size = settings["query_size"]
    expected = forecast(rounds, query_size)
    return {
        "forecast": asdict(expected) | {"text": str(expected)} if expected else None,
        "no_forecast": lacks_for_forecast(rounds),
        "stop": stop_reason(
            rounds,
            target_accuracy=settings["target_accuracy"],
            min_gain=settings["min_gain"],
            query_size=query_size,
        ),
    }
