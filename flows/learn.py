"""The first half of a round: which labels there are, the model they make, and how good it is."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from connectors.store import RoundFolder, read_json, write_atomic, write_json, write_table
from connectors.tracking import MemberHistory, TrackedModel
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings, ModelSettings
from flows.ledger import known_answers
from flows.networks import new_model, train_model
from flows.progress import progress_bar
from flows.steps import step, timed_task
from pipeline.acquisition import entropy
from pipeline.evaluation import evaluate
from pipeline.labels import digest, labelled_set
from pipeline.members import predict_members, stochastic_layers
from pipeline.models import Classifier, ModelError, load_weights, save_weights
from pipeline.pool import load_images
from pipeline.pseudo_labels import choose_confident
from pipeline.randomness import derive_seed
from pipeline.tasks import classification
from pipeline.training import TrainingError, choose_device, device_name

CHUNK = 256
"""Images that are decoded and passed through the members at a time."""


class NothingToTrainOn(TrainingError):
    """The round has no usable label."""


@step("labelled.parquet")
def gather_labels(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write the labelled set that this round trains on, and `audit.parquet`, the one it is measured on."""
    pool = work.pool
    given = pool[pool["label"].notna()]
    prelabelled = dict(zip(given["item_id"], given["label"], strict=True))
    labels = labelled_set(known_answers(work.folder), prelabelled=prelabelled, classes=work.settings.classes)
    usable = pool.loc[pool["set_aside_reason"].isna(), ["item_id", "uri", "split"]]
    table = labels.merge(usable, on="item_id", how="inner", validate="one_to_one")
    write_table(folder / "audit.parquet", table[table["split"] == "audit"].drop(columns="split"))
    write_table(folder / "labelled.parquet", table[table["split"] == "pool"].drop(columns="split"))


@step("training.json")
def train(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Train the members that are not there yet; the description says how to build them again."""
    settings = work.settings
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    if labelled.empty:
        raise NothingToTrainOn(f"round {folder.number}: no image outside the audit set has a usable label")
    how = settings.model.pseudo_labels
    threshold = how.threshold_in(folder.number)
    items = labelled[["uri", "label"]]
    with work.tracker.monitor(run_id):
        if threshold > 0:
            sure = _pseudo_labelled(folder, work, items, max_count=min(how.max_count, len(labelled)))
            items = pd.concat([items, work.located(sure)[["uri", "label"]]], ignore_index=True)
        members = _train_members(folder, work, folder / "members", items)
    write_json(
        folder / "training.json",
        {
            "device": device_name(choose_device(settings.model.device)),
            "n_labelled": len(labelled),
            "labelled_digest": digest(labelled),
            "n_pseudo_labels": len(items) - len(labelled),
            "pseudo_label_threshold": threshold,
            "members": [read_json(record) for record in members],
            "model": describe_model(settings.model, settings.classes),
        },
    )
    _clear_scratch(folder)


def _clear_scratch(folder: RoundFolder) -> None:
    """Throw away what choosing pseudo-labels took; only after the training is on record, which needs it until then."""
    shutil.rmtree(_scratch(folder), ignore_errors=True)


def _scratch(folder: RoundFolder) -> Path:
    return folder / "members" / "before-pseudo-labels"


def _train_members(folder: RoundFolder, work: OpenCampaign, target: Path, items: pd.DataFrame) -> list[Path]:
    """Train every member that has no record in `target` yet, on items given as uri and label; return the records."""
    settings = work.settings
    records = [target / f"member-{index}.json" for index in range(settings.members.ensemble)]
    missing = [record for record in records if not record.exists()]
    if missing:
        images = load_images(items["uri"].tolist(), size=settings.model.image_size, channels=settings.model.channels)
        targets = class_indices(items["label"].tolist(), settings.classes)
        with progress_bar(f"round {folder.number}: training", unit="epochs") as advance:
            for record in missing:
                _train_member(record, settings, images, targets, round_number=folder.number, advance=advance)
    return records


def _pseudo_labelled(folder: RoundFolder, work: OpenCampaign, items: pd.DataFrame, *, max_count: int) -> pd.DataFrame:
    """Train on the labels alone, and return the candidates that the members are sure of, with their guess as label.

    The choice is in a file of its own while the round trains, so that a run that goes on after a crash goes on with the
    same; then it is thrown away with the members that made it.
    """
    scratch = _scratch(folder)
    chosen = scratch / "pseudo_labels.parquet"
    if not chosen.exists():
        records = _train_members(folder, work, scratch, items)
        models = load_members([record.with_suffix(".pt") for record in records], work)
        candidates = work.located(pd.read_parquet(folder / "candidates.parquet"))
        entropies, guesses = _predict_candidates(models, candidates["uri"].tolist(), work)
        threshold = work.settings.model.pseudo_labels.threshold_in(folder.number)
        sure = choose_confident(entropies, guesses, threshold=threshold, max_count=max_count)
        labels = np.array(work.settings.classes)[guesses[sure].numpy()]
        write_table(chosen, candidates.iloc[sure.numpy()][["item_id", "uri"]].assign(label=labels))
    return pd.read_parquet(chosen)


def _predict_candidates(
    models: Sequence[Classifier], uris: Sequence[str], work: OpenCampaign
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of the mean of the networks, in nats, and likeliest class `(N,)` each; images are held in parts."""
    entropies, guesses = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    with progress_bar("looking for pseudo-labels", unit="images") as advance:
        for start in range(0, len(uris), CHUNK):
            decisions, _ = predict(models, uris[start : start + CHUNK], work, mc_dropout=0)
            entropies.append(entropy(decisions[:, 0]))
            guesses.append(decisions[:, 0].mean(dim=1).argmax(dim=1))
            advance(min(start + CHUNK, len(uris)), len(uris))
    return torch.cat(entropies), torch.cat(guesses)


def class_indices(names: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Class index `(n,)` of each name."""
    index = {name: position for position, name in enumerate(classes)}
    return torch.tensor([index[name] for name in names], dtype=torch.long)


def _train_member(
    record: Path,
    settings: CampaignSettings,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    round_number: int,
    advance: Callable[[int, int], None],
) -> None:
    """Train one member, write its weights beside `record`, and then how it went into `record`."""
    how = settings.model
    seed = derive_seed(settings.seed, round_number, record.stem)
    epochs: list[Mapping[str, float]] = []

    def count_epoch(row: Mapping[str, float]) -> None:
        epochs.append(row)
        advance(len(epochs), how.max_epochs)

    model, history = train_model(how, images, targets, n_classes=len(settings.classes), seed=seed, on_epoch=count_epoch)
    write_atomic(record.with_suffix(".pt"), lambda path: save_weights(model, path))
    write_json(record, {"name": record.stem, "seed": seed, "epochs": history})


def check_model(settings: CampaignSettings) -> None:
    """Build the network once, so that wrong weights, sizes or devices are found before labels are paid for.

    Raises:
        ModelError: naming what is wrong.
    """
    try:
        choose_device(settings.model.device)
        model = new_model(settings.model, n_classes=len(settings.classes), seed=0)
    except ValueError as exc:
        raise ModelError(str(exc)) from exc
    if settings.members.mc_dropout and not stochastic_layers(model):
        raise ModelError(f"mc_dropout needs dropout, and {settings.model.name} with these settings has none")


def describe_model(settings: ModelSettings, classes: Sequence[str]) -> dict[str, Any]:
    """What it takes to build the network again and read its output."""
    return {
        "name": settings.name,
        "n_classes": len(classes),
        "image_size": settings.image_size,
        "channels": settings.channels,
        "dropout": settings.dropout,
        "classes": list(classes),
    }


def trained_models(folder: RoundFolder, work: OpenCampaign) -> list[Classifier]:
    """The members of a round, on the campaign's device, ready to predict."""
    return load_members(member_weights(folder), work)


def load_members(weights: Sequence[Path], work: OpenCampaign) -> list[Classifier]:
    """The networks whose weights are given, on the campaign's device, ready to predict."""
    device = choose_device(work.settings.model.device)
    models = []
    for path in weights:
        settings = work.settings.model.model_copy(update={"weights": None})
        model = new_model(settings, n_classes=len(work.settings.classes), seed=0)
        load_weights(model, path)
        models.append(model.to(device).eval())
    return models


def member_weights(folder: RoundFolder) -> list[Path]:
    """The members' weight files, in order."""
    members = read_json(folder / "training.json")["members"]
    return [folder / "members" / f"{member['name']}.pt" for member in members]


def predict(
    models: Sequence[Classifier], uris: Sequence[str], work: OpenCampaign, *, mc_dropout: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Members' decisions `(n, U, K, C)` and embeddings `(n, D)` of a few images."""
    settings = work.settings
    images = load_images(uris, size=settings.model.image_size, channels=settings.model.channels)
    return predict_members(models, images, task=classification, mc_dropout=mc_dropout, seed=seed)


@step("metrics.json")
def measure(folder: RoundFolder, work: OpenCampaign) -> None:
    """Measure the registered model, the mean of the networks, on the audit set; null where no label of it is there."""
    _clear_scratch(folder)  # of a run that was killed between the end of the training and this
    audit = work.located(pd.read_parquet(folder / "audit.parquet"))
    if audit.empty:
        write_json(folder / "metrics.json", None)
        return
    models = trained_models(folder, work)
    uris = audit["uri"].tolist()
    probs = []
    for start in range(0, len(uris), CHUNK):
        decisions, _ = predict(models, uris[start : start + CHUNK], work, mc_dropout=0)
        probs.append(decisions[:, 0].mean(dim=1))
    targets = class_indices(audit["label"].tolist(), work.settings.classes)
    metrics = evaluate(torch.cat(probs), targets, classes=work.settings.classes)
    write_json(folder / "metrics.json", dataclasses.asdict(metrics))


@timed_task
def start_tracking(folder: RoundFolder, work: OpenCampaign, *, params: dict[str, Any]) -> str:
    """Find or begin the round's run in the tracker; return its id."""
    device = device_name(choose_device(work.settings.model.device))
    return work.tracker.start_round(folder.number, params=params, tags={"device": device})


@step("model.json")
def track_model(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Log the members and register the model."""
    training = read_json(folder / "training.json")
    members = [MemberHistory(m["name"], m["seed"], m["epochs"]) for m in training["members"]]
    work.tracker.log_members(run_id, members)
    write_json(folder / "description.json", training["model"])
    model = work.tracker.log_model(run_id, weights=member_weights(folder), description=folder / "description.json")
    write_json(folder / "model.json", dataclasses.asdict(model) | {"seeds": [m.seed for m in members]})


def tracked_model(folder: RoundFolder) -> TrackedModel | None:
    """Where the round's model is in the tracker; None for a round that trained none."""
    if not folder.has("model.json"):
        return None
    record = read_json(folder / "model.json")
    return TrackedModel(record["run_id"], record["model_uri"], record["version"])
