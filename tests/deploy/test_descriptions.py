"""The files that describe a deployment: official schemas and linters take them, and what they name is there."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from deploy.databases import DATABASES
from deploy.programs import HEALTH
from deploy.secret_files import MAKE, ROLES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PINNED = re.compile(r"[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*")
TORCH = re.compile(r"torch|torchvision|triton|cuda-\w+|nvidia-(?!ml-py$).+")

each_service = pytest.mark.parametrize("name", SERVICES)


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, file], capture_output=True, text=True, check=False)


def test_compose_file_follows_the_specification(tmp_path):
    schema = ["--builtin-schema", "vendor.compose-spec"]
    checked = CliRunner().invoke(check_jsonschema, [*schema, str(DEPLOY / "compose.yaml")])
    assert checked.exit_code == 0, checked.output
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("service_healthy", "healthy"))
    assert CliRunner().invoke(check_jsonschema, [*schema, str(wrong)]).exit_code == 1


@each_service
def test_service_names_volumes_and_services_that_are_there(name):
    service = SERVICES[name]
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert ("healthcheck" in SERVICES[other]) == (how["condition"] == "service_healthy"), other
        assert (SERVICES[other]["restart"] == "on-failure") == (how["condition"] == "service_completed_successfully")
    for volume in service["volumes"]:
        assert volume["type"] == "bind" or volume["source"] in COMPOSE["volumes"]
    secrets = re.findall(r"/secrets/([\w-]+)", str(service.get("environment", "")))
    assert set(secrets) <= set(MAKE)


@each_service
def test_service_is_pinned_private_and_no_root(name):
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"])
    if service["image"].startswith("labelcycle:"):
        (target,) = (
            each["build"]["target"]
            for each in SERVICES.values()
            if "build" in each and each["image"] == service["image"]
        )
        assert service["image"] == f"labelcycle:{VERSION}-{target}", "one service builds an image, else builds collide"
        assert f" AS {target}\n" in (DEPLOY / "Dockerfile").read_text()
    assert service["user"] == "${LABELCYCLE_UID:-1000}:${LABELCYCLE_GID:-1000}"
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == ("on-failure" if name in ("secrets", "databases") else "unless-stopped")
    assert ("healthcheck" in service) == (service["restart"] == "unless-stopped")
    assert {port.rpartition(":")[0] for port in service.get("ports", [])} <= {
        f"127.0.0.1:{port.rpartition(':')[2]}" for port in service.get("ports", [])
    }
    for key, value in service.get("environment", {}).items():
        assert "PASSWORD" not in key or value.startswith("/secrets/"), f"{name} has a password of its own: {key}"


def test_only_what_people_open_is_published():
    assert {name for name, service in SERVICES.items() if "ports" in service} == set(HEALTH)


def test_whatever_runs_a_campaign_can_be_given_a_webhook():
    assert SERVICES["worker"]["environment"]["LABELCYCLE_WEBHOOK"] == "${LABELCYCLE_WEBHOOK:-}"
    unit = (DEPLOY / "systemd" / "labelcycle-serve@.service").read_text(encoding="utf-8")
    assert "\nEnvironmentFile=-/etc/labelcycle.env\n" in unit


def test_labelled_images_are_read_only_for_label_studio_and_are_all_that_it_sees_of_the_disk():
    volumes = {volume["target"]: volume for volume in SERVICES["label-studio"]["volumes"]}
    assert set(volumes) == {"/secrets", "/data", "/images"}
    assert volumes["/images"]["read_only"]
    assert volumes["/images"]["source"] == SERVICES["worker"]["volumes"][-1]["source"]


def test_each_role_has_a_password_and_databases():
    assert set(ROLES) == set(HEALTH)
    assert set(ROLES.values()) == set(DATABASES)


def test_dockerfile_follows_the_rules_of_its_linter(tmp_path):
    checked = hadolint(DEPLOY / "Dockerfile")
    assert checked.returncode == 0, checked.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install torch\n")
    assert hadolint(tmp_path / "Dockerfile").returncode == 1


def test_images_are_built_on_a_tag_from_locks_with_hashes_for_a_user_who_is_not_root():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    stages = [stage.splitlines() for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]]
    names = {stage[0].split(" AS ")[1] for stage in stages}
    for stage in stages:
        origin = stage[0].split()[0]
        assert origin in names | {"scratch"} or PINNED.fullmatch(origin)
    for stage in (stage for stage in stages if stage[-2:-1] and any("ENTRYPOINT" in line for line in stage)):
        assert "USER 1000:1000" in stage
        assert not [line for line in stage if "RUN" in line], "what installs is in a stage before"
    assert all(
        line.startswith("COPY --chmod=")
        for line in text.splitlines()
        if re.match(r"COPY (.* )?(pipeline|connectors|flows|deploy) ", line)
    )
    assert text.count("--require-hashes") == text.count("pip --python") == 3
    assert "apt-get" not in text


def test_context_of_the_images_holds_no_environment_campaign_or_secret():
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert patterns[1] == "*"
    assert {line[1:] for line in patterns if line.startswith("!")} == {
        "pipeline", "connectors", "flows", "deploy/*.py", "deploy/*.lock", "deploy/without-cuda.sed", "LICENSE",
    }  # fmt: skip
    assert "**/.labelcycle" in patterns


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))


def test_lock_without_cuda_is_the_lock_less_torch_and_what_it_brings():
    lock = (DEPLOY / "requirements.lock").read_text(encoding="utf-8")
    rest = subprocess.run(
        ["sed", "-E", "-f", DEPLOY / "without-cuda.sed", DEPLOY / "requirements.lock"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    kept = {name: version for name, version in pins(lock).items() if not TORCH.fullmatch(name)}
    assert pins(rest) == kept
    assert {"torch", "torchvision"} < set(pins(lock)) - set(kept)
    needs_hash = [line for line in rest.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert all(line.endswith("\\") for line in needs_hash)
    orphans = re.findall(r"(?<!\\)\n    --hash", rest)
    assert not orphans, "a hash without its package"


def test_install_without_cuda_takes_the_lock_less_torch_and_torch_from_its_own_index():
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "install", "TORCH=cpu"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.splitlines()  # fmt: skip
    synced = [line for line in planned if "pip sync" in line]
    assert [line.split()[-1] for line in synced] == [".venv/cpu.lock"]
    assert all("--require-hashes" in line for line in synced)
    assert [line for line in planned if line.startswith("sed -E -f deploy/without-cuda.sed requirements.lock >")]
    assert [line for line in planned if "--torch-backend cpu" in line and "requirements.lock" in line]


def test_images_hold_the_versions_that_are_tested():
    tested = pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    shipped = pins((DEPLOY / "requirements.lock").read_text(encoding="utf-8"))
    assert {name: tested.get(name) for name in shipped} == shipped
    assert not {"pytest", "ruff", "mypy"} & set(shipped)
    assert {"psycopg2-binary", "asyncpg", "flask-wtf", "uv"} <= set(shipped)


def verify_units(folder: Path) -> str:
    """What systemd has against units, whose programs are taken from this machine: it exits with 0 all the same."""
    shutil.copytree(DEPLOY / "systemd", folder, dirs_exist_ok=True)
    for path in folder.rglob("*.*"):
        if path.is_file():
            text = re.sub(r"/opt/labelcycle/[.\w-]+/bin/\w+", sys.executable, path.read_text(encoding="utf-8"))
            path.write_text(text.replace("/opt/labelcycle", str(ROOT)), encoding="utf-8")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, folder.glob("*.service")))],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return checked.stderr


def test_systemd_understands_each_line_of_the_units(tmp_path):
    assert verify_units(tmp_path) == ""
    common = DEPLOY / "systemd" / "labelcycle-.service.d" / "common.conf"
    assert {"User=labelcycle", "KillMode=mixed", "TimeoutStopSec=60"} <= set(common.read_text().splitlines())


def test_systemd_would_tell_of_a_wrong_line(tmp_path, monkeypatch):
    units = tmp_path / "deploy" / "systemd"
    shutil.copytree(DEPLOY / "systemd", units)
    common = units / "labelcycle-.service.d" / "common.conf"
    common.write_text(common.read_text().replace("KillMode", "KilMode"))
    monkeypatch.setattr(f"{__name__}.DEPLOY", tmp_path / "deploy")
    assert "KilMode" in verify_units(tmp_path / "units")


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_unit_calls_services_as_they_are(unit):
    for line in re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE):
        check_call(line.split()[1:])


@each_service
def test_compose_file_calls_services_as_they_are(name):
    if name != "postgres":
        check_call(["-m", "deploy.services", *SERVICES[name]["command"]])


def check_call(words: list[str]) -> None:
    from deploy.services import _parser

    assert words[:2] == ["-m", "deploy.services"]
    asked = _parser().parse_args([re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in words[2:]])
    assert callable(asked.do)


def resources(manifest: Path) -> list[dict]:
    return list(yaml.safe_load_all(manifest.read_text(encoding="utf-8")))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.name)
def test_manifest_follows_the_schemas_of_kubernetes(manifest):
    for resource in resources(manifest):
        kubernetes_validate.validate(resource, "1.37", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(resource | {"speck": {}}, "1.37", strict=True)


def test_pods_are_alike_private_and_have_volumes_that_are_there():
    claims = {each["metadata"]["name"] for each in resources(DEPLOY / "kubernetes" / "storage.yaml")}
    (serve,) = resources(DEPLOY / "kubernetes" / "serve.yaml")
    (run,) = resources(DEPLOY / "kubernetes" / "run.yaml")
    pods = [serve["spec"]["template"]["spec"], run["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    commands = [pod["containers"][0].pop("command") for pod in pods]
    assert commands[0] == ["labelcycle", "serve", "/campaigns/pets.toml"]
    assert commands[1][:2] == ["/bin/sh", "-c"]
    assert pods[0]["containers"] == pods[1]["containers"]
    assert pods[0]["volumes"] == pods[1]["volumes"]
    (container,) = pods[0]["containers"]
    assert container["image"].endswith(f"/labelcycle:{VERSION}-cpu")
    assert pods[0]["securityContext"]["runAsNonRoot"]
    assert container["envFrom"] == [{"secretRef": {"name": "labelcycle"}}]
    named = {volume["name"] for volume in pods[0]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == named
    assert {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pods[0]["volumes"]
        if "persistentVolumeClaim" in volume
    } == claims


RAY = yaml.safe_load((DEPLOY / "ray" / "kubernetes.yaml").read_text(encoding="utf-8"))["items"]


@pytest.mark.parametrize("resource", RAY, ids=lambda resource: f"{resource['kind']}-{resource['metadata']['name']}")
def test_cluster_of_ray_follows_the_schemas_of_kubernetes(resource):
    kubernetes_validate.validate(resource, "1.37", strict=True)


def test_machines_of_ray_have_the_token_of_a_secret_and_are_reached_by_each_other_alone():
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in RAY if one["kind"] == "Deployment"}
    (policy,) = (one["spec"] for one in RAY if one["kind"] == "NetworkPolicy")
    assert policy["podSelector"] == policy["ingress"][0]["from"][0]["podSelector"]
    assert all(one["spec"].get("type") is None for one in RAY if one["kind"] == "Service"), "nothing is published"
    for pod in pods.values():
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one.get("value") or one["valueFrom"] for one in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "labelcycle-ray", "key": "token"}}
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert container["image"].endswith(f"/labelcycle:{VERSION}-cpu")
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
    worker, campaign = pods["labelcycle-ray-worker"]["spec"], pods["labelcycle-pets"]["spec"]
    assert worker["volumes"] == campaign["volumes"]
    assert worker["containers"][0]["volumeMounts"] == campaign["containers"][0]["volumeMounts"], "at the same paths"


def test_machines_of_ray_are_started_with_options_that_ray_has():
    from ray.scripts.scripts import start

    containers = [one["spec"]["template"]["spec"]["containers"][0] for one in RAY if one["kind"] == "Deployment"]
    lines = [" ".join(one["command"]).replace("/bin/sh -c ", "").split(" &&")[0] for one in containers]
    for line in lines:
        words = line.split()
        assert words[:2] == ["ray", "start"]
        start.make_context("start", words[2:])
    (service,) = (one for one in RAY if one["kind"] == "Service")
    address = f"--address={service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert [address in line for line in lines] == [False, True, True]
    assert "--head" in lines[0]
    assert f"--port={service['spec']['ports'][0]['port']}" in lines[0]


@pytest.fixture
def run_of_the_cron_job(tmp_path):
    """Start what the CronJob starts, with a `labelcycle` that is a script."""
    (run,) = resources(DEPLOY / "kubernetes" / "run.yaml")
    (container,) = run["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]

    def start(script: str) -> subprocess.Popen:
        (tmp_path / "labelcycle").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "labelcycle").chmod(0o700)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.Popen(container["command"], env={"PATH": path}, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(("code", "is_failure"), [(0, False), (3, False), (1, True), (2, True)])
def test_run_of_the_cron_job_fails_unless_done_or_waiting_for_labels(run_of_the_cron_job, code, is_failure):
    with run_of_the_cron_job(f"exit {code}") as run:
        assert bool(run.wait(20)) == is_failure


def test_run_of_the_cron_job_is_ended_in_order(run_of_the_cron_job):
    script = "trap 'echo ended; exit 0' TERM; echo began; while :; do sleep 0.05; done"
    with run_of_the_cron_job(script) as run:
        assert run.stdout.readline() == "began\n"
        run.terminate()
        assert run.wait(20) == 0
        assert run.stdout.read() == "ended\n"
