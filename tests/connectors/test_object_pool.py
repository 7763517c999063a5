"""A pool in an object store is indexed by what the store tells, and not one byte of an image."""

import io
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from connectors.image_folder.index import index_pool
from connectors.image_folder.source import PoolSource
from connectors.images.pixels import load_images
from connectors.images.reading import Reading
from connectors.objects import store as store_module
from connectors.objects.reading import Objects
from pipeline.pool.reasons import CHANGED, GONE, ImageError, PoolError, PoolRefused
from pipeline.pool.table import COLUMNS, set_aside_counts, usable
from tests.images import png
from tests.s3 import IMPOSTOR, READER

pytestmark = pytest.mark.usefixtures("new_connections")
CLASSES = ("cat", "dog")
READING = Reading(objects=Objects())


def index(address, known=None, *, tell=None, **options):
    of_source = {name: options.pop(name) for name in ("group", "max_unused") if name in options}
    source = PoolSource(address, CLASSES, **of_source)
    how = {"audit_size": 0, "seed": 0, "reading": READING} | options
    return index_pool(source, known, tell=tell, **how)


def reasons(table):
    rows = table.dropna(subset=["set_aside_reason"])
    return {uri.rpartition("/")[2]: reason for uri, reason in zip(rows["uri"], rows["set_aside_reason"], strict=True)}


@pytest.fixture
def put(s3_environment, bucket):
    """Write objects below pool/, and return the pool's address."""

    def write(objects):
        s3_environment.put(bucket, {f"pool/{key}": content for key, content in objects.items()})
        return f"s3://{bucket}/pool"

    return write


@pytest.fixture
def no_reading(monkeypatch):
    """Let reading fail."""

    def refuse(_self, uri):
        raise AssertionError(f"{uri} is read")

    monkeypatch.setattr(Objects, "open", refuse)


def test_index_reads_no_byte_and_has_a_row_for_each_object(put, no_reading):
    pool = put({"b.png": png(1), "deep/a.JPG": png(2), "copy.png": png(1), "notes.txt": b"x", "empty.png": b""})
    put({"who?.png": png(5), ".hidden/a.png": png(3), "@eaDir/a.png": png(3), "thumbs.db": b"x", "raw.nef": b"x"})
    told = []
    table = index(pool, tell=told.append, audit_size=1)
    assert dict(table.dtypes.astype(str)) == COLUMNS
    assert [uri.removeprefix(pool) for uri in usable(table)["uri"]] == ["/b.png", "/deep/a.JPG"]
    assert reasons(table) == {
        "notes.txt": "not an image: suffix .txt",
        "empty.png": "empty: the file has no content",
        "raw.nef": "of a format that is not read: raw",
        "who?.png": "cannot be shown: Label Studio shows no object with '?' in its name",
    }
    assert any("has the same content as another" in line and "copy.png" in line for line in told)
    assert any("1 objects in folders of systems was passed over" in line for line in told)
    assert index(pool, table, audit_size=1).equals(table)


def test_object_that_was_put_anew_is_another_item_and_one_that_moved_is_the_same(put, s3_environment, bucket):
    pool = put({"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    before = index(pool)
    ids = before.set_index("uri")["item_id"]
    put({"a.png": png(4), "moved/b.png": png(2)})
    s3_environment.delete(bucket, "pool/b.png", "pool/c.png")
    after = index(pool, before)
    now = usable(after).set_index("uri")["item_id"]
    assert now[f"{pool}/moved/b.png"] == ids[f"{pool}/b.png"]
    assert now[f"{pool}/a.png"] != ids[f"{pool}/a.png"]
    lost = after[after["set_aside_reason"].notna()].set_index("item_id")["set_aside_reason"]
    assert lost[ids[f"{pool}/a.png"]] == CHANGED
    assert lost[ids[f"{pool}/c.png"]].startswith(GONE)
    put({"c.png": png(3)})
    assert f"{pool}/c.png" in set(usable(index(pool, after))["uri"])


def test_pool_that_moved_asks_the_former_bucket_only_for_what_did_not(s3, bucket, monkeypatch):
    s3.put(bucket, {f"closed/{n}.png": png(n) for n in range(20)} | {"open/z.png": png(30)})
    s3.put(bucket, {f"open/new/{n}.png": png(n) for n in range(19)})
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    before = index(f"s3://{bucket}/closed")
    after = index(f"s3://{bucket}/open", before)
    assert set(usable(before)["item_id"]) - set(usable(after)["item_id"]) == set(
        before.loc[before["uri"].str.endswith("/19.png"), "item_id"]
    )
    assert usable(after)["uri"].str.startswith(f"s3://{bucket}/open/").all()
    assert reasons(after) == {"19.png": "cannot be read: forbidden: these credentials may not read it"}


def test_what_reading_found_stands_while_the_object_is_the_same(put, no_reading):
    pool = put({"a.png": png(1), "b.png": b"no image"})
    table = index(pool)
    table.loc[table["uri"] == f"{pool}/b.png", "set_aside_reason"] = "damaged: cannot be decoded"
    assert reasons(index(pool, table)) == {"b.png": "damaged: cannot be decoded"}
    put({"b.png": png(2)})
    again = index(pool, table)
    assert len(usable(again)) == 2


def test_what_may_pass_is_looked_at_again(put):
    pool = put({"a.png": png(1), "b.png": png(2)})
    table = index(pool)
    table.loc[table["uri"] == f"{pool}/b.png", "set_aside_reason"] = "cannot be read: forbidden: not this key"
    assert reasons(index(pool, table)) == {}


def test_many_that_are_forbidden_do_not_pass_for_a_key_that_may_read_nothing(s3, bucket, monkeypatch):
    s3.put(bucket, {f"closed/{n}.png": png(n) for n in range(20)} | {"open/z.png": png(30)})
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    pool = f"s3://{bucket}"
    table = index(pool)
    table.loc[table["uri"].str.contains("closed"), "set_aside_reason"] = "cannot be read: forbidden: until now"
    assert set(reasons(index(pool, table)).values()) == {"cannot be read: forbidden: these credentials may not read it"}
    assert len(usable(index(pool, table))) == 1


def test_images_are_read_from_their_addresses(put):
    pool = put({f"{n}.png": png(n) for n in range(40)} | {"z.png": b"no image"})
    uris = [f"{pool}/{n}.png" for n in range(40)]
    images = load_images(uris, size=8, channels=3, reading=READING)
    assert images.shape == (40, 3, 8, 8)
    assert (images[7].permute(1, 2, 0).numpy() == np.asarray(Image.open(io.BytesIO(png(7))))).all()
    with pytest.raises(ImageError, match=r"z\.png: not an image: the content is of no known image format"):
        load_images([*uris, f"{pool}/z.png"], size=8, channels=3, reading=READING)
    with pytest.raises(ImageError, match=f"gone.png: {GONE}"):
        load_images([f"{pool}/gone.png"], size=8, channels=3, reading=READING)


def test_wrong_secret_or_missing_bucket_stops_the_index_and_sets_nothing_aside(put, s3, monkeypatch):
    pool = put({"a.png": png(1)})
    with pytest.raises(PoolRefused, match="no such bucket"):
        index("s3://no-such-bucket/pool")
    with pytest.raises(PoolError, match="is empty"):
        index(f"{pool}/no-such-folder")
    store_module._store.cache_clear()
    for name, value in s3.environment(IMPOSTOR).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PoolRefused, match="refuses the credentials"):
        index(pool)


def test_campaign_on_files_does_not_go_on_with_their_copies_in_a_store(put, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    before = index(tmp_path)
    with pytest.raises(PoolError, match=r"are files on a disk, such as .*a\.png"):
        index(put({"a.png": png(1)}), before)


def test_groups_are_those_of_paths_below_the_address(put):
    table = index(put({"film 1/a.png": png(1), "film 1/b.png": png(2), "film 2/a.png": png(3)}), group="parent")
    assert table["group"].tolist() == ["film 1", "film 1", "film 2"]


class TestManifest:
    def test_on_a_disk_mixes_files_and_addresses(self, put, tmp_path):
        pool = put({f"{n:02d}.png": png(n) for n in range(30)} | {"odd": png(40)})
        (tmp_path / "here.png").write_bytes(png(50))
        lines = ["uri,label", "here.png,cat", *(f"{pool}/{n:02d}.png,dog" for n in range(30)), f"{pool}/odd,cat"]
        (tmp_path / "pool.csv").write_text("\n".join([*lines, f"{pool}/none.png,", "ftp://host/a.png,"]))
        table = index(tmp_path / "pool.csv")
        used = usable(table).set_index("uri")["label"]
        assert used[str(tmp_path / "here.png")] == "cat"
        assert used[f"{pool}/07.png"] == "dog"
        assert used[f"{pool}/odd"] == "cat"  # whoever names it says that it is an image
        assert len(used) == 32
        assert set_aside_counts(table) == {GONE: 1, "an address, not a file": 1}
        assert index(tmp_path / "pool.csv", table).equals(table)

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_in_the_store_names_objects_relative_to_itself(self, put, kind):
        pool = put({"images/a.png": png(1), "images/b c.png": png(2)})
        rows = pd.DataFrame({"uri": ["images/a.png", f"{pool}/images/b c.png", "/etc/passwd", "../../x.png"]})
        content = rows.to_csv(index=False).encode() if kind == "csv" else rows.to_parquet(index=False)
        table = index(f"{put({f'pool.{kind}': content})}/pool.{kind}")
        assert usable(table)["uri"].tolist() == [f"{pool}/images/a.png", f"{pool}/images/b c.png"]
        assert set_aside_counts(table) == {"outside the pool's folder": 2}

    def test_that_is_wrong_is_named_by_its_address(self, put):
        address = put({"pool.csv": b"uri,label\na.png,cow\n"}) + "/pool.csv"
        with pytest.raises(PoolError) as told:
            index(address)
        assert str(told.value).startswith(f"{address}: row 1 (uri 'a.png', label 'cow') has a label that is not")
        with pytest.raises(PoolError, match=f"none.csv: {GONE}"):
            index(address.replace("pool.csv", "none.csv"))

    def test_with_a_secret_in_an_address_names_the_row_alone(self, tmp_path):
        (tmp_path / "pool.csv").write_text("uri\ns3://key:hunter2@bucket/a.png\n")
        with pytest.raises(PoolError, match=r"pool.csv: row 1: an address must not hold a login") as told:
            index(tmp_path / "pool.csv")
        assert "hunter2" not in str(told.value)

    def test_needs_no_right_to_list(self, put, s3, bucket, monkeypatch):
        s3.put(bucket, {f"open/{n}.png": png(n) for n in range(25)} | {"closed/a.png": png(30)})
        lines = [*(f"open/{n}.png" for n in range(25)), "closed/a.png"]
        s3.put(bucket, {"open/pool.csv": "\n".join(["uri", *(f"s3://{bucket}/{x}" for x in lines)]).encode()})
        store_module._store.cache_clear()
        for name, value in s3.environment(READER).items():
            monkeypatch.setenv(name, value)

        def refuse(folder, **_):
            raise store_module.ListingRefused(str(folder))

        monkeypatch.setattr("connectors.image_folder.object_pool.list_objects", refuse)
        table = index(f"s3://{bucket}/open/pool.csv")
        assert len(usable(table)) == 25
        assert reasons(table) == {"a.png": "cannot be read: forbidden: these credentials may not read it"}


@contextmanager
def web(folder):
    """A web server over a folder."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_manifest_and_images_may_be_on_the_web(tmp_path):
    (tmp_path / "a b.png").write_bytes(png(1))
    (tmp_path / "pool.csv").write_text("uri,label\na b.png,cat\nnone.png,\n")
    with web(tmp_path) as url:
        table = index(f"{url}/pool.csv")
        (row,) = usable(table).to_dict("records")
        assert row["uri"] == f"{url}/a%20b.png"
        assert row["label"] == "cat"
        assert set_aside_counts(table) == {GONE: 1}
        assert load_images([row["uri"]], size=8, channels=3, reading=READING).shape == (1, 3, 8, 8)
        with pytest.raises(PoolError, match="nothing can be listed: name a manifest"):
            index(url)
