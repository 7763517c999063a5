"""The records that the files of a campaign and of its rounds hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from connectors.images.reading import Range
from pipeline.evaluation.stopping import Forecast
from pipeline.settings import Plain
from pipeline.types import Ask, Calibration, Finding, Metrics, Purpose


@dataclass(frozen=True)
class RoundConfig:
    """What a round is made with.

    Attributes:
        query_size: labels that it may ask for: what the budget leaves.
        settings: the campaign's, resolved.
        batch_size: images in an optimiser step: where the settings have no number, what suits the task.
        changes: what changed since the round before, a line for each setting.
        weights: what the networks take of a weights file that holds more than they need; where that was looked up.
    """

    round_number: int
    begun_at: str
    query_size: int
    settings: Plain
    batch_size: int
    changes: Sequence[str]
    weights: str | None = None

    @property
    def classes(self) -> list[str]:
        """The classes, by the names of then."""
        classes = self.settings["classes"]
        return [str(name) for name in classes] if isinstance(classes, list) else []


@dataclass(frozen=True)
class Pages:
    """The round's run in the tracker, and where people see it."""

    run_id: str
    tracker: str | None
    flow_run: str | None


@dataclass(frozen=True)
class Plan:
    """What a round trains.

    Attributes:
        phase: what it trains; `wanted` is what its labels are enough for.
        minutes: an estimate for each phase that was thought of.
        max_minutes: the campaign's limit.
        text: for people; None where there is nothing to know.
        features: for people, that the pool's features are not kept; None where they are, or there are none to keep.
    """

    phase: str
    wanted: str
    minutes: dict[str, float]
    max_minutes: float | None
    text: str | None
    features: str | None = None


@dataclass(frozen=True)
class Member:
    """One trained network; `weights` are names of files beside its record."""

    name: str
    seed: int
    weights: tuple[str, ...]
    epochs: list[dict[str, float]]
    best_epoch: int
    findings: tuple[Finding, ...]
    calibration: Calibration | None
    preprocessing: Plain


@dataclass(frozen=True)
class NetworkForm:
    """What it takes to build a round's networks again, and to read their output."""

    name: str
    image_size: int
    channels: int
    dropout: float
    head: str
    phase: str
    n_classes: int
    classes: list[str]
    pixel_ranges: tuple[Range, ...] = ()
    task: str = "classification"


@dataclass(frozen=True)
class MembersFinding:
    """What is wrong with the members that are named."""

    name: str
    what: str
    advice: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """How a round's networks were made."""

    device: str
    n_trained_on: int
    labelled_digest: str
    n_pseudo_labels: int
    pseudo_label_threshold: float
    phase: str
    plan: Plan
    preprocessing: Plain
    findings: tuple[MembersFinding, ...]
    members: tuple[Member, ...]
    model: NetworkForm

    @property
    def weights(self) -> list[str]:
        """Names of the weight files of all members, in order."""
        return [name for member in self.members for name in member.weights]


@dataclass(frozen=True)
class AuditMetrics(Metrics):
    """How good a round's model is on the audit set, with its temperatures and without them."""

    nll_uncalibrated: float = field(kw_only=True)
    ece_uncalibrated: float = field(kw_only=True)


@dataclass(frozen=True)
class ReviewedSet:
    """What the model thinks of one set of labels.

    Attributes:
        what: "labels" or "audit labels".
        share_right: of predictions by networks that have not seen them.
        n_contradicted: labels that the model contradicts; `n_contradicted_wrong` of them are wrong, on average.
        n_listed: labels that are listed as wrong; `n_wrong` of them are, on average.
    """

    what: str
    n: int
    share_right: float
    n_contradicted: int
    n_contradicted_wrong: float
    n_listed: int
    n_wrong: float


@dataclass(frozen=True)
class Review:
    """What the list of suspicious labels is worth.

    Attributes:
        text: for people; None where nothing was judged.
    """

    sets: tuple[ReviewedSet, ...]
    text: str | None

    @property
    def n_listed(self) -> int:
        """Labels that are listed as wrong."""
        return sum(each.n_listed for each in self.sets)

    @property
    def n_wrong(self) -> float:
        """How many of the listed labels are wrong, on average."""
        return sum(each.n_wrong for each in self.sets)


@dataclass(frozen=True)
class Registered:
    """The round's model in the tracker."""

    run_id: str
    model_uri: str
    version: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """One look of a stopping rule.

    Attributes:
        look: its number, from 1.
        level: at which it may err.
        now: the measured value; None where it is unknown.
    """

    look: int
    level: float
    now: float | None


@dataclass(frozen=True)
class Outlook:
    """What the next labels are worth, and why not to ask for them.

    Attributes:
        forecast: of accuracy, in shares; None where `no_forecast` holds the reason.
        stop: the reason to stop; None to go on.
        looks: of each stopping rule that is on.
    """

    forecast: Forecast | None
    no_forecast: str | None
    stop: str | None
    looks: dict[str, Look]


@dataclass(frozen=True)
class Stability:
    """How much of a batch is the luck of the members' draws.

    Attributes:
        batch_kept_with_half_the_members: a share; None where nothing is drawn.
    """

    batch_kept_with_half_the_members: float | None


@dataclass(frozen=True)
class Summary:
    """The round's numbers as the tracker gets them.

    Attributes:
        step: the number of labels paid for.
    """

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Pushing:
    """When a push began; people may see some of the batch from then on."""

    begun_at: str


@dataclass(frozen=True)
class Pushed:
    """A batch that is with the annotators: the task and the purpose of each image."""

    pushed_at: str
    address: str
    tasks: dict[str, int]
    purposes: dict[str, Purpose]

    @staticmethod
    def now(address: str, task_ids: Mapping[Ask, int]) -> "Pushed":
        """The record of a push that has just been proven."""
        tasks = {ask.item_id: task_id for ask, task_id in task_ids.items()}
        purposes = {ask.item_id: ask.purpose for ask in task_ids}
        return Pushed(datetime.now(UTC).isoformat(timespec="seconds"), address, tasks, purposes)

    def of_asks(self, round_number: int) -> dict[Ask, int]:
        """The task of each ask of the round."""
        return {Ask(item_id, round_number, self.purposes[item_id]): task_id for item_id, task_id in self.tasks.items()}


@dataclass(frozen=True)
class SeenProgress:
    """How far the annotators were when a run last looked.

    The counts are those of `connectors.annotation.Progress`.
    """

    n_tasks: int
    n_labelled: int
    n_set_aside: int
    seen_at: str


@dataclass(frozen=True)
class Collected:
    """How far the look at the annotators' project came that brought the round's answers in, for the next to go on.

    Attributes:
        mark: of that look; None where the next one looks at all tasks.
        whole_at: when all tasks were looked at last.
    """

    mark: str | None
    whole_at: str


@dataclass(frozen=True)
class ClosedRound:
    """What a round came to."""

    round_number: int
    closed_at: str
    n_asked: int
    n_labels_paid: int
    budget_left: int
    outcomes: dict[str, int]
    metrics: AuditMetrics | None
    seconds: dict[str, float]
    run_id: str


@dataclass(frozen=True)
class PoolNotes:
    """What people should know of the pool.

    Attributes:
        standing: what is so now.
        untold: what no run has printed yet.
    """

    standing: list[str]
    untold: list[str]


@dataclass(frozen=True)
class Dependence:
    """Notes on images that depend on each other, and the audit set that they are about."""

    audit_set: str
    notes: list[str]


@dataclass(frozen=True)
class PixelRanges:
    """What becomes black and white of each kind of deep pixels."""

    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True)
class AnnotatorsPage:
    """What the annotators' page was made for."""

    url: str
    project: str
    instructions: str | None
    classes: list[str]
    renamed: list[tuple[str, str]]


@dataclass(frozen=True)
class CampaignId:
    """The id that marks runs in Prefect as this campaign's."""

    id: str


@dataclass(frozen=True)
class KnownNetwork:
    """A network whose name is right, and the side in pixels of the images that its weights were trained at.

    Attributes:
        image_size: None where nobody looked it up, or where a factory gives it.
    """

    name: str
    weights: str | None
    image_size: int | None


@dataclass(frozen=True)
class DrawnAudit:
    """How many images were known when the audit set was drawn."""

    n_images: int


@dataclass(frozen=True)
class Told:
    """What a hook was told, and when.

    Attributes:
        about: what the event is about; about something else it is told anew.
    """

    hook: str
    event: str
    about: str
    at: str


@dataclass(frozen=True)
class Notified:
    """What people were told by the hooks of [notify], and whether a run is on.

    Attributes:
        running_since: when the run began that is on, or that died.
        died: when the last run began that died, until all hooks were told.
    """

    told: tuple[Told, ...] = ()
    running_since: str | None = None
    died: str | None = None
