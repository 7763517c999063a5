"""Replay strategies on labelled data, `labelcycle simulate`.

A replay's folder holds everything, so a killed one goes on where it stood, and more seeds, arms or rounds add to it:

| file | |
|---|---|
| `replay.json` | the resolved settings, with a digest of the data |
| `labels.parquet` | file, label, uri, is_test, group, in the order of the labels file; written anew by each command |
| `pixel_ranges.json` | what black and white are in deep pixels |
| `features.npy` or `images.npy` | what models read, computed once |
| `trunk_features.npy` | what a pretrained network's trunk makes of the images, for the rounds that train heads only |
| `runs/ARM-SEED.parquet` | the rounds of one arm at one seed, with what each picked |
| `runs/full-data-SEED.json` | accuracy with all labels |
| `curves.parquet`, `summary.json`, `report.html` | what came out |
"""

import hashlib
import itertools
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from connectors.escaping import visible
from connectors.feature_store import extract
from connectors.images.deep_pixels import Reading
from connectors.images.pixels import (
    WHOLE,
    PoolError,
    has_colour,
    load_images,
    measure_ranges,
    without_pillow_warnings,
)
from connectors.store import (
    Campaign,
    CampaignChanged,
    flatten,
    read_json,
    write_atomic,
    write_json,
    write_table,
    write_text,
)
from connectors.tracking import TrackerError
from deploy import servers
from flows.config import (
    CampaignSettings,
    load_settings,
)
from flows.home import home
from flows.networks import RECIPE, check_network, frozen_body, new_model
from flows.pixel_ranges import read_ranges, write_ranges
from flows.progress import progress_bar, say
from flows.replay.inputs import (
    ReplayError,
    count_classes,
    digest_of,
    read_campaign_labels,
    read_features,
    read_labels,
    with_groups,
    without_copies,
)
from flows.replay.runs import CHUNK, FULL_DATA, Job, Replay, ReplaySettings, run_jobs
from pipeline.evaluation.curves import CONTROL, DEFAULT_ACQUISITION, parse_arm, summarise
from pipeline.learning.settings import PHASE_LIMITS, MemberSettings, ModelSettings, with_own_image_size
from pipeline.networks.classifier import check_model_name
from pipeline.pool.dependence import N_LEFT, N_RIGHT, THUMB_SIDE, advice, find_series, near_copies
from pipeline.pool.groups import group_codes, groups_of
from pipeline.randomness import seeded_generator
from pipeline.selection.acquisition import NEEDS_MEMBERS
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.settings import LOCAL
from pipeline.training.fit import choose_device

if TYPE_CHECKING:
    from connectors.mlflow.tracker import MLflowTracker

PIXELS, FEATURES = "pixels", "features"
TEST_SHARE = 0.25
"""Of the images, to test on, where nobody says how many."""
SMALL_SIDE = 28
"""Side of the images in pixels where the pixels themselves are the features."""
L2 = 0.1
MAY_CHANGE = frozenset({"arms", "seeds", "rounds"})
"""Settings that add to a replay without mixing two."""
OF_FEATURES = frozenset({"name", "weights", "image_size", "channels", "dropout", "train"})
"""What a replay of one linear head takes from the settings of a network; how the network is trained is not among it."""


@dataclass(frozen=True)
class Options:
    """What a person asked for; None is what was left open."""

    out: Path
    images: Path | None = None
    labels: Path | None = None
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


def simulate(options: Options) -> dict[str, Any]:
    """Replay, or go on with a replay, and write what came out; return the summary.

    Raises:
        ReplayError: the options or the data are wrong.
        CampaignChanged: the folder holds a replay with other settings.
        CampaignBusy: another process works on the folder.
    """
    _check_folder(options.out)
    campaign = load_settings(options.campaign) if options.campaign else None
    rows, caveat = _read_rows(options, campaign)
    features = read_features(options.features, len(rows)) if options.features else None
    rows = with_groups(rows, options.group)
    notes: list[str] = []
    if options.labels is not None:  # a campaign's images are told by their content
        keep, notes = without_copies(rows, features)
        rows, features = rows[keep].reset_index(drop=True), None if features is None else features[keep]
    settings = _resolve(options, campaign, rows, features, caveat)
    tracker = _tracker(options.mlflow, options.out) if options.mlflow is not None else None
    _make_folder(options.out)
    replay = Replay(options.out)
    with Campaign(options.out).lock():
        _sweep(options.out)
        _claim(options.out, settings)
        write_table(options.out / "labels.parquet", rows)  # the files may have moved; the digest says they are the same
        memory_gb = campaign.decode_memory_gb if campaign else WHOLE.memory_gb
        if not replay.data_path.exists():
            _write_data(replay, features, memory_gb=memory_gb)
        if replay.jobs() and replay.trains_heads_first and not replay.trunk_features_path.exists():
            _write_trunk_features(replay)
        run_jobs(replay, workers=options.workers or os.cpu_count() or 1)
        notes += dependence_of(replay, memory_gb=memory_gb)
        summary = write_results(replay, command=command_of(options), notes=notes)
        if tracker is not None:
            _track(replay, summary, tracker)
    return summary


def command_of(options: Options) -> str:
    """The command that asks for the same, with what was left open left out."""
    given = [
        (f"--{field.name.replace('_', '-')}", str(value))
        for field in fields(options)
        if (value := getattr(options, field.name)) != field.default and field.name not in ("workers", "mlflow")
    ]
    return shlex.join(["labelcycle", "simulate", *itertools.chain.from_iterable(given)])


def dependence_of(replay: Replay, *, memory_gb: float) -> list[str]:
    """What names and thumbnails say of images that depend on each other, where nobody has said it."""
    settings, labels = replay.settings, replay.labels
    if labels["group"].notna().any():
        return []
    series = find_series(labels["file"].tolist(), classes=settings.classes)
    if series is not None:
        pairs = pd.DataFrame({"group": groups_of(labels["file"].tolist(), series.rule), "label": labels["label"]})
        pairs = pairs.dropna().drop_duplicates()
        if pairs["group"].is_unique and pairs["label"].is_unique:  # a name for each class, and not for a film
            series = None
    near = None
    if settings.model != FEATURES:
        split = replay.split(settings.seeds[0])
        generator = seeded_generator(settings.seeds[0], 0, "near-copies")
        reading = Reading(read_ranges(replay.folder), memory_gb)
        sides = zip((split.test, torch.cat([split.start, split.rest])), (N_LEFT, N_RIGHT), strict=True)
        left, right = (
            load_images(
                labels["uri"].iloc[side[torch.randperm(len(side), generator=generator)[:most]].numpy()].tolist(),
                size=THUMB_SIDE,
                channels=1,
                reading=reading,
            )
            for side, most in sides
        )
        near = near_copies(left, right)
    return advice(series, near, measured_on="the test part")


def write_results(replay: Replay, *, command: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Write the curves, the summary and the page of a replay whose runs are done; return the summary.

    Args:
        command: for people who want to run it again.
        notes: what is to be known of the images, a line each.
    """
    from flows.reports.replay_page import report_page

    settings = replay.settings
    curves = replay.curves()
    full = {seed: float(read_json(replay.path(Job(FULL_DATA, seed)))["accuracy"]) for seed in settings.seeds}
    last = curves[curves["round"] == settings.rounds]
    summary = summarise(curves, full)
    if settings.caveat is not None:
        summary["verdict"] += f" {settings.caveat}"
    summary |= {
        "command": command,
        "notes": list(notes),
        "class_balance": {
            "classes": list(settings.classes),
            "data": torch.bincount(replay.targets, minlength=len(settings.classes)).tolist(),
            "labelled": {
                name: np.mean(last.loc[last["strategy"] == name, "class_histogram"].to_list(), axis=0).tolist()
                for name in settings.arms
            },
        },
        "settings": settings.model_dump(mode="json"),
    }
    write_table(replay.folder / "curves.parquet", curves)
    write_json(replay.folder / "summary.json", summary)
    write_text(replay.folder / "report.html", report_page(summary))
    return summary


# Settings: what was asked for, and what follows from it.


def _check_folder(out: Path) -> None:
    """Refuse a folder with files that are no replay's."""
    if out.exists() and not out.is_dir():
        raise ReplayError(f"--out {out} is a file; name a folder")
    others = sorted(path.name for path in out.glob("*") if not path.name.startswith((".", "campaign.lock")))
    if others and not (out / "replay.json").exists():
        raise ReplayError(f"--out {out} holds other files ({', '.join(others[:3])}); name a new folder")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ReplayError(f"--out {out} cannot be made: {exc.strerror}") from exc


def _sweep(out: Path) -> None:
    """Delete what a killed process was writing; the folder is locked, so nobody else writes."""
    for folder in (out, out / "runs"):
        for rest in folder.glob(".*.part"):
            rest.unlink()


def _read_rows(options: Options, campaign: CampaignSettings | None) -> tuple[pd.DataFrame, str | None]:
    """The images with their labels, and what is to be said of those that are tested on."""
    if options.features is not None and options.labels is None:
        raise ReplayError("--features needs --labels, whose rows are those of the features")
    if options.labels is not None:
        if options.images is None and options.features is None:
            raise ReplayError("--labels needs --images, the folder of the files, or --features, one row for each file")
        images, classes = None if options.features else options.images, campaign.classes if campaign else ()
        return read_labels(options.labels, images=images, classes=classes, tell=say), None
    if campaign is None:
        raise ReplayError("name the labels with --labels FILE.csv (columns file,label), or a campaign with --campaign")
    if options.group is not None:
        raise ReplayError("group is a setting of the campaign's file: leave --group out")
    return read_campaign_labels(campaign)


def _resolve(
    options: Options,
    campaign: CampaignSettings | None,
    rows: pd.DataFrame,
    features: NDArray[np.float32] | None,
    caveat: str | None,
) -> ReplaySettings:
    classes = count_classes(rows["label"], campaign.classes if campaign else None)
    _check_numbers(options)
    query_size = options.query_size or (campaign.query_size if campaign else 30)
    start = options.start or (campaign.seed_set_size if campaign else 0) or query_size
    first_seed = options.seed if options.seed is not None else campaign.seed if campaign else 0
    settings = ReplaySettings(
        arms=_arms(options, campaign),
        seeds=tuple(range(first_seed, first_seed + options.seeds)),
        query_size=query_size,
        rounds=options.rounds,
        start=start,
        test_size=_test_size(options.test_size, rows),
        classes=classes,
        **_model(options, campaign, rows),
        l2=L2 if options.l2 is None else options.l2,
        sub_pool=options.sub_pool or (campaign.sub_pool if campaign else None),
        campaign_arm=_campaign_arm(campaign, query_size) if campaign else None,
        caveat=caveat,
        data=digest_of(rows, features),
    )
    wanted = start + options.rounds * query_size + settings.test_size
    if wanted > len(rows):
        raise ReplayError(
            f"{len(rows):,} labelled images are too few: start {start:,} + {options.rounds} rounds x {query_size:,} + "
            f"{settings.test_size:,} to test on = {wanted:,}; lower --rounds, --query-size, --start or --test-size"
        )
    codes = group_codes(rows["group"], rows["file"])
    if (
        codes is not None
        and not rows["is_test"].any()
        and (smallest := int(codes.bincount().min())) > settings.test_size
    ):
        raise ReplayError(
            f"whole groups are tested on, and the smallest has {smallest:,} images: raise --test-size above "
            f"{settings.test_size:,}, or make the groups smaller"
        )
    if options.l2 is not None and not settings.is_linear:
        raise ReplayError(f"--l2 is of a linear head, and {settings.model} is trained as a whole: leave it out")
    if settings.is_linear and options.members and options.members > 1:
        raise ReplayError("--members are networks, and a linear head is one model: use --mc-dropout")
    _check_members(settings)
    return settings if settings.is_linear else settings.model_copy(update={"recipe": RECIPE})


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


def _model(options: Options, campaign: CampaignSettings | None, rows: pd.DataFrame) -> dict[str, Any]:
    """The settings that say what models read and are."""
    members = MemberSettings(ensemble=options.members or 1, mc_dropout=options.mc_dropout or 0)
    if options.features is not None:
        for name in ("images", "model", "weights", "image_size"):
            if getattr(options, name) is not None:
                raise ReplayError(f"--features are what a model reads already: leave --{name.replace('_', '-')} out")
        return {"model": FEATURES, "image_size": None, "channels": None, "network": None, "members": members}
    if options.model is None and campaign is not None:
        changes: dict[str, Any] = {"weights": options.weights, "train": "head"} if options.weights else {}
        changes |= {"image_size": options.image_size} if options.image_size else {}
        network = _network(with_own_image_size(campaign.model).model_dump() | changes)
        asked = {"ensemble": options.members, "mc_dropout": options.mc_dropout}
        members = campaign.members.model_copy(update={name: n for name, n in asked.items() if n is not None})
    else:
        name = options.model or PIXELS
        channels = 1 if _is_grey(rows["uri"].tolist()) else 3
        if name == PIXELS:
            if options.weights:
                raise ReplayError("--weights are for a network: name it too, for example --model torchvision:resnet18")
            side = options.image_size or SMALL_SIDE
            return {"model": PIXELS, "image_size": side, "channels": channels, "network": None, "members": members}
        check_model_name(name)
        network = _network(
            {
                "name": name,
                "channels": channels,
                "weights": options.weights,
                "train": "head" if options.weights else "auto",
                "augmentation": "none",
            }
            | ({"image_size": options.image_size} if options.image_size else {})
        )
    _check_network(network, members)
    return {
        "model": network.name,
        "image_size": network.image_size,
        "channels": network.channels,
        "network": network,
        "members": members,
    }


def _network(values: dict[str, Any]) -> ModelSettings:
    try:
        return with_own_image_size(ModelSettings.model_validate(values))
    except ValidationError as exc:
        first = exc.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-") if first["loc"] else "model"
        raise ReplayError(f"--{option}: {first['msg']} (got {first['input']!r})") from exc


def _is_grey(uris: Sequence[str]) -> bool:
    """Whether no image has colour, by the files' headers; a file that is no image is told when it is read."""
    try:
        with without_pillow_warnings():
            return not any(has_colour(uri) for uri in uris)
    except PoolError as exc:
        raise ReplayError(str(exc)) from exc


def _check_network(network: ModelSettings, members: MemberSettings) -> None:
    is_linear = network.train == "head"  # whose dropout is that of the features
    check_network(network, MemberSettings() if is_linear else members, n_classes=2)
    drawn = [name for name in ("swag", "views", "laplace") if is_linear and getattr(members, name)]
    if drawn:
        raise ReplayError(
            f'train = "head" is replayed as one linear head, which has no {" and no ".join(drawn)}: replay a campaign '
            "file without, or --mc-dropout"
        )


def _check_members(settings: ReplaySettings) -> None:
    if settings.n_members > 1:
        return
    for name in settings.arms:
        arm = parse_arm(name)
        # A strategy that is not told which scores to read has the margin, which one member is enough for.
        if arm.acquisition in NEEDS_MEMBERS or STRATEGIES[arm.strategy].compares_members:
            asked = "--mc-dropout" if settings.is_linear else "--members or --mc-dropout"
            raise ReplayError(f"arm {name!r} measures how members disagree: set {asked} to at least 2")


def _claim(folder: Path, settings: ReplaySettings) -> None:
    """Write the settings, or refuse those that would mix two replays in one folder; an empty one takes any."""
    path, wanted = folder / "replay.json", settings.model_dump(mode="json")
    if path.exists() and any(any(folder.glob(computed)) for computed in ("*.npy", "runs/*")):
        members = {"members": MemberSettings().model_dump(mode="json")}  # of which older versions knew fewer
        before, after = flatten(members) | flatten(read_json(path)), flatten(wanted)
        keys = (before.keys() | after.keys()) - MAY_CHANGE
        if settings.is_linear:
            keys -= {f"network.{name}" for name in ModelSettings.model_fields.keys() - OF_FEATURES}
        elif settings.network and not settings.network.follows_labels:
            keys -= {f"network.{name}" for name in PHASE_LIMITS}
        changed = sorted(key for key in keys if before.get(key) != after.get(key))
        if changed:
            told = {
                "data": "the labels, images or features changed",
                "recipe": "this version of labelcycle trains networks otherwise",
            }
            changes = [told.get(key, f"{key}: {before.get(key)!r} -> {after.get(key)!r}") for key in changed]
            way_back = ", or set the values back" if set(changed).isdisjoint(told) else ""
            raise CampaignChanged(
                f"{folder} holds another replay: {'; '.join(changes)}. Give another --out{way_back}; "
                "strategies, seeds and rounds may change.",
                changed,
            )
    write_json(path, wanted)


# Data: what models read, computed once.


def _write_data(replay: Replay, features: NDArray[np.float32] | None, *, memory_gb: float) -> None:
    settings = replay.settings
    if features is not None:
        write_atomic(replay.data_path, partial(_save_chunks, [torch.from_numpy(features)], len(features)))
        return
    uris = replay.labels["uri"].tolist()
    reading = _measure(replay, memory_gb)
    with progress_bar("reading images", unit="images") as advance:
        chunks = _read_chunks(settings, uris, reading, advance)
        write_atomic(replay.data_path, partial(_save_chunks, chunks, len(uris)))


def _measure(replay: Replay, memory_gb: float) -> Reading:
    """How the images are read: deep pixels by the range of a sample, drawn by the names in the labels file."""
    labels = replay.labels
    order = sorted(range(len(labels)), key=lambda row: hashlib.blake2b(labels["file"][row].encode()).digest())
    ranges = measure_ranges(labels["uri"].iloc[order].tolist(), reading=Reading(memory_gb=memory_gb))
    write_ranges(replay.folder, ranges)
    return Reading(ranges, memory_gb)


def _write_trunk_features(replay: Replay) -> None:
    network, images = replay.settings.network, replay.data
    if network is None:
        raise ValueError("a replay of ready features has no network")
    body = frozen_body(network, n_classes=len(replay.settings.classes))
    with progress_bar("features", unit="images") as advance:

        def chunks() -> Iterator[Tensor]:
            for start in range(0, len(images), CHUNK):
                yield extract(body, images[start : start + CHUNK], device=body.mean.device)
                advance(min(start + CHUNK, len(images)), len(images))

        write_atomic(replay.trunk_features_path, partial(_save_chunks, chunks(), len(images)))


def _read_chunks(
    settings: ReplaySettings, uris: Sequence[str], reading: Reading, advance: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """Chunks of the images, or of their features where the head is linear."""
    side, channels = settings.image_size or SMALL_SIDE, settings.channels or 3
    trunk = None
    if settings.is_linear and settings.network is not None:
        device = choose_device(settings.network.device)
        trunk = new_model(settings.network, n_classes=len(settings.classes), seed=0).to(device)
    for start in range(0, len(uris), CHUNK):
        images = load_images(uris[start : start + CHUNK], size=side, channels=channels, reading=reading)
        if trunk is not None:
            yield trunk.embed(images.to(trunk.mean.device)).float().cpu()
        else:
            yield images.flatten(1) / 255 if settings.is_linear else images
        advance(min(start + CHUNK, len(uris)), len(uris))


def _save_chunks(chunks: Iterable[Tensor], n_rows: int, path: Path) -> None:
    """Write chunks one after another as one array, which is never in memory as a whole."""
    with path.open("wb") as file:
        for number, chunk in enumerate(chunks):
            values = np.ascontiguousarray(chunk.numpy())
            if number == 0:
                form = {"descr": values.dtype.str, "fortran_order": False, "shape": (n_rows, *values.shape[1:])}
                np.lib.format.write_array_header_1_0(file, form)  # type: ignore[no-untyped-call]
            file.write(values.data)


def _tracker(uri: str, out: Path) -> "MLflowTracker":
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


def _track(replay: Replay, summary: dict[str, Any], tracker: "MLflowTracker") -> None:
    settings = replay.settings
    params = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in flatten(settings.model_dump(mode="json")).items()
        if value is not None
    }
    params["winner"] = summary["winner"] or "none"
    means = {
        name: [
            (n, {metric: curves[name][point]["mean"] for metric, curves in summary["curves"].items()})
            for point, n in enumerate(summary["n_labels"])
        ]
        for name in settings.arms
    }
    totals = {
        name: {f"aulc_{end}": value for end, value in summary["strategies"][name]["aulc"].items() if value is not None}
        for name in settings.arms
    }
    digest = hashlib.blake2b(repr((sorted(params.items()), means)).encode(), digest_size=8).hexdigest()
    tracker.log_replay(
        digest,
        params=params,
        curves=means,
        totals=totals,
        artifacts=[replay.folder / name for name in ("summary.json", "report.html", "curves.parquet")],
    )
