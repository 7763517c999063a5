"""What a store says of credentials, rights and buckets stops a run; what it says of an object is that object's alone.

A server of the tests answers as each kind of store does: code and status are of its documentation, or seen.
"""

import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from connectors.objects import store as store_module
from connectors.objects.addresses import Place
from connectors.objects.store import KINDS, ListingRefused, get, list_objects, look_at
from pipeline.pool.reasons import GONE, PoolError, PoolRefused, PoolUnavailable

pytestmark = pytest.mark.usefixtures("new_connections")
KEYS = {
    "s3": {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_REGION": "us-east-1"},
    "gs": {"GOOGLE_BEARER_TOKEN": "hunter2"},
    "az": {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "aHVudGVyMg=="},
}
RIGHTS = {"s3": "s3:ListBucket", "gs": "Storage Object Viewer", "az": "Storage Blob Data Reader"}


@pytest.fixture(params=KINDS)
def store(request, monkeypatch):
    """A store of each kind that gives the same answer to everything: set `status` and `code`."""
    answer = SimpleNamespace(scheme=request.param, place=Place(request.param, "b", "pool/a.png"), status=200, code="")

    class Store(BaseHTTPRequestHandler):
        def do_GET(self):
            content = f"<Error><Code>{answer.code}</Code><Message>No.</Message></Error>".encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    monkeypatch.setattr(store_module, "PATIENCE", timedelta(seconds=0.2))
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        endpoint = {KINDS[request.param].endpoints[0]: f"http://127.0.0.1:{server.server_port}/account"}
        for name, value in (KEYS[request.param] | endpoint).items():
            monkeypatch.setenv(name, value)
        yield answer
        server.shutdown()


def list_all(place):
    return list(list_objects(place._replace(key="pool")))


def refused(store, status, code, *asks):
    """What is raised where each of these is asked for."""
    store.status, store.code = status, code
    for ask in asks:
        with pytest.raises((PoolError, PoolUnavailable)) as told:
            ask(store.place)
        assert "hunter2" not in str(told.value)
        assert "aHVudGVyMg" not in str(told.value)
        yield told.value


def test_listing_that_is_forbidden_is_refused_and_the_right_is_named(store):
    (error,) = refused(store, 403, "AccessDenied", list_all)
    assert isinstance(error, ListingRefused)
    assert "these credentials may not list it" in str(error)
    assert RIGHTS[store.scheme] in str(error)


def test_object_that_is_forbidden_is_set_aside(store):
    for error in refused(store, 403, "AccessDenied", get, look_at):
        assert isinstance(error, PoolError)
        assert str(error) == "cannot be read: forbidden: these credentials may not read it"


def test_credentials_that_are_not_taken_are_no_fault_of_an_object(store):
    store_module._READS.count(store.place, is_forbidden=False)  # so that the rule of the first reads says nothing
    for error in refused(store, 401, "", get, look_at, list_all):
        assert isinstance(error, PoolRefused)
        assert "the store refuses the credentials (status 401): the environment must hold" in str(error)
        assert next(iter(KEYS[store.scheme])) in str(error) or store.scheme == "gs"


@pytest.mark.parametrize("code", ["AuthenticationFailed", "ExpiredToken", "Server failed to authenticate the request"])
def test_code_that_means_the_credentials_counts_whatever_the_status(store, code):
    for error in refused(store, 403, code, get, list_all):
        assert isinstance(error, PoolRefused)
        assert f"the store refuses the credentials ({code})" in str(error)


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound", ""])
def test_bucket_that_is_not_there_is_told_with_the_variable_that_leads_elsewhere(store, code):
    (error,) = refused(store, 404, code, list_all)
    assert isinstance(error, PoolRefused)
    assert f"the store has no such bucket: mend the address, or {KINDS[store.scheme].endpoints[0]}" in str(error)


@pytest.mark.parametrize("told", ["", "redirect without a token request"])
def test_object_that_is_not_there_is_gone_whatever_is_told_beside(store, told):
    store.place = store.place._replace(key="pool/redirect/a.png")
    for error in refused(store, 404, told, get, look_at):
        assert isinstance(error, PoolError)
        assert str(error).startswith(GONE)


def test_server_that_fails_is_away_and_nothing_is_refused(store):
    for error in refused(store, 503, "SlowDown", get, list_all):
        assert type(error) is PoolUnavailable
        assert "does not answer as it should (status 503), after 0.2 s of trying" in str(error)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "the key file cannot be opened"),
        ("hunter2", "the key file is none of a service account or a user"),
        ('{"type": "external_account", "audience": "hunter2"}', "the key file is none of a service account or a user"),
        (
            '{"type": "service_account", "client_email": "a@b.c", "private_key_id": "1", "private_key": "hunter2"}',
            "the key in the key file is none",
        ),
    ],
)
def test_key_file_of_google_that_holds_none_is_told(content, why, monkeypatch, tmp_path):
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(PoolRefused, match=f"gs://b: {why}: the environment must hold GOOGLE_APPLICATION_CR") as told:
        get(Place("gs", "b", "a.png"))
    assert "hunter2" not in str(told.value)


def test_account_key_of_azure_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter 2")
    with pytest.raises(PoolRefused, match="az://b: the account key is not in base64: the environment must hold AZURE"):
        get(Place("az", "b", "a.png"))
