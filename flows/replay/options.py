"""What a replay is asked for, and the settings that follow from it."""

import itertools
import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flows.config import CampaignSettings
from flows.replay.folder import ReplaySettings
from flows.replay.inputs import ReplayError, count_classes, digest_of
from flows.replay.model import (
    PIXELS,
    Asked,
    Model,
    count_channels,
    named_network,
    network_of_campaign,
    pixels,
    ready_features,
)
from flows.steps.plan import check_members
from flows.steps.select import check_asking
from flows.task_types import TASK
from pipeline.evaluation.arms import CONTROL, DEFAULT_ACQUISITION, parse_arm
from pipeline.learning.settings import MemberSettings
from pipeline.pool.groups import group_codes
from pipeline.registries import look_up
from pipeline.selection.settings import NEEDS_MEMBERS, SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.tasks import TASKS
from pipeline.tasks.task_type import TaskType

TEST_SHARE = 0.25
"""Of the images, to test on, where nobody says how many."""
L2 = 0.1
QUERY_SIZE = 30


@dataclass(frozen=True)
class Options:
    """What a person asked for; None is what was left open."""

    out: Path
    images: Path | None = None
    labels: Path | None = None
    task: str | None = None
    features: Path | None = None
    group: str | None = None
    campaign: Path | None = None
    strategies: str | None = None
    seeds: int = 10
    seed: int | None = None
    query_size: int | None = None
    rounds: int = 12
    start: int | None = None
    test_size: float | None = None
    model: str | None = None
    weights: str | None = None
    image_size: int | None = None
    members: int | None = None
    mc_dropout: int | None = None
    l2: float | None = None
    sub_pool: int | None = None
    workers: int | None = None
    mlflow: str | None = None


def command_of(options: Options) -> str:
    """The command that asks for the same, with what was left open left out."""
    given = [
        (f"--{field.name.replace('_', '-')}", str(value))
        for field in fields(options)
        if (value := getattr(options, field.name)) != field.default and field.name not in ("workers", "mlflow")
    ]
    return shlex.join(["labelcycle", "simulate", *itertools.chain.from_iterable(given)])


def resolve(
    options: Options,
    campaign: CampaignSettings | None,
    rows: pd.DataFrame,
    features: NDArray[np.float32] | None,
    caveat: str | None,
) -> ReplaySettings:
    """The settings of a replay: what was asked for, else what the campaign has, else the defaults.

    Args:
        rows: `file`, `label`, `uri`, `is_test` and `group` of the labelled images.
        features: `(N, D)` of the rows, where they are ready.
        caveat: a sentence on the test images for the verdict; None where they are a fair sample.

    Raises:
        ReplayError: naming the option that is wrong.
    """
    name = task_of(options, campaign)
    classes = count_classes(rows["label"], TASKS[name], campaign.classes if campaign else None)
    _check_numbers(options)
    query_size = options.query_size or (campaign.query_size if campaign else QUERY_SIZE)
    first_seed = options.seed if options.seed is not None else campaign.seed if campaign else 0
    settings = ReplaySettings(
        task=name,
        arms=_arms(options, campaign),
        seeds=tuple(range(first_seed, first_seed + options.seeds)),
        query_size=query_size,
        rounds=options.rounds,
        start=options.start or (campaign.seed_set_size if campaign else 0) or query_size,
        test_size=_test_size(options.test_size, rows),
        classes=classes,
        **_model(options, campaign, TASKS[name], rows),
        l2=L2 if options.l2 is None else options.l2,
        sub_pool=options.sub_pool or (campaign.sub_pool if campaign else None),
        campaign_arm=_campaign_arm(campaign, query_size) if campaign else None,
        caveat=caveat,
        data=digest_of(rows, features),
    )
    _check_sizes(settings, rows)
    _check_model(options, settings)
    return settings


def task_of(options: Options, campaign: CampaignSettings | None) -> str:
    """The name of the task type whose labels they are: the campaign's, what was asked for, or the default.

    Raises:
        ReplayError: there is no such task type, or it was asked for beside a campaign.
    """
    if campaign is not None and options.task is not None:
        raise ReplayError("task is a setting of the campaign's file: leave --task out")
    try:
        name = campaign.task if campaign is not None else options.task or TASK
        look_up(TASKS, name, "task type")
    except ValueError as exc:
        raise ReplayError(f"--task: {exc}") from exc
    return name


def _check_numbers(options: Options) -> None:
    limits = {"rounds": (2, None), "mc_dropout": (0, 1000), "members": (1, 100), "seed": (0, 2**31 - 1)}
    limits |= dict.fromkeys(("seeds", "start", "query_size", "workers", "sub_pool", "image_size"), (1, None))
    for name, (least, most) in limits.items():
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is not None and value < least:
            raise ReplayError(f"{option} must be at least {least}, got {value}")
        if value is not None and most is not None and value > most:
            raise ReplayError(f"{option} must be at most {most:,}, got {value}")
    if options.l2 is not None and not 0 < options.l2 < math.inf:
        raise ReplayError(f"--l2 must be above 0 and finite, got {options.l2:g}")


def _check_sizes(settings: ReplaySettings, rows: pd.DataFrame) -> None:
    """Refuse more labels and test images than there are images, and groups that no test part can take."""
    wanted = settings.start + settings.rounds * settings.query_size + settings.test_size
    if wanted > len(rows):
        raise ReplayError(
            f"{len(rows):,} labelled images are too few: start {settings.start:,} + {settings.rounds} rounds x "
            f"{settings.query_size:,} + {settings.test_size:,} to test on = {wanted:,}; lower --rounds, --query-size, "
            "--start or --test-size"
        )
    codes = None if rows["is_test"].any() else group_codes(rows["group"], rows["file"])
    smallest = 0 if codes is None else int(codes.bincount().min())
    if smallest > settings.test_size:
        raise ReplayError(
            f"whole groups are tested on, and the smallest has {smallest:,} images: raise --test-size above "
            f"{settings.test_size:,}, or make the groups smaller"
        )


def _check_model(options: Options, settings: ReplaySettings) -> None:
    """Refuse options of other models than the one that is replayed, and arms that need more members than it has."""
    if options.l2 is not None and not settings.is_linear:
        raise ReplayError(f"--l2 is of a linear head, and {settings.model} is trained as a whole: leave it out")
    if settings.is_linear and options.members and options.members > 1:
        raise ReplayError("--members are networks, and a linear head is one model: use --mc-dropout")
    if settings.network is not None:
        check_members(settings.members, settings.network, settings.task_type, settings.task)
    for name in settings.arms:
        arm = parse_arm(name)
        check_asking(settings.selection(arm), settings.task_type, settings.task)
        if settings.n_members > 1:
            continue
        # A strategy that is not told which scores to read has the margin, which one member is enough for.
        if NEEDS_MEMBERS[arm.acquisition] or STRATEGIES[arm.strategy].compares_members:
            asked = "--mc-dropout" if settings.is_linear else "--members or --mc-dropout"
            raise ReplayError(f"arm {name!r} measures how members disagree: set {asked} to at least 2")


def _campaign_arm(campaign: CampaignSettings, query_size: int) -> SelectionSettings:
    """How the campaign asks; its sub-pool is the replay's own, the same for all arms."""
    return campaign.of_size(query_size).model_copy(update={"sub_pool": None})


def _arms(options: Options, campaign: CampaignSettings | None) -> tuple[str, ...]:
    default = f"{CONTROL},margin,auto"
    if campaign is not None:
        acquisition = "" if campaign.acquisition == DEFAULT_ACQUISITION else f":{campaign.acquisition}"
        default = f"{CONTROL},{campaign.strategy}{acquisition}"
    names = [name.strip() for name in (options.strategies or default).split(",") if name.strip()]
    if not names:
        raise ReplayError("--strategies names no arm; for example --strategies random,margin,auto")
    try:
        return tuple(dict.fromkeys(parse_arm(name).name for name in names))
    except ValueError as exc:
        raise ReplayError(f"--strategies: {exc}") from exc


def _test_size(asked: float | None, rows: pd.DataFrame) -> int:
    """Images to test on: those that are marked, or a number or a share below 1 of all."""
    marked, n = int(rows["is_test"].sum()), len(rows)
    if marked:
        if asked is not None:
            raise ReplayError(f"{marked:,} images are marked to be tested on, so leave --test-size out")
        return marked
    asked = TEST_SHARE if asked is None else asked
    size = round(asked * n) if 0 < asked < 1 else int(asked) if 1 <= asked < n else 0
    if size < 1 or size >= n or (asked >= 1 and asked != size):
        raise ReplayError(f"--test-size must be a share below 1 or a number of images below {n:,}, got {asked:g}")
    return size


def _model(options: Options, campaign: CampaignSettings | None, task: TaskType, rows: pd.DataFrame) -> Model:
    """What models are and read."""
    members = MemberSettings(ensemble=options.members or 1, mc_dropout=options.mc_dropout or 0)
    is_open = options.model is None and campaign is None
    if not task.has_one_decision and (options.features is not None or is_open or options.model == PIXELS):
        raise ReplayError(
            "logistic regression knows one class for each image: name a network for this task, --model small_cnn, or "
            "one with weights such as --model torchvision:resnet18 --weights DEFAULT, and --images"
        )
    if options.features is not None:
        for name in ("images", "model", "weights", "image_size"):
            if getattr(options, name) is not None:
                raise ReplayError(f"--features are what a model reads already: leave --{name.replace('_', '-')} out")
        return ready_features(members)
    asked: Asked = {"weights": options.weights, "image_size": options.image_size}
    if options.model is None and campaign is not None:
        counts = {"ensemble": options.members, "mc_dropout": options.mc_dropout}
        members = campaign.members.model_copy(update={name: n for name, n in counts.items() if n is not None})
        return network_of_campaign(campaign.model, members, task, **asked)
    channels = count_channels(rows["uri"].tolist())
    name = options.model or PIXELS
    if name == PIXELS:
        return pixels(members, channels=channels, **asked)
    return named_network(name, members, task, channels=channels, **asked)
