"""What a person reads when a command fails, and the exit code: one line for each kind of error, no traceback."""

import errno
import os
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import sqlalchemy
import typer
from typer.testing import CliRunner

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable, AuthenticationFailed
from connectors.store import StoreError, write_json
from connectors.tracking import TrackerError, TrackerUnavailable
from deploy.logins import ServerError
from flows import cli
from flows.changes import CampaignChanged
from flows.config import ConfigError
from flows.errors import KNOWN, OUTSIDE, CommandGroup, explain_error
from flows.folder import CampaignBusy
from pipeline.networks.errors import ModelError
from pipeline.pool.reasons import PoolError
from pipeline.training.fit import TrainingError

KINDS = [
    (ConfigError("pets.toml, line 2: wrong"), 2, "pets.toml, line 2: wrong"),
    (CampaignChanged("another experiment"), 2, "another experiment"),
    (AuthenticationFailed("no token"), 2, "no token"),
    (PoolError("row 3 is wrong"), 2, "row 3 is wrong"),
    (ModelError("no such model"), 2, "no such model"),
    (AnnotationToolError("refuses"), 1, "refuses"),
    (AnnotationToolUnavailable("is away"), 1, "is away"),
    (TrackerError("refuses"), 1, "refuses"),
    (TrackerUnavailable("is away"), 1, "is away"),
    (CampaignBusy("is at work"), 1, "is at work"),
    (StoreError("a.json: the disk is full"), 1, "a.json: the disk is full"),
    (TrainingError("not finite"), 1, "not finite"),
    (ServerError("ended while starting"), 1, "ended while starting"),
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 1, "/a/b: the disk is full: free some space there"),
    (OSError(errno.EROFS, "Read-only file system", "/a/b"), 1, "/a/b: the disk can only be read"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 1, "/a/b: you have no permission: give yourself"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), 1, "/a/b: it is not there"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), 1, "/a/b: a part of the path is a file"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/a/b"), 1, "/a/b: a folder is there, and must be a file"),
    (MemoryError(), 1, "there is not enough memory"),
    (sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("locked")), 1, "the database fails: (builtins.Excep"),
    (RuntimeError("Failed to reach API at http://127.0.0.1:9/api/"), 1, "Prefect does not answer: Failed to reach"),
    (httpx.ConnectError("All connection attempts failed"), 1, "Prefect does not answer: All connection attempts"),
    (TypeError("of a bug\nwith more lines"), 1, "unexpected: TypeError: of a bug; run again with `labelcycle --debug"),
    (RecursionError("maximum depth"), 1, "unexpected: RecursionError: maximum depth; run again with"),
    (KeyError("[/red]"), 1, "unexpected: KeyError: '[/red]'; run again with"),
]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("COLUMNS", "300")


def failing(exc):
    """A command that fails so."""
    app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)
    app.callback()(cli.labelcycle)

    @app.command()
    def fail() -> None:
        raise exc

    return app


@pytest.mark.parametrize(("exc", "exit_code", "told"), KINDS, ids=[type(exc).__name__ for exc, _, _ in KINDS])
def test_error_of_every_kind_is_one_line_with_its_exit_code(exc, exit_code, told):
    result = CliRunner().invoke(failing(exc), ["fail"])
    assert result.exit_code == exit_code
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"Error: {told}")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug", "fail"], ""), (["fail"], "1")])
def test_debug_shows_where_an_error_came_from(monkeypatch, arguments, variable):
    monkeypatch.setenv("LABELCYCLE_DEBUG", variable)
    result = CliRunner().invoke(failing(OSError(errno.ENOSPC, "No space", "/a")), arguments)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "Error: /a: the disk is full" in result.stderr


def test_every_known_error_is_where_the_table_says():
    for module, name, *_ in (*KNOWN, *OUTSIDE):
        kind = getattr(import_module(module), name)
        assert issubclass(kind, Exception)
        assert kind.__module__ == module or module == "httpx", "else it may not be loaded where the error is"


def test_wrong_usage_and_exits_stay_what_they_are():
    result = CliRunner().invoke(cli.app, ["run"])
    assert (result.exit_code, "Missing argument" in result.output) == (2, True)
    assert CliRunner().invoke(failing(typer.Exit(3)), ["fail"]).exit_code == 3
    assert CliRunner().invoke(failing(BrokenPipeError(errno.EPIPE, "Broken pipe")), ["fail"]).exit_code == 1


@pytest.mark.parametrize("exc", [AnnotationToolUnavailable("away"), TrackerError("no"), ModelError("not fetched")])
def test_error_of_an_outside_system_says_that_a_proxy_is_named_without_its_login(monkeypatch, exc):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example.org:3128")
    message, _ = explain_error(exc)
    assert message == f"{exc}. The environment names a proxy for all but local addresses: " + (
        "HTTPS_PROXY=proxy.example.org:3128"
    )
    assert "proxy" not in explain_error(StoreError("a: the disk is full"))[0]


CAMPAIGN = (
    'name = "pets"\npool = "images"\nclasses = ["a", "b"]\nfolder = "folder"\nbudget = 60\naudit_size = 2\n'
    'schedule = "0 0 1 1 *"\n[mlflow]\nuri = "sqlite:///ml.db"\n'
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in with a campaign file, no home and no Prefect that anybody named."""
    monkeypatch.chdir(tmp_path)
    for name in ("LABELCYCLE_HOME", "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, "")
    (tmp_path / "pets.toml").write_text(CAMPAIGN)
    return tmp_path


def call(*arguments, expect):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("name", ["run", "serve"])
def test_without_a_prefect_server_it_is_said_where_servers_were_looked_for(place, monkeypatch, name):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with temporary_settings({PREFECT_API_URL: None}):
        output = call(name, place / "pets.toml", expect=2)
    assert f"there is no Prefect server: none was started in {place / '.labelcycle'}" in output
    assert "`labelcycle up`" in output
    assert not (place / "folder").exists()


def damage(folder: Path, kind: str) -> None:
    settings = {"format": 1, "name": "pets", "pool": "images", "classes": ["a", "b"], "budget": 9}
    if kind == "a file":
        folder.touch()
        return
    folder.mkdir()
    if kind == "foreign":
        write_json(folder / "campaign.json", {"mine": 1})
    elif kind == "half":
        (folder / "campaign.json").write_text('{"name": ')
    elif kind == "rounds alone":
        (folder / "rounds" / "0000").mkdir(parents=True)
    elif kind == "table":
        write_json(folder / "campaign.json", settings)
        (folder / "rounds" / "0000").mkdir(parents=True)
        (folder / "rounds" / "0000" / "batch.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("a file", "must be a folder for the campaign, and is a file"),
        (
            "foreign",
            "campaign.json has no format, and this version of labelcycle reads the format 1",
        ),
        ("half", "campaign.json is damaged"),
        ("rounds alone", "holds rounds and no campaign.json, so it is no campaign"),
        ("table", "batch.parquet is damaged"),
    ],
)
def test_status_of_a_folder_that_is_not_ours_or_damaged_says_which_file(place, kind, told):
    damage(place / "folder", kind)
    assert told in call("status", "pets.toml", expect=1)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_last_campaign_that_is_damaged_is_told(place, text):
    (place / ".labelcycle").mkdir()
    (place / ".labelcycle" / "last-campaign.json").write_text(text)
    assert "last-campaign.json is damaged" in call("status", expect=1)


@pytest.mark.parametrize(
    "arguments", [["up", "pets.toml"], ["down"], ["status"], ["cache"], ["demo"], ["run", "pets.toml"]]
)
def test_home_that_is_a_file_is_told_by_every_command(place, monkeypatch, arguments):
    monkeypatch.setenv("LABELCYCLE_HOME", str(place / "pets.toml"))
    assert "LABELCYCLE_HOME must name a folder, and" in call(*arguments, expect=1)


@pytest.mark.parametrize("name", ["run", "serve", "status", "up"])
def test_campaign_file_of_any_name_and_kind_is_told_in_one_line(place, name):
    assert "no such campaign file" in call(name, "a[/red].toml", expect=2)
    assert "is a folder; name the campaign's file" in call(name, place, expect=2) or name == "status"
    assert "a part of the path is a file" in call(name, "pets.toml/a.toml", expect=2)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_told(place):
    place.chmod(0o500)
    assert "you have no permission" in call("init", "a.toml", expect=1)
    place.chmod(0o700)
