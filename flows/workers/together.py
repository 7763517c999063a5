"""A piece of work that several processes of one machine do together, as a process group of torch."""

import multiprocessing
import os
import pickle
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from connectors.store import write_atomic
from flows.workers.cluster import LOOPBACK, WorkersError, WrongWorkers
from pipeline.networks.halving import FITTING, Halved

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""For the other processes of a group: the first one decodes images while they wait. One that dies ends all at once."""
GRACE_SECONDS = 2.0
"""Between an error and its report: where one process is killed the others only lose their connections to it, and are
ended before they report that."""


class LostProcess(WorkersError):
    """A process of a group died; its piece may be done again."""


def do_together(run: Callable[[Path, T], None], folder: Path, piece: T, *, n: int, on_gpus: bool) -> None:
    """Do a piece in n processes, which end with this one, however that ends; where memory was too small, anew.

    They find each other by a file and speak on loopback: torchrun's own meeting place listens on all interfaces.

    Args:
        run: a function that processes can import; each calls it.
        on_gpus: each process has a GPU of its own.

    Raises:
        LostProcess: one was killed.
        WrongWorkers: there are fewer GPUs.
        Exception: the first error of a process.
    """
    if on_gpus and torch.cuda.device_count() < n:
        raise WrongWorkers(
            f"gpus_per_network = {n}, and a worker sees {torch.cuda.device_count()} GPUs: set ray_gpus = 1, so that "
            'Ray gives it as many, or device = "cpu" in [model]'
        )
    while True:
        with tempfile.TemporaryDirectory(prefix="labelcycle-together-") as shared:
            error = _try(run, folder, piece, n, on_gpus, Path(shared))
        if error is None:
            return
        if not isinstance(error, Halved) or FITTING.known.get(error.work, error.n + 1) <= error.n:
            raise error
        FITTING.known[error.work] = error.n


def _try(
    run: Callable[[Path, T], None], folder: Path, piece: T, n: int, on_gpus: bool, shared: Path
) -> Exception | None:
    """What went wrong in the processes first; None where nothing did."""
    threads = torch.get_num_threads()
    try:
        spawn(_take_part, (n, threads, FITTING.known, on_gpus, shared, run, folder, piece), nprocs=n)
    except ProcessExitedException as exc:
        reports = sorted(shared.glob("*.error"))
        if reports:
            return pickle.loads(reports[0].read_bytes())  # type: ignore[no-any-return]  # noqa: S301 (our own)
        return LostProcess(f"process {exc.error_index + 1} of {n} ended with {exc.signal_name or exc.exit_code}")
    return None


def _take_part(
    rank: int,
    n: int,
    threads: int,
    known: dict[str, int],
    on_gpus: bool,
    shared: Path,
    run: Callable[[Path, T], None],
    folder: Path,
    piece: T,
) -> None:
    """Be one of the processes."""
    FITTING.known.update(known)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        _join_group(rank, n, on_gpus, shared)
        run(folder, piece)
        distributed.barrier()  # one that ended before would be missed
        distributed.destroy_process_group()
    except Exception as exc:
        exc.add_note(traceback.format_exc())
        if not isinstance(exc, Halved):
            time.sleep(GRACE_SECONDS)
        _report(exc, shared / f"{time.monotonic_ns():020d}-{rank}.error")
        os._exit(1)  # within torch others may wait for this process


def _report(exc: Exception, path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(pickle.dumps(portable(exc)))

    write_atomic(path, write)


def _join_group(rank: int, n: int, on_gpus: bool, shared: Path) -> None:
    interface = _loopback()
    os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}  # whatever a cluster has set
    device = None
    if on_gpus:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"file://{shared / 'store'}",
        rank=rank,
        world_size=n,
        timeout=PATIENCE,
        device_id=device,
    )


def _loopback() -> str:
    """The name of the interface that leads to this machine alone."""
    found = psutil.net_if_addrs().items()
    return next(name for name, addresses in found if any(each.address == LOOPBACK for each in addresses))


def portable(exc: Exception) -> Exception:
    """An error that can be sent."""
    try:
        pickle.loads(pickle.dumps(exc))  # noqa: S301 (our own)
    except Exception:
        return WorkersError(f"{type(exc).__name__}: {exc}")
    return exc


def end_with_parent() -> None:
    """End this process as soon as the one that began it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
