"""Object stores by their addresses: list, look, get; obstore talks to them, and its errors become ours.

Credentials are those of the environment, as obstore reads it: AWS_*, GOOGLE_*, AZURE_*. A request that fails is sent
again, with pauses that grow, for `PATIENCE` at most. What obstore says of an error may hold parts of requests: of its
words only codes and names of errors go on from here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from connectors.objects.addresses import WEB, Place
from pipeline.names import shorten
from pipeline.pool.reasons import GONE, UNREAD, PoolError, PoolRefused, PoolUnavailable

if TYPE_CHECKING:
    import obstore
    from obstore import ObjectMeta
    from obstore.store import AzureStore, ClientConfig, GCSStore, HTTPStore, RetryConfig, S3Store

PATIENCE = timedelta(minutes=2)
"""For which a request is tried again before the store counts as away."""
ANSWER_TIME = timedelta(minutes=2)
"""Of one answer with all its bytes."""
LISTED_AT_ONCE = 1000
FIRST_READS = 16
"""So many first reads of a bucket that are all forbidden are no fault of the objects."""
INSTALL = "install it with `uv pip install obstore` (the extra labelcycle[cloud])"


class Kind(NamedTuple):
    """A kind of object store.

    Attributes:
        keys: what the environment must hold.
        endpoints: variables that lead to a store of one's own; the first is told.
        rights: of whoever lists and reads.
    """

    keys: str
    endpoints: tuple[str, ...]
    rights: str


KINDS = {
    "s3": Kind(
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for a store of your own, AWS_ENDPOINT_URL",
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
        "s3:ListBucket and s3:GetObject",
    ),
    "gs": Kind(
        "GOOGLE_APPLICATION_CREDENTIALS, the path of the key file of a service account",
        ("GOOGLE_BASE_URL",),
        "the role Storage Object Viewer",
    ),
    "az": Kind(
        "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "the role Storage Blob Data Reader",
    ),
}
"""By scheme."""
ON_THE_WEB = Kind("nothing: pages that ask for a login are not read", (), "of everybody")
WRONG_CREDENTIALS = re.compile(
    r"\b(SignatureDoesNotMatch|InvalidAccessKeyId|InvalidToken|ExpiredToken|TokenRefreshRequired|InvalidSecurity"
    r"|RequestTimeTooSkewed|AuthFailure|AuthenticationFailed|InvalidAuthenticationInfo|AccountIsDisabled"
    r"|AuthorizationHeaderMalformed|Server failed to authenticate the request)\b"
)
"""Codes of answers that mean the credentials, and no object."""
NO_KEYS = {
    "Unable to open service account file": "the key file cannot be opened",
    "Unable to decode service account file": "the key file is none of a service account or a user",
    "Error reading pem file": "the key in the key file is none",
    "Invalid Access Key": "the account key is not in base64",
}
"""What makes keys that no request can be made with."""
NO_BUCKET = re.compile(r"\b(NoSuchBucket|ContainerNotFound|The specified bucket does not exist)\b")
STATUS = re.compile(r"status code: (\d{3})\b")
NOT_LET_IN, FORBIDDEN, NOT_FOUND = 401, 403, 404
REFUSED = (400, NOT_LET_IN, FORBIDDEN, NOT_FOUND)
WRONG_REGION, NO_TOKEN = "redirect without LOCATION", "Error performing token request"
"""In obstore's words; what stands around them may be anybody's: a key, or a page."""
NO_CREDENTIALS = re.compile(
    r"169\.254\.169\.254|metadata\.google|[Mm]issing (AccessKeyId|credentials|Account)|MissingAccount"
)
"""Signs that nothing was found in the environment, and the machine was asked for a role of its own."""
MADE_OF_CONTENT = re.compile(r"[0-9a-f]{32}(-[1-9][0-9]*)?")
"""ETags of S3 and Google Cloud Storage that are made of the content: its MD5, or an MD5 of MD5s and the number of
parts."""


class ListingRefused(PoolRefused):
    """A place may not be listed with these credentials, or cannot be; what is in it may be readable."""


class Found(NamedTuple):
    """An object as a store tells of it, without a byte of it.

    Attributes:
        place: where it is.
        size_bytes: its length.
        modified: when it was written.
        etag: what changes with its content, without quotes; None where the store has none.
    """

    place: Place
    size_bytes: int
    modified: datetime
    etag: str | None

    @property
    def modified_ns(self) -> int:
        """The time of writing, nanoseconds since 1970."""
        return int(self.modified.timestamp() * 1_000_000) * 1000

    @property
    def item_id(self) -> str:
        """32 hex digits that stand for the content.

        Copies are one item where the ETag is made of the content; any other ETag counts together with the address, and
        where there is none the time does.
        """
        is_of_content = self.etag and self.place.scheme in ("s3", "gs") and MADE_OF_CONTENT.fullmatch(self.etag)
        told = f"{self.etag or self.modified.isoformat()}\0{self.size_bytes}"
        stands_for = told if is_of_content else f"{told}\0{self.place}"
        return hashlib.blake2b(stands_for.encode(), digest_size=16).hexdigest()


def list_objects(folder: Place, *, deep: bool = True) -> Iterator[Found]:
    """The objects of a bucket or below a folder in it, as the store sends them: a thousand at a time are in memory.

    Args:
        folder: a key that ends within a name, as "pets/ca", holds nothing.
        deep: those of its folders too.

    Raises:
        PoolError: the place is on the web, which cannot be listed.
        PoolUnavailable: the store does not answer, or refuses.
    """
    if folder.scheme in WEB:
        raise PoolError(
            f"{folder} is an address on the web, where nothing can be listed: name a manifest, .csv or "
            ".parquet, or use s3://, gs:// or az://"
        )
    store = _store(folder.scheme, folder.bucket)
    import obstore

    with explained(folder, is_listing=True):
        if not deep:
            yield from _found(folder, obstore.list_with_delimiter(store, folder.key or None)["objects"])
            return
        for some in obstore.list(store, folder.key or None, chunk_size=LISTED_AT_ONCE):
            yield from _found(folder, some)


def look_at(place: Place) -> Found:
    """An object, without its bytes.

    Raises:
        PoolError: it is not there, or may not be read.
        PoolUnavailable: as `list_objects`.
    """
    store = _store(place.scheme, place.bucket)
    import obstore

    with explained(place):
        found = _one(place, obstore.head(store, place.key))
    _READS.count(place, is_forbidden=False)
    return found


class Content(NamedTuple):
    """An object whose first byte has come: `read` waits for the rest."""

    found: Found
    answer: obstore.GetResult

    def read(self) -> bytes:
        """All bytes.

        Raises:
            PoolUnavailable: as `list_objects`.
        """
        with explained(self.found.place):
            return bytes(self.answer.bytes())


def get(place: Place) -> Content:
    """An object.

    Raises:
        PoolError: it is not there, or may not be read; the message is the reason.
        PoolUnavailable: the store does not answer; or refuses, by credentials that are wrong or as the first reads of
            the bucket were all forbidden.
    """
    store = _store(place.scheme, place.bucket)
    import obstore

    with explained(place):
        answer = obstore.get(store, place.key)
    _READS.count(place, is_forbidden=False)
    return Content(_one(place, answer.meta), answer)


# The library, and its errors.


@lru_cache(maxsize=64)
def _store(scheme: str, bucket: str) -> S3Store | GCSStore | AzureStore | HTTPStore:
    """The connections to a bucket, container or host.

    Raises:
        PoolUnavailable: obstore is not installed, or lacks a setting.
    """
    try:
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ImportError:
        raise PoolRefused(f"images in object stores and on the web need the package obstore: {INSTALL}") from None
    retries: RetryConfig = {"max_retries": 20, "retry_timeout": PATIENCE}
    endpoints = [os.environ.get(name, "") for name in KINDS.get(scheme, ON_THE_WEB).endpoints]
    is_plain = scheme == "http" or any(endpoint.startswith("http://") for endpoint in endpoints)
    client: ClientConfig = {"timeout": ANSWER_TIME}
    if is_plain:
        client["allow_http"] = True
    with explained(Place(scheme, bucket, "")):
        match scheme:
            case "s3":
                return S3Store(bucket, client_options=client, retry_config=retries)
            case "gs":
                return GCSStore(bucket, client_options=client, retry_config=retries)
            case "az":
                return AzureStore(bucket, client_options=client, retry_config=retries)
            case _:
                return HTTPStore(f"{scheme}://{bucket}", client_options=client, retry_config=retries)


def _found(folder: Place, some: Iterable[ObjectMeta]) -> Iterator[Found]:
    return (_one(Place(folder.scheme, folder.bucket, each["path"]), each) for each in some)


def _one(place: Place, told: ObjectMeta) -> Found:
    etag = told["e_tag"]
    return Found(place, told["size"], told["last_modified"], etag.strip('"') if etag else None)


@contextmanager
def explained(place: Place, *, is_listing: bool = False) -> Iterator[None]:
    """Turn errors of obstore into ours."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError) as exc:
        if isinstance(exc, PoolError):
            raise
        # Without its cause, which a log would print whole.
        raise _explanation(exc, place, is_listing=is_listing) from None


def _explanation(exc: Exception, place: Place, *, is_listing: bool) -> PoolError | PoolUnavailable:
    from obstore.exceptions import InvalidPathError

    told = str(exc)
    if refusal := _refusal(exc, place, is_listing=is_listing):
        return refusal
    if isinstance(exc, FileNotFoundError):
        return PoolError(f"{GONE}: there is nothing at this address")
    if _is_forbidden(exc):
        return PoolError(f"{UNREAD}: forbidden: these credentials may not read it")
    is_bad_key = isinstance(exc, InvalidPathError) or (isinstance(exc, ValueError) and "Could not parse path" in told)
    if is_bad_key and not is_listing:
        return PoolError(
            f"{UNREAD}: no object can be asked for by a key with an empty part, a part . or .., or a sign that nobody "
            "can see"
        )
    if is_bad_key:
        found = re.search(r'[Pp]ath "([^"]*)"', told)
        key = f"the key {shorten(found[1])}" if found else "a key"
        return ListingRefused(
            f"{place}: cannot be listed, as {key} in it has an empty part, "
            "a part . or .., or a sign that nobody can see: rename the object, or name the images in a manifest"
        )
    return PoolUnavailable(
        f"{place.root}: the store does not answer as it should ({_kind_of(told)}), after "
        f"{PATIENCE.total_seconds():g} s of trying"
    )


def _refusal(exc: Exception, place: Place, *, is_listing: bool) -> PoolRefused | None:
    """What is wrong with the credentials or the bucket; None for an error of an object, or of the way there."""
    told, kind = str(exc), KINDS.get(place.scheme, ON_THE_WEB)
    wanted = f"the environment must hold {kind.keys}"
    if why := _why_refused(told, place):
        return PoolRefused(f"{place.root}: {why}: {wanted}")
    if NO_BUCKET.search(told) or (is_listing and (isinstance(exc, FileNotFoundError) or _status_of(told) == NOT_FOUND)):
        or_endpoint = f", or {kind.endpoints[0]} if it is in a store of your own" if kind.endpoints else ""
        return PoolRefused(f"{place.root}: the store has no such bucket: mend the address{or_endpoint}")
    if is_listing and _is_forbidden(exc):
        return ListingRefused(
            f"{place}: these credentials may not list it: give them the rights to list and to read ({kind.rights}); "
            f"{wanted}"
        )
    if _is_forbidden(exc) and _READS.count(place, is_forbidden=True):
        return PoolRefused(
            f"{place.root}: these credentials may not read it: the first {FIRST_READS} objects are all forbidden. Give "
            f"them the right to read ({kind.rights}); {wanted}"
        )
    if place.scheme == "s3" and WRONG_REGION in told:
        return PoolRefused(f"{place.root}: the bucket is in another region: let AWS_REGION name it")
    return None


def _why_refused(told: str, place: Place) -> str:
    """What is wrong with the credentials; empty where nothing is, as far as an error tells."""
    if code := WRONG_CREDENTIALS.search(told):
        return f"the store refuses the credentials ({code[1]})"
    if NO_CREDENTIALS.search(told):
        return "there are no credentials"
    status = _status_of(told)
    if status in REFUSED and NO_TOKEN in told:
        return f"nobody gives a token for the credentials (status {status})"
    if status == NOT_LET_IN and place.scheme not in WEB:
        return f"the store refuses the credentials (status {status})"
    return next((words for sign, words in NO_KEYS.items() if sign in told), "")


def _is_forbidden(exc: Exception) -> bool:
    """Whether an object or a listing is; of a listing obstore tells no more than the status."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    return isinstance(exc, PermissionDeniedError | UnauthenticatedError) or _status_of(str(exc)) == FORBIDDEN


def _status_of(told: str) -> int | None:
    found = STATUS.search(told)
    return int(found[1]) if found else None


def _kind_of(told: str) -> str:
    """What an error is about, in words of ours: its own may hold an address with a signature."""
    if (status := _status_of(told)) is not None:
        return f"status {status}"
    kinds = {
        "dns error": "there is no host of this name",
        "certificate": "its certificate is not trusted",
        "onnection refused": "nothing listens there",
        "timed out": "no answer in time",
        "error sending request": "the connection fails",
        "builder error": "the address of the store is wrong, or http where https is wanted",
    }
    return next((words for sign, words in kinds.items() if sign in told), "an error of the connection")


class _FirstReads:
    """Whether all reads of a bucket so far were forbidden."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_forbidden: dict[str, int | None] = {}

    def count(self, place: Place, *, is_forbidden: bool) -> bool:
        """Count a read; True if it is one too many of a bucket that nothing was read of."""
        with self._lock:
            before = self._n_forbidden.get(place.root, 0)
            after = before + 1 if is_forbidden and before is not None else None
            self._n_forbidden[place.root] = after
            return after is not None and after >= FIRST_READS


_READS = _FirstReads()
