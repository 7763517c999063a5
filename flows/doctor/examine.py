"""The checks in order, and the look at all of them: at the same time, each with an end to its patience."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from connectors.health import Finding, failure
from flows.doctor.campaign import campaign_file, pool, workers
from flows.doctor.machine import clock, disk, gpu, privacy, versions
from flows.doctor.schedule import prefect
from flows.doctor.servers import label_studio, mlflow
from flows.doctor.subject import Subject
from flows.doctor.workers import ray
from flows.errors import explain_error

PATIENCE_SECONDS = 30.0
"""For all checks together, which look at the same time; what they load is loaded before."""


@dataclass(frozen=True)
class Check:
    """One look.

    Attributes:
        look: yields what it finds; an error is a failure of the check's name.
        mend: what to do where the look ends in an error, or not at all.
    """

    name: str
    look: Callable[[Subject], Iterator[Finding]]
    mend: str


CHECKS = (
    Check("campaign file", campaign_file, "mend the file; docs/settings.md has all keys"),
    Check("pool", pool, "put the images back, or let `pool` in the campaign file name where they are"),
    Check("lock", workers, "give yourself the right to read the campaign's folder"),
    Check("disk", disk, "mount the disk, or give yourself the right to look at it"),
    Check("privacy", privacy, "run `labelcycle up`, which makes what is missing and gives it to you alone"),
    Check("versions", versions, "make install, which installs what requirements.lock names"),
    Check("GPU", gpu, 'set device = "cpu" in [model] until the GPU and its driver work'),
    Check("workers", ray, 'start the cluster, mend ray_address, or set workers = "local"'),
    Check("clock", clock, "set the time zone of the machine, or timezone in the campaign file"),
    Check(
        "Label Studio",
        label_studio,
        "start it (`labelcycle up` where url is 'local'), or mend url in [label_studio] or the token",
    ),
    Check("MLflow", mlflow, "start it (`labelcycle up` where uri is 'local'), or mend uri in [mlflow] or the login"),
    Check(
        "Prefect",
        prefect,
        "start it (`labelcycle up`, where it is the local one), or mend PREFECT_API_URL or PREFECT_API_AUTH_STRING",
    ),
)
"""What is looked at, in the order in which it is shown."""


def examine(
    subject: Subject, checks: Sequence[Check] = CHECKS, *, seconds: float = PATIENCE_SECONDS
) -> Iterator[Finding]:
    """Look at everything; yield the findings in the order of the checks, as soon as they are there."""
    looks = [_Look(check, subject) for check in checks]
    for look in looks:
        look.thread.start()
    end = time.monotonic() + seconds
    for look in looks:
        look.thread.join(max(0.0, end - time.monotonic()))
        if look.thread.is_alive():
            late = failure(look.check.name, f"no answer within {seconds:.0f} s", look.check.mend)
            yield from (*look.findings, late)
        else:
            yield from look.findings


@dataclass
class _Look:
    """A check under way, in a thread that nobody waits for at the end."""

    check: Check
    subject: Subject
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=self.check.name, daemon=True)

    def _run(self) -> None:
        try:
            for finding in self.check.look(self.subject):
                self.findings.append(finding)
        except Exception as exc:
            found = "; ".join(explain_error(exc)[0].splitlines())
            self.findings.append(failure(self.check.name, found, self.check.mend))
