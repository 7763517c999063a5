import os
import stat
import subprocess
import sys
from datetime import timedelta

from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

from deploy import logs
from deploy.logs import shorten_logs
from deploy.private import open_private
from deploy.programs import Place, prefect


def test_a_large_log_keeps_its_end_beside_it_and_its_writer_goes_on(tmp_path):
    log = tmp_path / "prefect.log"
    program = "import sys\nfor n in range(100): print('line', n, flush=True)\nsys.stdin.read()\nprint('after')"
    with open_private(log, os.O_APPEND) as output:
        writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=output)
    while b"line 99\n" not in log.read_bytes():
        assert writer.poll() is None
    assert shorten_logs(tmp_path, most_bytes=50) == [log]
    writer.communicate()
    assert log.read_text() == "after\n"
    before = tmp_path / "prefect.log.1"
    assert before.read_text() == "".join(f"line {n}\n" for n in range(94, 100))
    assert stat.S_IMODE(before.stat().st_mode) == 0o600
    assert shorten_logs(tmp_path, most_bytes=50) == []


def test_where_no_server_was_started_there_is_no_log(tmp_path):
    assert shorten_logs(tmp_path / "nowhere") == []


def test_the_local_prefect_forgets_old_runs(tmp_path, monkeypatch):
    _, environment = prefect(Place(tmp_path, "http://127.0.0.1:4200", 4200), "a password")
    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    monkeypatch.setenv(name, environment[name])
    vacuum = ServerServicesDBVacuumSettings()
    assert vacuum.enabled_vacuum_types >= {"events", "flow_runs"}
    assert vacuum.retention_period == timedelta(days=90)


def test_a_log_that_another_run_empties_meanwhile_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.log").write_bytes(b"line\n" * 100)
    (tmp_path / "b.log").write_bytes(b"line\n" * 100)
    shorten = logs._shorten

    def emptied(log, most_bytes):
        if log.name == "a.log":
            log.write_bytes(b"")
        shorten(log, most_bytes)

    monkeypatch.setattr(logs, "_shorten", emptied)
    logs.shorten_logs(tmp_path, most_bytes=50)
    assert (tmp_path / "b.log.1").stat().st_size == 45


def test_a_log_is_emptied_also_where_its_end_cannot_be_kept(tmp_path, monkeypatch):
    (tmp_path / "a.log").write_bytes(b"line\n" * 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "open_private", full)
    assert logs.shorten_logs(tmp_path, most_bytes=50) == []
    assert (tmp_path / "a.log").stat().st_size == 0
