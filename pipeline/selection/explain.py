"""What people read of a batch: why each image was chosen, and what the model thinks of it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.regions import regions_in_words
from pipeline.selection.geometry.distances import novelty
from pipeline.types import Aim, Batch, Region

SURE = 0.9
"""A guess of this probability is not called unsure."""

WORDS: Mapping[Aim, str] = {
    "check": "a check, drawn at random",
    "typical": "many images are like it",
    "unlike": "it is unlike the images labelled so far",
    "unsure": "the model is unsure between {guess} and {runner_up}",
}
"""Why an image was chosen."""


def why(aim: Aim, guess: str = "", runner_up: str = "", probability: float = 0.0) -> str:
    """Return why an image was chosen, for people who label it; of the audit set they are not to know.

    >>> why("unsure", "cat", "dog", 0.4)
    'the model is unsure between cat and dog'
    """
    if aim == "unsure" and not guess:
        return "the model is unsure of it"
    if aim == "unsure" and probability >= SURE:
        return f"to see whether it is {guess}, as the model says"
    return WORDS[aim].format(guess=guess, runner_up=runner_up)


def batch_table(batch: Batch) -> pd.DataFrame:
    """Return a row for each image of a batch, most wanted first: item_id, rank, score, reason, why."""
    return pd.DataFrame(
        {
            "item_id": pd.Series(batch.ids, dtype="str"),
            "rank": np.arange(len(batch.ids)),
            "score": np.array(batch.scores, dtype=np.float64),
            "reason": pd.Series(batch.reasons, dtype="str"),
            "why": pd.Series([why(aim) for aim in batch.aims], dtype="str"),
        }
    )


def explain_batch(
    batch: Batch,
    scored: pd.DataFrame,
    guesses: Mapping[str, Sequence[Region]],
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    *,
    n_answers: int,
    confused: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Return `batch_table` with what the model thinks of each image.

    Added are uncertainty (the entropy as a share of the largest there can be), novelty (see `distances.novelty`), of
    several members aleatoric and epistemic, and confused_classes.

    Args:
        scored: of each image: entropy, perhaps both parts, and of one decision guess and runner_up.
        guesses: what the model sees in each image.
        embeddings: `(n, D)` of the images.
        labelled_embeddings: `(M, D)`.
        n_answers: that a decision has, C.
        confused: the likeliest answers, in words, to the least settled decision about each image; None where an image
            takes one decision, whose answers `scored` has.
    """
    table = batch_table(batch)
    table["guess"] = [regions_in_words(guesses[item_id]) for item_id in batch.ids]
    table["uncertainty"] = scored["entropy"].to_numpy() / np.log(n_answers)
    for part in scored.columns.intersection(["aleatoric", "epistemic"]):
        table[part] = scored[part].to_numpy()
    if "runner_up" in scored:
        table["confused_classes"] = (scored["guess"] + " / " + scored["runner_up"]).to_numpy()
        sure = [max((region.score or 0.0 for region in guesses[item_id]), default=0.0) for item_id in batch.ids]
        seen = zip(batch.aims, scored["guess"], scored["runner_up"], sure, strict=True)
        table["why"] = [why(aim, *of_guess) for aim, *of_guess in seen]
    if confused is not None:
        table["confused_classes"] = [" / ".join(pair) for pair in confused]
        table["why"] = [why(aim, *pair) for aim, pair in zip(batch.aims, confused, strict=True)]
    table["novelty"] = novelty(embeddings, labelled_embeddings).numpy()
    return table


def least_settled(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decision `(n,)` about each image whose two likeliest answers are nearest, and these `(n, 2)`.

    Args:
        probs: `(n, U, C)`.
    """
    best = probs.topk(2, dim=2)
    decision = (best.values[..., 0] - best.values[..., 1]).argmin(dim=1)
    return decision, best.indices[torch.arange(len(probs)), decision]
