"""An object that is lost while a task shows it: it is told, and no storage is changed for it."""

import json
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace

import pytest

from connectors.annotation import AnnotationToolError
from connectors.images.reading import Reading
from connectors.label_studio.images import ShownImages
from connectors.label_studio.reading import HeldStorage
from connectors.label_studio.storages import HANDED_OVER, TITLE
from connectors.label_studio.stores import private_keys_in
from pipeline.pool.reasons import GONE, PoolError, PoolUnavailable

GONE_NOW, AWAY, THERE = "s3://pets/gone.png", "s3://pets/away.png", "s3://pets/there.png"


class Store:
    """Opens objects by their names."""

    @contextmanager
    def open(self, uri):
        if uri == GONE_NOW:
            raise PoolError(f"{GONE}: there is nothing at this address")
        if uri == AWAY:
            raise PoolUnavailable("the store does not answer")
        yield BytesIO(b"image")


class Api:
    """A Label Studio with one storage, which shows nothing."""

    def __init__(self):
        self.changes, self.said, self.hidden = [], [], []
        self.connection = SimpleNamespace(
            url="http://ls", repeatable=lambda call: call(), say=self.said.append, hide=self.hidden.extend
        )

    def storages(self, _kind, _project):
        return [HeldStorage(id=1, title=TITLE, bucket="pets")]

    def change_storage(self, _kind, _id, settings):
        self.changes.append(settings)


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr("connectors.label_studio.storages.Storages.problem_with", lambda *_: "it answers 424")
    return Api()


@pytest.fixture
def images(api):
    project, reading = SimpleNamespace(id=1), Reading(objects=Store())
    return ShownImages(api, project, images_root=None, shown_in=None, reading=reading, presign_minutes=None)


def test_lost_object_is_told_and_hands_no_keys_over(images, api):
    [why] = images.check_one({GONE_NOW: GONE_NOW})
    assert why == f"image {GONE_NOW}: {GONE}: there is nothing at this address: annotators cannot be shown it"
    with pytest.raises(AnnotationToolError, match="annotators would not see image"):
        images.check({GONE_NOW: GONE_NOW})
    assert (api.changes, api.said) == ([], [])


def test_login_of_an_endpoint_is_not_told(images, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:hunter3@store:9000")
    with pytest.raises(AnnotationToolError, match="with its own keys at http://store:9000: it answers 424") as told:
        images.check_one({THERE: THERE})
    assert "hunter3" not in str(told.value)


def test_store_that_is_away_is_told_and_hands_no_keys_over(images, api):
    for check in (images.check, images.check_one):
        with pytest.raises(PoolUnavailable, match="the store does not answer"):
            check({AWAY: AWAY})
    assert (api.changes, api.said) == ([], [])


def test_image_that_is_shown_is_not_asked_for_at_its_store(images, monkeypatch):
    """This machine may not reach it: its keys may have expired, or addresses are signed for browsers alone."""
    monkeypatch.setattr("connectors.label_studio.storages.Storages.problem_with", lambda *_: "")
    assert images.check_one({AWAY: AWAY}) == []


def test_lost_object_is_why_a_storage_cannot_be_made(images, api, monkeypatch):
    refused = AnnotationToolError("annotators would not see it: it answers 424")
    monkeypatch.setattr("connectors.label_studio.storages.Storages.attach", raising(refused))
    with pytest.raises(AnnotationToolError, match="there is nothing at this address"):
        images.attach_storage([GONE_NOW])


def test_store_that_is_away_when_a_storage_is_made_is_told(images, api, monkeypatch):
    refused = AnnotationToolError("annotators would not see it: Could not connect to the endpoint URL")
    monkeypatch.setattr("connectors.label_studio.storages.Storages.attach", raising(refused, refused, refused))
    with pytest.raises(PoolUnavailable, match="the store does not answer"):
        images.attach_storage([AWAY])
    with pytest.raises(AnnotationToolError, match="Could not connect"):
        images.attach_storage([THERE])


def test_store_that_comes_back_meanwhile_keeps_the_storage_as_it_is(images, api, monkeypatch):
    answers = iter(["it answers 424", ""])
    monkeypatch.setattr("connectors.label_studio.storages.Storages.problem_with", lambda *_: next(answers))
    monkeypatch.setattr("connectors.label_studio.storages.Storages.attach", raising(AnnotationToolError("away"), None))
    images.attach_storage([THERE])
    images.check({THERE: THERE})
    assert (api.changes, api.said) == ([], [])


def raising(*errors):
    """A function that raises these in turn; None for a call that goes well."""
    left = list(errors)

    def call(*_):
        if error := left.pop(0):
            raise error

    return call


def test_private_key_of_a_key_file_is_hidden_as_it_is_and_as_it_stands_there():
    key_file = json.dumps({"client_email": "ann@pets", "private_key": "-----BEGIN\nhunter2\n"})
    found = list(private_keys_in([key_file, "hunter3", "[]", '{"type": "authorized_user"}']))
    assert found == ["-----BEGIN\nhunter2\n", r"-----BEGIN\nhunter2\n"]


def test_image_is_told_by_its_address_in_the_pool_and_the_account_is_no_secret(images, api, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2")
    with pytest.raises(AnnotationToolError, match=r"would not see image az://pets/a.png: Label Studio"):
        images.check_one({"az://pets/a.png": "azure-blob://pets/a.png"})
    assert api.hidden == ["hunter2"]


def test_object_after_a_lost_one_that_is_not_shown_takes_the_keys_and_people_are_told(images, api):
    with pytest.raises(AnnotationToolError, match="Give Label Studio keys that may list and read the bucket"):
        images.check_one({GONE_NOW: GONE_NOW, THERE: THERE})
    assert [each["aws_secret_access_key"] for each in api.changes] == ["", "hunter2"]
    assert api.said == [f"{HANDED_OVER} {THERE}"]
