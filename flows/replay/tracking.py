"""A replay in MLflow: its settings, what came out, and the curve of each arm."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.escaping import visible
from connectors.store import flatten
from connectors.tracking import TrackerError
from deploy import servers
from flows.home import home
from flows.replay.folder import CURVES, REPORT, SUMMARY, Replay
from flows.replay.inputs import ReplayError
from flows.reports.replay_page import ReplaySummary
from pipeline.evaluation.comparison import Interval
from pipeline.settings import LOCAL

if TYPE_CHECKING:
    from connectors.mlflow.tracker import MLflowTracker


def open_tracker(uri: str, out: Path) -> "MLflowTracker":
    """MLflow, which answers: that it does not is found before the hours of the runs."""
    from connectors.mlflow.tracker import MLflowTracker  # takes seconds to load

    login = None
    if uri == LOCAL:
        running = servers.running(home())
        if running is None:
            raise ReplayError(
                "--mlflow local is the server of `labelcycle up`, which is not running: start it, name another, for "
                "example --mlflow sqlite:///mlflow.db, or leave --mlflow out"
            )
        uri, login = running.mlflow_url, running.mlflow_login
    try:
        tracker = MLflowTracker(uri=uri, campaign=f"replay {visible(out.resolve().name)}", login=login)
        tracker.ping()
    except TrackerError as exc:
        raise TrackerError(f"--mlflow: {exc}. Nothing was run yet; mend it, or leave --mlflow out") from exc
    return tracker


def log_replay(tracker: "MLflowTracker", replay: Replay, summary: ReplaySummary) -> None:
    """Log a replay: what it was asked for, the mean curve of each arm over `n_trained_on`, and the files."""
    arms = replay.settings.arms
    params = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in flatten(summary["settings"]).items()
        if value is not None
    }
    params["winner"] = summary["winner"] or "none"
    means = {
        name: [
            (n, {metric: curves[name][point]["mean"] for metric, curves in summary["curves"].items()})
            for point, n in enumerate(summary["n_trained_on"])
        ]
        for name in arms
    }
    totals = {name: _totals(summary["strategies"][name]["aulc"]) for name in arms}
    digest = hashlib.blake2b(repr((sorted(params.items()), means)).encode(), digest_size=8).hexdigest()
    tracker.log_replay(
        digest,
        params=params,
        curves=means,
        totals=totals,
        artifacts=[replay.path_of(artefact) for artefact in (SUMMARY, REPORT, CURVES)],
    )


def _totals(area: Interval) -> dict[str, float]:
    ends = {"aulc_mean": area["mean"], "aulc_low": area["low"], "aulc_high": area["high"]}
    return {name: value for name, value in ends.items() if value is not None}
