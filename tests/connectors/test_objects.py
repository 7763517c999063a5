"""Objects are listed, looked at and read; what goes wrong is told, and secrets never are."""

import os
import re
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from connectors.objects import reading as reading_module
from connectors.objects import store as store_module
from connectors.objects.addresses import Place, is_address, place_of
from connectors.objects.cache import ImageCache, shrink, usage
from connectors.objects.reading import Objects
from connectors.objects.store import Found, ListingRefused, get, list_objects, look_at
from pipeline.pool.reasons import CHANGED, PoolError, PoolRefused, PoolUnavailable
from tests.s3 import IMPOSTOR, READER

pytestmark = pytest.mark.usefixtures("new_connections")


def use(monkeypatch, server, identity):
    for name, value in server.environment(identity).items():
        monkeypatch.setenv(name, value)


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("s3://b", Place("s3", "b", "")),
            ("S3://b/x/", Place("s3", "b", "x")),
            ("gs://b/a%20?.png", Place("gs", "b", "a%20?.png")),
            ("az://container/x/y.png", Place("az", "container", "x/y.png")),
            ("https://h:8443/a%20b.csv", Place("https", "h:8443", "a b.csv")),
        ],
    )
    def test_is_made_of_scheme_bucket_and_key(self, text, place):
        assert place_of(text) == place
        assert place_of(str(place)) == place

    @pytest.mark.parametrize(
        "text", ["images", "/data/a.png", "file:///a.png", "C:\\a", "ftp://h/a.png", "sqlite:///x"]
    )
    def test_is_no_path(self, text):
        assert not is_address(text)

    @pytest.mark.parametrize(
        "text",
        [
            "s3://key:hunter2@bucket/a.png",
            "https://bob:hunter2@example.org/a.csv",
            "https://example.org/a.csv?X-Amz-Signature=hunter2",
            "s3://bucket/a.png?X-Amz-Credential=x&X-Amz-Signature=hunter2",
            "az://c/a.png?sv=1&sig=hunter2",
            "https://example.org/a.csv?v=hunter2",
        ],
    )
    def test_with_a_secret_is_refused_and_not_repeated(self, text):
        with pytest.raises(ValueError, match="address") as told:
            place_of(text)
        assert "hunter2" not in str(told.value)

    def test_of_another_kind_is_refused(self):
        with pytest.raises(ValueError, match="must be a path, or an address such as s3://bucket/folder"):
            place_of("ftp://host/a.png")
        with pytest.raises(ValueError, match="must name a bucket"):
            place_of("s3:///a.png")


class TestItemId:
    def found(self, address, etag, size=3):
        return Found(place_of(address), size, datetime(2026, 11, 1, tzinfo=UTC), etag).item_id

    @pytest.mark.parametrize("etag", ["900150983cd24fb0d6963f7d28e17f72", "900150983cd24fb0d6963f7d28e17f72-3"])
    @pytest.mark.parametrize("scheme", ["s3", "gs"])
    def test_is_that_of_copies_where_the_etag_is_made_of_the_content(self, scheme, etag):
        assert self.found(f"{scheme}://a/x.png", etag) == self.found(f"{scheme}://b/y.png", etag)
        assert self.found(f"{scheme}://a/x.png", etag) != self.found(f"{scheme}://a/x.png", etag, size=4)
        assert re.fullmatch("[0-9a-f]{32}", self.found(f"{scheme}://a/x.png", etag))

    @pytest.mark.parametrize(
        ("scheme", "etag"),
        [("az", "900150983cd24fb0d6963f7d28e17f72"), ("gs", "CPj3i6Xm1vsCEAE="), ("https", 'W/"5f-61"'), ("s3", None)],
    )
    def test_is_that_of_one_address_for_any_other_etag(self, scheme, etag):
        assert self.found(f"{scheme}://a/x.png", etag) != self.found(f"{scheme}://a/y.png", etag)


class TestStore:
    def test_tells_that_there_is_no_bucket(self, s3_environment):
        for ask in (get, lambda place: list(list_objects(place._replace(key="")))):
            with pytest.raises(PoolRefused, match=r"the store has no such bucket.*AWS_ENDPOINT_URL"):
                ask(Place("s3", "no-such-bucket", "a.png"))

    def test_gives_copies_one_item(self, s3_environment, bucket):
        s3_environment.put(bucket, {"a.png": b"x", "deep/b.png": b"x"})
        assert len({each.item_id for each in list_objects(Place("s3", bucket, ""))}) == 1

    @pytest.mark.parametrize("key", ["a//b.png", "a/./b.png", "../a.png", "a\x01.png"])
    def test_tells_what_no_object_can_be_asked_for_by(self, key, monkeypatch):
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        for ask in (get, look_at):
            with pytest.raises(
                PoolError, match="cannot be read: no object can be asked for by a key with an empty part"
            ):
                ask(Place("s3", "b", key))

    def test_sets_what_is_forbidden_apart_from_a_key_that_may_read_nothing(self, s3, bucket, monkeypatch):
        s3.put(bucket, {"open/a.png": b"1", "closed/b.png": b"2"})
        use(monkeypatch, s3, READER)
        closed = Place("s3", bucket, "closed/b.png")
        for ask in [get, look_at] * 7:
            with pytest.raises(PoolError, match="cannot be read: forbidden"):
                ask(closed)
        assert get(Place("s3", bucket, "open/a.png")).read() == b"1"
        for _ in range(20):  # something could be read, so that it is the objects' fault
            with pytest.raises(PoolError, match="cannot be read: forbidden"):
                get(closed)

    def test_stops_where_the_first_reads_are_all_forbidden(self, s3, bucket, monkeypatch):
        s3.put(bucket, {"closed/b.png": b"2"})
        use(monkeypatch, s3, READER)
        for _ in range(15):
            with pytest.raises(PoolError):
                get(Place("s3", bucket, "closed/b.png"))
        with pytest.raises(PoolRefused, match=r"the first 16 objects are all forbidden.*s3:GetObject"):
            get(Place("s3", bucket, "closed/b.png"))

    def test_stops_at_once_with_a_wrong_secret_which_nothing_repeats(self, s3, bucket, monkeypatch):
        s3.put(bucket, {"a.png": b"1"})
        use(monkeypatch, s3, IMPOSTOR)
        for ask in (get, lambda place: list(list_objects(place._replace(key="")))):
            with pytest.raises(PoolRefused, match=r"refuses the credentials \(SignatureDoesNotMatch\)") as told:
                ask(Place("s3", bucket, "a.png"))
            assert IMPOSTOR.secret not in str(told.value)
            assert IMPOSTOR.key not in str(told.value)
            assert told.value.__cause__ is None

    @pytest.mark.parametrize("key", ["pool/x//b.png", "pool/../b.png"])
    def test_names_the_key_that_keeps_it_from_listing(self, key, monkeypatch):
        class Store(BaseHTTPRequestHandler):
            def do_GET(self):
                told = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag><Size>3</Size>"
                found = f"<Contents><Key>{key}</Key>{told}</Contents>"
                self.send_response(200)
                self.end_headers()
                page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
                self.wfile.write(page.encode())

            def log_message(self, *_):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
            with pytest.raises(ListingRefused, match=re.escape(f"the key {key!r} in it has an empty part")):
                list(list_objects(Place("s3", "b", "pool")))
            server.shutdown()

    def test_needs_obstore_and_tells_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(PoolRefused, match=r"need the package obstore: .*labelcycle\[cloud\]"):
            list(list_objects(Place("s3", "b", "")))

    @pytest.mark.parametrize(("scheme", "names"), [("az", "AZURE_STORAGE_ACCOUNT_NAME")])
    def test_tells_what_the_environment_lacks(self, scheme, names, monkeypatch):
        monkeypatch.setattr(store_module, "PATIENCE", timedelta(seconds=1))
        with pytest.raises(PoolUnavailable, match=names):
            list(list_objects(Place(scheme, "b", "")))


class TestObjects:
    def test_open_what_the_index_has_and_nothing_else(self, s3_environment, bucket):
        s3_environment.put(bucket, {"a.png": b"1"})
        (found,) = list_objects(Place("s3", bucket, ""))
        objects = Objects({str(found.place): found.item_id})
        with objects.open(str(found.place)) as file:
            assert file.read() == b"1"
        s3_environment.put(bucket, {"a.png": b"2"})
        with pytest.raises(PoolError, match=CHANGED), objects.open(str(found.place)):
            pass
        with Objects().open(str(found.place)) as file:  # nothing is known of it
            assert file.read() == b"2"

    def test_are_read_from_the_store_once(self, s3_environment, bucket, tmp_path):
        s3_environment.put(bucket, {"a.png": b"1"})
        (found,) = list_objects(Place("s3", bucket, ""))
        objects = Objects({str(found.place): found.item_id}, ImageCache(tmp_path, 10**6))
        for _ in range(2):
            with objects.open(str(found.place)) as file:
                assert file.read() == b"1"
            s3_environment.delete(bucket, "a.png")

    def test_are_asked_for_anew_where_they_waited_long_for_room(self, monkeypatch):
        now, answers = [0.0], []

        def answer(place):
            answers.append(now[0])
            return store_module.Content(Found(place, 1, datetime.now(UTC), None), SimpleNamespace(bytes=lambda: b"1"))

        @contextmanager
        def hold(_n_bytes, *, limit):
            now[0] += limit
            yield

        monkeypatch.setattr(reading_module, "get", answer)
        monkeypatch.setattr(reading_module, "monotonic", lambda: now[0])
        monkeypatch.setattr(reading_module, "_GATE", SimpleNamespace(hold=hold))
        for seconds, n_answers in ((9, 1), (11, 2)):
            monkeypatch.setattr(reading_module, "BYTES_AT_ONCE", seconds)
            answers.clear()
            with Objects().open("s3://b/a.png") as file:
                assert file.read() == b"1"
            assert len(answers) == n_answers


class TestCache:
    def test_gives_what_was_kept_and_nothing_that_a_disk_made_of_it(self, tmp_path):
        cache = ImageCache(tmp_path, 10**6)
        cache.keep("ab" * 16, b"content")
        assert cache.read("ab" * 16) == ImageCache(tmp_path, 10**6).read("ab" * 16) == b"content"
        (path,) = (tmp_path / "ab").iterdir()
        path.write_bytes(path.read_bytes()[:-1])
        assert cache.read("ab" * 16) is None
        assert not path.exists()

    def test_throws_away_what_was_not_used_for_longest(self, tmp_path):
        cache = ImageCache(tmp_path, 100_000)
        names = [f"{n:032x}" for n in range(40)]
        for n, name in enumerate(names):
            cache.keep(name, bytes(4000))
            path = tmp_path / name[:2] / name
            if path.exists():
                obsolete = 1_700_000_000 + n
                os.utime(path, (obsolete, obsolete))
            cache.read(names[0])
        n_files, n_bytes = usage(tmp_path)
        assert n_bytes <= 105_000
        assert n_files > 15
        assert cache.read(names[0]) is not None
        assert cache.read(names[1]) is None
        assert cache.read(names[-1]) is not None

    def test_stops_nothing_when_the_disk_takes_nothing(self, tmp_path):
        (tmp_path / "file").write_text("")
        cache = ImageCache(tmp_path / "file" / "below", 10**6)
        cache.keep("ab" * 16, b"content")
        assert cache.read("ab" * 16) is None

    def test_of_no_folder_is_empty(self, tmp_path):
        shrink(tmp_path / "none", 0)
        assert usage(tmp_path / "none") == (0, 0)
