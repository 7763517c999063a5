"""Where networks and their weights come from: torchvision, timm, a factory of one's own; the hub or a file."""

import difflib
import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from pipeline.networks.errors import ModelError
from pipeline.networks.sources import FACTORY, FACTORY_NAME, TIMM, TORCHVISION, USUAL_IMAGE_SIZE
from pipeline.networks.state_dicts import Loaded, load_state
from pipeline.networks.stochastic import is_stochastic

TUPLES_IN_TRAINING = ("googlenet", "inception_v3")
"""Torchvision classifiers with a second output while they train."""


@dataclass(frozen=True)
class Preprocessing:
    """What weights expect of an image: its side in pixels, and mean and std of each channel as fractions of 1.

    By default the usual ones of ImageNet.
    """

    image_size: int = USUAL_IMAGE_SIZE
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network without the end of its classifier.

    Attributes:
        trunk: from normalised colour images `(N, 3, S, S)` to features, in evaluation mode.
        kept: layers of its classifier from the first dropout on, less the last Linear and a dropout before it.
        width: D, what the last Linear read.
        preprocessing: what its weights expect.
        note: what of a weights file was taken and what was left out, for people; None where nothing was.
    """

    trunk: nn.Module
    kept: tuple[nn.Module, ...]
    width: int
    preprocessing: Preprocessing
    note: str | None = None


def check_network_name(name: str, *, own: Iterable[str] = ()) -> None:
    """Refuse a name that is none of `own` and that `load_backbone` does not know, naming those that are near.

    Of a factory only the form of the name is looked at: to import its module is to run it.
    """
    source, is_prefixed, network = name.partition(":")
    if name in own:
        return
    if f"{source}:" == TIMM:
        known = [TIMM + listed for listed in _timm().list_models()]
        is_known = TIMM + network.partition(".")[0] in known
    elif not is_prefixed or f"{source}:" == TORCHVISION:
        zoo = _torchvision_models()
        known = [*own, *(TORCHVISION + listed for listed in zoo.list_models(module=zoo))]
        is_known = name in known
    elif FACTORY_NAME.fullmatch(name):
        return
    else:
        raise ModelError(
            f"model {name!r}: a network of your own is named package.module:factory; other names begin with "
            f"{TORCHVISION} or {TIMM}"
        )
    if not is_known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(own) or known[:4]
        raise ModelError(f"there is no model {name!r}; near: {', '.join(near)}")
    if f"{source}:" == TIMM:
        _timm_settings(network, None)


def trained_image_size(name: str, weights: str | None) -> int:
    """Side in pixels of the images that the weights were trained at, 224 where there are none or no size is known."""
    if weights is None:
        return Preprocessing().image_size
    if name.startswith(TORCHVISION):
        return _torchvision_preprocessing(name.removeprefix(TORCHVISION), weights).image_size
    if name.startswith(TIMM):
        return _timm_preprocessing(_timm_settings(name.removeprefix(TIMM), weights)).image_size
    return _own_preprocessing(_make(name), name).image_size


def load_backbone(name: str, *, image_size: int, weights: str | None) -> Backbone:
    """The network called `name`, cut; torch's global generator draws what no weights fill.

    Args:
        name: "torchvision:NAME", "timm:NAME", or "package.module:factory".
        image_size: side of the square images, pixels.
        weights: None, the path of a file, a name on the hub, or "factory".
    """
    file = Path(weights) if weights is not None and Path(weights).is_file() else None
    if name.startswith(TIMM):
        return _timm_backbone(name.removeprefix(TIMM), image_size, weights, file)
    if name.startswith(TORCHVISION):
        network = _torchvision_network(name.removeprefix(TORCHVISION), image_size)
        preprocessing = _torchvision_preprocessing(name.removeprefix(TORCHVISION), weights)
        if weights is not None and file is None:
            file = _torchvision_file(name.removeprefix(TORCHVISION), image_size, weights)
    else:
        network = _own_network(name, weights, is_filled_later=file is not None)
        preprocessing = _own_preprocessing(network, name)
    end = _find_end(network.eval(), name, image_size)
    loaded = load_state(network, file, without=[end]) if file else Loaded((), None)
    kept, width = _cut(network, _first_lacking(network, loaded.lacking) or end)
    return Backbone(network, tuple(kept), width, preprocessing, loaded.note)


def _first_lacking(network: nn.Module, lacking: Sequence[str]) -> str | None:
    """Name of the first Linear layer that has no weights: a trunk ends before it."""
    layers = (name.rpartition(".")[0] for name in lacking)
    return next((layer for layer in layers if isinstance(network.get_submodule(layer), nn.Linear)), None)


def _find_end(network: nn.Module, name: str, image_size: int) -> str:
    """Name of the Linear layer whose output is the network's; an image size that does not fit is found here."""
    outputs: dict[str, object] = {}

    def remember(layer: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: outputs.update({layer: output})

    linear = [(layer, module) for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(remember(layer)) for layer, module in linear]
    try:
        logits = _run_empty_image(network, name, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    ends = [layer for layer, output in outputs.items() if output is logits]
    if not ends:
        raise ModelError(f"{name} does not end in one Linear layer; choose another network")
    return ends[0]


@torch.no_grad()
def _run_empty_image(network: nn.Module, name: str, image_size: int) -> object:
    try:
        return network(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as exc:
        raise ModelError(f"model {name!r} does not take images of {image_size} x {image_size} pixels: {exc}") from exc


def _cut(network: nn.Module, end: str) -> tuple[list[nn.Module], int]:
    """Take the classifier's end out of `network`, from its first dropout.

    Args:
        end: name of the last Linear, or of one before it after which nothing is kept.

    Returns:
        The layers taken up to it, less this Linear and a dropout right before it; and the width of that Linear.
    """
    parent_name, _, name = end.rpartition(".")
    if not name:
        raise ModelError("a network needs layers before its last Linear layer")
    parent = network.get_submodule(parent_name)
    linear = parent.get_submodule(name)
    taken = [linear]
    if isinstance(parent, nn.Sequential):
        layers = list(parent)[: list(parent).index(linear) + 1]
        start = next((i for i, layer in enumerate(layers) if is_stochastic(layer)), len(layers) - 1)
        taken = layers[start:]
        for position in range(start, len(parent)):
            parent[position] = nn.Identity()
    else:
        setattr(parent, name, nn.Identity())
    kept = taken[:-1]
    if kept and is_stochastic(kept[-1]):
        kept = kept[:-1]
    return kept, int(linear.in_features)  # type: ignore[arg-type]


def _torchvision_models() -> ModuleType:
    """torchvision's networks, loaded when first asked for: it takes seconds."""
    from torchvision import models

    return cast(ModuleType, models)


def _torchvision_network(network: str, image_size: int) -> nn.Module:
    """A torchvision network with its own classifier; its weights are drawn."""
    if network in TUPLES_IN_TRAINING:
        raise ModelError(f"{TORCHVISION}{network} does not end in one Linear layer; choose another network")
    options = _torchvision_options(network, image_size)
    try:
        return cast(nn.Module, _torchvision_models().get_model(network, weights=None, **options))
    except (ValueError, RuntimeError, AssertionError) as exc:
        raise ModelError(f"{TORCHVISION}{network} cannot be built with {options}: {exc}") from exc


def _torchvision_options(network: str, image_size: int) -> dict[str, Any]:
    """The options that give the image size to networks that are made for one size."""
    if network.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if network.startswith("maxvit_") else {}


def _torchvision_file(network: str, image_size: int, weights: str) -> Path:
    """The file of weights by name, fetched unless it is in the hub's folder; its name holds the start of its hash.

    torchvision itself would run the code in a pickle that lies there under the right name.
    """
    entry = _torchvision_entry(network, weights)
    trained_at = _torchvision_preprocessing(network, weights).image_size
    if _torchvision_options(network, image_size) and image_size != trained_at:
        raise ModelError(f"weights {weights!r} of {network} do not take {image_size} pixels: they are for {trained_at}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(entry.url).path).name
    named = re.search(r"-([a-f0-9]{6,})\.", path.name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), named[1] if named else None, progress=False)
        except (OSError, RuntimeError) as exc:
            raise _not_fetched(f"{weights!r} of {network}", entry.url, exc) from exc
    if named:
        with path.open("rb") as file:
            if not hashlib.file_digest(file, "sha256").hexdigest().startswith(named[1]):
                raise ModelError(f"{path} is not what its name says, its hash is another: delete it to fetch it anew")
    return path


def _torchvision_entry(network: str, weights: str) -> Any:
    named = _torchvision_models().get_model_weights(network)
    entry = named.__members__.get(weights.removeprefix(f"{named.__name__}."))
    if entry is None:
        raise ModelError(
            f"weights {weights!r} are neither a file nor weights of {network}: {', '.join(named.__members__)}"
        )
    return entry


def _torchvision_preprocessing(network: str, weights: str | None) -> Preprocessing:
    """The preprocessing of the named weights; a file counts as the network's default weights."""
    if weights is None:
        return Preprocessing()
    preset = _torchvision_entry(network, "DEFAULT" if Path(weights).is_file() else weights).transforms()
    return Preprocessing(int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std))


def _not_fetched(weights: str, source: str, exc: Exception) -> ModelError:
    return ModelError(
        f"weights {weights} are not on this machine and could not be fetched ({exc}): fetch {source} where there is a "
        "network, bring the file here and give its path as weights"
    )


def _timm() -> ModuleType:
    """The package timm, loaded when first asked for: it takes seconds, and is an extra."""
    try:
        import timm
    except ImportError as exc:
        raise ModelError(
            f"models whose names begin with {TIMM} need the package timm ({exc}); install labelcycle with its extra, "
            "pip install '.[timm]'"
        ) from exc
    return timm


def _timm_settings(network: str, weights: str | None) -> Any:
    """What timm knows of a network's weights: by the tag `weights`, by the name's own tag, or the default."""
    models = _timm().models
    architecture, _, tag = network.partition(".")
    if weights is not None and weights != "DEFAULT" and not Path(weights).is_file():
        tag = weights
    try:
        return models.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError as exc:
        tags = [listed.partition(".")[2] for listed in models.list_pretrained(f"{architecture}.*")]
        raise ModelError(
            f"weights {tag!r} are neither a file nor weights of {architecture}: {', '.join(['DEFAULT', *tags])}"
        ) from exc


def _timm_preprocessing(settings: Any) -> Preprocessing:
    return Preprocessing(int(settings.input_size[-1]), tuple(settings.mean), tuple(settings.std))


def _timm_backbone(network: str, image_size: int, weights: str | None, file: Path | None) -> Backbone:
    """timm itself leaves the classifier out, so that networks without one, as DINOv2's, serve too."""
    name = TIMM + network
    settings = _timm_settings(network, weights)
    options = {"img_size": image_size} if settings.fixed_input_size else {}
    architecture = network.partition(".")[0]
    fetched = weights is not None and file is None
    try:
        trunk = _timm().create_model(
            f"{architecture}.{settings.tag}" if settings.tag else architecture,
            pretrained=fetched,
            num_classes=0,
            **options,
        )
    except OSError as exc:
        source = f"model.safetensors of {settings.hf_hub_id} from the Hugging Face hub"
        raise _not_fetched(f"{weights!r} of {architecture}", source, exc) from exc
    except (RuntimeError, ValueError, AssertionError, TypeError) as exc:
        raise ModelError(f"{name} cannot be built with {options}: {exc}") from exc
    features = _run_empty_image(trunk.eval(), name, image_size)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ModelError(f"{name} does not give one vector of features for an image; choose another network")
    ends = settings.classifier or ()
    note = load_state(trunk, file, without=[ends] if isinstance(ends, str) else ends).note if file else None
    return Backbone(trunk, (), features.shape[1], _timm_preprocessing(settings), note)


def _find_factory(name: str) -> Callable[[], object]:
    """What "package.module:factory" names; importing the module runs it."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        raise ModelError(
            f"model {name!r}: the module {module_name!r} cannot be imported ({exc}); is its folder on PYTHONPATH? "
            f"Other names begin with {TORCHVISION} or {TIMM}"
        ) from exc
    factory = getattr(module, attribute, None)
    if factory is None:
        near = difflib.get_close_matches(attribute, dir(module), n=4, cutoff=0.4)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ModelError(f"model {name!r}: {module_name} has no {attribute!r}{hint}")
    if not callable(factory):
        raise ModelError(f"model {name!r}: {attribute} must be a function without arguments, got {type(factory)}")
    return cast(Callable[[], object], factory)


def _make(name: str) -> nn.Module:
    factory = _find_factory(name)
    try:
        network = factory()
    except Exception as exc:
        raise ModelError(f"model {name!r}: its factory failed, {type(exc).__name__}: {exc}") from exc
    if not isinstance(network, nn.Module):
        raise ModelError(f"model {name!r} must return an nn.Module, it returned {type(network)}")
    return network


def _own_network(name: str, weights: str | None, *, is_filled_later: bool) -> nn.Module:
    """The factory's network: as it comes, or drawn anew layer by layer where no weights are asked for."""
    network = _make(name)
    if weights is None:
        draw_anew(network)
    elif weights != FACTORY and not is_filled_later:
        raise ModelError(f"weights {weights!r} of {name} are no file; they may also be None or {FACTORY!r}")
    return network


def draw_anew(network: nn.Module) -> None:
    """Let each layer draw its weights as when it was made; what no layer draws by itself stays."""
    for module in network.modules():
        draw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if draw is not None:
            draw()


def _own_preprocessing(network: nn.Module, name: str) -> Preprocessing:
    """The network's attribute `preprocessing`; what it leaves out is as for ImageNet."""
    told = getattr(network, "preprocessing", {})
    try:
        lists: dict[str, Any] = {key: tuple(value) for key, value in told.items() if key != "image_size"}
        return Preprocessing(told.get("image_size", Preprocessing.image_size), **lists)
    except (TypeError, AttributeError) as exc:
        raise ModelError(
            f"model {name!r}: its preprocessing must be a dict with image_size, mean and std, got {told!r}"
        ) from exc
