"""Values are logged once: which of them a run does not hold yet, and an error where it holds others."""

import hashlib
import math
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from connectors.escaping import mlflow_key
from connectors.tracking import LaterRounds, TrackerError


def new_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> list[Param]:
    """Those that are not there yet; one that is too long is kept whole as an artefact."""
    logged = run.data.params
    wanted = {mlflow_key(key): str(value) for key, value in params.items()}
    changed = [
        f"{key}: {reprlib.repr(logged[key])} -> {reprlib.repr(value)}"
        for key, value in wanted.items()
        if logged.get(key, _shorten(value)) != _shorten(value)
    ]
    if changed:
        raise TrackerError(_say_changed(run, changed))
    new = {key: value for key, value in wanted.items() if key not in logged}
    for key, value in new.items():
        if value != _shorten(value):
            client.log_text(run.info.run_id, value, f"params/{key}.txt")
    return [Param(key, _shorten(value)) for key, value in new.items()]


def new_points(client: MlflowClient, run: Run, points: Sequence[Metric]) -> list[Metric]:
    """The points that are not there yet; name and time tell one from another."""
    logged = {(known.key, known.timestamp): known for known in _known_points(client, run, points)}
    changed = [
        f"{point.key}: {known.value} at step {known.step} -> {point.value} at step {point.step}"
        for point in points
        if (known := logged.get((point.key, point.timestamp))) and not _is_same(known, point)
    ]
    if changed:
        raise TrackerError(_say_changed(run, changed))
    return [point for point in points if (point.key, point.timestamp) not in logged]


def _known_points(client: MlflowClient, run: Run, points: Sequence[Metric]) -> Iterator[Metric]:
    """What the run holds of these metrics, as far as a point may be among it.

    A run brings the last point of each metric along. Only where a point comes before that one, all are asked for:
    a request for each metric, whose answer is the longer the older the campaign is.
    """
    for last in run.data.to_proto().metrics:
        ours = [point for point in points if point.key == last.key]
        if any((point.step, point.timestamp) < (last.step, last.timestamp) for point in ours):
            yield from client.get_metric_history(run.info.run_id, last.key)
        elif ours:
            yield Metric(last.key, last.value, last.timestamp, last.step)


def _shorten(value: str) -> str:
    if len(value) <= MAX_PARAM_VAL_LENGTH:
        return value
    ending = f"… (sha256 {hashlib.sha256(value.encode()).hexdigest()})"
    return value[: MAX_PARAM_VAL_LENGTH - len(ending)] + ending


def _is_same(known: Metric, point: Metric) -> bool:
    """Whether MLflow holds the point; it gives an infinity back as the largest float."""
    if known.step != point.step or math.isnan(known.value) != math.isnan(point.value):
        return False
    stored = max(-sys.float_info.max, min(sys.float_info.max, point.value))
    return math.isnan(known.value) or math.isclose(known.value, stored, rel_tol=1e-12)


def _say_changed(run: Run, changed: Iterable[str]) -> str:
    return (
        f"MLflow run {run.info.run_id} ({run.info.run_name}) holds other values, and values are logged once: "
        f"{'; '.join(changed)}. {LaterRounds.mend[0].upper()}{LaterRounds.mend[1:]}, or delete the run in MLflow"
    )
