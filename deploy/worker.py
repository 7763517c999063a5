"""Serves all campaigns of a folder: a `labelcycle serve` for each file with a schedule, started again when it ends."""

import argparse
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 5.0
AGAIN_SECONDS = 60.0
"""Between the end of a `labelcycle serve` and the next try."""
STOP_SECONDS = 55.0
"""What campaigns get to end in, together; `labelcycle serve` itself takes up to 45."""
ENDING = (signal.SIGTERM, signal.SIGINT)
SERVE = (sys.executable, "-m", "flows.cli", "serve")


@dataclass
class Serving:
    """A campaign that is served.

    Attributes:
        schedule: that it was started with; another one wants another start.
    """

    process: subprocess.Popen[bytes]
    schedule: str


class Worker:
    """Looks which campaigns there are, and sees to it that each is served."""

    def __init__(self, folder: Path, *, command: Sequence[str] = SERVE) -> None:
        self.folder, self.command = folder, command
        self.serving: dict[Path, Serving] = {}
        self.not_before: dict[Path, float] = {}

    def look(self) -> None:
        """Start and stop what has to be, once."""
        wanted = self.wanted()
        for file, served in list(self.serving.items()):
            code = served.process.poll()
            if code is not None:
                say(f"{file.name}: labelcycle serve ended with {code}; it is started again in {AGAIN_SECONDS:.0f} s")
                self.not_before[file] = time.monotonic() + AGAIN_SECONDS
                del self.serving[file]
            elif wanted.get(file) != served.schedule:
                say(f"{file.name}: its schedule is another one, or gone")
                end([self.serving.pop(file).process])
        for file, schedule in wanted.items():
            if file not in self.serving and time.monotonic() >= self.not_before.get(file, 0.0):
                self.serving[file] = Serving(subprocess.Popen([*self.command, str(file)]), schedule)

    def wanted(self) -> dict[Path, str]:
        """Campaign file -> its schedule; a file that cannot be read now, as somebody writes it, keeps its own."""
        found = {}
        for file in sorted(self.folder.glob("*.toml")):
            try:
                settings = tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                if file in self.serving:
                    found[file] = self.serving[file].schedule
                continue
            if settings.get("schedule"):
                found[file] = f"{settings['schedule']} {settings.get('timezone', '')}"
        return found

    def stop(self) -> None:
        """End all, in order."""
        end([served.process for served in self.serving.values()])
        self.serving.clear()


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes: politely, and by force those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()


def say(line: str) -> None:
    """Print a line for whoever reads the log."""
    print(line, flush=True)  # noqa: T201 (its log is its screen)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal asks to end."""
    parser = argparse.ArgumentParser(prog="python -m deploy.worker", description=__doc__)
    parser.add_argument("--alive", type=Path, metavar="FILE", help="touched at each look, for checks of health")
    parser.add_argument("folder", type=Path, help="the campaign files are FOLDER/*.toml")
    asked = parser.parse_args(arguments)
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is no folder")

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # asked once is asked
        sys.exit(0)

    for number in ENDING:
        signal.signal(number, stop)
    worker = Worker(asked.folder)
    say(f"serving the campaigns in {asked.folder}, each *.toml with a schedule")
    try:
        while True:
            worker.look()
            if asked.alive:
                asked.alive.touch()
            time.sleep(LOOK_SECONDS)
    finally:
        worker.stop()


if __name__ == "__main__":
    main()
