"""What deploy/compose.yaml describes, without containers: a PostgreSQL of our own, and the same commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import psycopg2
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient

from connectors.label_studio.person import SimulatedAnnotator
from deploy.logins import USER
from deploy.processes import free_port, members
from deploy.programs import inherited_environment
from flows.artefacts import POOL
from flows.folder import Campaign
from tests.conftest import LABEL_STUDIO_VENV
from tests.system.conftest import TEMPLATE

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
SERVERS = ("label-studio", "mlflow", "prefect")
SECONDS = 400
NEVER = 'schedule = "0 0 1 1 *"'
MLFLOW = '[mlflow]\nuri = "http://mlflow.localhost:5000"\n'


def wait_for(look, told, *, seconds=SECONDS, pause=0.5):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, told()
        time.sleep(pause)
    return found


def postgres_program(name: str) -> str:
    """A program of PostgreSQL, of the newest version that Debian has installed."""
    found = [str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    program = max(found, key=lambda path: int(path.split("/")[4]), default=None) or shutil.which(name)
    assert program, f"this test needs PostgreSQL, which has {name}: apt-get install postgresql"
    return program


class Machine:
    """Volumes are folders of this machine, addresses are free ports of it, containers are processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = {}
        ports = {number: free_port() for number in ("5432", "8080", "5000", "4200")}
        self.addresses = {
            f"{host}:{number}": f"127.0.0.1:{port}"
            for number, port in ports.items()
            for host in ("postgres", "0.0.0.0", "127.0.0.1")
        }
        names = {"labelstudio": "8080", "mlflow": "5000", "prefect": "4200"}
        self.addresses |= {f"{name}.localhost:{number}": f"127.0.0.1:{ports[number]}" for name, number in names.items()}
        for name in ("campaigns", "images"):
            (folder / name).mkdir()

    def here(self, text: str, service: str) -> str:
        """What the compose file or a campaign file means, on this machine."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        for there, address in self.addresses.items():
            text = text.replace(there, address)
        for volume in COMPOSE[service].get("volumes", []):
            text = re.sub(rf"(?<![\w.]){volume['target']}\b", str(self.volume(volume["source"])), text)
        return text

    def volume(self, source: str) -> Path:
        source = re.sub(r"\$\{\w+:-\./(\w+)\}", r"\1", source)
        (self.folder / source).mkdir(exist_ok=True)
        return self.folder / source

    def environment(self, service: str) -> dict[str, str]:
        program = (LABEL_STUDIO_VENV if service == "label-studio" else Path(sys.executable).parents[1]) / "bin"
        own = {name: self.here(value, service) for name, value in COMPOSE[service].get("environment", {}).items()}
        return (
            inherited_environment()
            | own
            | {
                "PATH": f"{program}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            }
        )

    def begin(self, service: str) -> subprocess.Popen:
        command = [
            "python",
            "-m",
            "deploy.services",
            *(self.here(word, service) for word in COMPOSE[service]["command"]),
        ]
        with self.log(service).open("ab") as log:
            self.processes[service] = subprocess.Popen(
                command,
                env=self.environment(service),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[service]

    def finish(self, service: str) -> None:
        assert self.begin(service).wait(SECONDS) == 0, self.printed(service)

    def is_healthy(self, service: str) -> bool:
        """Whether the check in the compose file passes."""
        kind, *command = COMPOSE[service]["healthcheck"]["test"]
        command = [self.here(word, service) for word in command]
        command = ["sh", "-c", *command] if kind == "CMD-SHELL" else command
        process = self.processes.get(service)
        assert process is None or process.poll() is None, self.printed(service)
        return subprocess.run(command, env=self.environment(service), capture_output=True, check=False).returncode == 0

    def wait_until_healthy(self, *services: str) -> None:
        for service in services:
            wait_for(lambda: self.is_healthy(service), lambda: self.printed(service), pause=2)  # noqa: B023

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def printed(self, service: str) -> str:
        return f"{service}:\n" + self.log(service).read_text(errors="replace")[-6000:]

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text().strip()

    def url(self, name: str) -> str:
        return f"http://{self.addresses[name]}"

    def end(self) -> None:
        """Kill everything: what it keeps is thrown away."""
        for process in self.processes.values():
            if process.poll() is None:
                for each in members(process.pid, psutil.Process(process.pid).create_time()):
                    each.kill()
            process.wait()


@pytest.fixture
def machine():
    """In a folder that the user of PostgreSQL may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="labelcycle-"))
    folder.chmod(0o711)
    made = Machine(folder)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


def begin_postgres(machine: Machine) -> None:
    """What the image of PostgreSQL does at its first start; the program refuses to run as root."""
    data = machine.folder / "postgres"
    data.mkdir(mode=0o700)
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(data, "postgres", "postgres")
    first = data.with_name("superuser")
    first.write_text(machine.secret("postgres-password"))
    authenticate = COMPOSE["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]
    command = [postgres_program("initdb"), authenticate, "--username=postgres", f"--pwfile={first}", "--no-sync", data]
    subprocess.run(command, **who, check=True, capture_output=True, cwd="/")
    port = machine.addresses["postgres:5432"].split(":")[1]
    command = [postgres_program("postgres"), "-D", data, "-p", port, "-k", data, "-c", "fsync=off"]
    with machine.log("postgres").open("wb") as log:
        machine.processes["postgres"] = subprocess.Popen(
            command, **who, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    machine.wait_until_healthy("postgres")


def write_campaign(machine: Machine, digits) -> dict[str, str]:
    """The images and the file; the label of each image by its name."""
    (machine.folder / "images" / "digits").mkdir()
    truth = {}
    for place, (pixels, label) in enumerate(zip(*digits, strict=True)):
        name = f"{place:03d}.png"
        Image.fromarray(pixels).save(machine.folder / "images" / "digits" / name)
        truth[name] = str(label)
    text = TEMPLATE.format(name="digits", extra=NEVER, label_studio="http://labelstudio.localhost:8080") + MLFLOW
    text = text.replace('pool = "images"', 'pool = "/images/digits"')
    (machine.folder / "campaigns" / "digits.toml").write_text(machine.here(text, "worker"))
    return truth


def ask_for_run(machine: Machine) -> str:
    """Start a run as a person does in Prefect's pages; the state that it ends in."""
    login = (USER, machine.secret("password"))
    with SyncPrefectClient(f"{machine.url('prefect.localhost:4200')}/api", auth_string=":".join(login)) as prefect:
        found = prefect.read_deployment_by_name("labelcycle-round/digits")
        run = prefect.create_flow_run_from_deployment(found.id)

        def state():
            now = prefect.read_flow_run(run.id).state
            return now.name if now.is_final() else None

        return wait_for(state, lambda: machine.printed("worker"), seconds=200)


@pytest.mark.timeout(1200)  # Label Studio makes its tables, which takes from half a minute to three
def test_topology_of_the_compose_file_carries_a_campaign(machine, digits, monkeypatch):
    machine.finish("secrets")
    begin_postgres(machine)
    machine.finish("databases")
    password, token = machine.secret("password"), machine.secret("label-studio-token")
    for name in SERVERS:
        machine.begin(name)
    truth = write_campaign(machine, digits)
    machine.finish("databases")  # a second time: as after each `docker compose up`
    machine.wait_until_healthy(*SERVERS)
    assert machine.secret("password") == password

    worker = machine.begin("worker")
    wait_for(lambda: "serving digits from" in machine.printed("worker"), lambda: machine.printed("worker"), seconds=120)
    machine.wait_until_healthy("worker")
    assert ask_for_run(machine) == "AskedForLabels", machine.printed("worker")
    label_studio = machine.url("labelstudio.localhost:8080")
    folder = Campaign(machine.folder / "campaigns" / "campaign")
    pool = folder.read(POOL).table
    answers = {item: truth[Path(uri).name] for item, uri in zip(pool["item_id"], pool["uri"], strict=True)}
    assert SimulatedAnnotator(url=label_studio, token=token, project="digits", answers=answers).label().item_ids
    assert ask_for_run(machine) == "AskedForLabels", machine.printed("worker")

    status = [*COMPOSE["worker"]["command"][:3], "labelcycle", "status", "--json", "/campaigns/digits.toml"]
    command = ["python", "-m", "deploy.services", *(machine.here(word, "worker") for word in status)]
    told = subprocess.run(command, env=machine.environment("worker"), capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["n_labels_paid"] == 22
    check_what_strangers_get(machine)
    check_that_roles_keep_apart(machine)
    check_mlflow(machine, monkeypatch)
    check_that_no_secret_shows(machine)

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert "  stopped" in machine.printed("worker").splitlines()[-1]


def check_what_strangers_get(machine: Machine) -> None:
    mlflow, prefect = machine.url("mlflow.localhost:5000"), f"{machine.url('prefect.localhost:4200')}/api"
    asked = [
        httpx.get(f"{machine.url('labelstudio.localhost:8080')}/api/projects"),
        httpx.get(f"{mlflow}/"),
        httpx.post(f"{prefect}/flows/filter", json={}),
    ]
    assert [answer.status_code for answer in asked] == [401, 401, 401]
    page = httpx.get(machine.url("prefect.localhost:4200"), follow_redirects=True)
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert (machine.folder / "prefect" / "ui").is_dir(), "else the pages are copied to where they are installed"
    foreign = {"Host": "example.org"}
    assert httpx.get(f"{mlflow}/", headers=foreign, auth=(USER, machine.secret("password"))).status_code == 403
    assert httpx.get(f"{machine.url('labelstudio.localhost:8080')}/user/login/", headers=foreign).status_code == 400


def check_that_roles_keep_apart(machine: Machine) -> None:
    host, port = machine.addresses["postgres:5432"].split(":")
    login = {"host": host, "port": port, "user": "mlflow", "password": machine.secret("postgres-mlflow-password")}
    psycopg2.connect(dbname="mlflow", **login).close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(dbname="label_studio", **login)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(dbname="mlflow", **login | {"password": "another"})


def check_mlflow(machine: Machine, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", machine.secret("password"))
    client = MlflowClient(machine.url("mlflow.localhost:5000"))
    experiment = client.get_experiment_by_name("digits")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == ["digits", "member-0", "member-1", "round 0", "round 1"]
    assert list((machine.folder / "mlflow" / "artifacts").rglob("MLmodel"))


def check_that_no_secret_shows(machine: Machine) -> None:
    """Neither in a list of processes nor in what the programs print."""
    secrets = {path.name: path.read_text().strip() for path in (machine.folder / "secrets").iterdir()}
    assert len(secrets) == len(set(secrets.values())) == 7
    assert {path.stat().st_mode & 0o777 for path in (machine.folder / "secrets").iterdir()} == {0o600}
    ours = [psutil.Process(process.pid) for process in machine.processes.values() if process.poll() is None]
    family = [each for leader in ours for each in (leader, *leader.children(recursive=True))]
    texts = {" ".join(each.cmdline()) for each in family} | {path.read_text() for path in machine.folder.glob("*.log")}
    assert len(family) > 5
    for name, secret in secrets.items():
        assert not [text for text in texts if secret in text], name
