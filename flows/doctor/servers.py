"""Checks of Label Studio and MLflow: of a campaign's own, or of those of this machine."""

from collections.abc import Iterator

from connectors.health import Finding, failure, warning
from connectors.label_studio import client as label_studio_client  # noqa: F401 (loaded before the seconds are counted)
from connectors.mlflow.tracker import MLflowTracker
from connectors.tracking import LaterRounds
from deploy import servers
from flows.artefacts import PUSHED
from flows.campaign import OpenCampaign
from flows.doctor.subject import Subject
from flows.steps.collect import asked_in
from pipeline.settings import LOCAL


def label_studio(subject: Subject) -> Iterator[Finding]:
    """People can label."""
    name, work = "Label Studio", subject.work
    is_local = work is None or work.settings.label_studio.url == LOCAL
    if is_local and (away := what_is_away(subject, "label-studio", name)) is not None:
        yield away
    elif work is not None:
        asked = [asked_in(work.folder.round(n), work.pool, work.settings) for n in rounds_out(work)]
        yield from work.tool.check(asked)
    elif (local := servers.remembered(subject.home)) is not None:
        servers.personal_token(local)
        yield Finding(name, f"at {local.label_studio_url} takes the login of {local.email}")


def rounds_out(work: OpenCampaign) -> list[int]:
    """Numbers of the rounds with tasks that are out."""
    current = work.folder.current_round()
    return sorted({*work.ledger.rounds_out(), *([current.number] if current.has(PUSHED) else [])})


def mlflow(subject: Subject) -> Iterator[Finding]:
    """Rounds can be logged."""
    name, work = "MLflow", subject.work
    is_local = work is None or work.settings.mlflow.uri == LOCAL
    if is_local and (away := what_is_away(subject, "mlflow", name)) is not None:
        yield away
    elif work is not None:
        found = []
        for finding in work.tracker.check():
            found.append(finding)
            yield finding
        if any(finding.status == "failure" for finding in found):
            return
        try:
            work.tracker.refuse_later(max((folder.number for folder in work.folder.rounds()), default=-1))
        except LaterRounds as exc:
            yield failure("rounds", exc.found, exc.mend)
    elif (local := servers.remembered(subject.home)) is not None:
        yield next(MLflowTracker(uri=local.mlflow_url, campaign="labelcycle", login=local.mlflow_login).check())


def what_is_away(subject: Subject, server: str, name: str) -> Finding | None:
    """That one of the servers of `labelcycle up` does not answer; None where it does."""
    if servers.answers(subject.home, server):
        return None
    start = f"labelcycle up{subject.named}"
    if servers.remembered(subject.home) is None:
        tell = warning if subject.work is None else failure
        return tell(name, f"no servers were ever started from {subject.home}", start)
    log = subject.home / "logs" / f"{server}.log"
    return failure(name, f"the local server does not answer; the end of its log is in {log}", start)
