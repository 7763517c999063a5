"""How MLflow loads a registered model: this file is kept beside the weights and imported where they are used.

There, only MLflow, torch, torchvision, numpy and `pipeline` can be imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models import Classifier, build_model, load_weights

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class Ensemble:
    """The members of one round's model."""

    members: Sequence[Classifier]
    device: str

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `(N, C)` class probabilities, the members' mean, for `(N, channels, size, size)` images."""
        parts = []
        for chunk in torch.from_numpy(np.array(images)).split(IMAGES_AT_ONCE):
            probs = [member(chunk.to(self.device)).softmax(dim=-1) for member in self.members]
            parts.append(torch.stack(probs).mean(dim=0).cpu())
        return torch.cat(parts).numpy()


def load_ensemble(folder: Path, *, device: str) -> Ensemble:
    """Build what `description.json` says, once for each `member-*.pt`, and give it that file's weights."""
    told = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    members = []
    for file in sorted(folder.glob("member-*.pt")):
        member = build_model(
            told["name"],
            n_classes=told["n_classes"],
            image_size=told["image_size"],
            channels=told["channels"],
            dropout=told["dropout"],
            weights=None,
            seed=0,
        )
        load_weights(member, file)
        members.append(member.to(device))
    return Ensemble(members, device)


def _load_pyfunc(path: str, model_config: Mapping[str, str]) -> Ensemble:
    """Load the model for `mlflow.pyfunc.load_model`, whose `model_config={"device": "cuda"}` can move it."""
    return load_ensemble(Path(path), device=model_config["device"])
