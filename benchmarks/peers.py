"""How the peers are called; each is imported when it is needed, for only `make bench` installs them.

The functions that select take a pool and a seed, and return positions in the whole pool; those that predict take files
and a seed, and return class probabilities.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.photos import Features
from benchmarks.pools import N_LABELLED, Pool

Positions = NDArray[np.int64]


def mundig(pool: Pool, seed: int) -> Positions:
    """Diversity, from the array that the user has: mundig copies it into its own format."""
    return mundig_core(mundig_loaded(pool), seed)


def mundig_loaded(pool: Pool) -> tuple[Any, Pool]:
    """Return mundig's engine with the data in its own format."""
    from lightly_mundig import Selection

    selection = Selection()
    selection.add_diversifying_strategy(pool.embeddings.numpy(), 1.0)  # faster than a list, which it takes too
    return selection, pool


def mundig_core(loaded: tuple[Any, Pool], seed: int) -> Positions:
    """Diversity, data loaded; the count includes what was picked before."""
    selection, pool = loaded
    labelled = list(range(N_LABELLED))
    return np.array(selection.run_selection(labelled, len(pool.embeddings), N_LABELLED + pool.n_picks))[N_LABELLED:]


def core_set(pool: Pool, seed: int) -> Positions:
    """scikit-activeml's k-center greedy."""
    from skactiveml.pool import CoreSet

    return np.asarray(CoreSet(random_state=seed).query(*_partly_labelled(pool), batch_size=pool.n_picks))


def typiclust(pool: Pool, seed: int) -> Positions:
    """scikit-activeml's TypiClust."""
    from skactiveml.pool import TypiClust

    return np.asarray(TypiClust(random_state=seed).query(*_partly_labelled(pool), batch_size=pool.n_picks))


def max_herding(pool: Pool, seed: int) -> Positions:
    """scikit-activeml's MaxHerding, with the kernel exp(-|x - y|^2) of its paper rather than its own default."""
    from skactiveml.pool import MaxHerding

    query = MaxHerding(random_state=seed, metric_dict={"gamma": 1.0}).query
    return np.asarray(query(*_partly_labelled(pool), batch_size=pool.n_picks))


def classifier() -> Any:
    """Return the logistic regression that Badge and modAL get their probabilities from."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def fitted_classifier(pool: Pool) -> tuple[Any, Pool]:
    """Return the classifier as scikit-activeml wants it, and the pool."""
    from skactiveml.classifier import SklearnClassifier

    return SklearnClassifier(classifier(), classes=range(pool.probs.shape[2])).fit(*_partly_labelled(pool)), pool


def badge(fitted: tuple[Any, Pool], seed: int) -> Positions:
    """scikit-activeml's BADGE."""
    from skactiveml.pool import Badge

    model, pool = fitted
    query = Badge(random_state=seed).query
    return np.array(query(*_partly_labelled(pool), model, fit_clf=False, batch_size=pool.n_picks))


def greedy_coreset(pool: Pool, seed: int) -> Positions:
    """small-text's k-center greedy."""
    from small_text.query_strategies.coresets import greedy_coreset

    points, rows = pool.embeddings.numpy(), np.arange(len(pool.embeddings))
    unlabelled, labelled = rows[N_LABELLED:], rows[:N_LABELLED]
    # Its answer counts among the unlabelled, whatever its docstring says.
    picks = greedy_coreset(points, unlabelled, labelled, pool.n_picks, distance_metric="euclidean")
    return N_LABELLED + np.asarray(picks)


def fitted_learner(pool: Pool) -> tuple[Any, Pool]:
    """Return modAL's learner, and the pool."""
    from modAL.models import ActiveLearner

    features, targets = pool.labelled.numpy(), pool.targets[:N_LABELLED].numpy()
    return ActiveLearner(classifier(), X_training=features, y_training=targets), pool


def ranked_batch(fitted: tuple[Any, Pool], seed: int) -> Positions:
    """modAL's ranked batch: uncertainty and distance in a weighted sum (Cardoso et al., 2017)."""
    from modAL.batch import uncertainty_batch_sampling

    learner, pool = fitted
    positions, _ = uncertainty_batch_sampling(learner, pool.candidates.numpy(), n_instances=pool.n_picks)
    return N_LABELLED + np.asarray(positions)


def redux_log_probs(pool: Pool) -> tuple[Tensor, Pool]:
    """Return `(N - M, K, C)` log probabilities in float32, in which the peer is fastest, and the pool."""
    return pool.probs[N_LABELLED:].log(), pool


def batch_bald_redux(prepared: tuple[Tensor, Pool], seed: int) -> Positions:
    """BatchBALD by one of its authors, 10,000 sampled configurations, in float32."""
    from batchbald_redux.batchbald import get_batchbald_batch

    log_probs, pool = prepared
    torch.manual_seed(seed)
    with _quiet():
        batch = get_batchbald_batch(log_probs, pool.n_picks, 10_000, dtype=torch.float32)
    return N_LABELLED + np.array(batch.indices)


def classes_before_members(pool: Pool) -> tuple[NDArray[np.float32], Pool]:
    """Return `(N - M, C, K)` probabilities as baal wants them, and the pool."""
    return np.ascontiguousarray(pool.probs[N_LABELLED:].numpy().swapaxes(1, 2)), pool


def batch_bald_baal(prepared: tuple[NDArray[np.float32], Pool], seed: int) -> Positions:
    """baal's BatchBALD, 500 draws."""
    from baal.active.heuristics import BatchBALD

    probs, pool = prepared
    torch.manual_seed(seed)
    ranks, _ = BatchBALD(num_samples=pool.n_picks, num_draw=500).get_ranks(probs)
    return N_LABELLED + np.array(ranks[: pool.n_picks])


def baal_scores(heuristic: str, probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what one of baal's heuristics makes of `(N, C, K)` probabilities."""
    from baal.active import heuristics

    return np.asarray(getattr(heuristics, heuristic)().get_uncertainties(probs))


@dataclass(frozen=True)
class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Image files as torchvision's examples read them, and a network of plain torch, with dropout before its end.

    Attributes:
        size: side of the squares that images are resized to, pixels.
        mean, std: of each channel, of images in [0, 1].
    """

    network: nn.Module
    uris: Sequence[str]
    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision import transforms

        steps = [
            transforms.Resize((self.size, self.size)),
            transforms.ToTensor(),
            transforms.Normalize(self.mean, self.std),
        ]
        with Image.open(self.uris[place]) as image:
            return transforms.Compose(steps)(image.convert("RGB")), 0


def evaluation_loop(workers: int, files: Files, seed: int) -> Tensor:
    """Class probabilities `(N, C)` by the loop that everybody writes: DataLoader, evaluation mode, no gradients."""
    loader = torch.utils.data.DataLoader(files, batch_size=64, num_workers=workers)
    with torch.no_grad():
        return torch.cat([files.network(images).softmax(dim=1) for images, _ in loader])


def mc_dropout_baal(files: Files, seed: int) -> Tensor:
    """Mean class probabilities `(N, C)` of 20 dropout passes by baal; two workers, what else it has by default."""
    from baal import ModelWrapper
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import TrainingArgs

    torch.manual_seed(seed)
    wrapper = ModelWrapper(MCDropoutModule(files.network), TrainingArgs(use_cuda=False, workers=2))
    with _quiet():
        logits = wrapper.predict_on_dataset(files, iterations=20, verbose=False)
    return torch.from_numpy(np.asarray(logits)).softmax(dim=1).mean(dim=2)


def logistic_regression(data: Features, seed: int) -> Tensor:
    """Class indices `(m,)` by scikit-learn's logistic regression on the features."""
    fitted = classifier().fit(data.labelled.float().numpy(), data.targets.numpy())
    return torch.from_numpy(fitted.predict(data.others.float().numpy()))


def _partly_labelled(pool: Pool) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return embeddings and targets; NaN is the target of what has no label."""
    targets = np.full(len(pool.embeddings), np.nan)
    targets[:N_LABELLED] = pool.targets[:N_LABELLED].numpy()
    return pool.embeddings.numpy(), targets


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and logs away from the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
