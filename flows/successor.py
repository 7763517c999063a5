"""Another campaign that begins with all labels of one that cannot become it."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from connectors.image_folder.listing import path_from
from connectors.objects.addresses import is_address
from connectors.store import write_text
from flows.artefacts import CAMPAIGN, POOL
from flows.campaign import task_type
from flows.config import CampaignSettings, ConfigError, images_root, load_settings, unresolved
from flows.folder import Campaign
from flows.ledger import read_ledger
from flows.outputs import write_rows
from pipeline.labels.answers import labelled_set
from pipeline.regions import OTHERS
from pipeline.tables import Labels


def write_successor(file: Path, old: Path) -> list[str]:
    """Write a campaign file with the settings of an old one, and beside its images a manifest with all its labels.

    The labels of the old audit set are among them: a labelled image is never drawn for an audit set, so that the new
    campaign measures on images that none of its models learns from.

    Args:
        file: of the new campaign; its name is the campaign's.
        old: file or folder of the old one.

    Returns:
        Lines on what was written.

    Raises:
        ConfigError: there is nothing to take along, or a file in the way.
    """
    settings, folder = _read_old(old)
    name = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")
    if not 3 <= len(name) <= 50 or name == settings.name:
        raise ConfigError(
            f"{file}: the new campaign is called after its file, and {name!r} is "
            + (f"the name of the old one, {settings.name!r}" if name == settings.name else "too short or too long")
            + ": give the file another name, of 3 to 50 characters"
        )
    images, left_out = _labels_of(folder, settings)
    open_round = folder.current_round()
    manifest = _place_of_manifest(file, images, settings)
    for path in (file, manifest):
        if path.exists():
            raise ConfigError(f"{path} exists already; give the new campaign's file another name, or move it away")
    uris = [uri if is_address(uri) else path_from(manifest.parent, uri) for uri in images["uri"]]
    # Groups are written down: a rule goes by paths below the old pool.
    columns = ["uri", "label", *(["group"] if images["group"].notna().any() else [])]
    write_rows(images.assign(uri=uris)[columns], manifest)
    write_text(file, _as_file(settings, name, manifest, old))
    n_labels = int(images["label"].notna().sum())
    with_label = images.loc[images["label"].notna(), "group"].dropna()
    n_free = int((images["label"].isna() & ~images["group"].isin(with_label)).sum())
    told = [
        f"wrote {file} and {manifest}: {n_labels} labels of {len(images)} images",
        f"the labels of the old audit set are among them, to learn from; of the {n_free} images without a label "
        + ("in groups without one " if len(with_label) else "")
        + f"{settings.audit_size} are drawn to measure on. No round asked for these, so that they may be easier than "
        "the others: compare accuracies within the new campaign alone",
    ]
    if n_free <= settings.audit_size:
        told.append(f"that leaves nothing to ask for: add images, or set audit_size below {n_free}")
    told += [f"{n} labels of {what} are left out, and their images" for what, n in left_out.items()]
    if open_round.is_out:
        told.append(
            f"round {open_round.number} of the old campaign is open: answers that no run has collected are not among "
            f"the labels. To take them along, close it first: labelcycle run {old}"
        )
    return told


def _read_old(old: Path) -> tuple[CampaignSettings, Campaign]:
    if old.is_dir():
        folder = Campaign(old)
        if not folder.has(CAMPAIGN):
            raise ConfigError(f"{old} holds no campaign")
        folder.check_ours()
        held = folder.read(CAMPAIGN)
        settings = unresolved(held)
    else:
        settings = load_settings(old)
        folder = Campaign(settings.folder)
        folder.check_ours()
    if not folder.has(POOL):
        raise ConfigError(f"{folder.path} has no images and no labels yet: `labelcycle run` begins a campaign")
    return settings, folder


def _labels_of(folder: Campaign, settings: CampaignSettings) -> tuple[pd.DataFrame, dict[str, int]]:
    """Usable images as `uri`, `label` and `group`, missing without one; and labels left out, by what they are."""
    task = task_type(settings)
    pool = folder.read(POOL).renamed(settings.former_classes, settings.asks).usable
    answers = read_ledger(folder, settings).answers
    given = pool[pool["label"].notna()]
    named = {region.label for answer in answers if answer.annotation for region in answer.annotation.regions}
    named |= {region.label for label in given["label"].unique() for region in task.read_label(label)}
    standing = Labels(
        labelled_set(
            answers,
            task,
            prelabelled=dict(zip(given["item_id"], given["label"], strict=True)),
            classes=[*settings.classes, *named],
        )
    )
    labels = standing.table[["item_id"]].assign(label=[task.write_label(regions) for regions in standing.regions])
    known = (*settings.classes, OTHERS)
    lost_of = [[region.label for region in each if region.label not in known] for each in standing.regions]
    is_known = pd.Series([not lost for lost in lost_of], labels.index, dtype=bool)
    is_used = labels["item_id"].isin(pool["item_id"])
    lost = Counter(label for of_image, used in zip(lost_of, is_used, strict=True) if used for label in of_image)
    left_out = {f"{label!r}, which is not one of the classes,": n for label, n in lost.most_common()}
    if n_unused := int((~is_used).sum()):
        left_out["images that cannot be used"] = n_unused
    pool = pool[~pool["item_id"].isin(labels.loc[~is_known, "item_id"])]
    images = pool[["item_id", "uri", "group"]].merge(labels.loc[is_known, ["item_id", "label"]], how="left")
    return images[["uri", "label", "group"]], left_out


def _place_of_manifest(file: Path, images: pd.DataFrame, settings: CampaignSettings) -> Path:
    """Beside the new file where the images lie below it, else in their folder: the annotators see what lies below."""
    name, beside = f"{file.stem}-labels.csv", file.absolute().parent
    if all(Path(uri).is_relative_to(beside) for uri in images["uri"]):
        return beside / name
    return (images_root(settings.pool) or beside) / name


def _as_file(settings: CampaignSettings, name: str, manifest: Path, old: Path) -> str:
    values = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    for key in ("folder", "renamed", "group", "manifest_labels"):  # a cell shows whether it lists positives only
        values.pop(key, None)
    values.get("label_studio", {}).pop("project", None)
    values |= {"name": name, "pool": str(manifest)}
    if "strategy_options" in values:
        values["strategy_options"] = dict(values["strategy_options"])
    return f"# Begins with the labels of {old}; `labelcycle init` shows every setting.\n{_toml(values)}"


def _toml(values: Mapping[str, object], table: str = "") -> str:
    """Settings as lines of TOML; a table for each section."""
    sections = {key: value for key, value in values.items() if isinstance(value, dict) and key != "strategy_options"}
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if key not in sections]
    header = f"\n[{table}]\n" if table and lines else ""
    text = header + "".join(f"{line}\n" for line in lines)
    return text + "".join(_toml(value, f"{table}.{key}".strip(".")) for key, value in sections.items())


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
