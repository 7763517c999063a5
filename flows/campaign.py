"""One campaign as the flows see it: its settings, its folder, and the outside systems it works with."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from connectors.annotation import AnnotationTool
from connectors.images.reading import Reading
from connectors.objects.reading import Objects
from connectors.store import write_json
from connectors.tracking import Tracker
from deploy import servers
from deploy.programs import HEALTH
from flows.artefacts import ANSWERS, CAMPAIGN, CONFIG, PAGE, PIXEL_RANGES, POOL, PUSHED, WITHDRAWN
from flows.changes import claim, refuse_lost_classes
from flows.config import CampaignSettings, ConfigError, images_root, load_settings, unresolved
from flows.damage import PROJECT
from flows.folder import Campaign, RoundFolder, stamp
from flows.home import LAST_CAMPAIGN, home, settle_home
from flows.home import VARIABLE as HOME_VARIABLE
from flows.known_network import remember_network
from flows.ledger import round_of_ledger
from flows.outlook import outlook
from flows.progress import progress_bar, say
from flows.records import PixelRanges
from flows.step import Step, in_task
from flows.task_types import word_for
from flows.workers.local import LocalWorkers, Piece, Workers
from pipeline.labels.ledger import Ledger, RoundOfLedger, count_labels
from pipeline.learning.settings import with_own_image_size
from pipeline.settings import LOCAL
from pipeline.tables import Labels, PoolTable
from pipeline.types import OnProgress, Split

if TYPE_CHECKING:
    from flows.images import PoolImages
    from flows.workers.ray import PieceOfRound
    from pipeline.tasks.task_type import TaskType

T = TypeVar("T")
SPLITS: tuple[Split, ...] = ("pool", "audit")


class OpenCampaign:
    """A campaign that a flow works on.

    Args:
        tool: the annotation tool; by default the campaign's, connected to when first asked for.
        tracker: the experiment tracker; likewise.
        local: finds the servers of `labelcycle up`; by default all three must answer.
    """

    def __init__(
        self,
        settings: CampaignSettings,
        folder: Campaign,
        *,
        tool: AnnotationTool | None = None,
        tracker: Tracker | None = None,
        local: Callable[[], servers.Servers] | None = None,
    ) -> None:
        self.settings, self.folder = settings, folder
        self._local = local or local_servers
        self._tool, self._tracker = tool, tracker
        self._pool: tuple[object, PoolTable] | None = None
        self._rounds: dict[int, tuple[object, RoundOfLedger]] = {}
        self._ledger = Ledger()
        self.workers: Workers = LocalWorkers()

    @property
    def tool(self) -> AnnotationTool:
        """The annotation tool."""
        if self._tool is None:
            self._tool = self.connect(self.settings.classes)
        return self._tool

    def connect(self, classes: Sequence[str]) -> AnnotationTool:
        """The annotation tool, for answers of these classes."""
        from connectors.label_studio.client import LabelStudio
        from connectors.label_studio.connection import TOKEN_VARIABLE

        page = self.folder.get(PAGE)
        settings = self.settings.label_studio
        url, token = settings.url, os.environ.get(TOKEN_VARIABLE, "")
        shown_in = None
        if url == LOCAL:
            local = self._local()
            url = local.label_studio_url
            token = servers.personal_token(local)
            shown_in = local.images / self.settings.name
        return LabelStudio(
            url=url,
            token=token,
            project=self.settings.project,
            classes=classes,
            images_root=None if shown_in else images_root(self.settings.pool),
            shown_in=shown_in,
            remember_in=self.folder.path / PROJECT,
            asks=self.settings.asks,
            instructions=settings.instructions or None,
            say=say,
            reading=self.reading,
            renamed=self.settings.former_classes,
            former_project=page.project if page and page.project != self.settings.project else None,
            former_classes=page.classes if page else (),
            presign_minutes=settings.presign_minutes,
        )

    @property
    def tracker(self) -> Tracker:
        """The experiment tracker."""
        if self._tracker is None:
            self._tracker = self._connect_tracker()
        return self._tracker

    def _connect_tracker(self) -> Tracker:
        from connectors.mlflow.tracker import MLflowTracker  # takes seconds to load

        uri, name = self.settings.mlflow.uri, self.settings.name
        if uri != LOCAL:
            return MLflowTracker(uri=uri, campaign=name)
        local = self._local()
        return MLflowTracker(uri=local.mlflow_url, campaign=name, login=local.mlflow_login)

    @property
    def pool(self) -> PoolTable:
        """The pool table; labels have the names that their classes have now. It is read once, until it changes."""
        mark = stamp(self.folder.path_of(POOL))
        if self._pool is None or self._pool[0] != mark:
            self._pool = (mark, self._present(self.folder.read(POOL)))
        return self._pool[1]

    def keep_pool(self, pool: PoolTable) -> None:
        """Write the pool table."""
        self.folder.write(POOL, pool)
        self._pool = (stamp(self.folder.path_of(POOL)), self._present(pool))

    def _present(self, pool: PoolTable) -> PoolTable:
        return pool.renamed(self.settings.former_classes, self.settings.asks)

    @property
    def ledger(self) -> Ledger:
        """What all rounds asked for and brought in. Each round is read once, until it changes."""
        rounds = [self._round(folder) for folder in self.folder.rounds()]
        if list(map(id, rounds)) != list(map(id, self._ledger.rounds)):
            self._ledger = Ledger(rounds, self.settings.former_classes)
        return self._ledger

    def _round(self, folder: RoundFolder) -> RoundOfLedger:
        marks = [folder.stamp_of(artefact) for artefact in (CONFIG, PUSHED, WITHDRAWN, ANSWERS)]
        known = self._rounds.get(folder.number)
        if known is None or known[0] != marks:
            known = self._rounds[folder.number] = (marks, round_of_ledger(folder))
        return known[1]

    @property
    def reading(self) -> Reading:
        """How the campaign's images are read."""
        ranges = self.folder.get(PIXEL_RANGES) or PixelRanges()
        return Reading(ranges.ranges, self.settings.decode_memory_gb, Objects())

    @property
    def task(self) -> "TaskType":
        """What the networks decide, and people are asked for."""
        return task_type(self.settings)

    @property
    def images(self) -> "PoolImages":
        """The campaign's images."""
        from flows.images import PoolImages

        settings = self.settings
        return PoolImages(
            self.pool, settings.model, self.task, self.reading, settings.feature_cache_gb, settings.image_cache_gb
        )

    def reason_to_stop(self) -> str | None:
        """Why nothing more is to be asked for, by the stopping rules, the budget and the pool; None to go on."""
        stop = outlook(self.folder.rounds(), self.settings).stop
        if stop is not None:
            return stop
        if self.budget_left == 0:
            return f"the budget is spent{self._what_it_paid()}"
        for split in SPLITS:
            if self.ledger.are_left(self.pool, split=split, classes=self.settings.classes).any():
                return None
        return "every image of the pool has been asked for"

    @property
    def budget_left(self) -> int:
        """Images that the budget still pays for."""
        return self.ledger.budget_left(self.settings.budget, self.settings.budget_in)

    def _what_it_paid(self) -> str:
        """What a budget in regions came to, which is not known before people mark them."""
        of = self.settings
        if of.budget_in == "images":
            return ""
        return f", with {self.ledger.n_regions_paid} of {of.budget} {word_for(of.task, of.budget_in)} paid for"

    def can_ask(self) -> bool:
        """Whether the stopping rules, the budget and the pool leave anything to ask for."""
        return self.reason_to_stop() is None

    def do(self, step: Step[T], folder: RoundFolder, **more: object) -> T:
        """Run a step of a round; what its parameters name is an artefact, one of `GIVEN`, or a setting."""

        def run() -> T:
            if step.computes and not step.is_done(folder):
                self.workers.whole(step, folder)
            return step.run(folder, partial(self._give, folder), more)

        return in_task(step.name, run)

    def do_piece(self, step: Step[None], folder: RoundFolder, piece: Piece, on_progress: OnProgress) -> None:
        """Do a part of a step, which writes it: no task of Prefect, and no seconds in the books."""
        step.call(folder, partial(self._give, folder), {**piece, "on_progress": on_progress})

    @property
    def seen(self) -> list[Path]:
        """What workers must see besides the folder, where it is a path that is there: pool and weights."""
        return [Path(str(place)) for place in (self.settings.pool, self.settings.model.weights) if place is not None]

    @contextmanager
    def with_workers(self) -> Iterator[None]:
        """Have the workers of the settings as long as the block lasts.

        Raises:
            WorkersError: they cannot be had.
        """
        from flows.batch_sizes import keep_batch_sizes  # loads torch

        keep_batch_sizes()
        if self.settings.workers == "local":
            yield
            return
        from flows.workers.cluster import joined
        from flows.workers.ray import RayWorkers, Spread

        with joined(self.settings, self.folder.path, seen=self.seen):
            spread = Spread(self.settings, self.folder.path, do_piece_of_round, together=lambda piece: piece.together)
            self.workers = RayWorkers(spread)
            try:
                yield
            finally:
                self.workers = LocalWorkers()

    def _give(self, folder: RoundFolder, name: str) -> object:
        return GIVEN[name](self, folder) if name in GIVEN else getattr(self.settings, name)


GIVEN: dict[str, Callable[[OpenCampaign, RoundFolder], object]] = {
    "task": lambda work, _: work.task,
    "settings": lambda work, _: work.settings,
    "pool": lambda work, _: work.pool,
    "ledger": lambda work, _: work.ledger,
    "images": lambda work, _: work.images,
    "reading": lambda work, _: work.reading,
    "tool": lambda work, _: work.tool,
    "tracker": lambda work, _: work.tracker,
    "workers": lambda work, _: work.workers,
    "round_number": lambda _, folder: folder.number,
    "rounds": lambda work, folder: [f for f in work.folder.rounds() if f.number <= folder.number],
    "earlier": lambda work, folder: [f for f in work.folder.rounds() if f.number < folder.number],
    "budget_left": lambda work, _: work.budget_left,
    "folder": lambda _, folder: folder,
}
"""What a step may name besides artefacts and settings. `folder` is for steps that send files of the round elsewhere."""


def standing_labels(pool: PoolTable, ledger: Ledger, settings: CampaignSettings) -> Labels:
    """The labels that stand on images that can be used; with `uri`, `split` and `group`.

    Raises:
        CampaignChanged: some are of no class of the campaign.
    """
    given = pool.count_given(settings.asks)
    refuse_lost_classes(count_labels(ledger.answers) + given, settings)
    return ledger.labels(pool, task_type(settings), classes=settings.classes)


def task_type(settings: CampaignSettings) -> "TaskType":
    """What the networks of a campaign decide."""
    from pipeline.tasks import TASKS  # loads torch

    return TASKS[settings.task]


def begun(settings: CampaignSettings) -> Campaign:
    """The folder of a campaign that was run.

    Raises:
        ConfigError: it was not.
    """
    folder = Campaign(settings.folder)
    folder.check_ours()
    if not folder.has(POOL):
        raise ConfigError(f"{folder.path} holds no campaign yet; `labelcycle run` begins one")
    return folder


def local_servers() -> servers.Servers:
    """The servers of `labelcycle up`.

    Raises:
        ConfigError: when they are not running.
    """
    running = servers.running(home())
    if running is None:
        away = ", ".join(name for name in HEALTH if not servers.answers(home(), name)) or "one of them"
        raise ConfigError(
            f"the campaign uses the local servers, and of those of {home()} {away} does not answer: start them with "
            f"`labelcycle up` and the campaign's file, or let {HOME_VARIABLE} name the folder of those that run, or "
            "set url in [label_studio] and uri in [mlflow]"
        )
    return running


def do_piece_of_round(folder: Path, sent: "PieceOfRound") -> None:
    """Do a piece in a worker, which has the campaign's folder and nothing else."""
    from flows.batch_sizes import keep_batch_sizes

    keep_batch_sizes()
    campaign = Campaign(folder)
    work = _opened(folder, stamp(campaign.path_of(CAMPAIGN)))
    if sent.together > 1:
        _do_together(work, sent)
        return
    round_folder = campaign.round(sent.round_number)
    if sent.step.writes:
        work.do(sent.step, round_folder)
        return
    with progress_bar(str(sent), unit=sent.unit) as on_progress:
        work.do_piece(sent.step, round_folder, sent.piece, on_progress)


def _do_together(work: OpenCampaign, sent: "PieceOfRound") -> None:
    """Do a piece in processes, each of which opens the campaign."""
    from flows.workers.together import do_together
    from pipeline.networks.devices import choose_device

    on_gpus = choose_device(work.settings.model.device).type == "cuda"
    one = sent._replace(together=1)
    do_together(do_piece_of_round, work.folder.path, one, n=sent.together, on_gpus=on_gpus)


@lru_cache(maxsize=1)
def _opened(folder: Path, _settings: object) -> OpenCampaign:
    """A campaign, opened once for all pieces until its settings change: a million rows of a pool take their time."""
    campaign = Campaign(folder)
    return OpenCampaign(unresolved(campaign.read(CAMPAIGN)), campaign)


def open_campaign(path: Path, *, tool: AnnotationTool | None = None, tracker: Tracker | None = None) -> OpenCampaign:
    """Read a campaign file, claim its folder, and remember the campaign as the last one used.

    Args:
        tool: as of `OpenCampaign`; tracker likewise.
    """
    settings = load_settings(path)
    settings = settings.model_copy(update={"model": with_own_image_size(settings.model)})
    folder = Campaign(settings.folder)
    folder.check_ours()
    folder.make()
    work = OpenCampaign(settings, folder, tool=tool, tracker=tracker)
    claim(folder, settings, path, answers=lambda: work.ledger.answers)
    remember_network(folder, settings.model)
    write_json(settle_home(path) / LAST_CAMPAIGN, {"folder": str(settings.folder), "file": str(path.resolve())})
    return work
