"""Secrets of a deployment, and the commands that become its programs; tests/system/test_deployment.py starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import services
from deploy.logins import ServerError
from deploy.secret_files import LOGIN, MAKE, SUPERUSER, make_secrets, read_secret

ROOT = Path(__file__).parents[2]
SERVER = ("--database=localhost:5432", "--listen=127.0.0.1:1", "--url=http://localhost:1")


@pytest.fixture(autouse=True)
def umask_kept():
    """What becomes a program of a deployment sets its umask; the tests after these have their own again."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def test_secrets_are_made_once_each_another_and_private(tmp_path):
    folder = tmp_path / "secrets"
    make_secrets(folder)
    first = {name: read_secret(folder, name) for name in MAKE}
    assert len(set(first.values())) == len(MAKE)
    assert min(map(len, first.values())) >= 24
    assert len(first["label-studio-token"]) == 40
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (folder / LOGIN).unlink()
    (folder / f"{LOGIN}.part").touch()  # a start that was broken off
    make_secrets(folder)
    again = {name: read_secret(folder, name) for name in MAKE}
    assert {name for name in MAKE if again[name] != first[name]} == {LOGIN}


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"", "is empty"), (b"\xff", "no plain text")])
def test_secret_that_is_none_is_told_with_what_to_do(tmp_path, content, why):
    if content is not None:
        (tmp_path / LOGIN).write_bytes(content)
    with pytest.raises(ServerError, match=f"{LOGIN}.*{why}.*(makes those|another is made)"):
        read_secret(tmp_path, LOGIN)


def test_empty_password_of_the_superuser_is_not_advised_away(tmp_path):
    (tmp_path / SUPERUSER).touch()
    with pytest.raises(ServerError, match="is empty: PostgreSQL knows no other"):
        read_secret(tmp_path, SUPERUSER)


def test_client_is_given_the_logins_and_leaves_with_the_code_of_its_command(tmp_path):
    make_secrets(tmp_path)
    code = (
        "import os, sys; print(os.environ['LABEL_STUDIO_API_KEY'], os.environ['PREFECT_API_AUTH_STRING']); sys.exit(3)"
    )
    command = [sys.executable, "-m", "deploy.services", "client", "--secrets", tmp_path, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 3
    password = read_secret(tmp_path, LOGIN)
    assert done.stdout.split() == [read_secret(tmp_path, "label-studio-token"), f"admin:{password}"]


def test_address_of_no_port_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        services.main(["databases", "--secrets=secrets", "--database=postgres"])
    assert "wanted HOST:PORT, came 'postgres'" in capsys.readouterr().err


def test_missing_secrets_are_one_line_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^prefect: cannot read the secret .*deploy\.services secrets --secrets"):
        services.main(["prefect", "--secrets", str(tmp_path / "nowhere"), *SERVER, "--data=data"])


def test_environment_of_label_studio_can_start_it(tmp_path):
    """It has none of our packages: an interpreter that sees the standard library alone must do."""
    asked = ("label-studio", "--secrets=nowhere", *SERVER, "--images=images")
    command = [sys.executable, "-S", "-m", "deploy.services", *asked, f"--data={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr.startswith("label-studio: cannot read the secret")
