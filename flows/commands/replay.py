"""The command that replays query strategies on labels that are there."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import console, errors
from flows.errors import EXIT_STOPPED


def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the replay. A replay that was stopped goes on from it.")],
    images: Annotated[Path | None, typer.Option(help="Folder that the files of the labels lie in.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns file,label; a third, split, may mark rows as test or pool."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Whose labels they are: classification (default), multi_label, segmentation or detection; the last "
            "three need --model."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Ready-made features, .npy or .parquet, a row for each row of the labels; no images needed."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Images that depend on each other are on one side of the test: parent, those of a folder, or an "
            "expression with one part in brackets on the file's path, such as '^(.+)_frame'. The labels may have a "
            "column group instead."
        ),
    ] = None,
    campaign: Annotated[
        Path | None,
        typer.Option(help="Take images, labels, classes, model, strategy and its settings from this campaign's file."),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Arms to compare, with commas: a strategy, an acquisition function (the top k by it), or both, as in "
            "power:bald. Default: random,margin,auto, or random and the campaign's own. Strategies: random, auto, "
            "top_k, power, k_center, weighted_k_center, novel, typical, coverage, top_k_diverse, cluster_margin, "
            "typiclust, max_herding, uherding, badge, suggestive, bait, falcun, and by members batch_bald, "
            "drop_query; anti is a check that takes the worst. Acquisition functions: entropy, margin, "
            "least_confidence, and by members variance, mean_std, variation_ratio, bald. What compares members needs "
            "--members or --mc-dropout."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own start and test images for all arms.")] = 10,
    query_size: Annotated[int | None, typer.Option(help="Labels asked for in a round; 30 by default.")] = None,
    rounds: Annotated[
        int, typer.Option(help="Queries after the start, at least 2; the curves have a point more.")
    ] = 12,
    start: Annotated[
        int | None,
        typer.Option(help="Random labels before the first query; the campaign's seed set, or query size, if open."),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(
            help="Images to test on, never asked for: a number, or a share; 0.25 by default. A campaign's audit set, "
            "or images that the labels mark as test, are the test set themselves."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="pixels (default): logistic regression on small images. torchvision:NAME, timm:NAME or "
            "package.module:factory with --weights: on that network's features. small_cnn, or a network without "
            "--weights: trained anew in each round."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A weight name of the hub (DEFAULT), a file, or factory.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; 28 for pixels, or that of the weights.")
    ] = None,
    members: Annotated[int | None, typer.Option(help="Networks trained in each round, as an ensemble.")] = None,
    mc_dropout: Annotated[
        int | None,
        typer.Option(help="Members by dropout: passes of each network, or of a linear head's features; 0 is off."),
    ] = None,
    l2: Annotated[
        float | None, typer.Option(help="Penalty of the logistic regression: scikit-learn's 1 / C; 0.1 by default.")
    ] = None,
    sub_pool: Annotated[int | None, typer.Option(help="Select from a random draw of so many candidates.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; as many as there are cores by default.")] = None,
    mlflow: Annotated[str | None, typer.Option(help="Log to this MLflow too: an address, or local.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The first seed, the others follow; the campaign's, or 0, if open.")
    ] = None,
) -> None:
    """Replay query strategies on data that is labelled already: which one would have saved the most labels?

    Every arm starts from the same random labels, asks round after round for labels that are hidden from it, and is
    measured on the same test images. Needs no server. In OUT: report.html to look at, summary.json, curves.parquet.

    labelcycle simulate --images photos --labels labels.csv --strategies random,margin,k_center --out replay
    """
    from flows.replay.command import replay_strategies
    from flows.replay.options import Options
    from flows.reports.replay_page import summary_table

    options = Options(
        out=out,
        images=images,
        labels=labels,
        task=task,
        features=features,
        group=group,
        campaign=campaign,
        strategies=strategies,
        seeds=seeds,
        seed=seed,
        query_size=query_size,
        rounds=rounds,
        start=start,
        test_size=test_size,
        model=model,
        weights=weights,
        image_size=image_size,
        members=members,
        mc_dropout=mc_dropout,
        l2=l2,
        sub_pool=sub_pool,
        workers=workers,
        mlflow=mlflow,
    )
    try:
        summary = replay_strategies(options)
    except KeyboardInterrupt:
        errors.print("Stopped. The same command goes on where this one stopped.")
        raise typer.Exit(EXIT_STOPPED) from None
    console.print(summary_table(summary))
    console.print(summary["verdict"])
    for note in summary["notes"]:
        console.print(note, soft_wrap=True, highlight=False)
    console.print(f"Look at it: {out / 'report.html'}", soft_wrap=True)
