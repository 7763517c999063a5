"""What people read of one round: its warnings, its sentence, its page in Prefect."""

from urllib.parse import quote

from connectors.escaping import markdown
from flows.artefacts import (
    AUDIT,
    BATCH,
    CONFIG,
    LABELLED,
    METRICS,
    OUTLOOK,
    PLAN,
    PUSHED,
    REVIEW,
    ROUND,
    SECONDS,
    STABILITY,
    SUMMARY,
    SUSPICIOUS,
    TRAINING,
)
from flows.folder import RoundFolder
from flows.outlook import in_words
from flows.records import AuditMetrics, Review
from flows.task_types import word_for

TRAINED = {"head": "Trained the head alone.", "all": "Trained the whole network."}
ADDRESS_SIGNS = ":/?#[]@!$&'()*+,;=%~-._"
"""What may stand in an address; anything else is written in percents."""
STABLE = 0.8
"""A batch of which half the draws would keep less is the luck of the draws."""


def review_of(folder: RoundFolder) -> Review | None:
    """What the round thinks of the labels; None where it did not look."""
    review = folder.get(REVIEW)
    return review if review is not None and review.text is not None else None


def suspicious_rows(folder: RoundFolder, n: int) -> list[dict[str, str]]:
    """The first labels of a round's list, as words: `file`, `label`, `suggested`, `wrong` and `task`."""
    return [
        {
            "file": row["uri"] if isinstance(row["uri"], str) else row["item_id"],
            "label": row["label"],
            "suggested": row["suggested"],
            "wrong": f"{100 * row['wrong_probability']:.0f} %",
            "task": row["task"] if isinstance(row["task"], str) else "",
        }
        for row in folder.read(SUSPICIOUS).head(n).to_dict("records")
    ]


def warnings_of(folder: RoundFolder) -> tuple[str, ...]:
    """What is wrong with the round's training and its batch, for people to read."""
    training, stability = folder.get(TRAINING), folder.get(STABILITY)
    told = [
        f"{finding.name} ({', '.join(finding.members)}): {finding.what}. {finding.advice}"
        for finding in (training.findings if training else ())
    ]
    share = stability.batch_kept_with_half_the_members if stability else None
    if share is not None and share < STABLE:
        told.append(
            f"half the draws of each network would ask for {100 * share:.0f} % of the same batch: more of them "
            "(mc_dropout, laplace, swag or views in [members]) would choose less by luck"
        )
    return tuple(told)


def notes_of_plan(folder: RoundFolder) -> tuple[str, ...]:
    """What people should know of how long the round takes, and what it leaves out for that."""
    plan = folder.get(PLAN)
    return tuple(text for text in (plan.text, plan.features) if text) if plan else ()


def accuracy_text(metrics: AuditMetrics) -> str:
    """The headline in percent with half the width of its interval, as in "91.5 ± 3.9 %"."""
    half = (metrics.high - metrics.low) / 2
    return f"{100 * metrics.value:.1f} ± {100 * half:.1f} %"


def n_labels_of(folder: RoundFolder) -> tuple[int, int, int]:
    """Labels to train on, labels of the audit set, and how many of both were paid for."""
    both = folder.get(LABELLED), folder.get(AUDIT)
    n_trained_on, n_audit = (0 if labels is None else len(labels) for labels in both)
    return n_trained_on, n_audit, sum(labels.n_paid for labels in both if labels is not None)


def round_sentence(folder: RoundFolder) -> str:
    """How good the round's model is, and on how many labels; in Markdown."""
    n_trained_on, n_audit, n_paid = n_labels_of(folder)
    of_regions = _clause_on_regions(folder)
    paid = f"{n_trained_on} labels to train on, {n_audit} of the audit set; {n_paid} of them paid for{of_regions}."
    metrics = folder.get(METRICS)
    if metrics is None:
        return f"{'The audit set has nothing to measure by yet' if folder.has(TRAINING) else 'No model yet'}. {paid}"
    return (
        f"Audit {in_words(metrics.headline)} **{accuracy_text(metrics)}** on {metrics.n} images, "
        f"NLL {metrics.nll:.3f}, ECE {metrics.ece:.3f}.{_clause_on_groups(folder)} {paid}"
    )


def _clause_on_regions(folder: RoundFolder) -> str:
    """How many regions were paid for, where the budget counts them."""
    summary, config = folder.get(SUMMARY), folder.get(CONFIG)
    if summary is None or config is None or "n_regions_paid" not in summary.metrics:
        return ""
    return f", which hold {summary.metrics['n_regions_paid']:.0f} {word_for(str(config.settings['task']), 'regions')}"


def _clause_on_groups(folder: RoundFolder) -> str:
    audit = folder.get(AUDIT)
    if audit is None or audit.n_groups is None:
        return ""
    return f" The interval counts the images as independent; they are of {audit.n_groups} groups, and it is too narrow."


def round_markdown(folder: RoundFolder, campaign: str) -> str:
    """A round as a page for Prefect: state, what changed, metrics, the first of the batch, seconds."""
    metrics, config, pushed, closed = folder.get(METRICS), folder.get(CONFIG), folder.get(PUSHED), folder.get(ROUND)
    state = "closed" if closed else "awaiting labels" if folder.is_out else "at work"
    lines = [f"# {markdown(campaign)}, round {folder.number}: {state}", "", round_sentence(folder), ""]
    if metrics:
        lines += _markdown_outlook(folder)
    lines += [f"Changed since the round before: {markdown(line)}\n" for line in (config.changes if config else ())]
    lines += _markdown_training(folder, metrics)
    if pushed:
        lines += [f"Asked for {len(pushed.tasks)} labels at {_link(pushed.address)}.", ""]
    if closed:
        told = ", ".join(f"{count} {name}" for name, count in closed.outcomes.items())
        lines += [f"Collected: {told or 'nothing'}", ""]
    lines += _markdown_batch(folder)
    lines += [
        "| step | seconds |",
        "|---|---|",
        *(f"| {name} | {spent:.2f} |" for name, spent in (folder.get(SECONDS) or {}).items()),
    ]
    return "\n".join(lines)


def _markdown_outlook(folder: RoundFolder) -> list[str]:
    seen = folder.get(OUTLOOK)
    if seen is None:
        return []
    told = [str(seen.forecast)] if seen.forecast else []
    told += [f"it is time to stop: {seen.stop}"] if seen.stop else []
    return [f"{sentence[0].upper()}{sentence[1:]}.\n" for sentence in told]


def _markdown_training(folder: RoundFolder, metrics: AuditMetrics | None) -> list[str]:
    """What was trained, what the temperature changed, what is to be looked at."""
    training, review = folder.get(TRAINING), review_of(folder)
    told = [TRAINED[training.phase]] if training else []
    told += [f"{note[0].upper()}{note[1:]}." for note in notes_of_plan(folder)]
    if metrics:
        nll, ece = metrics.nll_uncalibrated, metrics.ece_uncalibrated
        told.append(f"Without the temperatures NLL would be {nll:.3f}, ECE {ece:.3f}.")
    if review is not None and review.text:
        told.append(f"{markdown(review.text[0].upper() + review.text[1:])}.")
    warned = [f"**Warning:** {markdown(warning)}\n" for warning in warnings_of(folder)]
    listed = _markdown_suspicious(folder) if review is not None and review.n_listed else []
    return [*([" ".join(told), ""] if told else []), *listed, *warned]


def _markdown_suspicious(folder: RoundFolder) -> list[str]:
    rows = [{name: markdown(text) for name, text in row.items()} for row in suspicious_rows(folder, 10)]
    return [
        f"The likeliest, all in `{SUSPICIOUS.name}`:",
        "",
        "| file | label | rather | wrong with | task |",
        "|---|---|---|---|---|",
        *(f"| {row['file']} | {row['label']} | {row['suggested']} | {row['wrong']} | {row['task']} |" for row in rows),
        "",
    ]


def _markdown_batch(folder: RoundFolder) -> list[str]:
    batch = folder.get(BATCH)
    if batch is None or not len(batch):
        return []
    first = batch.table.head(10)
    columns = [name for name in ("rank", "item_id", "why", "guess", "uncertainty", "novelty") if name in first]
    rows = [
        [f"{v:.3f}" if isinstance(v, float) else markdown(str(v)) for v in row] for row in first[columns].to_numpy()
    ]
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
