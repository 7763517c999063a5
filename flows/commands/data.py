"""Commands about labels, predictions and features on the disk; none needs a server."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import CampaignFile, console, print_lines


def labels(
    campaign: CampaignFile,
    out: Annotated[Path, typer.Argument(help="File to write, .csv or .parquet; with --format the folder.")] = Path(
        "labels.csv"
    ),
    format_: Annotated[
        str | None, typer.Option("--format", help="Boxes or masks as files for other tools: coco, yolo, voc or masks.")
    ] = None,
) -> None:
    """Write the labels that the campaign has collected: file, label, split, how many people agree.

    Train on the rows whose split is "pool", and measure on the rows whose split is "audit".
    """
    from flows.config import load_settings

    if format_ is not None:
        from flows.exchange import export_regions

        print_lines(export_regions(load_settings(campaign), out, format_))
        return
    from flows.results import write_labels

    count = write_labels(load_settings(campaign), out)
    console.print(f"Wrote {count} labels to {out}.", soft_wrap=True, highlight=False)


def import_(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help="coco, yolo, voc or masks.")],
    labels: Annotated[Path, typer.Argument(help="COCO's file, or the folder of the files of labels.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images; that of the labels, if open.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Manifest to write, .csv or .parquet; labels.csv beside the images, if open.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="box, or mask; what the format usually holds (coco and yolo: box), if open.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="File of the names of the classes, a line each, or a data.yaml.")
    ] = None,
) -> None:
    """Make a manifest, the pool of a campaign, from boxes or masks in files of another tool.

    Needs no server. An image without a label file stays and has no label; an empty one says that nothing is there.
    """
    from flows.exchange import import_regions

    with console.status("reading the labels"):
        lines, classes = import_regions(format_, labels, images=images, kind=kind, names=names, out=out)
    print_lines(lines)
    console.print(f"classes = {json.dumps(classes, ensure_ascii=False)}", soft_wrap=True, highlight=False)


def predict(
    campaign: CampaignFile,
    images: Annotated[str, typer.Argument(help="Folder of images, or one image; or its address, s3://bucket/folder.")],
    out: Annotated[Path, typer.Option(help="File to write, .csv or .parquet.")] = Path("predictions.csv"),
    round_number: Annotated[
        int | None, typer.Option("--round", help="Round whose model predicts; the best by its audit interval if open.")
    ] = None,
) -> None:
    """Let the campaign's best model predict images: the class, its probability, and the probability of each class.

    Needs no server. Files that hold no image have a row with the reason and no class.
    """
    from connectors.objects.addresses import is_address
    from flows.config import load_settings
    from flows.results import predict_files

    where = images if is_address(images) else Path(images)
    done = predict_files(load_settings(campaign), where, out, round_number=round_number)
    console.print(f"{done}. Wrote {out}.", soft_wrap=True, highlight=False)


def cache(
    shrink_to: Annotated[
        float | None, typer.Option(help="Throw away what was not used for longest until it takes so many GB.", min=0)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Throw all of it away.")] = False,
) -> None:
    """Show what is kept on the disk: features of frozen networks, decoded images, and images of object stores.

    So no image is computed, decoded or fetched twice. --shrink-to is about features and decoded images.
    """
    from connectors import feature_store as features
    from connectors.objects import cache as images
    from flows.cache import cache_table, features_folder
    from flows.kept_objects import GIGABYTE, objects_folder

    if clear and shrink_to is not None:
        raise typer.BadParameter("--clear throws all of it away: leave --shrink-to out, or --clear")
    folder = features_folder()
    if clear:
        features.clear(folder)
        images.shrink(objects_folder(), 0)
    elif shrink_to is not None:
        features.shrink(folder, int(shrink_to * GIGABYTE))
    console.print(cache_table(folder))
    n_images, n_bytes = images.usage(objects_folder())
    if n_images:
        told = f"{n_images:,} images of object stores, {n_bytes / GIGABYTE:.3f} GB, in {objects_folder()}"
        console.print(told, soft_wrap=True, highlight=False)
