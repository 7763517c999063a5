"""What workers of Ray do in tests: functions that they can import."""

import os
import signal
import time
from pathlib import Path


def die_once(folder: Path, n: int) -> None:
    """Be killed in the middle of the first try."""
    begun = folder / f"{n}.begun"
    if n == 1 and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{n}.done").touch()


def die_always(_folder: Path, _n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_folder: Path, n: int) -> None:
    raise ValueError(f"piece {n} is wrong")


def tell_process(folder: Path, n: int) -> None:
    """Write down in which process it is done, and on which GPU."""
    (folder / f"{n}.done").write_text(f"{os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']}")


def tell_node(folder: Path, n: int) -> None:
    """Write down on which machine it is done."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / f"{n}.{node}.begun").touch()
    time.sleep(1)
    (folder / f"{n}.done").write_text(node)
