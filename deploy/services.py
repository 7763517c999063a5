"""The programs of a deployment: `python -m deploy.services NAME` becomes one of them, with its secrets out of files.

Containers, systemd and the tests start the same commands.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy import logins, programs, secret_files
from deploy.logins import ServerError
from deploy.private import PRIVATE_UMASK
from deploy.programs import Place, Postgres, Program
from deploy.secret_files import read_secret

POSTGRES_PORT = 5432


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for; most of it becomes another program and does not return."""
    asked = _parser().parse_args(arguments)
    os.umask(PRIVATE_UMASK)
    try:
        asked.do(asked)
    except (ServerError, OSError) as exc:
        sys.exit(f"{asked.name}: {exc}")


def make_secrets(asked: argparse.Namespace) -> None:
    """Write the secrets that are missing."""
    secret_files.make_secrets(asked.secrets)


def make_databases(asked: argparse.Namespace) -> None:
    """Make what is missing on PostgreSQL."""
    from deploy import databases  # the environment of Label Studio has another driver

    host, port = asked.database
    superuser = None if host.startswith("/") else read_secret(asked.secrets, secret_files.SUPERUSER)
    passwords = {
        role: read_secret(asked.secrets, secret_files.role_password(server))
        for server, role in secret_files.ROLES.items()
    }
    databases.make_databases(host, port, superuser, passwords)


def label_studio(asked: argparse.Namespace) -> None:
    """Become Label Studio, the command of which is beside this interpreter."""
    program = Path(sys.executable).with_name("label-studio")
    password = read_secret(asked.secrets, secret_files.LOGIN)
    command, environment = programs.label_studio(_place(asked), password, program=program, images=asked.images)
    token = {"LABEL_STUDIO_USER_TOKEN": read_secret(asked.secrets, secret_files.API_KEY)}
    _become((command, environment | token), asked.data)


def mlflow(asked: argparse.Namespace) -> None:
    """Bring the database of MLflow to the installed version, and become its server."""
    place = _place(asked)
    key = read_secret(asked.secrets, secret_files.SESSION_KEY)
    password = read_secret(asked.secrets, secret_files.LOGIN)
    program = programs.mlflow(place, password, session_key=key, artifacts=asked.artifacts)
    if place.postgres is not None:
        upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", place.postgres.address("postgresql")]
        if subprocess.run(upgrade, env=os.environ | program[1], cwd=asked.data, check=False).returncode:
            raise ServerError("the database could not be brought to this version of MLflow; the lines above say why")
    _become(program, asked.data)


def prefect(asked: argparse.Namespace) -> None:
    """Become Prefect's server."""
    _become(programs.prefect(_place(asked), read_secret(asked.secrets, secret_files.LOGIN)), asked.data)


def client(asked: argparse.Namespace) -> None:
    """Become a command that may log in to all three servers."""
    password = read_secret(asked.secrets, secret_files.LOGIN)
    logged_in = {
        "LABEL_STUDIO_API_KEY": read_secret(asked.secrets, secret_files.API_KEY),
        "MLFLOW_TRACKING_USERNAME": logins.USER,
        "MLFLOW_TRACKING_PASSWORD": password,
        "PREFECT_API_AUTH_STRING": f"{logins.USER}:{password}",
    }
    _become((asked.command, logged_in), Path.cwd())


def _place(asked: argparse.Namespace) -> Place:
    """Where a server is to be, with its databases."""
    asked.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (host, port), (database_host, database_port) = asked.listen, asked.database
    password = read_secret(asked.secrets, secret_files.role_password(asked.name))
    postgres = Postgres(database_host, database_port, secret_files.ROLES[asked.name], password)
    return Place(asked.data, asked.url.rstrip("/"), port, host, postgres)


def _become(program: Program, folder: Path) -> None:
    command, environment = program
    os.chdir(folder)
    os.execvpe(command[0], command, os.environ | environment)  # noqa: S606 (no shell is meant)


def _address(text: str) -> tuple[str, int]:
    """Host and port; the folder of a socket has PostgreSQL's own port."""
    host, _, port = text.rpartition(":")
    if not host and text.startswith("/"):
        return text, POSTGRES_PORT
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted HOST:PORT, came {text!r}")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.services", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")

    def add(name: str, do: object, text: str, *options: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=do)
        for option in ("--secrets", *options):
            command.add_argument(option, required=True, **OPTIONS[option])  # type: ignore[arg-type]
        return command

    server = ("--database", "--data", "--listen", "--url")
    add("secrets", make_secrets, "Make the secrets that are missing.")
    add("databases", make_databases, "Make the roles and databases on PostgreSQL that are missing.", "--database")
    add("label-studio", label_studio, "Become the server of Label Studio.", *server, "--images")
    tracker = add("mlflow", mlflow, "Become the server of MLflow.", *server)
    tracker.add_argument(
        "--artifacts",
        metavar="ADDRESS",
        help="where models and plots go, such as s3://bucket/runs; in --data by default",
    )
    add("prefect", prefect, "Become the server of Prefect.", *server)
    run = add("client", client, "Become a command that may log in to the servers.")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments")
    return parser


OPTIONS: dict[str, dict[str, object]] = {
    "--secrets": {"type": Path, "metavar": "FOLDER", "help": "where the files of the secrets are"},
    "--database": {"type": _address, "metavar": "HOST:PORT", "help": "of PostgreSQL, or the folder of its socket"},
    "--data": {"type": Path, "metavar": "FOLDER", "help": "what the server keeps beside its database"},
    "--listen": {"type": _address, "metavar": "HOST:PORT", "help": "where the server listens"},
    "--url": {"metavar": "URL", "help": "where people and clients reach it"},
    "--images": {"type": Path, "metavar": "FOLDER", "help": "Label Studio shows what lies in folders below"},
}


if __name__ == "__main__":
    main()
