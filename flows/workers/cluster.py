"""A cluster of Ray: one that is named, or a private one of this machine; and what it must have and see."""

from __future__ import annotations

import ipaddress
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import psutil

from connectors.store import explained
from flows.progress import say
from flows.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from types import ModuleType

REACH_SECONDS = 5.0
"""For a connection to the head of a cluster."""
PATIENCE = {"RAY_GCS_SERVER_REQUEST_TIMEOUT_SECONDS": "20", "RAY_NUM_REDIS_GET_RETRIES": "2"}
"""Of Ray with a cluster that it is to join: seconds in which it looks for this machine there, and how often it asks a
head that is silent, some 40 s each time. Its own are 60 and 20."""
ANSWER_SECONDS = 60.0
"""For the first answers of all machines: each starts a process, which loads Ray."""
OBJECT_BYTES = 100_000_000
"""Of memory that a private cluster shares; what passes through it are paths and numbers."""
OWN_FOLDER = "labelcycle-ray-"
"""Begins the name of the folder that a private cluster keeps its logs and sockets in; the process's number follows."""
TRIES, TOO_SLOW = 4, "timed out during startup"
LOOPBACK = "127.0.0.1"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where it is 0 when Ray is loaded, Ray stays on loopback, as on macOS; else it takes the address of the machine."""
TOKEN_VARIABLES = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
ALIKE = ("labelcycle", "torch", "torchvision")
"""Packages that workers must have in the same version: others would compute other numbers."""


class WorkersError(Exception):
    """Workers that are not there, or die again and again."""


class WrongWorkers(WorkersError):
    """Workers that do not fit to what is asked for, before anything was done."""


@dataclass(frozen=True)
class Probed:
    """What a worker sees.

    Attributes:
        host: its machine.
        versions: of the packages in `ALIKE`; None for one that is not there.
        mark: what stands in the file that was shown to it; None where it sees none.
        unseen: paths that are not there, or, of the folder, not to be written to.
    """

    host: str
    versions: Mapping[str, str | None]
    mark: str | None
    unseen: tuple[str, ...]


@contextmanager
def joined(settings: WorkerSettings, folder: Path, *, seen: Sequence[Path] = ()) -> Iterator[list[str]]:
    """Be in a cluster as long as the block lasts; a private one ends with it. The machines that may work, by their ids.

    Args:
        folder: what workers open; it must be the same on all machines.
        seen: other paths that each machine must see, as far as they are there.

    Raises:
        WorkersError: the cluster does not answer.
        WrongWorkers: it does not fit, or its machines do not see what this one sees.
    """
    with _named(settings.ray_address) if settings.ray_address else _private():
        machines = check_resources(settings)
        _check_machines(settings, folder, seen, machines)
        yield machines


def load_ray() -> ModuleType:
    """Ray, which nothing else loads.

    Raises:
        WrongWorkers: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.exceptions
    except ImportError as exc:
        raise WrongWorkers(
            'workers = "ray" needs Ray, which is not installed: pip install "labelcycle[ray]"; or set workers = "local"'
        ) from exc
    return ray  # type: ignore[no-any-return, unused-ignore]


def place_of(settings: WorkerSettings) -> str:
    """The cluster, for people."""
    return f"the Ray cluster at {settings.ray_address}" if settings.ray_address else "Ray on this machine"


def last_line(exc: BaseException) -> str:
    """The last line of an error: those before are a traceback, or of the system."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1].strip()


# Connections


@contextmanager
def _named(address: str) -> Iterator[None]:
    """A cluster that somebody started; this process leaves it as it is."""
    host, port = address.rsplit(":", 1)
    host = host.strip("[]")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as exc:
        raise WorkersError(
            f"no Ray cluster answers at {address} ({exc.strerror or exc}): is it up, and ray_address that of its head?"
        ) from exc
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if TOKEN_VARIABLES & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # which Ray does only for clusters of its own
    # Else Ray looks for itself at the machine's own address, which a cluster on loopback does not have.
    own = {"_node_ip_address": host} if is_loopback(host) else {}
    with _begun(address, address=address, **own):
        yield


def is_loopback(host: str) -> bool:
    """Whether an address leads to this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


@contextmanager
def _private() -> Iterator[None]:
    """A cluster of this machine alone, which listens on loopback and ends with this process, however that ends."""
    sweep()
    os.environ[LOOPBACK_ONLY] = "0"
    if not TOKEN_VARIABLES & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into the person's own folder
    folder = tempfile.mkdtemp(prefix=f"{OWN_FOLDER}{os.getpid()}-", dir=short_folder())
    try:
        with _begun(
            "this machine",
            address="local",
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            include_dashboard=False,
            object_store_memory=OBJECT_BYTES,
        ):
            (node,) = load_ray().nodes()
            if not is_loopback(node["NodeManagerAddress"]):  # Ray was loaded before
                raise WorkersError(f"Ray listens at {node['NodeManagerAddress']}, where others may reach it")
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _begun(where: str, **how: object) -> Iterator[None]:
    ray = load_ray()
    at_end = signal.getsignal(signal.SIGTERM)
    try:
        _begin(ray, how)
    except Exception as exc:
        raise told_of(exc, where) from exc
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_end)  # Ray takes it
    try:
        yield
    finally:
        ray.shutdown()


def told_of(exc: BaseException, where: str) -> WorkersError:
    """Why Ray does not begin, and what to do; Ray hides the cause behind other errors."""
    causes = [exc]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for one in causes:
        said = " ".join(str(one).split())
        if "ersion mismatch" in said:
            return WrongWorkers(f"Ray at {where} is of another version: {said}. Install the same here and there")
        if "authenticat" in f"{type(one).__name__} {said}".lower():
            return WrongWorkers(
                f"Ray at {where} wants its token: let RAY_AUTH_TOKEN_PATH name a file with it, and set "
                "RAY_AUTH_MODE=token"
            )
        if "No node info found" in said:
            return WrongWorkers(
                f"this machine is not one of the Ray cluster at {where}: `ray start --address={where}` makes it one, "
                "with --num-cpus=0 if it is to do no work itself"
            )
    return WorkersError(f"Ray does not begin at {where}: {last_line(causes[-1])}")


def _begin(ray: ModuleType, how: Mapping[str, object]) -> None:
    """Begin Ray; again where its own processes took longer than the 30 s that it gives them, as on a busy machine."""
    others = set(psutil.Process().children())
    for left in reversed(range(TRIES)):
        try:
            ray.init(logging_level="ERROR", **how)
            return
        except Exception as exc:
            ray.shutdown()
            for begun in set(psutil.Process().children()) - others:  # which Ray forgets
                begun.kill()
            if not left or TOO_SLOW not in str(exc):
                raise


def sweep() -> None:
    """Remove what private clusters of killed processes left: their logs."""
    for left in short_folder().glob(f"{OWN_FOLDER}*"):
        pid = left.name.removeprefix(OWN_FOLDER).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def short_folder() -> Path:
    """A folder for temporary files whose name leaves room for that of a socket, which may have 107 bytes."""
    return Path("/tmp") if sys.platform != "win32" and os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108


# Checks


def fits(node: Mapping[str, Any], settings: WorkerSettings, *, together: int = 1) -> bool:
    """Whether a machine of the cluster could have a worker of so many processes, were it idle."""
    has, (n_cpus, n_gpus) = node["Resources"], settings.needs(together)
    return bool(node["Alive"] and has.get("CPU", 0) >= n_cpus and has.get("GPU", 0) >= n_gpus)


def check_resources(settings: WorkerSettings) -> list[str]:
    """The machines that could have a worker, by their ids.

    Raises:
        WrongWorkers: there is none, and a piece would wait for ever.
    """
    nodes = [node for node in load_ray().nodes() if node["Alive"]]
    fitting = [str(node["NodeID"]) for node in nodes if fits(node, settings)]
    n_cpus, n_gpus = (sum(node["Resources"].get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    has = f"its {len(nodes)} machines have {n_cpus:g} processors and {n_gpus:g} GPUs in all"
    if not fitting:
        raise WrongWorkers(
            f"ray_cpus = {settings.ray_cpus} and ray_gpus = {settings.ray_gpus:g}: no machine of "
            f"{place_of(settings)} has so many; {has}. Lower them, or start a machine that has"
        )
    together = settings.gpus_per_network
    if not any(fits(node, settings, together=together) for node in nodes):
        wanted_cpus, wanted_gpus = settings.needs(together)
        raise WrongWorkers(
            f"gpus_per_network = {together} needs a machine with {wanted_cpus} processors and {wanted_gpus:g} GPUs, "
            f"and {place_of(settings)} has none; {has}. Lower it, or start a machine that has"
        )
    if n_gpus and not settings.ray_gpus:
        say(f"{place_of(settings)} has {n_gpus:g} GPUs, and ray_gpus = 0 asks for none.")
    return fitting


def _check_machines(settings: WorkerSettings, folder: Path, seen: Sequence[Path], nodes: Sequence[str]) -> None:
    """Ask each machine what it sees, before anything dear begins."""
    ray = load_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    shown, mark = folder / f".workers.{uuid4().hex}.part", uuid4().hex
    there = [str(path) for path in seen if path.exists()]
    with explained(folder):
        shown.write_text(mark, encoding="ascii")
    try:
        asked = []
        for node in nodes:
            on_it = NodeAffinitySchedulingStrategy(node, soft=False)
            look = ray.remote(_probe).options(num_cpus=0, max_retries=1, scheduling_strategy=on_it)
            asked.append(look.remote(str(shown), there))
        answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
        if silent:
            raise WorkersError(
                f"{len(silent)} of {len(asked)} machines of {place_of(settings)} gave no answer within "
                f"{ANSWER_SECONDS:.0f} s"
            )
        probed = [one for answer in answered if (one := _answer(answer, settings)) is not None]
    finally:
        shown.unlink(missing_ok=True)
    if not probed:
        raise WorkersError(f"all machines of {place_of(settings)} went away when they were asked what they see")
    for one in probed:
        check_machine(one, mark, folder)


def _answer(sent: Any, settings: WorkerSettings) -> Probed | None:
    """What a machine sees; None where it went away meanwhile."""
    ray = load_ray()
    try:
        return cast(Probed, ray.get(sent))
    except ray.exceptions.RayTaskError as exc:
        raise WrongWorkers(
            f"a worker of {place_of(settings)} cannot begin: {last_line(exc)}. Install labelcycle on each machine, and "
            "start Ray there from the same environment"
        ) from exc
    except ray.exceptions.RayError:
        return None


def check_machine(probed: Probed, mark: str, folder: Path) -> None:
    """Raise WrongWorkers where a machine sees something else than this one, or would compute something else."""
    if probed.mark != mark:
        raise WrongWorkers(
            f"the machine {probed.host} does not see the files in {folder} that this one sees: put it on a disk that "
            "all machines mount at the same path"
        )
    if probed.unseen:
        raise WrongWorkers(
            f"the machine {probed.host} does not see, or may not write to, {', '.join(probed.unseen)}: mount it there "
            "at the same path, for a user with the same rights"
        )
    ours = versions()
    other = [
        f"{name} {probed.versions[name]}, not {ours[name]}" for name in ALIKE if probed.versions[name] != ours[name]
    ]
    if other:
        raise WrongWorkers(f"the machine {probed.host} has {', '.join(other)}: install the same on all machines")


def _probe(shown: str, there: Sequence[str]) -> Probed:
    """Look at what the driver sees."""
    path = Path(shown)
    mark = path.read_text(encoding="ascii") if path.exists() else None
    unseen = [name for name in there if not Path(name).exists()]
    if not os.access(path.parent, os.W_OK):
        unseen.append(str(path.parent))
    return Probed(platform.node(), versions(), mark, tuple(unseen))


def versions() -> dict[str, str | None]:
    """Of the packages in `ALIKE`, as they are installed here."""
    found: dict[str, str | None] = {}
    for name in ALIKE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
