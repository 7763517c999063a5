"""How MLflow loads a registered model: this file is kept beside the weights and imported where they are used.

There, only MLflow, torch, torchvision, numpy, `pipeline` and what the network itself is from can be imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.members import predict_members
from pipeline.models import Classifier, build_model, load_trunk, load_weights, with_new_head
from pipeline.tasks import classification

TRUNK = "trunk.pt"
"""The file of a trunk that all members share; their own files are without it."""


@dataclass(frozen=True)
class Ensemble:
    """The members of one round's model."""

    members: Sequence[Classifier]

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(N, C)` class probabilities, the members' mean, for `(N, channels, size, size)` images."""
        decisions, _ = predict_members(self.members, torch.from_numpy(np.array(images)), task=classification, seed=0)
        probs: NDArray[np.float32] = decisions[:, 0].mean(dim=1).numpy()
        return probs


def load_members(told: Mapping[str, Any], weights: Sequence[Path], *, trunk: Path | None) -> list[Classifier]:
    """Build the network once for each file of weights; with a `trunk` they share it. What was frozen is frozen again.

    Args:
        told: name, n_classes, image_size, channels, dropout and head, as `build_model` takes them, and the phase in
            which they were trained: what did not drop anything then does not now.
    """

    def build() -> Classifier:
        names = ("n_classes", "image_size", "channels", "dropout")
        how = {name: told[name] for name in names} | {"head": told.get("head", "linear")}  # which it was before
        return build_model(told["name"], **how, weights=None, seed=0)

    if trunk is None:
        members = [build() for _ in weights]
    else:
        body = build()
        load_trunk(body, trunk)
        members = [with_new_head(body, seed=0) for _ in weights]
    for member, file in zip(members, weights, strict=True):
        member.train_only(told.get("phase", "all" if trunk is None else "head"))
        load_weights(member, file)
        member.eval()
    return members


def load_ensemble(folder: Path, *, device: str) -> Ensemble:
    """Build what `description.json` says, once for each `member-*.pt`, and give it that file's weights."""
    told = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    trunk = folder / TRUNK
    weights = sorted(folder.glob("member-*.pt"))
    members = load_members(told, weights, trunk=trunk if trunk.exists() else None)
    return Ensemble([member.to(device) for member in members])


def _load_pyfunc(path: str, model_config: Mapping[str, str]) -> Ensemble:
    """Load the model for `mlflow.pyfunc.load_model`, whose `model_config={"device": "cuda"}` can move it."""
    return load_ensemble(Path(path), device=model_config["device"])
