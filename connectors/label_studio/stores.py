"""Kinds of object stores that Label Studio shows images of: their storages, addresses, and keys in our environment."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from connectors.annotation import AnnotationToolError
from connectors.images.shown import why_not_shown

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Store:
    """A kind of object store that Label Studio has storages for.

    Attributes:
        path: of its storages in the API.
        scheme: of addresses in tasks.
        bucket: the field that names a bucket.
        blank: the fields of keys and of the place, without a value.
        keys: the values of keys; nothing where the environment has none.
        place: where the store is and in which region, likewise; Label Studio takes no private address as `s3_endpoint`.
    """

    path: str
    scheme: str
    bucket: str
    blank: tuple[str, ...]
    keys: Callable[[Environment], dict[str, str]]
    place: Callable[[Environment], dict[str, str]] = lambda environment: {}


def _all_or_none(names: Mapping[str, str], environment: Environment) -> dict[str, str]:
    """The value of each field, by the variable that has it; nothing where one is missing."""
    found = {field: environment[name] for field, name in names.items() if environment.get(name)}
    return found if found.keys() == names.keys() else {}


def _aws_keys(environment: Environment) -> dict[str, str]:
    names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    keys = _all_or_none(names, environment)
    session = _all_or_none({"aws_session_token": "AWS_SESSION_TOKEN"}, environment)
    return keys | session if keys else {}


def _aws_place(environment: Environment) -> dict[str, str]:
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next(filter(None, map(environment.get, names)), None)
    return ({"region_name": region} if region else {}) | ({"s3_endpoint": endpoint} if endpoint else {})


def _google_keys(environment: Environment) -> dict[str, str]:
    file = environment.get("GOOGLE_APPLICATION_CREDENTIALS") or environment.get("GOOGLE_SERVICE_ACCOUNT")
    try:
        key = Path(file).read_text(encoding="utf-8") if file else environment.get("GOOGLE_SERVICE_ACCOUNT_KEY")
    except (OSError, UnicodeError) as exc:
        raise AnnotationToolError(f"the key of the Google account, {file}, cannot be read: {exc}") from exc
    return {"google_application_credentials": key} if key else {}


def private_keys_in(keys: Iterable[str]) -> Iterator[str]:
    """The private key in a key file of Google, as it is and as it stands there."""
    for key in keys:
        with suppress(ValueError, TypeError, KeyError):  # no key file
            private = str(json.loads(key)["private_key"])
            yield from (private, json.dumps(private)[1:-1])


def _azure_keys(environment: Environment) -> dict[str, str]:
    names = {"account_name": "AZURE_STORAGE_ACCOUNT_NAME", "account_key": "AZURE_STORAGE_ACCOUNT_KEY"}
    return _all_or_none(names, environment)


STORES = {
    "s3": Store(
        "s3",
        "s3",
        "bucket",
        ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "s3_endpoint"),
        _aws_keys,
        _aws_place,
    ),
    "gs": Store("gcs", "gs", "bucket", ("google_application_credentials",), _google_keys),
    "az": Store("azure", "azure-blob", "container", ("account_name", "account_key"), _azure_keys),
}
"""By the scheme of addresses in the pool."""


def scheme_of(uri: str) -> str:
    """What stands before `://`; empty for a path."""
    scheme, found, _ = uri.partition("://")
    return scheme.lower() if found else ""


def address_in(uri: str) -> str:
    """The address of an object in a task.

    Raises:
        AnnotationToolError: Label Studio cannot show an object of this name.
    """
    if reason := why_not_shown(uri):
        raise AnnotationToolError(f"image {uri}: {reason}: annotators cannot be shown it")
    return f"{STORES[scheme_of(uri)].scheme}://{uri.partition('://')[2]}"


def uri_of(address: str) -> str:
    """Where the pool has the object of an address in a task."""
    scheme, _, place = address.partition("://")
    return f"{next(name for name, store in STORES.items() if store.scheme == scheme)}://{place}"


def bucket_of(address: str) -> tuple[Store, str] | None:
    """Where an address in a task leads to; None for what is in no object store."""
    scheme, _, place = address.partition("://")
    store = next((one for one in STORES.values() if one.scheme == scheme), None)
    return (store, place.partition("/")[0]) if store else None
