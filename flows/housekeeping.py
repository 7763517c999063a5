"""Old rounds give back what nothing reads any more: weights, scores, embeddings, and models in the tracker."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from connectors.store import explain
from connectors.tracking import TrackedModel
from flows.artefacts import LABELLED_EMBEDDINGS, MEMBERS, MODEL, SCORES
from flows.campaign import OpenCampaign
from flows.folder import RoundFolder
from flows.keep import KeepSettings
from flows.outlook import best_rounds


def keep_house(work: OpenCampaign) -> tuple[str, ...]:
    """Remove what closed rounds keep beyond [keep]; return lines on it, none where nothing was removed."""
    closed = [folder for folder in work.folder.rounds() if folder.is_closed]
    keep, best = work.settings.keep, {folder.number for folder in best_rounds(closed)}
    return (*remove_files(closed, keep, best=best), *_remove_tracked(work, closed, best))


def remove_files(closed: Sequence[RoundFolder], keep: KeepSettings, *, best: set[int]) -> tuple[str, ...]:
    """Remove weights, scores and embeddings of old rounds.

    Args:
        closed: rounds that are closed, oldest first.
        best: numbers of the rounds whose weights stay whatever their age.
    """
    with_weights = [folder for folder in closed if folder.read(MEMBERS).weights]
    old = [folder for folder in with_weights[: -keep.models] if folder.number not in best]
    told = [_remove(old, f"keep.models = {keep.models}", "weights", lambda folder: folder.read(MEMBERS).weights)]
    with_scores = [folder for folder in closed if _scores(folder)]
    last = len(with_scores) - keep.scores
    told.append(_remove(with_scores[: max(0, last)], f"keep.scores = {keep.scores}", "scores", _scores))
    return tuple(line for line in told if line is not None)


def removed_text(folder: RoundFolder, keep: KeepSettings) -> str:
    """Why a round that was trained has no weights any more, and where its model may be."""
    model = folder.get(MODEL)
    tracked = f". MLflow may have it, as {model.model_uri}" if model else ""
    return (
        f"the weights of round {folder.number} were removed: keep.models = {keep.models} keeps those of so many rounds "
        f"and of the best{tracked}"
    )


def _scores(folder: RoundFolder) -> list[Path]:
    return [path for path in (folder.path_of(SCORES), folder.path_of(LABELLED_EMBEDDINGS)) if path.exists()]


def _remove(
    rounds: Sequence[RoundFolder], rule: str, what: str, paths_of: Callable[[RoundFolder], Sequence[Path]]
) -> str | None:
    """Remove files and folders of rounds; a line on it. What cannot be removed stops nothing, and is tried again."""
    n_bytes, stuck = 0, ""
    for path in (path for folder in rounds for path in paths_of(folder)):
        try:
            size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            n_bytes += size
        except OSError as exc:
            stuck = f"; not all of it, as {explain(exc, path)}"
    if not rounds:
        return None
    return f"removed the {what} of {_in_words(rounds)}, {n_bytes / 1e6:,.1f} MB, by {rule}{stuck}"


def _in_words(rounds: Sequence[RoundFolder]) -> str:
    numbers = [folder.number for folder in rounds]
    return f"round {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} rounds, {numbers[0]} to {numbers[-1]}"


def _remove_tracked(work: OpenCampaign, closed: Sequence[RoundFolder], best: set[int]) -> tuple[str, ...]:
    n_kept = work.settings.keep.tracked_models
    if n_kept is None:
        return ()
    tracked = [(folder.number, model) for folder in closed if (model := folder.get(MODEL)) is not None]
    old = [model for number, model in tracked[:-n_kept] if number not in best]
    rule = f"keep.tracked_models = {n_kept}"
    try:
        gone = work.tracker.drop_models([TrackedModel(one.run_id, one.model_uri, one.version) for one in old])
    except Exception as exc:  # of its store too, in that one's words; the next round that closes tries again
        return (f"the tracker keeps models beyond {rule}: {exc or type(exc).__name__}",)
    return (f"removed the versions {', '.join(gone)} of the model from the tracker, by {rule}",) if gone else ()
