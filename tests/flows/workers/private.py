"""A run that has a cluster, private or by address: `python -m tests.flows.workers.private FOLDER [ADDRESS]`."""

import sys
import time
from pathlib import Path

from flows.workers.cluster import joined
from flows.workers.ray import Spread
from flows.workers.settings import WorkerSettings
from tests.flows.workers.pieces import tell_node


def main(folder: Path, address: str | None = None) -> None:
    settings = WorkerSettings(workers="ray", ray_address=address)
    with joined(settings, folder):
        Spread(settings, folder, tell_node).do([0], lambda _n: None)
        print("ready", flush=True)  # noqa: T201
        time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
