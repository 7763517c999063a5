"""The weights of our own networks: written, read, and taken over from the round before."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Classifier
from pipeline.networks.errors import ModelError
from pipeline.networks.posterior import Posterior
from pipeline.networks.state_dicts import read_state_dict


def save_weights(model: nn.Module, path: Path, *, with_trunk: bool = True) -> None:
    """Write the state dict, on the CPU so that a machine without this one's GPU can read it.

    Args:
        with_trunk: False leaves the trunk out, for members that share one, see `save_trunk`.
    """
    state = model.state_dict()
    _save({name: values for name, values in state.items() if with_trunk or not name.startswith("trunk.")}, path)


def save_trunk(model: Classifier, path: Path) -> None:
    """Write the trunk's part of the state dict."""
    _save({name: values for name, values in model.state_dict().items() if name.startswith("trunk.")}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a network of the same form; a file with code in it is refused.

    A file without a trunk leaves the trunk as it is, one without a temperature means 1, and one with a posterior gives
    the network a posterior.
    """
    state = read_state_dict(path)
    if isinstance(model, Classifier):
        prefix = "posterior."
        held = {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
        try:
            model.posterior = Posterior.empty_like(held).to(model.mean.device) if held else None
        except TypeError as exc:
            raise ModelError(f"{path} holds a posterior of another form: {', '.join(held)}") from exc
        if not any(name.startswith("trunk.") for name in state):
            state |= {name: values for name, values in model.state_dict().items() if name.startswith("trunk.")}
        state.setdefault("temperature", torch.ones(()))
    _load(model, state, path)


def load_trunk(model: Classifier, path: Path) -> None:
    """Read what `save_trunk` wrote into the trunk of a network of the same form."""
    state = {name.removeprefix("trunk."): values for name, values in read_state_dict(path).items()}
    _load(model.trunk, state, path)


def shrink_and_perturb(model: Classifier, previous_state: Mapping[str, Tensor], *, shrink: float = 0.6) -> None:
    """Start training near the previous round's weights: `shrink * previous + (1 - shrink) * fresh`, in place.

    After Ash and Adams (2020), who add small noise; here the noise is what `model` holds, a newly drawn head and a
    pretrained or newly drawn trunk, so that a pretrained trunk is pulled back to where it came from, and a frozen one
    stays bit for bit. Buffers are the previous ones, but for batch-norm statistics that no training moves; the
    temperature is that of `model`, as it will be fitted again.

    Args:
        previous_state: of a network of the same form; without the trunk's tensors, or those of the last layer, these
            are left as they are.
        shrink: share of the previous weights, in [0, 1].
    """
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be in [0, 1], got {shrink}")
    last = f"tail.{len(model.tail) - 1}."
    state = model.state_dict()
    kept = {name for name in state if name.startswith(last)} if f"{last}weight" not in previous_state else set()
    fresh = {name: values for name, values in state.items() if _is_shrunk(name, previous_state) and name not in kept}
    unlike = [name for name in fresh if name not in previous_state or previous_state[name].shape != fresh[name].shape]
    if unlike:
        raise ModelError(f"the previous weights are of another network: {unlike[:3]} are missing or of another shape")
    with torch.no_grad():
        for name, values in model.named_parameters():  # one that several layers share comes once
            if name in fresh:
                values.lerp_(previous_state[name].to(values.device), shrink)
        fixed = set(model.fixed_batch_norms)
        for name, statistic in model.named_buffers():
            if name in fresh and name.rpartition(".")[0] not in fixed:
                statistic.copy_(previous_state[name])


def without_last_layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights but those that tell its classes apart."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("tail."))
    return {name: values for name, values in state.items() if not name.startswith((f"tail.{last}.", "posterior."))}


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({name: values.cpu() for name, values in state.items()}, path)


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as exc:
        raise ModelError(f"{path} holds the weights of another network: {exc}") from exc


def _is_shrunk(name: str, previous_state: Mapping[str, Tensor]) -> bool:
    """Whether the previous value of a tensor matters: not for what is fitted after training, nor a shared trunk."""
    if name == "temperature" or name.startswith("posterior."):
        return False
    return not name.startswith("trunk.") or any(key.startswith("trunk.") for key in previous_state)
