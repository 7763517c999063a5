"""Images of object stores: a storage of the project for each bucket, never synced, and proved by an image."""

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import httpx

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable
from connectors.images.shown import check_shown
from connectors.label_studio.api import Api
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldStorage
from connectors.label_studio.stores import Store, bucket_of, private_keys_in, uri_of

TITLE = "Images"
"""Of the storages that are ours."""
NEVER_MATCHES = "(?!)"
"""A click on "Sync" must not make a task of every image."""
OF_THE_STORE = re.compile("credentials|endpoint", re.IGNORECASE)
"""In what a server answers with 500 where it cannot reach the store: that is no reason to try the same again."""
PRIVATE = "reserved network address"
"""In what a server answers that takes no address of a store in a private network."""
ACCOUNT = "account_name"
"""Of Azure: no secret, and part of the host that may be wrong."""
LOGIN = re.compile(r"(?<=//)[^/?#]*@")
HANDED_OVER = "Label Studio was given the keys of this environment, and keeps them, as none of its own show"
HELP = "docs/how-to/object-storage.md tells how annotators come to see images of a store"


class _Way(NamedTuple):
    """How Label Studio may come to read a bucket: in words, and as settings of a storage."""

    words: str
    values: dict[str, str]
    hands_over: bool


class Storages:
    """The storages of a project for object stores.

    Args:
        presign_minutes: browsers load images from the store, by addresses that are signed for so long; None where Label
            Studio passes images on.
    """

    def __init__(self, api: Api, project: Project, *, presign_minutes: int | None) -> None:
        self._api = api
        self._project = project
        self._presign_minutes = presign_minutes

    def attach(self, addresses: Iterable[str]) -> None:
        """Let the project show these images, as far as they lie in object stores.

        Raises:
            AnnotationToolError: Label Studio cannot open a bucket, neither with keys of its own nor with ours.
        """
        for (store, bucket), address in one_of_each(addresses).items():
            self._api.connection.repeatable(partial(self._attach, store, bucket, address))

    def _attach(self, store: Store, bucket: str, address: str) -> None:
        held = self._held(store, bucket)
        if not held:
            self._open(store, bucket, address, None)
        for one in held:
            if one.title == TITLE and not self._is_shown_as_wanted(one):
                self._api.change_storage(store.path, one.id, self._shown())

    def renew(self, address: str) -> bool:
        """Open the bucket of an image anew, as keys may have changed; whether it is one of ours.

        Raises:
            AnnotationToolError: as `attach`.
        """
        repeatable = self._api.connection.repeatable
        for store, bucket in one_of_each([address]):
            for one in repeatable(partial(self._held, store, bucket)):
                if one.title == TITLE:
                    repeatable(partial(self._open, store, bucket, address, one.id))
                    return True
        return False

    def lacks(self, addresses: Iterable[str]) -> bool:
        """Whether the project has no storage for one of these images."""
        repeatable = self._api.connection.repeatable
        return not all(repeatable(partial(self._held, *bucket)) for bucket in one_of_each(addresses))

    def problem_with(self, address: str) -> str:
        """What is wrong with an image that has this address in tasks; empty where a browser would show it."""
        return self._api.connection.repeatable(lambda: self._load(address))

    def _held(self, store: Store, bucket: str) -> list[HeldStorage]:
        return [
            one for one in self._api.storages(store.path, self._project.id) if bucket in (one.bucket, one.container)
        ]

    def _is_shown_as_wanted(self, held: HeldStorage) -> bool:
        return held.presign == bool(self._presign_minutes) and self._presign_minutes in (None, held.presign_ttl)

    def _shown(self) -> dict[str, object]:
        return {"presign": bool(self._presign_minutes), "presign_ttl": self._presign_minutes or 1}

    def _open(self, store: Store, bucket: str, address: str, storage_id: int | None) -> None:
        """Make a storage, or change one, in the first of the ways in which an image of the bucket is shown."""
        problems: list[str] = []
        is_new = storage_id is None
        for way in self._ways(store):
            if "s3_endpoint" in way.values and any(PRIVATE in problem for problem in problems):
                continue
            settings = {store.bucket: bucket, "prefix": _folder_of(address)} | self._settings(store, way)
            try:
                storage_id = self._write(store, settings, storage_id)
            except AnnotationToolUnavailable:
                raise
            except AnnotationToolError as exc:
                problem = str(exc).removeprefix(f"Label Studio at {self._api.connection.url} ")
            else:
                if way.hands_over:  # before any look that may fail
                    self._api.connection.say(f"{HANDED_OVER} {uri_of(address)}")
                problem = self.problem_with(address)
            if not problem:
                return
            problems.append(f"{way.words}: {problem}")
        if is_new and storage_id is not None:
            self._api.delete_storage(store.path, storage_id)
        raise AnnotationToolError(
            f"annotators would not see image {uri_of(address)}: Label Studio at {self._api.connection.url} cannot "
            f"read it {'; '.join(problems)}. Give Label Studio keys that may list and read the bucket; {HELP}"
        )

    def _settings(self, store: Store, way: _Way) -> dict[str, object]:
        fixed = {"title": TITLE, "regex_filter": NEVER_MATCHES, "use_blob_urls": True, "synchronizable": False}
        return fixed | self._shown() | dict.fromkeys(store.blank, "") | way.values

    def _write(self, store: Store, settings: Mapping[str, object], storage_id: int | None) -> int:
        try:
            if storage_id is None:
                return self._api.attach_storage(store.path, self._project.id, settings)
            self._api.change_storage(store.path, storage_id, settings)
        except AnnotationToolUnavailable as exc:
            if OF_THE_STORE.search(str(exc)):
                raise AnnotationToolError(str(exc).partition("): ")[2].removesuffix("; try again")) from exc
            raise
        return storage_id

    def _ways(self, store: Store) -> Iterator[_Way]:
        """Those that hand nothing over come first: Label Studio may have keys of its own."""
        keys, place = store.keys(os.environ), store.place(os.environ)
        self._api.connection.hide(value for field, value in keys.items() if field != ACCOUNT)
        self._api.connection.hide(private_keys_in(keys.values()))
        here = place.pop("s3_endpoint", "")
        self._api.connection.hide(LOGIN.findall(here))
        at_here = f" at {LOGIN.sub('', here)}"
        for at, endpoint in [(at_here, {"s3_endpoint": here}), ("", {})] if here else [("", {})]:
            yield _Way(f"with its own keys{at}", place | endpoint, hands_over=False)
            if keys:
                yield _Way(f"with the keys of this environment{at}", place | endpoint | keys, hands_over=True)

    def _load(self, address: str) -> str:
        connection = self._api.connection
        with connection.talk():
            answer = connection.look(
                f"/projects/{self._project.id}/resolve/",
                {"fileuri": base64.urlsafe_b64encode(address.encode()).decode()},
            )
            if answer.status_code >= 500 or answer.status_code in (401, 429):
                answer.raise_for_status()
        if answer.has_redirect_location:
            return self._load_signed(str(answer.headers["location"]))
        if answer.status_code != httpx.codes.OK:
            return f"Label Studio answers {answer.status_code}"
        return check_shown(answer.content, answer.headers.get("content-type", ""))

    def _load_signed(self, signed: str) -> str:
        """Load an image from its store, as a page of Label Studio does; a store out of our reach is not judged."""
        origin = self._api.connection.origin
        try:
            answer = self._api.connection.look_elsewhere(signed)
        except httpx.TransportError:
            return ""
        if answer.status_code != httpx.codes.OK:
            return f"its store answers {answer.status_code} to a signed address"
        if answer.headers.get("access-control-allow-origin") not in ("*", origin):
            return f"its store lets no page of {origin} load it: the bucket needs a CORS rule for GET from there"
        return check_shown(answer.content, answer.headers.get("content-type", ""))


def _folder_of(address: str) -> str:
    """The key of an object up to the last slash: keys that may list this folder alone are enough for a storage."""
    folder, slash, _ = address.partition("://")[2].partition("/")[2].rpartition("/")
    return folder + slash


def one_of_each(addresses: Iterable[str]) -> dict[tuple[Store, str], str]:
    """An address for each bucket that is named."""
    found: dict[tuple[Store, str], str] = {}
    for address in addresses:
        if bucket := bucket_of(address):
            found.setdefault(bucket, address)
    return found
