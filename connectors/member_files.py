"""The networks of a round as files: a record and weights for each member, and the trunk that they share, if any."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from connectors.store import write_atomic, write_json, write_table

if TYPE_CHECKING:
    import torch

    from pipeline.networks.classifier import Classifier

TRUNK = "trunk.pt"
SCRATCH = "before-pseudo-labels"
CHOSEN = "pseudo_labels.parquet"
DESCRIPTION = "description.json"


@dataclass(frozen=True)
class MemberFiles:
    """A folder of members; a record that exists is a member that is trained."""

    path: Path

    def record(self, index: int) -> Path:
        """The record of one member, which is written after its weights."""
        return self.path / f"member-{index}.json"

    @property
    def weights(self) -> list[Path]:
        """The files of weights that are there, a trunk included; old rounds have none any more."""
        return sorted(self.path.glob("*.pt"))

    @property
    def trunk(self) -> Path | None:
        """The file of the trunk that all members share; None where each has its own."""
        path = self.path / TRUNK
        return path if path.exists() else None

    @property
    def scratch(self) -> MemberFiles:
        """Members that only choose the pseudo-labels of the others; thrown away after the training."""
        return MemberFiles(self.path / SCRATCH)

    def clear_scratch(self) -> None:
        """Throw away what choosing pseudo-labels took."""
        shutil.rmtree(self.scratch.path, ignore_errors=True)

    @property
    def chosen(self) -> pd.DataFrame | None:
        """The pseudo-labels that were chosen, so that a run that goes on goes on with the same; None before."""
        path = self.path / CHOSEN
        return pd.read_parquet(path) if path.exists() else None

    def choose(self, pseudo_labels: pd.DataFrame) -> None:
        """Write down the pseudo-labels that were chosen: item_id, uri, label."""
        write_table(self.path / CHOSEN, pseudo_labels)

    def files(self, names: Sequence[str]) -> list[Path]:
        """The weight files of these names."""
        return [self.path / name for name in names]

    def describe(self, form: Mapping[str, Any]) -> Path:
        """Write what it takes to build the networks again; return the file."""
        return write_json(self.path / DESCRIPTION, form)

    def save_trunk(self, body: Classifier) -> None:
        """Write the trunk that all members share, unless it is there."""
        from pipeline.networks.weights import save_trunk

        if self.trunk is None:
            write_atomic(self.path / TRUNK, lambda path: save_trunk(body, path))

    def save(self, model: Classifier, name: str, *, with_trunk: bool) -> str:
        """Write the weights of a network under a name, which is returned."""
        from pipeline.networks.weights import save_weights

        write_atomic(self.path / name, lambda path: save_weights(model, path, with_trunk=with_trunk))
        return name

    def state_of(self, name: str) -> dict[str, torch.Tensor] | None:
        """The weights of a member with those of the shared trunk; None where there is no such member."""
        from pipeline.networks.state_dicts import read_state_dict

        path = self.path / name
        if not path.exists():
            return None
        return (read_state_dict(self.trunk) if self.trunk else {}) | read_state_dict(path)

    def load(self, form: Mapping[str, Any], names: Sequence[str], device: torch.device) -> Sequence[Classifier]:
        """The networks of these weight files, on a device, ready to predict; the last ones stay in memory.

        Args:
            form: see `connectors.mlflow.loader.load_members`.
        """
        stamps = tuple(path.stat().st_mtime_ns for path in self.files(names))
        return _load(self, _Form(form), tuple(names), stamps, device)


class _Form(dict[str, Any]):
    """The form of a network as a key of a cache."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@lru_cache(maxsize=1)
def _load(
    files: MemberFiles, form: _Form, names: tuple[str, ...], _stamps: tuple[int, ...], device: torch.device
) -> Sequence[Classifier]:
    from connectors.mlflow.loader import load_members

    return tuple(model.to(device) for model in load_members(form, files.files(names), trunk=files.trunk))
