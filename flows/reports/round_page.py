"""What people read about a campaign: the state, the table of rounds, the page of a round."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table

from connectors.escaping import csv_cell, markdown
from connectors.store import Campaign, RoundFolder, read_json, write_atomic
from deploy import servers
from flows.ledger import labels_paid, labels_used, outstanding_tasks
from flows.outlook import metrics_of, outlook
from flows.pixel_ranges import count_multipage, read_ranges

STEPS = {
    "train": ("cross_validate", "train"),
    "score": ("score_shard", "embed_labelled"),
    "LS": ("push", "look", "collect"),
    "MLflow": ("start_tracking", "track_model", "log_summary", "close"),
}
"""Columns of the table of rounds and the steps whose seconds they add up."""
TRAINED = {"head": "Trained the head alone.", "all": "Trained the whole network."}
ADDRESS_SIGNS = ":/?#[]@!$&'()*+,;=%~-._"
"""What may stand in an address; anything else is written in percents."""
LONGEST_NAME = 40
"""Signs of a class that the picture of the confusion matrix shows."""
DEPENDENCE = "dependence.json"
"""Of a campaign's folder: what was said of groups when the audit set was drawn."""
STABLE = 0.8
"""A batch of which half the draws would keep less is the luck of the draws."""


def campaign_status(folder: Campaign, home: Path) -> dict[str, Any]:
    """The state of a campaign, read from its folder alone.

    Returns:
        `campaign`, `round_number`, `rounds_closed`, `awaiting` (None, or the labels that the open round waits for),
        `n_labels_paid` (those of the audit set included), `n_trained_on` (by the newest model), `budget`, `budget_left`
        (labels that may still be asked for), `set_aside` (files of the pool that are not used, by reason), `pool_notes`
        (the same for people, with examples and what to do), `dependence` (lines on groups of images), `pixel_ranges`
        (what becomes black and white, of each kind of deep pixels), `files_of_several_pages` (of which the first is
        used), `metrics` of the newest model on the audit set (None before there is one), `forecast`, `no_forecast` and
        `stop` (see `outlook`), `stops_when` (of each stopping rule its `limit`, where it is `now` and, where it is
        asked each round, the number of the `look` and the `level` that it may err at), `notes` (what to know of how the
        newest round is trained), `suspicious` (see `review_of`, of the newest round that looked; None before one did)
        and `urls`, straight to the campaign's own pages.
    """
    settings = read_json(folder.path / "campaign.json")
    rounds = folder.rounds()
    metrics = [(f.number, m) for f in rounds if (m := metrics_of(f)) is not None]
    labels = labels_used(folder)
    headline = _headline(*metrics[-1]) if metrics else None
    ahead = outlook(folder, settings)
    return {
        "campaign": settings["name"],
        "folder": str(folder.path),
        "round_number": rounds[-1].number if rounds else None,
        "rounds_closed": sum(f.is_closed for f in rounds),
        "awaiting": awaited_labels(rounds[-1]) if rounds else None,
        "n_labels_paid": labels,
        "n_trained_on": next((_count(f, "labelled.parquet") for f in reversed(rounds) if f.has("training.json")), 0),
        "budget": settings["budget"],
        "budget_left": max(0, settings["budget"] - labels - outstanding_tasks(folder)),
        "set_aside": set_aside_images(folder),
        "pool_notes": unused_images(folder),
        "pixel_ranges": [asdict(one) for one in read_ranges(folder.path)],
        "files_of_several_pages": count_multipage(pd.read_parquet(folder.pool)) if folder.pool.exists() else 0,
        "dependence": notes_on_dependence(folder),
        "metrics": headline,
        **ahead,
        "stops_when": _stopping_rules(settings, labels, ahead["looks"]),
        "notes": [*notes_of_plan(rounds[-1])] if rounds else [],
        "suspicious": next((seen for f in reversed(rounds) if (seen := review_of(f)) is not None), None),
        "urls": _addresses(rounds, settings, home),
    }


def review_of(folder: RoundFolder) -> dict[str, Any] | None:
    """What the round thinks of the labels; None where it did not look.

    Returns:
        `count` of the labels listed as wrong, `n_wrong` (how many of them are, on average), the `text` that says so, or
        why none is listed, and the `file` of the list.
    """
    told = read_json(folder / "review.json") if folder.has("review.json") else {}
    if told.get("text") is None:
        return None
    return {
        "count": sum(each["n_listed"] for each in told["sets"]),
        "n_wrong": sum(each["n_wrong"] for each in told["sets"]),
        "text": told["text"],
        "file": str(folder / "suspicious_labels.parquet"),
    }


def suspicious_rows(folder: RoundFolder, n: int) -> list[dict[str, str]]:
    """The first labels of a round's list, as words: `file`, `label`, `suggested`, `wrong` and `task`."""
    table = pd.read_parquet(folder / "suspicious_labels.parquet").head(n)
    return [
        {
            "file": row["uri"] if isinstance(row["uri"], str) else row["item_id"],
            "label": row["label"],
            "suggested": row["suggested"],
            "wrong": f"{100 * row['wrong_probability']:.0f} %",
            "task": row["task"] if isinstance(row["task"], str) else "",
        }
        for row in table.to_dict("records")
    ]


def warnings_of(folder: RoundFolder) -> tuple[str, ...]:
    """What is wrong with the round's training and its batch, for people to read."""
    training = read_json(folder / "training.json") if folder.has("training.json") else {}
    told = [
        f"{finding['name']} ({', '.join(finding['members'])}): {finding['what']}. {finding['advice']}"
        for finding in training.get("findings", [])
    ]
    kept = read_json(folder / "stability.json") if folder.has("stability.json") else {}
    share = kept.get("batch_kept_with_half_the_members")
    if share is not None and share < STABLE:
        told.append(
            f"half the draws of each network would ask for {100 * share:.0f} % of the same batch: more of them "
            "(mc_dropout, laplace, swag or views in [members]) would choose less by luck"
        )
    return tuple(told)


def notes_of_plan(folder: RoundFolder) -> tuple[str, ...]:
    """What people should know of how long the round's training takes, and what it leaves out for that."""
    text = read_json(folder / "plan.json")["text"] if folder.has("plan.json") else None
    return (text,) if text else ()


def set_aside_images(folder: Campaign) -> dict[str, int]:
    """How many files of the pool are not used, for each kind of reason."""
    from connectors.image_folder.index import set_aside_counts

    return set_aside_counts(pd.read_parquet(folder.pool)) if folder.pool.exists() else {}


def unused_images(folder: Campaign) -> list[str]:
    """What of the pool is not used, a line for each kind of reason, with an example and what to do."""
    from connectors.image_folder.notes import unused_lines

    return unused_lines(pd.read_parquet(folder.pool)) if folder.pool.exists() else []


def notes_on_dependence(folder: Campaign) -> list[str]:
    """What was said when the audit set was drawn of images that depend on each other; a line each."""
    path = folder.path / DEPENDENCE
    return list(read_json(path)["notes"]) if path.exists() else []


def awaited_labels(folder: RoundFolder) -> dict[str, Any] | None:
    """How far the annotators were with the open round when a run last looked; None when no label is awaited."""
    if folder.is_closed or not folder.has("pushed.json"):
        return None
    n_tasks = len(read_json(folder / "pushed.json")["tasks"])
    if not n_tasks:
        return None
    seen = read_json(folder / "progress.json") if folder.has("progress.json") else {}
    return {
        "round_number": folder.number,
        "n_labelled": seen.get("n_labelled", 0),
        "n_set_aside": seen.get("n_set_aside", 0),
        "n_tasks": n_tasks,
        "seen_at": seen.get("seen_at"),
    }


def _headline(round_number: int, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "round_number": round_number,
        "audit_accuracy": metrics["accuracy"],
        "audit_accuracy_low": metrics["accuracy_low"],
        "audit_accuracy_high": metrics["accuracy_high"],
        "nll": metrics["nll"],
        "ece": metrics["ece"],
        "n_audit": metrics["n"],
    }


def _stopping_rules(settings: dict[str, Any], labels: int, looks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rules that the campaign has; `now` is None where it is not known yet."""
    rules = {"budget": {"limit": settings["budget"], "now": labels}}
    return rules | {name: {"limit": settings[name], **seen} for name, seen in looks.items()}


def stopping_text(rules: dict[str, dict[str, Any]]) -> str:
    """What stops the campaign, for people to read."""

    def now(name: str, text: str) -> str:
        rule = rules[name]
        if rule["now"] is None:
            return "not known yet"
        return f"{text.format(100 * rule['now'])}, {100 * (1 - rule['level']):.4g} % sure at look {rule['look']}"

    told = [f"{rules['budget']['limit']} labels are paid for ({rules['budget']['now']} now)"]
    if "target_accuracy" in rules:
        limit = 100 * rules["target_accuracy"]["limit"]
        told.append(f"the audit accuracy is surely {limit:g} % ({now('target_accuracy', 'at least {:.1f} % now')})")
    if "min_gain" in rules:
        limit = 100 * rules["min_gain"]["limit"]
        told.append(
            "the audit accuracy has risen and the next labels are surely worth less than "
            f"{limit:.2f} points ({now('min_gain', 'up to {:.1f} now')})"
        )
    return "Stops when " + ", or when ".join(told)


def _addresses(rounds: Sequence[RoundFolder], settings: dict[str, Any], home: Path) -> dict[str, str]:
    pushed = [read_json(f / "pushed.json") for f in rounds if f.has("pushed.json")]
    running = servers.running(home)
    pages: dict[str, Any] = next((read_json(f / "pages.json") for f in reversed(rounds) if f.has("pages.json")), {})
    uri = running.mlflow_url if running and settings["mlflow"]["uri"] == "local" else settings["mlflow"]["uri"]
    addresses = {
        "label_studio": pushed[-1]["address"] if pushed else settings["label_studio"]["url"],
        "mlflow": pages.get("tracker") or uri,
    }
    if running:
        run = f"/runs/flow-run/{pages['flow_run']}" if pages.get("flow_run") else ""
        addresses["prefect"] = running.prefect_ui_url + run
    return addresses


def rounds_table(folder: Campaign, *, only: int | None = None) -> Table:
    """One row for each round, or for one: labels, audit accuracy with its interval, NLL, ECE, seconds of each step.

    Labels are those that the model learnt from, and those paid for, the audit set's included.
    """
    name = read_json(folder.path / "campaign.json")["name"]
    caption = f"labels: learnt from/paid for; {', '.join(STEPS)}: seconds"
    table = Table(title=name, caption=caption, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    names = ("round", "asked", "labels", "audit accuracy", "NLL", "ECE", *STEPS)
    for column in names:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    for round_folder in folder.rounds() if only is None else [folder.round(only)]:
        table.add_row(*_round_row(round_folder))
    return table


def _round_row(folder: RoundFolder) -> list[str]:
    metrics = metrics_of(folder)
    seconds = read_json(folder / "seconds.json") if folder.has("seconds.json") else {}
    asked = len(read_json(folder / "pushed.json")["tasks"]) if folder.has("pushed.json") else 0
    return [
        str(folder.number),
        str(asked),
        f"{_count(folder, 'labelled.parquet')}/{labels_paid(folder)}",
        *([accuracy_text(metrics), f"{metrics['nll']:.3f}", f"{metrics['ece']:.3f}"] if metrics else ["", "", ""]),
        *(f"{sum(seconds.get(name, 0.0) for name in names):.1f}" for names in STEPS.values()),
    ]


def accuracy_text(metrics: dict[str, Any]) -> str:
    """Accuracy in percent with half the width of its interval, as in "91.5 ± 3.9 %"."""
    half = (metrics["accuracy_high"] - metrics["accuracy_low"]) / 2
    return f"{100 * metrics['accuracy']:.1f} ± {100 * half:.1f} %"


def _count(folder: RoundFolder, *names: str) -> int:
    return sum(pq.read_metadata(folder / name).num_rows for name in names if folder.has(name))


def round_markdown(folder: RoundFolder, campaign: str) -> str:
    """A round as a page for Prefect: state, what changed, metrics, the first of the batch, seconds."""
    metrics = metrics_of(folder)
    state = "closed" if folder.is_closed else "awaiting labels" if folder.is_out else "at work"
    lines = [f"# {markdown(campaign)}, round {folder.number}: {state}", "", round_sentence(folder), ""]
    if metrics:
        lines += _markdown_outlook(folder)
    config = read_json(folder / "config.json") if folder.has("config.json") else {}
    changes = config.get("changes", [])  # which older versions did not write
    lines += [f"Changed since the round before: {markdown(line)}\n" for line in changes]
    lines += _markdown_training(folder, metrics)
    if folder.has("pushed.json"):
        pushed = read_json(folder / "pushed.json")
        lines += [f"Asked for {len(pushed['tasks'])} labels at {_link(pushed['address'])}.", ""]
    if folder.is_closed:
        outcomes = read_json(folder / "round.json")["outcomes"]
        lines += [
            "Collected: " + (", ".join(f"{count} {name}" for name, count in outcomes.items()) or "nothing"),
            "",
        ]
    lines += _markdown_batch(folder)
    seconds = read_json(folder / "seconds.json") if folder.has("seconds.json") else {}
    lines += [
        "| step | seconds |",
        "|---|---|",
        *(f"| {name} | {spent:.2f} |" for name, spent in seconds.items()),
    ]
    return "\n".join(lines)


def round_sentence(folder: RoundFolder) -> str:
    """How good the round's model is, and on how many labels; in Markdown."""
    n_trained_on, n_audit = _count(folder, "labelled.parquet"), _count(folder, "audit.parquet")
    paid = f"{n_trained_on} labels to train on, {n_audit} of the audit set; {labels_paid(folder)} of them paid for."
    metrics = metrics_of(folder)
    if metrics is None:
        return f"No model yet. {paid}"
    return (
        f"Audit accuracy **{accuracy_text(metrics)}** on {metrics['n']} images, "
        f"NLL {metrics['nll']:.3f}, ECE {metrics['ece']:.3f}.{_clause_on_groups(folder)} {paid}"
    )


def _clause_on_groups(folder: RoundFolder) -> str:
    names = pq.read_schema(folder / "audit.parquet").names if folder.has("audit.parquet") else []
    groups = pd.read_parquet(folder / "audit.parquet")["group"] if "group" in names else pd.Series(dtype="str")
    if groups.isna().all():
        return ""
    n_groups = groups.nunique() + int(groups.isna().sum())
    return f" The interval counts the images as independent; they are of {n_groups} groups, and it is too narrow."


def _markdown_outlook(folder: RoundFolder) -> list[str]:
    seen = read_json(folder / "outlook.json") if folder.has("outlook.json") else {}
    told = [seen["forecast"]["text"]] if seen.get("forecast") else []
    told += [f"it is time to stop: {seen['stop']}"] if seen.get("stop") else []
    return [f"{sentence[0].upper()}{sentence[1:]}.\n" for sentence in told]


def _markdown_training(folder: RoundFolder, metrics: dict[str, Any] | None) -> list[str]:
    """What was trained, what the temperature changed, what is to be looked at."""
    training = read_json(folder / "training.json") if folder.has("training.json") else {}
    told = [TRAINED[training["phase"]]] if training else []
    told += [f"{note[0].upper()}{note[1:]}." for note in notes_of_plan(folder)]
    if metrics and "nll_uncalibrated" in metrics:
        nll, ece = metrics["nll_uncalibrated"], metrics["ece_uncalibrated"]
        told.append(f"Without the temperatures NLL would be {nll:.3f}, ECE {ece:.3f}.")
    review = review_of(folder)
    if review is not None:
        told.append(f"{markdown(review['text'][0].upper() + review['text'][1:])}.")
    warned = [f"**Warning:** {markdown(warning)}\n" for warning in warnings_of(folder)]
    listed = _markdown_suspicious(folder) if review is not None and review["count"] else []
    return [*([" ".join(told), ""] if told else []), *listed, *warned]


def _markdown_suspicious(folder: RoundFolder) -> list[str]:
    rows = [{name: markdown(text) for name, text in row.items()} for row in suspicious_rows(folder, 10)]
    return [
        "The likeliest, all in `suspicious_labels.parquet`:",
        "",
        "| file | label | rather | wrong with | task |",
        "|---|---|---|---|---|",
        *(f"| {row['file']} | {row['label']} | {row['suggested']} | {row['wrong']} | {row['task']} |" for row in rows),
        "",
    ]


def _markdown_batch(folder: RoundFolder) -> list[str]:
    if not folder.has("batch.parquet"):
        return []
    batch = pd.read_parquet(folder / "batch.parquet").head(10)
    why = "why" if "why" in batch else "reason"  # batches of older versions have no words
    columns = [name for name in ("rank", "item_id", why, "guess", "uncertainty", "novelty") if name in batch]
    rows = [
        [f"{v:.3f}" if isinstance(v, float) else markdown(str(v)) for v in row] for row in batch[columns].to_numpy()
    ]
    if not rows:
        return []
    return [
        "The ten most wanted:",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _link(address: str) -> str:
    """An address as a link in Markdown; it is the server's, so it may hold anything."""
    return f"[{markdown(address)}](<{quote(address, safe=ADDRESS_SIGNS)}>)"


def write_confusion_matrix(folder: RoundFolder, metrics: dict[str, Any], classes: Sequence[str]) -> None:
    """Write the confusion matrix as a table and as a picture; rows are true classes.

    In the table a class that a spreadsheet would take for a formula begins with an apostrophe; see `csv_cell`.
    """
    cells = [csv_cell(name) for name in classes]
    counts = pd.DataFrame(metrics["confusion"], index=cells, columns=cells)
    write_atomic(folder / "confusion_matrix.csv", lambda path: counts.to_csv(path, index_label="true class"))
    write_atomic(folder / "confusion_matrix.png", lambda path: _draw(metrics["confusion"], classes, path))


def _draw(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = min(20.0, 3.0 + 0.45 * len(counts))
    # A class may be called $x_1$: no text is a formula.
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # a box stands for what the font does not have
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support")  # letters that join
        figure = Figure(figsize=(side, side), layout="constrained")
        display = ConfusionMatrixDisplay(np.array(counts), display_labels=[_short(name) for name in classes])
        display.plot(
            ax=figure.subplots(),
            cmap="Blues",
            colorbar=False,
            xticks_rotation="vertical",
            include_values=len(counts) <= 20,
        )
        figure.savefig(path, format="png", dpi=110)


def _short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
