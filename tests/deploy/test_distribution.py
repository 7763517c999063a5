"""What installing labelcycle gives: the checkout itself, or a refusal with the reason."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
WHY = "labelcycle is an application that runs from its checkout, and there is no wheel of it"


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_uv_bin(), *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def python(tmp_path):
    """The interpreter of an empty environment."""
    assert uv("venv", "--quiet", str(tmp_path / "empty")).returncode == 0
    return tmp_path / "empty" / "bin" / "python"


def test_a_wheel_is_refused_with_the_reason(tmp_path):
    told = uv("build", "--wheel", "--out-dir", str(tmp_path), ".")
    assert told.returncode != 0
    assert WHY in " ".join(told.stderr.split())  # which uv wraps
    assert not list(tmp_path.glob("*.whl"))


def test_installing_a_copy_is_refused_with_the_reason(python):
    told = uv("pip", "install", "--no-deps", "--python", str(python), ".")
    assert told.returncode != 0
    assert WHY in " ".join(told.stderr.split())  # which uv wraps


def test_an_editable_install_imports_the_checkout_and_brings_the_command(python):
    assert uv("pip", "install", "--no-deps", "--python", str(python), "--editable", ".").returncode == 0
    assert (python.parent / "labelcycle").exists()
    where = "import pipeline, connectors, flows, deploy; print(flows.__file__)"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd=python.parent, check=True)
    assert Path(found.stdout.strip()) == ROOT / "flows" / "__init__.py"


def test_every_install_checks_hashes():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if re.search(r"pip (sync|install).*-r |pip sync", line)]
    by_version = [line for line in installs if "--require-hashes" not in line]
    assert len(installs) >= 4
    assert ["--torch-backend cpu" in line for line in by_version] == [True], "the one that the page on security names"
    assert "--require-hashes" in (ROOT / "deploy" / "label_studio_venv.py").read_text(encoding="utf-8")
    for lock in ("requirements.lock", "benchmarks/requirements.lock", "deploy/label-studio.lock"):
        pins = re.findall(r"^[\w.-]+==.*\n(.*)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(pins) > 20
        assert all(following.lstrip().startswith("--hash=sha256:") for following in pins), lock


def test_the_bill_of_materials_holds_the_lock(tmp_path):
    lock = ROOT / "requirements.lock"
    told = subprocess.run(
        ["make", "--no-print-directory", "--assume-old=.venv/ready", "sbom", f"OUT={tmp_path / 'sbom.json'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    listed = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert listed["bomFormat"] == "CycloneDX"
    found = {f"{each['name']}=={each['version']}" for each in listed["components"]}
    assert found == set(re.findall(r"^[\w.-]+==[\w.+!]+", lock.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_changelog_names_the_version_that_the_package_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = next(
        line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "
    )
    assert newest.split()[1] == project["version"]
