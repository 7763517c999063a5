"""A model as MLflow keeps it: weights, description, the code that loads them and what that needs."""

import ast
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from mlflow import pyfunc
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from connectors.mlflow import loader
from pipeline.tasks import TASKS
from pipeline.tasks.task_type import no_outputs

NEEDED = ("numpy", "pandas", "pillow", "pillow-heif", "torch", "torchvision")
"""What a saved model imports, besides what its network is from."""
OWN_PACKAGES = frozenset({"pipeline", "connectors", "flows", "deploy"})
NOT_TO_LOAD = ("__pycache__", "tracker.py", "server.py", "saved_model.py", "shown.py")
"""Of the folders that a saved model carries along, what loading it does not need."""


def save_model(
    logged: LoggedModel, folder: Path, *, weights: Sequence[Path], trunk: Path | None, description: Path
) -> Path:
    """Write a model into a folder as MLflow keeps it; return where. The arguments are those of `Tracker.log_model`."""
    data = folder / "data"
    data.mkdir()
    shutil.copy(description, data / "description.json")
    for index, file in enumerate(weights):
        shutil.copy(file, data / f"member-{index:03d}.pt")
    if trunk is not None:
        shutil.copy(trunk, data / loader.TRUNK)
    told = json.loads(description.read_text(encoding="utf-8"))
    needed = [*NEEDED, *(["timm"] if told["name"].startswith("timm:") else [])]
    code, also_needed = source_of_network(told["name"])
    model = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        run_id=logged.source_run_id,
        signature=ModelSignature(outputs=columns_of(told)),  # inputs are of many kinds
    )
    pyfunc.save_model(
        folder / "model",
        loader_module=loader.__name__,
        data_path=data,
        code_paths=[*map(str, _own_code(folder / "code")), *map(str, code)],
        pip_requirements=[f"{name}=={_release(name)}" for name in sorted({*needed, *also_needed})],
        model_config={"device": "cpu"},
        metadata={"task": told.get("task", "classification"), "classes": told["classes"]},
        mlflow_model=model,
    )
    if not code:  # a network of one's own may read files beside its code
        _pack_code(folder / "model", model)
    return folder / "model"


def _pack_code(folder: Path, model: Model) -> None:
    """Make the code of a saved model one file, which Python imports from as it is: each file is a request to upload."""
    code = model.flavors[pyfunc.FLAVOR_NAME]
    packed = shutil.make_archive(str(folder / code[pyfunc.CODE]), "zip", folder / code[pyfunc.CODE])
    shutil.rmtree(folder / code[pyfunc.CODE])
    code[pyfunc.CODE] = Path(packed).name
    model.save(folder / "MLmodel")


def _release(package: str) -> str:
    """Return the installed version without its build, such as `+cu130`, which not every machine has."""
    return version(package).partition("+")[0]


def _own_code(folder: Path) -> list[Path]:
    """Copy what loads a model and reads images into a folder; return the packages that this makes with ours."""
    connectors = Path(__file__).parents[1]
    for package in ("images", "mlflow"):
        ignored = shutil.ignore_patterns(*NOT_TO_LOAD)
        shutil.copytree(connectors / package, folder / "connectors" / package, ignore=ignored)
    shutil.copy(connectors / "__init__.py", folder / "connectors")
    return [folder / "connectors", connectors.parent / "pipeline"]


def columns_of(told: Mapping[str, Any]) -> Schema:
    """What a prediction holds; see `connectors.mlflow.loader`."""
    task, classes = TASKS[told.get("task", "classification")], told["classes"]
    outputs = no_outputs(task, 1, len(classes))
    columns = task.in_columns(task.logits(outputs).softmax(dim=-1), classes, task.places(outputs))
    kinds = {name: "string" if values.dtype == object else "float" for name, values in columns.items()}
    return Schema([ColSpec(kind, name) for name, kind in kinds.items()])


def source_of_network(name: str) -> tuple[list[Path], list[str]]:
    """What a network of one's own factory is made of, so that its model can be loaded elsewhere.

    Returns:
        Files and folders of source: the factory's own package or module, and what lies beside it and is imported; and
        the installed packages that all of these import, by the names of their distributions. Both are empty for
        networks of torchvision, timm and our own.
    """
    module, is_prefixed, _ = name.partition(":")
    if not is_prefixed or module in ("torchvision", "timm"):
        return [], []
    installed = packages_distributions()
    found: dict[str, Path] = {}
    needed: set[str] = set()
    ahead = [module.partition(".")[0]]
    while ahead:
        top = ahead.pop()
        if top in found or top in sys.stdlib_module_names or top in OWN_PACKAGES:
            continue
        if top in installed and top != module.partition(".")[0]:
            needed.update(installed[top])
            continue
        source = _source_of(top)
        if source is None:
            needed.update(installed.get(top, []))
            continue
        found[top] = source
        files = source.rglob("*.py") if source.is_dir() else [source]
        ahead += [imported for file in files for imported in _imports(file)]
    return list(found.values()), sorted(needed)


def _source_of(top: str) -> Path | None:
    """The folder or file that a top-level name is imported from; None for what is installed or not there."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    where = Path(next(iter(spec.submodule_search_locations))) if spec.submodule_search_locations else None
    source = where or (Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None)
    return None if source is None or {"site-packages", "dist-packages"} & set(source.parts) else source


def _imports(file: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
