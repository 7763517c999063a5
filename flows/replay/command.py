"""Replay strategies on labelled data, `labelcycle simulate`.

A replay's folder holds everything, so a killed one goes on where it stood, and more seeds, arms or rounds add to it:

| file | |
|---|---|
| `replay.json` | the resolved settings, with a digest of the data |
| `labels.parquet` | file, label, uri, is_test, group, in the order of the labels file; written anew by each command |
| `pixel_ranges.json` | what black and white are in deep pixels |
| `features.npy` or `images.npy` | what models read, computed once |
| `trunk_features.npy` | what a pretrained network's trunk makes of the images, for the rounds that train heads only |
| `runs/ARM-SEED.parquet` | the rounds of one arm at one seed, with what each picked |
| `runs/full-data-SEED.json` | what all labels come to |
| `curves.parquet`, `summary.json`, `report.html` | what came out |
"""

import os

import pandas as pd

from connectors.images.reading import WHOLE
from flows.config import CampaignSettings, load_settings
from flows.folder import Campaign
from flows.progress import say
from flows.replay.arrays import write_data, write_trunk_features
from flows.replay.claim import check_out, claim, make_folder, sweep
from flows.replay.copies import without_copies
from flows.replay.folder import LABELS, Replay
from flows.replay.inputs import ReplayError, read_campaign_labels, read_features, read_labels, with_groups
from flows.replay.options import Options, command_of, resolve, task_of
from flows.replay.results import dependence_of, write_results
from flows.replay.runs import check_measurable
from flows.replay.tracking import log_replay, open_tracker
from flows.replay.workers import run_jobs
from flows.reports.replay_page import ReplaySummary
from pipeline.tasks import TASKS


def replay_strategies(options: Options) -> ReplaySummary:
    """Replay, or go on with a replay, and write what came out; return the summary.

    Raises:
        ReplayError: the options or the data are wrong.
        CampaignChanged: the folder holds a replay with other settings.
        CampaignBusy: another process works on the folder.
    """
    check_out(options.out)
    campaign = load_settings(options.campaign) if options.campaign else None
    if campaign is not None and campaign.workers == "ray" and options.workers is not None:
        raise ReplayError(
            "--workers are processes of this machine, and the campaign's file takes workers of Ray: leave it out"
        )
    rows, caveat = _read_rows(options, campaign)
    features = read_features(options.features, len(rows)) if options.features else None
    rows = with_groups(rows, options.group)
    notes: list[str] = []
    if options.labels is not None:  # a campaign has each image once, by its content
        keep, notes = without_copies(rows, features)
        rows, features = rows[keep].reset_index(drop=True), None if features is None else features[keep]
    settings = resolve(options, campaign, rows, features, caveat)
    tracker = open_tracker(options.mlflow, options.out) if options.mlflow is not None else None
    make_folder(options.out)
    replay = Replay(options.out)
    with Campaign(options.out).lock():
        sweep(options.out)
        claim(options.out, settings)
        replay.write(LABELS, rows)  # the files may have moved; the digest says they are the same
        check_measurable(replay)
        memory_gb = campaign.decode_memory_gb if campaign else WHOLE.memory_gb
        if not replay.data_path.exists():
            write_data(replay, features, memory_gb=memory_gb)
        if replay.jobs() and replay.trains_heads_first and not replay.trunk_features_path.exists():
            write_trunk_features(replay)
        run_jobs(replay, workers=options.workers or os.cpu_count() or 1, elsewhere=campaign)
        notes += dependence_of(replay, memory_gb=memory_gb)
        summary = write_results(replay, command=command_of(options), notes=notes)
        if tracker is not None:
            log_replay(tracker, replay, summary)
    return summary


def _read_rows(options: Options, campaign: CampaignSettings | None) -> tuple[pd.DataFrame, str | None]:
    """The images with their labels, and a sentence on the test images where they are no fair sample."""
    if options.features is not None and options.labels is None:
        raise ReplayError("--features needs --labels, whose rows are those of the features")
    if options.labels is not None:
        if options.images is None and options.features is None:
            raise ReplayError("--labels needs --images, the folder of the files, or --features, one row for each file")
        images, classes = None if options.features else options.images, campaign.classes if campaign else ()
        task = TASKS[task_of(options, campaign)]
        return read_labels(options.labels, images=images, task=task, classes=classes, tell=say), None
    if campaign is None:
        raise ReplayError("name the labels with --labels FILE.csv (columns file,label), or a campaign with --campaign")
    if options.group is not None:
        raise ReplayError("group is a setting of the campaign's file: leave --group out")
    return read_campaign_labels(campaign)
