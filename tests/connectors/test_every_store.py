"""What holds for each kind of object store that a server of the tests speaks for."""

from datetime import timedelta
from typing import NamedTuple

import pytest

from connectors.image_folder.index import index_pool
from connectors.image_folder.source import PoolSource
from connectors.images.reading import Reading
from connectors.objects import store as store_module
from connectors.objects.addresses import Place, place_of
from connectors.objects.reading import Objects
from connectors.objects.store import KINDS, get, list_objects, look_at
from pipeline.pool.reasons import CHANGED, GONE, PoolError, PoolRefused, PoolUnavailable
from pipeline.pool.table import usable
from tests.gcs import GcsServer
from tests.images import png
from tests.s3 import S3Server

ODD = [
    "a b.png",
    "100%.png",
    "a%20b.png",
    "a+b#c.png",
    "who?.png",
    "x&y=z;.png",
    "[br] it's.png",
    "12:30.png",
    "größe-日本.png",
    "sub/deep er/c.png",
]
pytestmark = pytest.mark.usefixtures("new_connections")
SERVERS = {"s3": "s3_environment", "gs": "gs_environment"}
"""The fixture of the server, by scheme."""


class Bucket(NamedTuple):
    """A new bucket on a server, for which the environment has what it needs."""

    scheme: str
    name: str
    server: S3Server | GcsServer

    def put(self, objects):
        self.server.put(self.name, objects)

    def delete(self, *keys):
        self.server.delete(self.name, *keys)

    def place(self, key=""):
        return Place(self.scheme, self.name, key)


@pytest.fixture(params=SERVERS)
def stored(request, bucket):
    return Bucket(request.param, bucket, request.getfixturevalue(SERVERS[request.param]))


def test_odd_keys_are_listed_read_and_looked_at(stored):
    stored.put({f"pool/{key}": key.encode() for key in ODD})
    listed = {str(each.place): each for each in list_objects(stored.place("pool"))}
    assert set(listed) == {str(stored.place(f"pool/{key}")) for key in ODD}
    for key in ODD:
        place = place_of(str(stored.place(f"pool/{key}")))
        content = get(place)
        assert content.read() == key.encode()
        assert content.found == look_at(place) == listed[str(place)]


def test_more_than_a_page_is_listed_and_no_folder_of_a_like_name(stored):
    stored.put({f"pool/{n:04d}.png": b"x" for n in range(1100)} | {"pools/a.png": b"x", "pool.png": b"x"})
    assert len(list(list_objects(stored.place("pool")))) == 1100
    assert [each.place.key for each in list_objects(stored.place(), deep=False)] == ["pool.png"]


def test_what_is_not_there_is_told(stored):
    stored.put({"a.png": b"1"})
    for ask in (get, look_at):
        with pytest.raises(PoolError, match=GONE):
            ask(stored.place("b.png"))


def test_object_that_was_put_anew_or_taken_away_since_the_listing_is_not_read(stored):
    stored.put({"a.png": png(1), "b.png": png(2)})
    items = {str(each.place): each.item_id for each in list_objects(stored.place())}
    stored.put({"a.png": png(3)})
    stored.delete("b.png")
    for key, reason in (("a.png", CHANGED), ("b.png", GONE)):
        with pytest.raises(PoolError, match=reason), Objects(items).open(str(stored.place(key))):
            pass


def test_index_tells_what_was_put_anew_and_what_was_taken_away(stored):
    stored.put({f"pool/{name}.png": png(n) for n, name in enumerate("abc")})
    before = index(stored)
    stored.put({"pool/a.png": png(4)})
    stored.delete("pool/b.png")
    after = index(stored, before)
    ids = before.set_index(before["uri"].str[-5:])["item_id"]
    reasons = after.set_index("item_id")["set_aside_reason"]
    assert reasons[ids["a.png"]] == CHANGED
    assert reasons[ids["b.png"]].startswith(GONE)
    assert set(usable(after)["uri"].str[-5:]) == {"a.png", "c.png"}
    assert index(stored, after).equals(after)


def index(stored, known=None):
    source = PoolSource(str(stored.place("pool")), ("cat", "dog"))
    return index_pool(source, known, audit_size=0, seed=0, reading=Reading(objects=Objects()))


@pytest.mark.parametrize("scheme", KINDS)
def test_store_that_is_away_is_told_with_no_secret(scheme, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", timedelta(seconds=0.2))
    keys = {
        "s3": {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "hunter2"},
        "gs": {"GOOGLE_BEARER_TOKEN": "hunter2"},
        "az": {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "aHVudGVyMg=="},
    }
    for name, value in (keys[scheme] | {KINDS[scheme].endpoints[0]: "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    for ask in (get, look_at, lambda place: list(list_objects(place))):
        with pytest.raises(PoolUnavailable, match=r"does not answer as it should \(nothing listens") as told:
            ask(Place(scheme, "b", "a.png"))
        assert not isinstance(told.value, PoolRefused)
        assert "hunter2" not in str(told.value)
        assert "aHVudGVyMg" not in str(told.value)
