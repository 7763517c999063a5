"""What a campaign is good for besides its rounds: its labels as a table, and what its best model sees on any images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from connectors.escaping import csv_cell
from connectors.image_folder.listing import File, stat_file, walk
from connectors.image_folder.object_pool import Stored, objects_at
from connectors.images.pixels import load_images
from connectors.mlflow.loader import Ensemble, make_ensemble
from connectors.objects.addresses import place_of
from connectors.objects.reading import Objects
from flows.artefacts import MEMBERS, TRAINING
from flows.campaign import OpenCampaign, begun, standing_labels
from flows.config import CampaignSettings, ConfigError
from flows.folder import Campaign, RoundFolder
from flows.housekeeping import removed_text
from flows.outlook import best_round
from flows.outputs import check_table, write_rows
from flows.progress import progress_bar
from pipeline.networks.devices import choose_device
from pipeline.pool.reasons import PoolError

CHUNK = 256
"""Images in memory at a time."""


@dataclass(frozen=True)
class Predicted:
    """What came of a prediction.

    Attributes:
        n_images: that have a class now.
        reasons: why the other files have none, a line each.
    """

    round_number: int
    n_images: int
    reasons: Sequence[str]

    def __str__(self) -> str:
        left = f"; {len(self.reasons)} files hold no image, such as {self.reasons[0]}" if self.reasons else ""
        return f"The model of round {self.round_number} predicted {self.n_images} images{left}"


def write_labels(settings: CampaignSettings, out: Path) -> int:
    """Write the labels that stand, a row for each image, and return how many.

    Raises:
        ConfigError: there is no campaign yet; `out` exists, or is of a kind that is not known.
    """
    check_table(out)
    columns = ["uri", "label", "split", "source", "n_answers", "agreement", "item_id"]
    work = OpenCampaign(settings, begun(settings))
    labels = standing_labels(work.pool, work.ledger, settings)
    cells = [work.task.write_label(regions) for regions in labels.regions]
    table = labels.table.assign(label=cells)[columns].sort_values("uri", ignore_index=True)
    _write(table, out)
    return len(table)


def predict_files(
    settings: CampaignSettings, images: Path | str, out: Path, *, round_number: int | None = None
) -> Predicted:
    """Write what a round's model sees on an image, or on all images below a folder; `images` may be an address.

    The table has a row for each file: `uri`, what `Ensemble.predict` has by the names that classes have now, and
    `reason`, why there is nothing.

    Args:
        round_number: of the model; by default that of the best by its audit interval.

    Raises:
        ConfigError: there is no such model, or nothing to predict; `out` exists, or is of a kind that is not known.
    """
    check_table(out)
    folder = _round_with_model(begun(settings), settings, round_number)
    files = _files_of(images)
    if not files:
        raise ConfigError(f"{images} is empty: wanted an image, or a folder of images")
    training, networks = folder.read(TRAINING), folder.read(MEMBERS)
    device = choose_device(settings.model.device)
    form, weights = asdict(training.model), networks.files(training.weights)
    ensemble = make_ensemble(form, weights, trunk=networks.trunk, device=device)
    parts: list[pd.DataFrame] = []
    with progress_bar("predicting", unit="files") as on_progress:
        for start in range(0, len(files), CHUNK):
            parts.append(_predict(ensemble, files[start : start + CHUNK], settings.former_classes))
            on_progress(min(start + CHUNK, len(files)), len(files))
    table = pd.concat(parts, ignore_index=True)
    _write(table, out)
    failed = table.loc[table["reason"].notna(), ["uri", "reason"]]
    reasons = [f"{uri}: {reason}" for uri, reason in failed.itertuples(index=False)]
    return Predicted(folder.number, len(table) - len(reasons), reasons)


def _files_of(images: Path | str) -> Sequence[File | Stored]:
    if isinstance(images, Path):
        return list(walk(images)) if images.is_dir() else [stat_file(str(images.absolute()))]
    try:
        return objects_at(str(place_of(images)))
    except ValueError as exc:
        raise exc if isinstance(exc, PoolError) else ConfigError(f"the address of the images {exc}") from None


def _predict(ensemble: Ensemble, files: Sequence[File | Stored], renamed: Mapping[str, str]) -> pd.DataFrame:
    """A row for each file, in order."""
    reasons = {file.uri: file.set_aside_reason for file in files if file.set_aside_reason is not None}
    uris, squares, unreadable = _read([file.uri for file in files if file.uri not in reasons], ensemble)
    seen = ensemble.table(squares, renamed).assign(uri=uris)
    table = pd.DataFrame({"uri": [file.uri for file in files]})
    table["reason"] = table["uri"].map(reasons | unreadable).astype("str")
    return table.merge(seen, on="uri", how="left")[[*("uri", *seen.columns.drop("uri")), "reason"]]


def _read(uris: list[str], ensemble: Ensemble) -> tuple[list[str], Tensor, dict[str, str]]:
    """The images that can be read, their pixels, and for each other image why it cannot be read."""
    try:
        how = {"size": ensemble.image_size, "channels": ensemble.channels}
        return uris, load_images(uris, **how, reading=replace(ensemble.reading, objects=Objects())), {}
    except PoolError as exc:
        if len(uris) == 1:
            size = (0, ensemble.channels, ensemble.image_size, ensemble.image_size)
            return [], torch.empty(size, dtype=torch.uint8), {uris[0]: str(exc).removeprefix(f"{uris[0]}: ")}
    first, second = _read(uris[: len(uris) // 2], ensemble), _read(uris[len(uris) // 2 :], ensemble)
    return first[0] + second[0], torch.cat([first[1], second[1]]), first[2] | second[2]


def _round_with_model(folder: Campaign, settings: CampaignSettings, number: int | None) -> RoundFolder:
    trained = [f for f in folder.rounds() if f.has(TRAINING)]
    if not trained:
        raise ConfigError(f"{folder.path} has no model yet: label the first batch, then `labelcycle run` trains one")
    if number is None:
        chosen = best_round(folder.rounds()) or trained[-1]
    else:
        found = [f for f in trained if f.number == number]
        if not found:
            raise ConfigError(f"round {number} has no model; these have: {_with_weights(trained)}")
        chosen = found[0]
    if not _has_weights(chosen):
        raise ConfigError(f"{removed_text(chosen, settings.keep)}. These rounds have theirs: {_with_weights(trained)}")
    return chosen


def _has_weights(folder: RoundFolder) -> bool:
    return all(path.exists() for path in folder.read(MEMBERS).files(folder.read(TRAINING).weights))


def _with_weights(rounds: Sequence[RoundFolder]) -> str:
    return ", ".join(str(f.number) for f in rounds if _has_weights(f)) or "none"


def _write(table: pd.DataFrame, out: Path) -> None:
    if out.suffix.lower() == ".csv":
        safe = table.rename(columns=csv_cell)
        for name in safe.select_dtypes(["object", "string"]):
            safe[name] = safe[name].map(csv_cell, na_action="ignore")
        table = safe
    write_rows(table, out)
