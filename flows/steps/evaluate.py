"""How good a round's model is on the audit set."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from connectors.member_files import MemberFiles
from flows.artefacts import AUDIT_PREDICTIONS, METRICS
from flows.images import PoolImages
from flows.records import AuditMetrics, Training
from flows.step import step
from flows.steps.train import load_networks
from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood
from pipeline.learning.settings import ModelSettings
from pipeline.tables import Labels, Predicted
from pipeline.tasks.task_type import TaskType


@step(AUDIT_PREDICTIONS, METRICS, computes=True)
def evaluate(
    audit: Labels,
    training: Training,
    networks: MemberFiles,
    *,
    images: PoolImages,
    task: TaskType,
    model: ModelSettings,
    classes: Sequence[str],
) -> tuple[Predicted, AuditMetrics | None]:
    """Measure the registered model, the mean of the networks; no metrics where the audit set has nothing to measure."""
    networks.clear_scratch()  # the training is on record
    if not len(audit):
        return Predicted.none(), None
    members = load_networks(training, networks, model)
    temperatures = torch.stack([one.temperature.cpu() for one in members])
    parts = [
        (decisions.mean(dim=2), at_temperature_one(decisions, temperatures).mean(dim=2), places)
        for decisions, _, places in images.predict(members, audit.table)
    ]
    probs, plain = (torch.cat(each) for each in list(zip(*parts, strict=True))[:2])
    places = None if parts[0][2] is None else torch.cat([each for _, _, each in parts if each is not None])
    targets = audit.targets(task, classes)
    metrics = task.measure(probs, targets, classes, places)
    if metrics is None:
        return Predicted.made(audit, probs), None
    uncalibrated = task.answered(plain, targets)
    return Predicted.made(audit, probs), AuditMetrics(
        **{field.name: getattr(metrics, field.name) for field in dataclasses.fields(metrics)},
        nll_uncalibrated=negative_log_likelihood(uncalibrated.values, uncalibrated.right),
        ece_uncalibrated=calibration_error(uncalibrated.values, uncalibrated.right),
    )


def at_temperature_one(probs: Tensor, temperatures: Tensor) -> Tensor:
    """What networks would predict without their temperatures: softmax(T log softmax(z / T)) = softmax(z).

    Args:
        probs: `(n, U, K, C)`.
        temperatures: `(K,)`.
    """
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    return (temperatures[:, None] * logs).softmax(dim=-1)
