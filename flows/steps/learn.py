"""The first half of a round: which labels there are, the model they make, and how good it is."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from prefect.runtime import flow_run

from connectors.images.pixels import load_images
from connectors.mlflow.loader import TRUNK, load_members
from connectors.store import RoundFolder, read_json, write_atomic, write_json, write_table
from connectors.tracking import MemberHistory
from flows.cache import features_of, shrink_features
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings
from flows.ledger import task_addresses
from flows.outlook import best_round
from flows.predict import predictions
from flows.progress import progress_bar
from flows.step import seconds_of, step, timed_task
from pipeline.evaluation.metrics import calibration_error, evaluate, negative_log_likelihood
from pipeline.labels.ledger import digest
from pipeline.labels.suspicious import FEWEST_RIGHT, LIKELY_WRONG, find_label_errors, share_right
from pipeline.learning.estimate import estimate_seconds
from pipeline.learning.lesson import Lesson, OutOfFold, sample_pool
from pipeline.learning.networks import frozen_body, phase_of
from pipeline.learning.out_of_fold import FOLDS, phase_to_cross, predict_out_of_fold, with_out_of_fold
from pipeline.learning.train import member_name, train_network, weight_draws
from pipeline.networks.classifier import PHASES, Classifier
from pipeline.networks.devices import choose_device, device_name
from pipeline.networks.state_dicts import read_state_dict
from pipeline.networks.weights import save_trunk, save_weights, without_last_layer
from pipeline.pool.groups import group_codes
from pipeline.randomness import derive_seed
from pipeline.selection.acquisition import entropy
from pipeline.selection.pseudo_labels import choose_confident
from pipeline.tasks import TASK_TYPE
from pipeline.training.cross_fit import MIN_JUDGED, judged_out_of_fold
from pipeline.training.fit import TrainingError

TRAINS = {"head": "the head alone", "all": "the whole network"}


class NothingToTrainOn(TrainingError):
    """The round has no usable label."""


@step("labelled.parquet")
def gather_labels(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write the labelled set that this round trains on, and `audit.parquet`, the one it is measured on."""
    table = work.labels()
    write_table(folder / "audit.parquet", table[table["split"] == "audit"].drop(columns="split"))
    write_table(folder / "labelled.parquet", table[table["split"] == "pool"].drop(columns="split"))


@step("plan.json")
def plan(folder: RoundFolder, work: OpenCampaign) -> None:
    """Choose what the round trains: by its labels, and of that as much as its minutes allow.

    Where that takes longer than what the last round did, or there is a limit, `minutes` has an estimate for each phase
    that was thought of, and `text` what people should know of it; None where there is nothing to say.
    """
    settings, how = work.settings, work.settings.model
    n_labels = pq.read_metadata(folder / "labelled.parquet").num_rows
    wanted = phase_of(how, n_labels=n_labels, n_classes=len(settings.classes))
    last = _last_trained(folder, work)
    is_dearer = how.is_pretrained and PHASES.index(wanted) > (PHASES.index(last["phase"]) if last else 0)
    minutes: dict[str, float] = {}
    phase = wanted
    if is_dearer or (how.max_minutes is not None and wanted != "head"):
        names = ("candidates.parquet", "audit.parquet", "labelled.parquet")
        n_images = sum(pq.read_metadata(folder / name).num_rows for name in names)
        for phase in reversed(PHASES[: PHASES.index(wanted) + 1] if how.is_pretrained else [wanted]):
            if phase == "head":
                break
            sizes = {"n_labels": n_labels, "n_classes": len(settings.classes), "n_images": n_images}
            minutes[phase] = estimate_seconds(how, settings.members, phase, task=TASK_TYPE, **sizes) / 60
            if how.max_minutes is None or minutes[phase] <= how.max_minutes:
                break
    chosen = {"phase": phase, "wanted": wanted, "minutes": minutes, "max_minutes": how.max_minutes}
    write_json(folder / "plan.json", chosen | {"text": _text_of_plan(chosen, folder, last, is_dearer=is_dearer)})


def _text_of_plan(
    plan: Mapping[str, Any], folder: RoundFolder, last: Mapping[str, Any] | None, *, is_dearer: bool
) -> str | None:
    phase, wanted, minutes, limit = (plan[name] for name in ("phase", "wanted", "minutes", "max_minutes"))
    about = {name: f"about {value:.2g} minutes on this machine" for name, value in minutes.items()}
    if phase != wanted:
        return (
            f"round {folder.number} has labels enough to train {TRAINS[wanted]}, which would take {about[wanted]}; "
            f"max_minutes = {limit:g} leaves {TRAINS[phase]}"
        )
    if phase in minutes and limit is not None and minutes[phase] > limit:
        return (
            f"round {folder.number} takes {about[phase]}, more than max_minutes = {limit:g}: without pretrained "
            "weights nothing less can be trained; fewer max_epochs, a smaller image_size or ensemble take less"
        )
    if not is_dearer:
        return None
    before = f"; the last round took {last['minutes']:.2g}" if last else ""
    limited = "" if limit is not None else "; max_minutes in [model] would set a limit"
    return f"round {folder.number} trains {TRAINS[phase]}, which takes {about[phase]}{before}{limited}"


def _last_trained(folder: RoundFolder, work: OpenCampaign) -> dict[str, Any] | None:
    """What the last round that trained had in mind, and the minutes that it took; None in the first."""
    for earlier in reversed(work.folder.rounds()):
        if earlier.number < folder.number and earlier.has("training.json"):
            spent = seconds_of(earlier)
            minutes = sum(spent.get(name, 0.0) for name in ("cross_validate", "train", "score_shard")) / 60
            return {"phase": read_json(earlier / "training.json")["phase"], "minutes": minutes}
    return None


@step("out_of_fold.parquet")
def cross_validate(folder: RoundFolder, work: OpenCampaign) -> None:
    """Let networks predict the labelled images that they have not seen; no row without weights."""
    settings = work.settings
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    targets, groups = class_indices(labelled["label"].tolist(), settings.classes), groups_in(labelled)
    phase = phase_to_cross(_phase(folder, work), targets, settings.model, task=TASK_TYPE, groups=groups)
    if phase is None:
        write_table(folder / "out_of_fold.parquet", pd.DataFrame({"item_id": [], "label": []}))
        return
    body = frozen_body(settings.model, n_classes=len(settings.classes)) if phase == "head" else None
    inputs = _inputs(folder, body, labelled, work)
    lesson = Lesson(TASK_TYPE, len(settings.classes), phase, inputs, targets, body, groups=groups)
    seed, bagging = derive_seed(settings.seed, folder.number, FOLDS), settings.members.bagging
    bar = nullcontext() if body is not None else progress_bar(f"round {folder.number}: out of fold", unit="epochs")
    with bar as advance:  # heads take a moment
        crossed = predict_out_of_fold(lesson, settings.model, seed=seed, bagging=bagging, on_progress=advance)
    table = labelled[["item_id", "label"]].assign(phase=phase)
    if crossed.epochs is not None:
        table = table.assign(epochs=crossed.epochs)
    write_table(folder / "out_of_fold.parquet", table.assign(logits=list(crossed.logits.numpy())))


@step("suspicious_labels.parquet")
def review_labels(folder: RoundFolder, work: OpenCampaign) -> None:
    """List the labels that are probably wrong, the likeliest first, and write to `review.json` what the list is worth.

    Labels that were trained on are judged by the networks that have not seen them, those of the audit set by the
    round's own. Where the model knows too little no label is listed.
    """
    classes = list(work.settings.classes)
    judged = {"labels": _out_of_fold_probs(folder, classes), "audit labels": _audit_probs(folder)}
    judged = {name: found for name, found in judged.items() if not found[0].empty}
    reviews, listed = [], [pd.DataFrame({name: [] for name in SUSPICIOUS})]
    for name, (table, probs) in judged.items():
        targets = class_indices(table["label"].tolist(), classes)
        found, right = find_label_errors(probs, targets), share_right(probs, targets)
        is_listed = (found.wrong_probability >= LIKELY_WRONG) & (right >= FEWEST_RIGHT)
        suspects = table.iloc[found.positions[is_listed].numpy()][["item_id", "label"]].assign(
            split="audit" if name == "audit labels" else "pool",
            suggested=np.array(classes)[found.suggested[is_listed].numpy()],
            given_probability=found.given_probability[is_listed].numpy(),
            suggested_probability=found.suggested_probability[is_listed].numpy(),
            wrong_probability=found.wrong_probability[is_listed].numpy(),
        )
        listed += [] if suspects.empty else [suspects]
        reviews.append(
            {
                "what": name,
                "n": len(table),
                "share_right": right,
                "n_contradicted": len(found.positions),
                "n_contradicted_wrong": float(found.wrong_probability.sum()),
                "n_listed": len(suspects),
                "n_wrong": float(suspects["wrong_probability"].sum()),
            }
        )
    table = pd.concat(listed[1:] or listed).sort_values("wrong_probability", ascending=False, kind="stable")
    uris = work.pool.drop_duplicates("item_id").set_index("item_id")["uri"]
    addresses = task_addresses(work.folder)
    table = table.assign(
        uri=table["item_id"].map(uris).astype("str"), task=table["item_id"].map(addresses).astype("str")
    )
    write_json(folder / "review.json", {"sets": reviews, "text": review_text(reviews)})
    write_table(folder / "suspicious_labels.parquet", table[list(SUSPICIOUS)])


SUSPICIOUS = (
    *("item_id", "uri", "task", "split", "label", "suggested"),
    *("given_probability", "suggested_probability", "wrong_probability"),
)
"""Columns of the list; `task` is missing for a label that no annotator gave."""


def review_text(reviews: Sequence[Mapping[str, Any]]) -> str | None:
    """What the list of suspicious labels is worth, for people to read; None where nothing was judged."""
    readable = [review for review in reviews if review["share_right"] >= FEWEST_RIGHT]
    n_listed = sum(review["n_listed"] for review in readable)
    told = []
    if n_listed:
        n_audit = sum(review["n_listed"] for review in readable if review["what"] == "audit labels")
        n_wrong = max(1, round(sum(review["n_wrong"] for review in readable)))
        looks, are = (
            ("label looks", "it probably is") if n_listed == 1 else ("labels look", f"about {n_wrong} of them are")
        )
        told.append(f"{n_listed} {looks} wrong, {are}" + (f" ({n_audit} in the audit set)" if n_audit else ""))
    elif readable:
        told.append("no label looks wrong")
    told += [
        f"no {review['what']} are listed as wrong: the model is right on {100 * review['share_right']:.0f} % of those "
        f"that it has not seen, and below {100 * FEWEST_RIGHT:.0f} % no list is worth reading (it contradicts "
        f"{review['n_contradicted']}, of which about {review['n_contradicted_wrong']:.0f} are wrong)"
        for review in reviews
        if review["share_right"] < FEWEST_RIGHT
    ]
    return "; ".join(told) or None


def _out_of_fold_probs(folder: RoundFolder, classes: Sequence[str]) -> tuple[pd.DataFrame, torch.Tensor]:
    """The labels that predictions out of fold say something of, and what these say, `(n, C)`."""
    table = pd.read_parquet(folder / "out_of_fold.parquet")
    if table.empty:
        return table, torch.empty(0, len(classes))
    targets = class_indices(table["label"].tolist(), classes)
    judged = judged_out_of_fold(targets, groups_in(pd.read_parquet(folder / "labelled.parquet")))
    return table[judged.numpy()], _logits(table)[judged].softmax(dim=1)


def _audit_probs(folder: RoundFolder) -> tuple[pd.DataFrame, torch.Tensor]:
    """The labels of the audit set whose class the networks know, and what these say, `(n, C)`."""
    path = folder / "audit_predictions.parquet"
    table = pd.read_parquet(path) if path.exists() else pd.DataFrame({"label": [], "probs": []})
    counts = pd.read_parquet(folder / "labelled.parquet")["label"].value_counts()
    table = table[table["label"].map(counts).fillna(0) >= MIN_JUDGED]
    return table, torch.from_numpy(np.stack(table["probs"].to_list())) if len(table) else torch.empty(0, 0)


@step("training.json")
def train(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Train the members that are not there yet; the description says how to build them again."""
    settings = work.settings
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    if labelled.empty:
        raise NothingToTrainOn(f"round {folder.number}: no image outside the audit set has a usable label")
    how = settings.model.pseudo_labels
    threshold = how.threshold_in(folder.number)
    lesson: Callable[[], Lesson] = cache(partial(_prepare, folder, work, labelled))
    n_sure = 0
    with work.tracker.monitor(run_id):
        if threshold > 0:
            sure = _pseudo_labelled(folder, work, lesson, max_count=min(how.max_count, len(labelled)))
            lesson, n_sure = partial(_add_guesses, folder, work, lesson, work.located(sure)), len(sure)
        members = [read_json(record) for record in _train_members(folder, work, folder / "members", lesson)]
    ranges = [dataclasses.asdict(one) for one in work.reading.ranges]
    write_json(
        folder / "training.json",
        {
            "device": device_name(choose_device(settings.model.device)),
            "n_trained_on": len(labelled),
            "labelled_digest": digest(labelled),
            "n_pseudo_labels": n_sure,
            "pseudo_label_threshold": threshold,
            "phase": _phase(folder, work),
            "plan": read_json(folder / "plan.json"),
            "preprocessing": members[0]["preprocessing"],
            "findings": _findings(members),
            "members": members,
            "model": describe_model(folder, work) | {"pixel_ranges": ranges},
        },
    )
    _clear_scratch(folder)


def groups_in(labelled: pd.DataFrame) -> torch.Tensor | None:
    """Numbers `(n,)` of the groups of labelled images; None where each is its own, or the column is missing."""
    if "group" not in labelled:
        return None
    return group_codes(labelled["group"], labelled["item_id"])


def _phase(folder: RoundFolder, work: OpenCampaign) -> str:
    """What the round trains, by its plan; it is made when first asked for."""
    if not folder.has("plan.json"):
        plan.fn(folder, work)
    phase: str = read_json(folder / "plan.json")["phase"]
    return phase


def _findings(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is wrong with the members, each once, with the names of those that have it."""
    found: dict[str, dict[str, Any]] = {}
    for member in members:
        for finding in member["findings"]:
            found.setdefault(finding["name"], finding | {"members": []})["members"].append(member["name"])
    return list(found.values())


def _clear_scratch(folder: RoundFolder) -> None:
    """Throw away what choosing pseudo-labels took; only after the training is on record, which needs it until then."""
    shutil.rmtree(_scratch(folder), ignore_errors=True)


def _scratch(folder: RoundFolder) -> Path:
    return folder / "members" / "before-pseudo-labels"


def _train_members(folder: RoundFolder, work: OpenCampaign, target: Path, lesson: Callable[[], Lesson]) -> list[Path]:
    """Train every member that has no record in `target` yet; return the records."""
    records = [target / f"{member_name(index)}.json" for index in range(work.settings.members.ensemble)]
    missing = [record for record in records if not record.exists()]
    if missing:
        learnt = lesson()
        with progress_bar(f"round {folder.number}: training", unit="epochs") as advance:
            for record in missing:
                _train_member(record, folder, work, learnt, advance=advance)
    return records


def _prepare(folder: RoundFolder, work: OpenCampaign, labelled: pd.DataFrame) -> Lesson:
    """What the labels teach; the trunk that heads share is written."""
    settings = work.settings
    phase = _phase(folder, work)
    targets = class_indices(labelled["label"].tolist(), settings.classes)
    body = sample = None
    if phase == "head":
        body = frozen_body(settings.model, n_classes=len(settings.classes))
        trunk = folder / "members" / TRUNK
        if not trunk.exists():
            write_atomic(trunk, lambda path: save_trunk(body, path))
    elif not settings.model.is_pretrained:
        sample = _sample_pool(folder, work, labelled)
    inputs = _inputs(folder, body, labelled, work)
    lesson = Lesson(
        TASK_TYPE, len(settings.classes), phase, inputs, targets, body, pool_sample=sample, groups=groups_in(labelled)
    )
    return with_out_of_fold(lesson, _read_out_of_fold(folder)) if settings.model.is_pretrained else lesson


def _read_out_of_fold(folder: RoundFolder) -> OutOfFold | None:
    """What networks that have not seen them predict of the round's labels; None where no label was crossed."""
    table = pd.read_parquet(folder / "out_of_fold.parquet")
    if table.empty:
        return None
    epochs = int(table["epochs"][0]) if "epochs" in table else None
    return OutOfFold(table["phase"][0], _logits(table), epochs)


def _add_guesses(
    folder: RoundFolder, work: OpenCampaign, lesson: Callable[[], Lesson], guessed: pd.DataFrame
) -> Lesson:
    """The lesson with the model's own guesses, given as item_id, uri and label, after its labels."""
    known = lesson()
    targets = class_indices(guessed["label"].tolist(), work.settings.classes)
    return dataclasses.replace(
        known,
        inputs=torch.cat([known.inputs, _inputs(folder, known.body, guessed, work)]),
        targets=torch.cat([known.targets, targets]),
        n_labels=len(known.targets),
    )


def _inputs(folder: RoundFolder, body: Classifier | None, items: pd.DataFrame, work: OpenCampaign) -> torch.Tensor:
    """Images, or what a frozen body makes of them."""
    how, reading = work.settings.model, work.reading
    if body is None:
        return load_images(items["uri"].tolist(), size=how.image_size, channels=how.channels, reading=reading)
    with progress_bar(f"round {folder.number}: features", unit="images") as advance:
        return features_of(body, items, how, reading=reading, advance=advance)


def _sample_pool(folder: RoundFolder, work: OpenCampaign, labelled: pd.DataFrame) -> torch.Tensor:
    """Images of the round, labelled or not, drawn from its own files, so that a round that goes on draws the same."""
    how = work.settings.model
    known = pd.concat([labelled[["item_id", "uri"]], pd.read_parquet(folder / "candidates.parquet")])
    known = known.sort_values("item_id", ignore_index=True)
    rows = sample_pool(len(known), seed=work.settings.seed, round_number=folder.number)
    drawn = work.located(known.iloc[rows.numpy()])
    return load_images(drawn["uri"].tolist(), size=how.image_size, channels=how.channels, reading=work.reading)


def _logits(out_of_fold: pd.DataFrame) -> torch.Tensor:
    return torch.from_numpy(np.stack(out_of_fold["logits"].to_list()))


def _pseudo_labelled(
    folder: RoundFolder, work: OpenCampaign, lesson: Callable[[], Lesson], *, max_count: int
) -> pd.DataFrame:
    """Train on the labels alone, and return the candidates that the members are sure of, with their guess as label.

    The choice is in a file of its own while the round trains, so that a run that goes on after a crash goes on with the
    same; then it is thrown away with the members that made it.
    """
    scratch = _scratch(folder)
    chosen = scratch / "pseudo_labels.parquet"
    if not chosen.exists():
        records = _train_members(folder, work, scratch, lesson)
        models = _load(folder, work, [read_json(record) for record in records], scratch)
        candidates = work.located(pd.read_parquet(folder / "candidates.parquet"))
        entropies, guesses = _predict_candidates(models, candidates, work)
        threshold = work.settings.model.pseudo_labels.threshold_in(folder.number)
        sure = choose_confident(entropies, guesses, threshold=threshold, max_count=max_count)
        labels = np.array(work.settings.classes)[guesses[sure].numpy()]
        write_table(chosen, candidates.iloc[sure.numpy()][["item_id", "uri"]].assign(label=labels))
    return pd.read_parquet(chosen)


def _predict_candidates(
    models: Sequence[Classifier], items: pd.DataFrame, work: OpenCampaign
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of the mean of the networks, in nats, and likeliest class `(N,)` each; the pool is held in parts."""
    entropies, guesses = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    with progress_bar("looking for pseudo-labels", unit="images") as advance:
        for decisions, _ in predictions(models, items, work.settings.model, reading=work.reading, advance=advance):
            entropies.append(entropy(decisions[:, 0]))
            guesses.append(decisions[:, 0].mean(dim=1).argmax(dim=1))
            shrink_features(work.settings)
    return torch.cat(entropies), torch.cat(guesses)


def class_indices(names: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Class index `(n,)` of each name."""
    index = {name: position for position, name in enumerate(classes)}
    return torch.tensor([index[name] for name in names], dtype=torch.long)


def _train_member(
    record: Path,
    folder: RoundFolder,
    work: OpenCampaign,
    lesson: Lesson,
    *,
    advance: Callable[[int, int], None],
) -> None:
    """Train one member, write its weights beside `record`, and then how it went into `record`."""
    settings = work.settings
    how, members = settings.model, settings.members
    seed = derive_seed(settings.seed, folder.number, record.stem)
    epochs: list[Mapping[str, float]] = []

    def count_epoch(row: Mapping[str, float]) -> None:
        epochs.append(row)
        advance(len(epochs), lesson.epochs or how.max_epochs)

    def save(model: Classifier, name: str) -> str:
        write_atomic(record.with_name(name), partial(save_weights, model, with_trunk=lesson.body is None))
        return name

    trained = train_network(
        lesson,
        how,
        members,
        seed=seed,
        previous=_previous_weights(folder, work, record.stem) if how.start == "previous" else None,
        on_epoch=count_epoch,
    )
    weights = [save(trained.model, f"{record.stem}.pt")]
    if members.swag:
        draws = weight_draws(trained, lesson, how, members, seed=seed)
        weights = [save(model, f"{record.stem}-swag-{number:02d}.pt") for number, model in enumerate(draws)]
    write_json(
        record,
        {
            "name": record.stem,
            "seed": seed,
            "weights": weights,
            "epochs": trained.fit.history,
            "best_epoch": trained.fit.best_epoch,
            "findings": [dataclasses.asdict(finding) for finding in trained.findings],
            "calibration": None if trained.calibration is None else dataclasses.asdict(trained.calibration),
            "preprocessing": trained.model.preprocessing,
        },
    )


def _previous_weights(folder: RoundFolder, work: OpenCampaign, member: str) -> dict[str, torch.Tensor] | None:
    """What the member of this name learnt in the last round that trained one; None in the first.

    None too where that was another network; of a network that told other classes apart the last layer is left out.
    """
    for earlier in reversed(work.folder.rounds()):
        path = earlier / "members" / f"{member}.pt"
        if earlier.number < folder.number and earlier.has("training.json") and path.exists():
            before, now = read_json(earlier / "training.json")["model"], network_form(work.settings)
            if any(before[name] != value for name, value in now.items()):
                return None
            trunk = earlier / "members" / TRUNK
            state = (read_state_dict(trunk) if trunk.exists() else {}) | read_state_dict(path)
            present = work.settings.former_classes
            is_alike = [present.get(name, name) for name in before["classes"]] == list(work.settings.classes)
            return state if is_alike else without_last_layer(state)
    return None


def network_form(settings: CampaignSettings) -> dict[str, Any]:
    """What the form of a network depends on, but for the classes."""
    return {name: getattr(settings.model, name) for name in ("name", "image_size", "channels", "dropout", "head")}


def describe_model(folder: RoundFolder, work: OpenCampaign) -> dict[str, Any]:
    """What it takes to build the networks of a round again, and to read their output."""
    classes = list(work.settings.classes)
    told = {"phase": _phase(folder, work), "n_classes": len(classes), "classes": classes}
    return network_form(work.settings) | told


def trained_models(folder: RoundFolder, work: OpenCampaign) -> list[Classifier]:
    """The networks of a round, on the campaign's device, ready to predict."""
    return _load(folder, work, read_json(folder / "training.json")["members"], folder / "members")


def _load(
    folder: RoundFolder, work: OpenCampaign, members: Sequence[Mapping[str, Any]], where: Path
) -> list[Classifier]:
    settings = work.settings
    device = choose_device(settings.model.device)
    description = describe_model(folder, work)
    models = load_members(description, _weight_files(members, where), trunk=frozen_trunk(folder))
    return [model.to(device) for model in models]


def member_weights(folder: RoundFolder) -> list[Path]:
    """The weight files of a round's networks, in order."""
    return _weight_files(read_json(folder / "training.json")["members"], folder / "members")


def _weight_files(members: Sequence[Mapping[str, Any]], where: Path) -> list[Path]:
    return [where / name for member in members for name in member["weights"]]


def frozen_trunk(folder: RoundFolder) -> Path | None:
    """The file of the trunk that all members of a round share; None where each has its own."""
    path = folder / "members" / TRUNK
    return path if path.exists() else None


@step("metrics.json")
def measure(folder: RoundFolder, work: OpenCampaign) -> None:
    """Measure the registered model, the mean of the networks, on the audit set; null where no label of it is there."""
    _clear_scratch(folder)  # of a run that was killed between the end of the training and this
    audit = work.located(pd.read_parquet(folder / "audit.parquet"))
    if audit.empty:
        write_json(folder / "metrics.json", None)
        return
    models = trained_models(folder, work)
    found = predictions(models, audit, work.settings.model, reading=work.reading)
    probs = torch.cat([decisions[:, 0] for decisions, _ in found])
    told = audit[["item_id", "label"]].assign(probs=list(probs.mean(dim=1).numpy()))
    write_table(folder / "audit_predictions.parquet", told)
    targets = class_indices(audit["label"].tolist(), work.settings.classes)
    metrics = evaluate(probs.mean(dim=1), targets, classes=work.settings.classes)
    plain = at_temperature_one(probs, torch.stack([model.temperature.cpu() for model in models])).mean(dim=1)
    uncalibrated = {
        "nll_uncalibrated": negative_log_likelihood(plain, targets),
        "ece_uncalibrated": calibration_error(plain, targets),
    }
    write_json(folder / "metrics.json", dataclasses.asdict(metrics) | uncalibrated)


def at_temperature_one(probs: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """What networks would say without their temperatures: softmax(T log softmax(z / T)) = softmax(z).

    Args:
        probs: `(n, K, C)`.
        temperatures: `(K,)`.
    """
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    return (temperatures[:, None] * logs).softmax(dim=2)


@timed_task
def start_tracking(folder: RoundFolder, work: OpenCampaign, *, params: dict[str, Any]) -> str:
    """Find or begin the round's run in the tracker; return its id, and note where people see it."""
    device = device_name(choose_device(work.settings.model.device))
    run_id = work.tracker.start_round(folder.number, params=params, tags={"device": device})
    pages = {"tracker": work.tracker.address(run_id), "flow_run": flow_run.id}
    write_json(folder / "pages.json", pages)
    return run_id


@timed_task
def track_model(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Log the members and register the model, once for each run: with another tracker the round has another."""
    if folder.has("model.json") and read_json(folder / "model.json")["run_id"] == run_id:
        return
    training = read_json(folder / "training.json")
    members = [MemberHistory(m["name"], m["seed"], m["epochs"]) for m in training["members"]]
    work.tracker.log_members(run_id, members)
    write_json(folder / "description.json", training["model"])
    model = work.tracker.log_model(
        run_id,
        weights=member_weights(folder),
        trunk=frozen_trunk(folder),
        description=folder / "description.json",
    )
    if is_best(folder, work):
        work.tracker.name_champion(model)
    write_json(folder / "model.json", dataclasses.asdict(model) | {"seeds": [m.seed for m in members]})


def is_best(folder: RoundFolder, work: OpenCampaign) -> bool:
    """Whether no earlier round has a higher audit accuracy, by the lower end of its interval.

    The lower end, because early rounds may be measured on fewer images: 5 of 5 right is worth less than 190 of 200.
    """
    best = best_round(work.folder, until=folder.number)
    return best is not None and best.number == folder.number
