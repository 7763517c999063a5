"""Where members come from, and what it is worth: python -m benchmarks.posteriors RUNS.jsonl [--json OUT] [--quick]

Heads on EfficientNet-Lite0's features of digits learn actively: each round asks for the 20 images with the smallest
margin of the mean of the members, from 20 drawn ones on, up to 300. At a seed all arms begin with the same labels and
weights. Accuracy, NLL and ECE on the test images are of the mean of the members, averaged over the rounds (AULC);
with the temperature that a round fits on predictions out of fold, and at temperature 1.
The claim to check: ensembles are better than Monte Carlo dropout, and better calibrated (Beluch et al., 2018).
RUNS.jsonl gets a line for each arm at a seed; what has its line is not done again.
"""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.labelled_sets import LabelledSet
from benchmarks.measure import do_jobs
from benchmarks.transfer import N_CLASSES, data_of, frozen, in_words, lite0_settings
from pipeline.evaluation.comparison import mean_interval, paired_difference
from pipeline.evaluation.curves import area_under_curve
from pipeline.learning.lesson import Lesson
from pipeline.learning.predict import decide_on_features
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.learning.train import LEARNING_VERSION, learn
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import extract
from pipeline.randomness import derive_seed
from pipeline.selection.ask import gather_candidates, score_candidates
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import classification

SETS = ("mnist", "imbalanced")
PLAIN = "plain"
ARMS = {
    PLAIN: MemberSettings(ensemble=1),
    "MC dropout, 20 passes": MemberSettings(ensemble=1, mc_dropout=20),
    "ensemble of 5": MemberSettings(ensemble=5),
    "bagged 5": MemberSettings(ensemble=5, bagging=True),
    "Laplace, 20 draws": MemberSettings(ensemble=1, laplace=20),
    "SWAG, 20 draws": MemberSettings(ensemble=1, swag=20),
}
START, QUERY_SIZE = 20, 20
HOW = SelectionSettings(strategy="top_k", acquisition="margin", query_size=QUERY_SIZE)
MEASURED = ("accuracy", "nll", "ece", "nll_at_1", "ece_at_1")
"""The last two are at temperature 1."""


def main() -> None:
    """Learn what is missing; print and write what came out."""
    options = _arguments()
    how = {name: lite0_settings(name).model_dump(mode="json") for name in options.sets}
    jobs = [
        {
            "set": name,
            "arm": arm,
            "seed": seed,
            "labels": options.labels,
            "settings": how[name],
            "recipe": LEARNING_VERSION,
        }
        for name in options.sets
        for seed in range(options.seeds)
        for arm in options.arms
    ]
    runs = do_jobs(jobs, learn_actively, options.runs)
    summaries = {name: summarise([row for row in runs if row["set"] == name]) for name in options.sets}
    for name, summary in summaries.items():
        _print(name, summary)
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=1, allow_nan=False) + "\n")


def learn_actively(job: Mapping[str, Any]) -> dict[str, Any]:
    """Go through the rounds of one arm at one seed; return what each came to, and the seconds of all."""
    settings, members = ModelSettings(**job["settings"]), ARMS[job["arm"]]
    data, (body, features) = data_of(job["set"]), frozen(job["set"])
    test = extract(body, data.test_images, device=body.mean.device)
    labelled = data.start(START, seed=job["seed"])
    rows = []
    begun = perf_counter()
    for round_number in range((job["labels"] - START) // QUERY_SIZE + 1):
        lesson = Lesson(classification, N_CLASSES, "head", features[labelled], data.targets[labelled], body)
        models = learn(lesson, settings, members, seed=job["seed"], round_number=round_number)
        drawn = derive_seed(job["seed"], round_number, "members")
        rows.append(measure(models, members, test, data, seed=drawn))
        rest = torch.ones(len(features), dtype=torch.bool).index_fill(0, labelled, False).nonzero().flatten()
        decisions = decide(models, members, features[rest], seed=drawn)
        ids = np.array([f"{row:09d}" for row in rest.tolist()])
        candidates = gather_candidates(ids, score_candidates(decisions, HOW).scores, {}, HOW, n_classes=N_CLASSES)
        batch = select_batch(candidates, HOW, round_number=round_number, seed=job["seed"])
        labelled = torch.cat([labelled, torch.tensor([int(item_id) for item_id in batch.ids])])
    curves = {name: [row[name] for row in rows] for name in MEASURED}
    return {**curves, "seconds": perf_counter() - begun}


def decide(models: Sequence[Classifier], members: MemberSettings, features: Tensor, *, seed: int) -> Tensor:
    """Decisions `(n, 1, K, C)` of all members."""
    decisions = [
        part.decisions for part in decide_on_features(models, features, members, task=classification, seed=seed)
    ]
    return torch.cat(decisions)


def measure(
    models: Sequence[Classifier], members: MemberSettings, test: Tensor, data: LabelledSet, *, seed: int
) -> dict[str, float]:
    """How good the mean of the members is on the test images."""
    classes = [str(label) for label in range(N_CLASSES)]
    fitted = classification.measure(decide(models, members, test, seed=seed).mean(dim=2), data.test_targets, classes)
    at_1 = [copy.deepcopy(model, {id(model.trunk): model.trunk}) for model in models]
    for model in at_1:
        model.temperature.fill_(1.0)
    plain = classification.measure(decide(at_1, members, test, seed=seed).mean(dim=2), data.test_targets, classes)
    return {"accuracy": fitted.value, "nll": fitted.nll, "ece": fitted.ece} | {
        "nll_at_1": plain.nll,
        "ece_at_1": plain.ece,
    }


# What came out.


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return for each arm the mean over the curve of all that is measured, and its paired difference to plain."""
    by_arm = {arm: [row for row in runs if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in runs)}
    areas = {
        arm: {name: area_under_curve(torch.tensor([row[name] for row in rows]).double().numpy()) for name in MEASURED}
        for arm, rows in by_arm.items()
    }
    return {
        arm: {
            "seconds": sum(row["seconds"] for row in by_arm[arm]) / len(by_arm[arm]),
            **{name: mean_interval(values) for name, values in measured.items()},
            **{
                f"{name}_to_plain": paired_difference(areas[PLAIN][name], values)
                for name, values in measured.items()
                if PLAIN in areas
            },
        }
        for arm, measured in areas.items()
    }


def _print(name: str, summary: Mapping[str, Any]) -> None:
    """Print the means over the curve, and under each its difference to the plain arm."""
    table = Table(title=f"{name}: means over the curve, 95 % intervals over seeds; below: paired difference to plain")
    for heading in ("members", *MEASURED, "seconds"):
        table.add_column(heading, justify="right")
    for arm, measured in summary.items():
        table.add_row(arm, *(in_words(measured[each], 4) for each in MEASURED), f"{measured['seconds']:.0f}")
        if arm != PLAIN and f"{MEASURED[0]}_to_plain" in measured:
            table.add_row("", *(in_words(measured[f"{each}_to_plain"], 4) for each in MEASURED), style="dim")
    Console(width=None if Console().is_terminal else 180).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS.jsonl")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the summary there")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SETS), default=SETS)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=300, help="in the last round")
    parser.add_argument("--quick", action="store_true", help="few labels: shows that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.sets, options.labels, options.seeds = ["digits"], 40, 1
    return options


if __name__ == "__main__":
    main()
