"""The logistic regression that fits a linear head on features that stay as they are."""

import math
import warnings

import torch
from torch import Tensor

from pipeline.training.fit import TrainingError

ITERATIONS = (1_000, 10_000, 100_000)
"""Of the logistic regression: tried one after another until one is enough."""


def linear_head(features: Tensor, targets: Tensor, *, n_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weights `(C, D)` and biases `(C,)` of an L2-regularised multinomial logistic regression, to convergence.

    The features are used as they are. A class without a label has probability 0: its bias is minus infinity.

    Args:
        features: `(M, D)`.
        targets: `(M,)` class indices, M >= 1; one class alone is answered with certainty.
        l2: half the squared weights times this is added to the summed loss (nats); scikit-learn's C is its inverse.

    Raises:
        TrainingError: the fit does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = targets.unique()
    weights = torch.zeros(n_classes, features.shape[1], dtype=torch.float64)
    biases = torch.full((n_classes,), -math.inf, dtype=torch.float64)
    biases[present] = 0.0
    if len(present) == 1:
        return weights, biases
    data, labels = features.cpu().double().numpy(), targets.cpu().numpy()
    for max_iter in ITERATIONS:
        head = LogisticRegression(C=1 / l2, max_iter=max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            head.fit(data, labels)
        if not any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            fitted = present[-len(head.coef_) :]  # with two classes the second's log-odds alone
            weights[fitted], biases[fitted] = torch.from_numpy(head.coef_), torch.from_numpy(head.intercept_)
            return weights, biases
    raise TrainingError(
        f"the logistic regression does not converge on {len(targets)} labels in {ITERATIONS[-1]} iterations: bring "
        f"the features to one scale, or regularise more than l2 = {l2:g}"
    )
