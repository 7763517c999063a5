"""Which images a round asks for, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.member_files import MemberFiles
from connectors.score_files import ItemList, LabelledEmbeddings, ScoreFiles
from flows.artefacts import BATCH, GUESSES, STABILITY
from flows.config import CampaignSettings, ConfigError
from flows.images import PoolImages
from flows.records import Outlook, RoundConfig, Stability, Training
from flows.step import step
from flows.steps.score import draws_seed, score_decisions
from flows.steps.train import NothingToTrainOn, load_networks
from pipeline.labels.ledger import Ledger
from pipeline.pool.columns import is_in
from pipeline.randomness import derive_seed
from pipeline.selection.ask import (
    Scored,
    columns_needed,
    gather_candidates,
    select_seed_set,
    share_kept,
    try_strategy,
)
from pipeline.selection.batch import n_described, rows_seen, select_batch
from pipeline.selection.explain import batch_table, explain_batch, least_settled
from pipeline.selection.reasons import AUDIT_REASON, MEASURED_REASON, SEED_REASON
from pipeline.selection.settings import NEEDS_BACKGROUND, SelectionSettings
from pipeline.tables import BatchTable, Guesses, Labels, PoolTable
from pipeline.tasks.task_type import TaskType, absent_columns
from pipeline.types import Aim, Batch, Candidates

EMBEDDING_SIDE = 16
"""For a cold start that is not random, an image is described by its pixels at this side, before any model exists."""


def check_asking(how: SelectionSettings, task: TaskType, name: str) -> None:
    """Refuse what asking would read and a task does not have.

    Args:
        name: of the task.

    Raises:
        ConfigError: naming the setting.
    """
    absent = absent_columns(task)
    unbalanced = how.model_copy(update={"balance_classes": False})
    for setting, reads, mend in (
        (
            f"strategy = {how.strategy!r}",
            columns_needed(unbalanced, absent),
            "choose one that reads scores or embeddings",
        ),
        ("balance_classes", columns_needed(how, absent), "leave it out"),
    ):
        if reads & absent:
            raise ConfigError(
                f"{setting} reads {', '.join(sorted(reads & absent))}, which need one decision for each image, and "
                f"task = {name!r} takes several: {mend}"
            )
    if how.reduction is not None and NEEDS_BACKGROUND[how.reduction] and not task.stride:
        raise ConfigError(
            f"reduction = {how.reduction!r} weighs by how likely something is there, and task = {name!r} does not ask "
            "where: leave reduction out"
        )


def check_strategy(settings: CampaignSettings, task: TaskType) -> None:
    """Try the strategy's options on a few made-up candidates, before labels are paid for.

    Raises:
        ConfigError: naming what is wrong.
    """
    check_asking(settings, task, settings.task)
    try:
        try_strategy(
            settings,
            n_members=settings.members.n_members,
            n_classes=len(settings.classes),
            absent=absent_columns(task),
        )
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"strategy = {settings.strategy!r} with {settings.strategy_options}: {exc}") from exc


def query_size_of(config: RoundConfig, outlook: Outlook) -> int:
    """How many labels a round asks for: what the budget left when it began, or none where a stopping rule applies."""
    return config.query_size if outlook.stop is None else 0


@step(GUESSES, BATCH)
def select(
    config: RoundConfig,
    outlook: Outlook,
    labelled: Labels,
    candidates: ItemList,
    training: Training,
    networks: MemberFiles,
    scores: ScoreFiles,
    labelled_embeddings: LabelledEmbeddings,
    pool: PoolTable,
    ledger: Ledger,
    *,
    images: PoolImages,
    task: TaskType,
    settings: CampaignSettings,
    round_number: int,
) -> tuple[Guesses, BatchTable]:
    """Choose the batch among the scored candidates; what the model sees in each image, and why it was chosen."""
    query_size = query_size_of(config, outlook)
    measured = ledger.may_be_asked(pool, split="audit", classes=settings.classes)["item_id"].tolist()[:query_size]
    again = batch_table(_checks(measured, MEASURED_REASON, round_number))
    if not scores.parts or query_size == len(measured):  # no candidates, or all were set aside before they were scored
        return Guesses.made([], []), _located(again, pool)
    models, seed = load_networks(training, networks, settings.model), draws_seed(settings, round_number)
    how = settings.of_size(query_size - len(measured))
    read = ScoredRound(candidates, scores, labelled_embeddings, labelled, task, settings)
    scored = read.candidates(how, lambda rows: images.embeddings(models[0], candidates, rows))
    batch = select_batch(scored, how, round_number=round_number, seed=settings.seed)
    del scored  # with what may be a gigabyte
    chosen = _located(batch_table(batch), pool).table
    decided = [
        (decisions.mean(dim=2), places, embeddings.half(), score_decisions(decisions, settings, task))
        for decisions, embeddings, places in images.predict(models, chosen, settings.members, seed=seed)
    ]
    seen = [each for probs, places, *_ in decided for each in task.guess(probs, settings.classes, places)]
    guesses = Guesses.made(batch.ids, seen)
    table = explain_batch(
        batch,
        pd.concat([_doubts(doubts, settings.classes) for *_, doubts in decided], ignore_index=True),
        guesses.by_item(),
        torch.cat([embeddings for _, _, embeddings, _ in decided]),
        labelled_embeddings.embeddings,
        n_answers=decided[0][0].shape[-1],
        confused=None
        if task.has_one_decision
        else [pair for probs, *_ in decided for pair in _confused(probs, task, settings)],
    )
    if measured:
        table = pd.concat([again, table], ignore_index=True)
        table = table.assign(rank=np.arange(len(table)), guess=table["guess"].fillna(""))
    return guesses, _located(table, pool)


def _doubts(scored: Scored, classes: Sequence[str]) -> pd.DataFrame:
    """How unsure the members are of each image, and of one decision the two likeliest classes."""
    columns = {"entropy": scored.entropies.numpy(), **{name: each.numpy() for name, each in scored.parts.items()}}
    if scored.likeliest is not None:
        columns["guess"], columns["runner_up"] = np.array(classes)[scored.likeliest.numpy()].T
    return pd.DataFrame(columns)


def _confused(probs: Tensor, task: TaskType, settings: CampaignSettings) -> list[tuple[str, str]]:
    """The two likeliest answers, in words, to the decision about each image that is least settled."""
    decisions, answers = least_settled(probs)

    def words(decision: int, answer: int) -> str:
        return task.in_words(decision, answer, settings.classes, probs.shape[1])

    return [
        (words(decision, first), words(decision, second))
        for decision, (first, second) in zip(decisions.tolist(), answers.tolist(), strict=True)
    ]


@step(STABILITY)
def compare_with_half(
    batch: BatchTable,
    candidates: ItemList,
    training: Training,
    networks: MemberFiles,
    scores: ScoreFiles,
    labelled_embeddings: LabelledEmbeddings,
    labelled: Labels,
    *,
    images: PoolImages,
    task: TaskType,
    settings: CampaignSettings,
    round_number: int,
) -> Stability:
    """Which share of the batch half of each network's draws would have asked for.

    With a share far below 1 the batch is the luck of the draws: more draws would ask for other images.
    """
    chosen = batch.table.loc[batch.reasons != MEASURED_REASON, "item_id"].tolist()
    if not chosen or not scores.has_column("score_half"):
        return Stability(None)
    how = settings.of_size(len(chosen))
    read = ScoredRound(candidates, scores, labelled_embeddings, labelled, task, settings)
    models = load_networks(training, networks, settings.model)
    halved = read.candidates(how, lambda rows: images.embeddings(models[0], candidates, rows), of="_half")
    return Stability(share_kept(chosen, halved, settings, round_number=round_number, seed=settings.seed))


@dataclass(frozen=True)
class ScoredRound:
    """What scoring wrote, as choosing a batch reads it: the columns and rows that its strategy sees."""

    listed: ItemList
    scores: ScoreFiles
    labelled_embeddings: LabelledEmbeddings
    labelled: Labels
    task: TaskType
    settings: CampaignSettings

    def candidates(
        self, how: SelectionSettings, embeddings: Callable[[NDArray[np.int64]], Tensor], *, of: str = ""
    ) -> Candidates:
        """The scored candidates.

        Args:
            how: the batch is chosen.
            embeddings: reads `(R, D)` of those at sorted positions, where scoring did not write them.
            of: "_half" for scores as the first half of each network's draws has them.
        """
        classes, task, scores, of_labelled = self.settings.classes, self.task, self.scores, self.labelled_embeddings
        score, places = scores.values(f"score{of}"), scores.places
        seen = rows_seen(score, torch.arange(len(score)), how).numpy()
        rows = seen[places[seen] < n_described(len(self.listed), self.settings)]  # of no others was more written

        def embedded() -> Tensor:
            try:
                return scores.values("embedding", rows)
            except KeyError:  # of some or all parts they are in the store of features
                return embeddings(places[rows])

        columns: dict[str, Callable[[], Tensor]] = {
            "embeddings": embedded,
            "probs": lambda: scores.probs(f"probs{of}", len(classes), rows),
            "guesses": lambda: scores.words("guess", classes),
            "labelled_embeddings": lambda: of_labelled.embeddings,
            "labelled_probs": lambda: of_labelled.probs(len(classes)),
            "labelled_targets": lambda: self.labelled.targets(task, classes),
            "class_scores": lambda: scores.values(f"class_scores{of}"),
            "class_counts": lambda: task.class_counts(self.labelled.targets(task, classes), len(classes)),
        }
        ids = self.listed.ids
        return gather_candidates(
            ids if len(places) == len(ids) else ids[places],  # a million are not copied where all are there
            score,
            columns,
            how,
            n_classes=len(classes),
            absent=absent_columns(task),
            described=torch.from_numpy(rows),
            is_in_order=True,  # as `list_candidates` writes them
        )


@step(BATCH)
def select_first(
    labelled: Labels,
    pool: PoolTable,
    ledger: Ledger,
    *,
    images: PoolImages,
    settings: CampaignSettings,
    budget_left: int,
    round_number: int,
) -> BatchTable:
    """Choose the seed set, and add the audit set if it has not been asked for; there is no model yet.

    Raises:
        NothingToTrainOn: when there is no label and no seed set that could bring one.
    """
    audit = ledger.may_be_asked(pool, split="audit", classes=settings.classes)["item_id"].tolist()
    rest = ledger.may_be_asked(pool, split="pool", classes=settings.classes)
    size = min(settings.seed_set_size, max(0, budget_left - len(audit)))
    ids = rest["item_id"].to_numpy(dtype=np.str_)
    how = {"size": size, "round_number": round_number, "seed": settings.seed}
    seed_set = select_seed_set(
        ids, lambda seen: images.small(rest.iloc[seen.numpy()], EMBEDDING_SIDE), settings.cold_start, **how
    )
    if not seed_set.ids and not len(labelled) and not ledger.n_outstanding:
        raise NothingToTrainOn(
            f"round {round_number}: there is no label to learn from and no image to ask for: seed_set_size is "
            f"{settings.seed_set_size}, {len(rest)} images may be asked for, {budget_left} labels are left"
        )
    checks = _checks(audit, AUDIT_REASON, round_number)
    reasons = (*[f"{SEED_REASON}: {settings.cold_start}"] * len(seed_set.ids), *checks.reasons)
    ids_of_both, aims = (*seed_set.ids, *checks.ids), (*seed_set.aims, *checks.aims)
    table = batch_table(Batch(ids_of_both, (0.0,) * len(aims), reasons, round_number, aims))
    shuffled = table.sample(frac=1, random_state=derive_seed(settings.seed, round_number, "order"))
    batch = _located(shuffled.assign(rank=np.arange(len(table))), pool)
    images.check(batch.table)
    return batch


def _checks(ids: Sequence[str], reason: str, round_number: int) -> Batch:
    """Images of the audit set."""
    aims: list[Aim] = ["check"] * len(ids)
    return Batch((*ids,), (0.0,) * len(ids), (reason,) * len(ids), round_number, (*aims,))


def _located(table: pd.DataFrame, pool: PoolTable) -> BatchTable:
    """The batch with the place of each image, after its id."""
    chosen = pool.table[is_in(pool.table["item_id"], table["item_id"])]
    uris = chosen.drop_duplicates("item_id").set_index("item_id")["uri"]
    table = table.copy()
    table.insert(1, "uri", uris.loc[table["item_id"].tolist()].to_numpy())
    return BatchTable(table)
