"""Labels that the model gives itself for one training: which of its guesses are sure enough (CEAL)."""

from torch import Tensor

from pipeline.selection.turns import take_turns


def choose_confident(entropies: Tensor, guesses: Tensor, *, threshold: float, max_count: int) -> Tensor:
    """Return the candidates whose prediction is sure: an entropy below a threshold (Wang et al., 2017, section III-C).

    The rest is ours, not the paper's, which takes all that are sure: at most `max_count`, and the guessed classes take
    turns, each with its surest, so that an easy class does not crowd out the others; one that has no more leaves its
    turn to the rest.

    Args:
        entropies: `(N,)` of the mean prediction, in nats.
        guesses: `(N,)` int64, the likeliest class.
        threshold: only an entropy below it is sure, in nats.
        max_count: the most to return, at least 0.

    Returns:
        `(n,)` distinct positions, n <= max_count, each class from its surest on; ties go to the lower position.

    >>> import torch
    >>> choose_confident(torch.tensor([0.3, 0.1, 0.2, 0.9]), torch.tensor([0, 0, 1, 1]), threshold=0.5, max_count=2)
    tensor([1, 2])
    """
    if len(entropies) != len(guesses):
        raise ValueError(f"every candidate needs an entropy and a guess, got {len(entropies)} and {len(guesses)}")
    if max_count < 0:
        raise ValueError(f"max_count must be at least 0, got {max_count}")
    sure = (entropies < threshold).nonzero().flatten()
    sure = sure[entropies[sure].argsort(stable=True)]
    return sure[take_turns(guesses[sure])[:max_count]]
