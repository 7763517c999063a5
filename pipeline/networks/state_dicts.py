"""Weights that come from elsewhere: tensors by name, read from a file without running anything in it."""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.networks.errors import ModelError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a `.safetensors` file or one of `torch.save`; nothing in the file is run."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    found = dict(_state_dicts(state))
    if len(found) > 1:
        raise ModelError(
            f"{path} holds several networks, {', '.join(found)}: write the one that is meant to a file of its own, "
            "with torch.save(checkpoint[key], path)"
        )
    if not found:
        held = (
            f"the keys {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else type(state).__name__
        )
        raise ModelError(f"{path} must hold a state dict, names to tensors; it holds {held}")
    return next(iter(found.values()))


class Loaded(NamedTuple):
    """What became of a file of weights.

    Attributes:
        lacking: names of tensors of the network's end that the file does not have.
        note: what of the file was taken and what was left out, for people; None where nothing was left out.
    """

    lacking: Sequence[str]
    note: str | None


class _Names(NamedTuple):
    """How a file and a network call the same tensors: `theirs` and a name, `ours` and that name."""

    theirs: str
    ours: str
    lacking: Sequence[str]


def load_state(network: nn.Module, path: Path, *, without: Sequence[str]) -> Loaded:
    """Load all but the layers `without`, which may have other classes, from a state dict in a file.

    The file may hold more than the network: a detector or a segmenter of which it is the trunk. As a trunk has no
    classifier, the layers in a row with the last one may be lacking too.

    Raises:
        ModelError: the file has the weights of another network, or of several.
    """
    ends = tuple(f"{name}." for name in without)
    old_densenet = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    renamed = {old_densenet.sub(r"\1\2", key): values for key, values in read_state_dict(path).items()}
    needed = [name for name, _ in network.named_parameters() if not name.startswith(ends)]
    names = _names_of(renamed, needed, _rows_of(network, without), path)
    inner = {
        names.ours + key.removeprefix(names.theirs): values
        for key, values in renamed.items()
        if key.startswith(names.theirs)
    }
    state = {key: values for key, values in inner.items() if not key.startswith(ends)}
    try:
        outcome = network.load_state_dict(state, strict=False)
    except RuntimeError as exc:
        raise ModelError(f"{path} holds the weights of another network: {exc}") from exc
    missing = [key for key in outcome.missing_keys if not key.startswith(ends) and key not in names.lacking]
    if missing or outcome.unexpected_keys:
        raise ModelError(
            f"{path} holds the weights of another network: {len(missing)} are missing, {missing[:3]}, and "
            f"{len(outcome.unexpected_keys)} have no place, {outcome.unexpected_keys[:3]}"
        )
    return Loaded(names.lacking, _note(path, renamed, names, n_taken=len(state)))


def _note(path: Path, held: Iterable[str], names: _Names, *, n_taken: int) -> str | None:
    left = Counter(_branch(key, names.theirs) for key in held if not key.startswith(names.theirs))
    lacking = dict.fromkeys(name.rpartition(".")[0] for name in names.lacking)
    if not left and not lacking:
        return None
    told = [f"weights {path.name}: the trunk takes {names.theirs.rstrip('.') or 'all'} ({n_taken})"]
    told += [f"left out: {', '.join(f'{branch} ({n})' for branch, n in left.items())}"] if left else []
    told += [f"not in the file: {', '.join(lacking)}"] if lacking else []
    return "; ".join(told)


def _branch(name: str, prefix: str) -> str:
    """Where a name parts from a prefix.

    >>> _branch("backbone.fpn.layer_blocks.0.0.weight", "backbone.body."), _branch("rpn.head.bias", "backbone.body.")
    ('backbone.fpn', 'rpn')
    """
    parts, others = name.split("."), prefix.split(".")
    pairs = enumerate(zip(parts, others, strict=False))
    n_shared = next((place for place, (one, other) in pairs if one != other), len(parts))
    return ".".join(parts[: n_shared + 1])


def _state_dicts(held: object, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts that a file holds, by their keys: checkpoints of trainings keep them beside epoch and optimiser.

    >>> [(key, list(state)) for key, state in _state_dicts({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}})]
    [('state_dict', ['fc.bias'])]
    """
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        return
    if held and all(isinstance(values, Tensor) for values in held.values()):
        yield key, dict(held)
        return
    for name, inner in held.items():
        yield from _state_dicts(inner, f"{key}.{name}".lstrip("."))


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as exc:
        raise ModelError(f"{path} is not a safetensors file, or it is damaged: {exc}") from exc


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training, which run nothing
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as exc:  # bytes of no meaning fail in any way
        raise ModelError(
            f"{path} is not a plain state dict: it is damaged, or a pickle with code in it, which is not run; "
            "write it with torch.save(model.state_dict(), path)"
        ) from exc


def _rows_of(network: nn.Module, ends: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of layers that are in a row with one of these."""
    modules = dict(network.named_modules())
    parents = [end.rpartition(".")[0] for end in ends]
    return tuple(f"{name}." for name in parents if name and isinstance(modules.get(name), nn.Sequential))


def _names_of(held: Iterable[str], needed: Sequence[str], rows: tuple[str, ...], path: Path) -> _Names:
    """How the file calls the network's tensors; as the network does where it has not all of them.

    A trunk that was taken out of a classifier may have lost the name of its own, as "features." of a MobileNet, and
    what came after it.

    Args:
        rows: beginnings of the names of what may be lacking.
    """
    for ours in ("", f"{needed[0].partition('.')[0]}.") if needed else ():
        lacking = [name for name in needed if not name.startswith(ours)]
        if all(name.startswith(rows) for name in lacking):
            wanted = [name.removeprefix(ours) for name in needed if name.startswith(ours)]
            theirs = _prefix_of(held, wanted, path)
            if theirs is not None:
                return _Names(theirs, ours, lacking)
    return _Names("", "", ())


def _prefix_of(names: Iterable[str], wanted: Sequence[str], path: Path) -> str | None:
    """What a file puts before the names of a network's tensors, as "module." of DataParallel; None if some are missing.

    Raises:
        ModelError: several prefixes give all tensors, as those of a network and its moving average.
    """
    held = set(names)
    endings = [name for name in held if name.endswith(wanted[0])]
    prefixes = sorted({name.removesuffix(wanted[0]) for name in endings}, key=lambda prefix: (len(prefix), prefix))
    whole = [prefix for prefix in prefixes if all(prefix + name in held for name in wanted)]
    if len(whole) > 1 and whole[0] != "":
        raise ModelError(
            f"{path} holds several networks, their names begin with {', '.join(whole)}: write the one that is meant to "
            "a file of its own, without the prefix"
        )
    return whole[0] if whole else None
