"""Labels of regions from and for other tools: their files become a manifest, a campaign's labels their files."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from connectors.escaping import csv_cell
from connectors.image_folder.listing import is_below, path_from
from connectors.objects.addresses import is_address
from connectors.region_files.formats import FORMATS, Format
from connectors.region_files.images import Images, Source
from connectors.region_files.labelled import LabelledImage, Read, RegionFileError, Told
from connectors.store import write_folder
from flows.campaign import OpenCampaign, begun, standing_labels
from flows.config import CampaignSettings, ConfigError, images_root
from flows.outputs import check_folder, check_table, write_rows
from pipeline.regions import regions_to_json
from pipeline.registries import look_up
from pipeline.types import RegionKind, Size


def import_regions(
    name: str,
    labels: Path,
    *,
    images: Path | None = None,
    kind: str | None = None,
    names: Path | None = None,
    out: Path | None = None,
) -> tuple[list[str], tuple[str, ...]]:
    """Write a manifest of all images of a folder, with the labels that a file or folder of another tool gives them.

    An image all of whose regions are left out has no label: nobody is to learn that nothing is there.

    Args:
        name: of the format.
        labels: the file or the folder.
        images: the folder of the images; by default the one in the folder of the labels, or that folder itself.
        kind: of regions, "box" or "mask"; the usual one of the format by default.
        names: file of the names of the classes.
        out: the manifest; labels.csv in the folder of the images by default.

    Returns:
        Lines on what was written, and on what was left out; and the names of the classes.

    Raises:
        ConfigError: what is asked for cannot be done.
        RegionFileError: a file is wrong.
    """
    format_ = _format(name)
    wanted = _kind(name, format_, kind)
    if names is not None and format_.has_names:
        raise ConfigError(f"files of the format {name} name their classes: leave --names away")
    folder = images or _usual_images(labels, format_)
    out = out or folder / "labels.csv"
    check_table(out)
    root = _root_of(out, folder)
    told = Told()
    labels = labels / format_.labels if (labels / format_.labels).is_dir() else labels
    source = Source(labels, Images(folder, but=labels if format_.is_of_pictures else None), wanted, names, told)
    read = format_.read(source)
    given = _given(read, told)
    if not given:
        raise RegionFileError("; ".join([f"{labels} has a label for none of the images in {folder}", *told.lines()]))
    rows = [{"uri": _uri(folder / path, root), "label": given.get(path)} for path in source.images.paths]
    write_rows(pd.DataFrame(rows, columns=["uri", "label"]), out)
    counts = f"{len(rows)} images, {len(given)} of them with a label; in {list(given.values()).count('[]')} of these"
    return [f"wrote {out}: {counts} nothing is there", *told.lines()], read.classes


def export_regions(settings: CampaignSettings, out: Path, name: str) -> list[str]:
    """Write the labels that stand as another tool reads them, into a folder that has a link to the images.

    Returns:
        Lines on what was written.

    Raises:
        ConfigError: what is asked for cannot be done.
        RegionFileError: the format cannot hold what there is.
    """
    format_ = _format(name)
    kind = settings.asks.kind
    if kind not in format_.writes:
        able = [other for other, each in FORMATS.items() if kind in each.writes]
        mend = f"take {' or '.join(able)}" if able else "leave --format away"
        raise ConfigError(f"the format {name} holds no labels of task = {settings.task!r}: {mend}")
    check_folder(out, settings.pool)
    work = OpenCampaign(settings, begun(settings))
    table = standing_labels(work.pool, work.ledger, settings)
    sizes = work.pool.usable.set_index("item_id")[["width", "height"]]
    uris = table.table["uri"].tolist()
    root = _root(images_root(settings.pool), uris)
    labelled = [
        LabelledImage(path_from(root, uri), Size(*map(int, sizes.loc[item_id])), regions, split, source)
        for uri, item_id, regions, split, source in zip(
            uris, table.item_ids, table.regions, table.table["split"], table.table["source"], strict=True
        )
    ]
    labelled.sort(key=lambda image: image.path)

    def write(folder: Path) -> None:
        format_.write(folder, labelled, settings.classes)
        (folder / format_.images).symlink_to(root)

    write_folder(out, write)
    n_regions = sum(len(image.regions) for image in labelled)
    return [f"wrote {len(labelled)} labels with {n_regions} regions to {out}; {format_.images} in it leads to {root}"]


def _format(name: str) -> Format:
    try:
        return look_up(FORMATS, name, "format")
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc


def _kind(name: str, format_: Format, kind: str | None) -> RegionKind:
    for one in format_.reads:
        if kind in (one, None):
            return one
    raise ConfigError(f"the format {name} is read as {' or '.join(format_.reads)}, got {kind!r}")


def _usual_images(labels: Path, format_: Format) -> Path:
    folder = labels if labels.is_dir() else labels.parent
    return folder / format_.images if (folder / format_.images).is_dir() else folder


def _root_of(manifest: Path, images: Path) -> str:
    """The folder that a manifest's names of files start from."""
    root = os.path.normpath(manifest.absolute().parent)
    if not is_below(os.path.normpath(images.absolute()), root):
        raise ConfigError(
            f"the images of a manifest lie in its own folder: put {manifest.name} into {images}, or above it"
        )
    return root


def _given(read: Read, told: Told) -> dict[str, str]:
    """The labels as a manifest has them; none for an image all of whose regions were left out."""
    given: dict[str, str] = {}
    for path, found in read.found.items():
        regions = [region for region in found if region is not None]
        if regions or not found:
            given[path] = regions_to_json(regions)
        else:
            told.add("images have no label, as all their regions were left out", path)
    return given


def _uri(path: Path, root: str) -> str:
    """The file as a manifest in `root` names it, so that no spreadsheet takes the name for a formula."""
    uri = path_from(root, path)
    return uri if csv_cell(uri) == uri else f"./{uri}"


def _root(usual: Path | None, uris: Sequence[str]) -> str:
    """The folder that all images lie in.

    Raises:
        ConfigError: an image is at an address.
    """
    away = [uri for uri in uris if is_address(uri)]
    if usual is None or away:
        raise ConfigError(
            f"files of labels lie beside images on a disk, and {len(away)} images are at addresses: write the labels "
            "as a table, labelcycle labels CAMPAIGN labels.csv"
        )
    return os.path.commonpath([os.path.normpath(usual.absolute()), *map(os.path.dirname, uris)])
