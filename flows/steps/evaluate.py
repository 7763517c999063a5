"""How good a round's model is on the audit set."""

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from connectors.member_files import MemberFiles
from flows.artefacts import AUDIT_PREDICTIONS, METRICS, AuditMetrics, Training
from flows.images import PoolImages
from flows.step import step
from flows.steps.train import load_networks
from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood
from pipeline.evaluation.metrics import evaluate as measure
from pipeline.learning.settings import ModelSettings
from pipeline.tables import Labels, Predicted


@step(AUDIT_PREDICTIONS, METRICS)
def evaluate(
    audit: Labels,
    training: Training,
    networks: MemberFiles,
    *,
    images: PoolImages,
    model: ModelSettings,
    classes: Sequence[str],
) -> tuple[Predicted, AuditMetrics | None]:
    """Measure the registered model, the mean of the networks; no metrics where the audit set has no label."""
    networks.clear_scratch()  # the training is on record
    if not len(audit):
        return Predicted(pd.DataFrame({"item_id": [], "label": [], "probs": []})), None
    members = load_networks(training, networks, model)
    probs = torch.cat([decisions[:, 0] for decisions, _ in images.predict(members, audit.table)])
    predicted = audit.table[["item_id", "label"]].assign(probs=list(probs.mean(dim=1).numpy()))
    targets = audit.targets(classes)
    metrics = measure(probs.mean(dim=1), targets, classes=classes)
    plain = at_temperature_one(probs, torch.stack([one.temperature.cpu() for one in members])).mean(dim=1)
    return Predicted(predicted), AuditMetrics(
        **{field.name: getattr(metrics, field.name) for field in dataclasses.fields(metrics)},
        nll_uncalibrated=negative_log_likelihood(plain, targets),
        ece_uncalibrated=calibration_error(plain, targets),
    )


def at_temperature_one(probs: Tensor, temperatures: Tensor) -> Tensor:
    """What networks would predict without their temperatures: softmax(T log softmax(z / T)) = softmax(z).

    Args:
        probs: `(n, K, C)`.
        temperatures: `(K,)`.
    """
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    return (temperatures[:, None] * logs).softmax(dim=2)
