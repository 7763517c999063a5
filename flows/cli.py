"""The `labelcycle` command."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.errors import EXIT_AWAITING, EXIT_STOPPED, CommandGroup, tell
from flows.home import folder_of, home, settle_home
from flows.local import prepare_environment, print_addresses, require_prefect, use_prefect
from flows.terminal import Terminal, prepare_output

SHOWN = 5
"""Suspicious labels that `status` names."""

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Terminal()
errors = Terminal(stderr=True)


@app.callback()
def labelcycle(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="LABELCYCLE_DEBUG", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """Cycle train -> score -> select -> push to Label Studio -> collect, one round at a time.

    Start with `labelcycle demo`, or on your own images with `labelcycle init`, `labelcycle up`, `labelcycle run`.

    Exit codes: 0 done, 1 failure, 2 usage or configuration, 3 awaiting labels, 130 stopped.
    """


CampaignFile = Annotated[Path, typer.Argument(help="The campaign's TOML file; `labelcycle init` writes one.")]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the campaign file.")] = Path("campaign.toml"),
    old: Annotated[
        Path | None,
        typer.Option("--from", help="File or folder of a campaign: begin another one with its settings and labels."),
    ] = None,
) -> None:
    """Write a commented example of a campaign file, or with --from one that takes all labels of a campaign along."""
    from flows.example import COST, EXAMPLE

    if old is not None:
        from flows.successor import write_successor

        _print_lines(write_successor(path, old))
        return
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise tell(f"{path} exists already; give another name, or move it away") from None
    named = path
    console.print(f"Wrote {named}. Set its name, pool and classes, then: labelcycle up {named}; labelcycle run {named}")
    console.print(COST, soft_wrap=True, highlight=False)


@app.command()
def up(
    campaign: Annotated[
        Path | None, typer.Argument(help="A campaign whose file is checked first; the servers are the same for all.")
    ] = None,
) -> None:
    """Start Label Studio, MLflow and Prefect on this machine, on SQLite, for nobody else."""
    if campaign is not None:
        from flows.config import load_settings

        load_settings(campaign)
    from deploy import servers

    with console.status("starting the local servers") as status:
        started = servers.up(settle_home(campaign), say=lambda line: status.update(Text(line)))
    print_addresses(started, console)


@app.command()
def down() -> None:
    """Stop what `labelcycle up` or the demo started, by process id."""
    from deploy import servers

    stopped = servers.down(home())
    if stopped:
        console.print(f"Stopped {', '.join(stopped)}.")
    else:
        console.print(f"Nothing of ours is running in {home()}.", soft_wrap=True, highlight=False)


@app.command()
def run(campaign: CampaignFile) -> None:
    """Advance one round: collect what is labelled, retrain, and ask for the next batch.

    Ends with exit code 3, and changes nothing, while labels of the open round are missing. A run that was killed
    goes on where it stood.
    """
    if errors.is_terminal:
        errors.print(f"Looking what there is to do in {campaign} ...", soft_wrap=True, highlight=False)
    from deploy import servers

    use_prefect(servers.running(settle_home(campaign)))  # before Prefect is loaded, which reads it once
    from flows.config import load_settings
    from flows.folder import Campaign

    settings = load_settings(campaign)
    require_prefect()
    from flows.flow import run_round_of

    try:
        outcome = run_round_of(campaign)
    except (ValueError, KeyError, TypeError):
        Campaign(settings.folder).check_files()  # one that is damaged shows in many ways
        raise
    for note in outcome.notes:
        console.print(note, soft_wrap=True, highlight=False)
    for warning in outcome.warnings:
        errors.print(Text.assemble(("Warning:", "yellow"), " ", warning), soft_wrap=True)
    console.print(outcome.message[0].upper() + outcome.message[1:] + ".")
    if outcome.address:
        console.print(f"Label here: {outcome.address}", soft_wrap=True)
    if outcome.kind == "awaiting":
        raise typer.Exit(EXIT_AWAITING)


@app.command()
def serve(campaign: CampaignFile) -> None:
    """Run the campaign on its schedule until stopped, one run at a time; print a line for each event."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")  # into a file
    from deploy import servers

    use_prefect(servers.remembered(settle_home(campaign)))  # before Prefect is loaded, which reads it once
    from flows.config import load_settings

    settings = load_settings(campaign)
    if settings.schedule is None:
        raise tell(f'{campaign} has no schedule; add for example: schedule = "*/15 * * * *"')
    require_prefect()
    from flows.serve import serve_campaign

    serve_campaign(campaign.resolve(), settings)


@app.command()
def status(
    campaign: Annotated[
        Path | None,
        typer.Argument(help="Campaign file or folder; the campaign that was run last by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where a campaign stands, from its folder alone: round, labels, budget, metrics, forecast, addresses."""
    from flows.artefacts import CAMPAIGN
    from flows.folder import Campaign
    from flows.reports.status import campaign_status, rounds_table, status_lines

    folder = Campaign(folder_of(campaign))
    folder.check_ours()
    if not folder.has(CAMPAIGN):
        raise tell(f"{folder.path} holds no campaign yet; `labelcycle run` begins one")
    folder.check_files()
    state = campaign_status(folder, home(campaign))
    if as_json:
        print(json.dumps(state.as_json(), indent=2))  # noqa: T201 (for programs, so without rich)
        return
    console.print(rounds_table(folder))
    for line in status_lines(state):
        console.print(line, soft_wrap=True, highlight=False)


@app.command()
def cache(
    shrink_to: Annotated[
        float | None, typer.Option(help="Throw away what was not used for longest until it takes so many GB.", min=0)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Throw all of it away.")] = False,
) -> None:
    """Show the features of frozen networks that are kept on the disk, so that no image is computed twice."""
    from connectors import feature_store as features
    from flows.cache import GIGABYTE, cache_table, features_folder

    if clear and shrink_to is not None:
        raise typer.BadParameter("--clear throws all of it away: leave --shrink-to out, or --clear")
    folder = features_folder()
    if clear:
        features.clear(folder)
    elif shrink_to is not None:
        features.shrink(folder, int(shrink_to * GIGABYTE))
    console.print(cache_table(folder))


@app.command()
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

        _print_lines(export_regions(load_settings(campaign), out, format_))
        return
    from flows.results import write_labels

    count = write_labels(load_settings(campaign), out)
    console.print(f"Wrote {count} labels to {out}.", soft_wrap=True, highlight=False)


@app.command("import")
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
    _print_lines(lines)
    console.print(f"classes = {json.dumps(classes, ensure_ascii=False)}", soft_wrap=True, highlight=False)


@app.command()
def predict(
    campaign: CampaignFile,
    images: Annotated[Path, typer.Argument(help="Folder of images, or one image.")],
    out: Annotated[Path, typer.Option(help="File to write, .csv or .parquet.")] = Path("predictions.csv"),
    round_number: Annotated[
        int | None, typer.Option("--round", help="Round whose model predicts; the best by its audit interval if open.")
    ] = None,
) -> None:
    """Let the campaign's best model predict images: the class, its probability, and the probability of each class.

    Needs no server. Files that hold no image have a row with the reason and no class.
    """
    from flows.config import load_settings
    from flows.results import predict_files

    done = predict_files(load_settings(campaign), images, out, round_number=round_number)
    console.print(f"{done}. Wrote {out}.", soft_wrap=True, highlight=False)


@app.command()
def demo(
    task: Annotated[
        str, typer.Option(help="What is asked for: classification, multi_label, segmentation or detection.")
    ] = "classification",
    anew: Annotated[bool, typer.Option(help="Start a new campaign even where the last one is not finished.")] = False,
) -> None:
    """Run a whole campaign with a simulated annotator working in Label Studio, by default on 5,000 MNIST digits.

    Other tasks run on scenes with several digits.
    """
    from flows.demo import run_demo, show_of

    try:
        show = show_of(task)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--task") from None
    run_demo(settle_home(), show, console=console, anew=anew)


@app.command()
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


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        console.print(f"{line[0].upper()}{line[1:]}.", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command."""
    prepare_environment()
    prepare_output()
    app()


if __name__ == "__main__":
    main()
