"""Images of object stores in a real Label Studio that reads a real S3 server."""

import base64
import io
import json
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from connectors.annotation import AnnotationToolError, Asked, Question
from connectors.images.reading import Reading
from connectors.images.shown import check_shown
from connectors.label_studio import connection, mending
from connectors.label_studio.client import LabelStudio
from connectors.objects.reading import Objects
from pipeline.masks import mask_to_png
from pipeline.types import Ask, AskFor, Region
from tests.s3 import ADMIN, IMPOSTOR, READER

TOLD = "was given the keys of this environment, and keeps them, as none of its own show"
ODD = "open/a b+%20#&=;:[é]'.png"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(mending, "SETTLE_SECONDS", 1.0)


@pytest.fixture
def api(servers, label_studio_token):
    """Label Studio's HTTP API: what a person does in the browser."""
    headers = {"Authorization": f"Token {label_studio_token}"}
    with httpx.Client(base_url=servers.label_studio_url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def pictures(s3_environment, bucket) -> dict[str, bytes]:
    """The images of a bucket, by their addresses."""
    objects = {"open/a.png": picture(1), ODD: picture(2), "closed/b.png": picture(3)}
    s3_environment.put(bucket, objects)
    return {f"s3://{bucket}/{key}": content for key, content in objects.items()}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def connect(space, **changes) -> LabelStudio:
    settings = {"url": space.url, "token": space.token, "project": space.project, "classes": ("cat", "dog")}
    return LabelStudio(**(settings | changes))


def asked_of(uris) -> Asked:
    questions = [Question(Ask(f"item {rank}", 0, "query"), uri, rank) for rank, uri in enumerate(uris)]
    return Asked(0, questions, "m", {})


def push(tool, uris) -> Asked:
    asked = asked_of(uris)
    tool.prepare()
    return replace(asked, task_ids=tool.push(asked.questions, model_version="m", asked={}))


def storages(api, tool, kind="s3") -> list[dict]:
    return api.get(f"/api/storages/{kind}", params={"project": tool.prepare().split("/")[-2]}).json()


def shown(api, asked) -> list[httpx.Response]:
    """What Label Studio answers a browser that shows each task."""
    paths = [api.get(f"/api/tasks/{task_id}").json()["data"]["image"] for task_id in asked.task_ids.values()]
    return [api.get(path) for path in paths]


def images_finding(tool, asked):
    return list(tool.check([asked]))[-1]


def test_images_are_shown_through_a_storage_of_ours_that_comes_back_and_takes_new_keys(space, api, pictures, bucket):
    said = []
    tool = connect(space, say=said.append)
    asked = push(tool, pictures)
    assert said == [f"Label Studio {TOLD} s3://{bucket}/open/a.png"]
    assert [answer.content for answer in shown(api, asked)] == list(pictures.values())
    task = api.get(f"/api/tasks/{min(asked.task_ids.values())}", params={"resolve_uri": False}).json()
    assert task["data"]["image"] in pictures, "addresses are not signed"
    assert httpx.get(space.url + shown(api, asked)[0].request.url.raw_path.decode()).status_code == 401
    [held] = storages(api, tool)
    assert (held["bucket"], held["presign"], held["synchronizable"]) == (bucket, False, False)
    tool.tend([asked], asked=asked.task_ids)
    assert storages(api, tool) == [held], "once is enough"
    assert images_finding(tool, asked).status == "ok"

    api.delete(f"/api/storages/s3/{held['id']}").raise_for_status()
    assert "has lost the storage that it shows images from" in images_finding(tool, asked).found
    tool.tend([asked], asked=asked.task_ids)
    [held] = storages(api, tool)
    assert shown(api, asked)[0].is_success

    stale = {"aws_access_key_id": IMPOSTOR.key, "aws_secret_access_key": IMPOSTOR.secret}
    api.patch(f"/api/storages/s3/{held['id']}", json=stale).raise_for_status()
    assert images_finding(tool, asked).found.endswith("Let nobody label before `labelcycle run` finds the image")
    tool.tend([asked], asked=asked.task_ids)
    assert [each["id"] for each in storages(api, tool)] == [held["id"]]
    assert shown(api, asked)[0].is_success


def test_images_are_loaded_from_the_store_where_addresses_are_signed(space, api, pictures):
    asked = push(connect(space), pictures)
    signing = connect(space, presign_minutes=5)
    signing.tend([asked], asked=asked.task_ids)
    assert [(each["presign"], each["presign_ttl"]) for each in storages(api, signing)] == [(True, 5)]
    for answer, content in zip(shown(api, asked), pictures.values(), strict=True):
        assert answer.status_code == 303
        assert "X-Amz-Expires=300" in answer.headers["location"]
        assert httpx.get(answer.headers["location"]).content == content
    assert images_finding(signing, asked).status == "ok"


@pytest.mark.parametrize(
    ("status", "told"), [(200, "lets no page of {url} load it: the bucket needs a CORS rule"), (403, "answers 403")]
)
def test_a_store_that_no_page_may_load_from_is_told(space, pictures, relay, status, told):
    def mislead(handler, _body):
        if "/resolve/" in handler.path:
            handler.answer(303, b"", Location=f"http://{handler.headers['Host']}/signed?X-Amz-Signature=s3cret")
        elif handler.path.startswith("/signed"):
            handler.answer(status, picture(1), "image/png")
        else:
            return False
        return True

    with (
        relay(space.url, mislead) as url,
        pytest.raises(AnnotationToolError, match="annotators would not see") as error,
    ):
        push(connect(space, url=url, presign_minutes=5), pictures)
    assert told.format(url=url) in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(("identity", "told"), [(None, "with its own keys"), (IMPOSTOR, "keys of this environment")])
def test_a_bucket_that_cannot_be_opened_stops_the_push_and_no_key_is_told(
    space, api, servers, pictures, monkeypatch, identity, told
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if identity:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", identity.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", identity.secret)
    said = []
    tool = connect(space, say=said.append)
    with pytest.raises(AnnotationToolError, match="Give Label Studio keys that may list and read the bucket") as error:
        push(tool, pictures)
    assert told in str(error.value)
    assert storages(api, tool) == []
    assert api.get("/api/tasks", params={"project": tool.prepare().split("/")[-2]}).json()["total"] == 0
    log = (servers.home / "logs" / "label-studio.log").read_text()
    for secret in (ADMIN.secret, IMPOSTOR.secret):
        assert not [text for text in (str(error.value), *said, log) if secret in text]


def test_keys_that_open_the_bucket_and_read_no_image_are_no_use(space, api, pictures, monkeypatch, bucket):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER.secret)
    tool = connect(space)
    with pytest.raises(AnnotationToolError, match=r"closed/b\.png.*Label Studio answers 424"):
        push(tool, [f"s3://{bucket}/closed/b.png"])
    assert storages(api, tool) == []
    push(tool, [f"s3://{bucket}/open/a.png"])


@pytest.mark.parametrize("key", ["a?.png", "/a.png", "a.png ", "a\tb.png"])
def test_an_object_whose_name_label_studio_does_not_read_is_refused(space, pictures, bucket, key):
    with pytest.raises(AnnotationToolError, match="Label Studio shows no object"):
        push(connect(space), [f"s3://{bucket}/{key}"])


def test_a_project_that_is_made_again_shows_its_images_again(space, api, pictures, monkeypatch):
    tool = connect(space)
    asked = push(tool, pictures)
    saved = list(tool.save(asked.task_ids))
    uris = {question.item_id: question.uri for question in asked.questions}
    for notes in (0, 1):
        api.delete(f"/api/projects/{tool.prepare().split('/')[-2]}").raise_for_status()
        tool = connect(space)
        restored = tool.restore(saved, asked=asked.task_ids, uris=uris)
        again = replace(asked, task_ids={ask: restored.task_ids[task] for ask, task in asked.task_ids.items()})
        assert len(restored.notes) == notes
        assert len(shown(api, again) if not notes else pictures) == len(pictures)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "address", "kind", "environment", "settings"),
    [
        (
            "gs://pets/a.png",
            "gs://pets/a.png",
            "gcs",
            {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"},
            {"bucket": "pets", "google_application_credentials": "{}"},
        ),
        (
            "az://pets/a.png",
            "azure-blob://pets/a.png",
            "azure",
            {"AZURE_STORAGE_ACCOUNT_NAME": "n", "AZURE_STORAGE_ACCOUNT_KEY": "k"},
            {"container": "pets", "account_name": "n", "account_key": "k"},
        ),
    ],
)
def test_google_and_azure_have_storages_of_their_own(
    space, api, relay, monkeypatch, uri, address, kind, environment, settings
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = []
    with relay(space.url, stand_in_for(kind, address, settings, made)) as url:
        asked = push(connect(space, url=url), [uri])
    assert [each["synchronizable"] for each in made] == [False]
    [task_id] = asked.task_ids.values()
    assert api.get(f"/api/tasks/{task_id}", params={"resolve_uri": False}).json()["data"]["image"] == address


def test_no_key_is_handed_over_where_label_studio_has_some(space, relay, monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": ADMIN.key, "AWS_SECRET_ACCESS_KEY": ADMIN.secret}.items():
        monkeypatch.setenv(name, value)
    made, said = [], []
    with relay(space.url, stand_in_for("s3", "s3://pets/a.png", {}, made)) as url:
        push(connect(space, url=url, say=said.append), ["s3://pets/a.png"])
    assert [each["aws_secret_access_key"] for each in made] == [""]
    assert said == []


def stand_in_for(kind, address, keys, made):
    """What Label Studio does with a store that is not here: it makes a storage that has the keys, and shows images."""

    def stand_in(handler, body):
        path = urlsplit(handler.path)
        if path.path.startswith(f"/api/storages/{kind}/"):
            if handler.command == "GET":
                handler.answer(200, json.dumps(made).encode())
            elif keys.items() <= (asked := json.loads(body)).items():
                made.append(asked | {"id": 1})
                handler.answer(201, json.dumps(made[0]).encode())
            else:
                handler.answer(400, b'{"validation_errors": {"non_field_errors": ["no keys"]}}')
        elif "/resolve/" in path.path:
            assert base64.urlsafe_b64decode(httpx.QueryParams(path.query)["fileuri"]).decode() == address
            handler.answer(200, picture(1), "image/png")
        else:
            return False
        return True

    return stand_in


def test_masks_that_the_model_guesses_have_the_size_of_the_object_and_a_tiff_is_shown_as_a_picture(
    space, api, s3_environment, bucket, servers
):
    tiff = io.BytesIO()
    Image.open(io.BytesIO(picture(4))).save(tiff, "TIFF")
    s3_environment.put(bucket, {"a.png": picture(1), "b.tif": tiff.getvalue()})
    reading, kind = Reading(objects=Objects()), AskFor("mask", several=True)
    tool = connect(space, asks=kind, reading=reading, shown_in=servers.images / bucket)
    tool.prepare()
    guess = (Region("mask", "cat", mask=mask_to_png(np.tri(8, dtype=bool)), score=0.5),)
    uris = [f"s3://{bucket}/{key}" for key in ("a.png", "b.tif")]
    questions = [Question(Ask(uri[-5:], 0, "query"), uri, rank, guess) for rank, uri in enumerate(uris)]
    task_ids = tool.push(questions, model_version="m", asked={})
    for task_id in task_ids.values():
        task = api.get(f"/api/tasks/{task_id}").json()
        assert (task["data"]["width"], task["data"]["height"]) == (32, 32)
        [region] = task["predictions"][0]["result"]
        mask = base64.b64decode(region["value"]["imageDataURL"].partition(",")[2])
        assert Image.open(io.BytesIO(mask)).size == (32, 32)
    assert check_shown((seen := api.get(task["data"]["image"])).content, seen.headers["content-type"]) == ""
    assert Image.open(io.BytesIO(seen.content)).format == "JPEG"


@pytest.mark.parametrize(
    ("uri", "keys", "told"),
    [
        ("gs://pets/a.png", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{hunter2"}, "Credentials must be valid JSON string"),
        (
            "az://pets/a.png",
            {"AZURE_STORAGE_ACCOUNT_NAME": "nobody", "AZURE_STORAGE_ACCOUNT_KEY": "hunter2"},
            "Incorrect padding",
        ),
    ],
)
def test_label_studio_takes_the_keys_of_google_and_azure_for_what_they_are(space, uri, keys, told, monkeypatch):
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        AnnotationToolError, match=f"with the keys of this environment: refuses .400.*{told}"
    ) as refused:
        push(connect(space), [uri])
    assert "hunter2" not in str(refused.value)
