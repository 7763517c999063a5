"""Addresses of objects and of folders of objects: what they are made of, and what must not be in them."""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

STORES = ("s3", "gs", "az")
"""Schemes of object stores, whose objects can be listed."""
WEB = ("https", "http")
FORMS = "s3://bucket/folder, gs://bucket/folder, az://container/folder or, for a manifest, https://host/file.csv"
SIGNATURE = re.compile(r"[?&](x-(amz|goog)-\w+|signature|sig|awsaccesskeyid|googleaccessid|token)=", re.IGNORECASE)
"""What a signed address has in its query; a key of an object may hold any other question mark."""


class Place(NamedTuple):
    """What an address is made of.

    Attributes:
        scheme: of `STORES` or `WEB`.
        bucket: bucket, container, or host with its port.
        key: of the object, or of a folder without the last slash; as it is, without codes such as %20.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def root(self) -> str:
        """The address of the bucket or host."""
        return f"{self.scheme}://{self.bucket}"

    def __str__(self) -> str:
        """The address of the object or folder."""
        key = quote(self.key, safe="/-._~!$&'()*+,;=:@") if self.scheme in WEB else self.key
        return f"{self.root}/{key}" if key else self.root


def is_address(place: object) -> bool:
    """Whether a text is an address that images are read from; the path of a file never is.

    >>> is_address("s3://bucket/a.png"), is_address("images/a.png")
    (True, False)
    """
    return isinstance(place, str) and place.partition("://")[0].lower() in (*STORES, *WEB) and "://" in place


def place_of(address: str) -> Place:
    """What an address is made of.

    Raises:
        ValueError: it is none, or holds a login or a signature, which the message does not repeat.

    >>> place_of("s3://bucket/pets/a%20b.png")
    Place(scheme='s3', bucket='bucket', key='pets/a%20b.png')
    >>> place_of("https://example.org/pets/a%20b.png").key
    'pets/a b.png'
    """
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme not in (*STORES, *WEB):
        raise ValueError(f"must be a path, or an address such as {FORMS}")
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise ValueError("an address must not hold a login: put it into the environment")
    if SIGNATURE.search(rest):
        raise ValueError(
            "an address must not hold a signature or a token: write it without, and put keys into the environment"
        )
    if scheme in WEB:
        parts = urlsplit(address)
        if parts.query or parts.fragment or "?" in address:
            raise ValueError("an address on the web must end with the path, without ? and #")
        bucket, key = parts.netloc, unquote(parts.path)
    if not bucket or "\0" in address:
        raise ValueError(f"must name a bucket, a container or a host, as in {FORMS}")
    return Place(scheme, bucket, key.strip("/"))


def is_below(address: str, folder: str) -> bool:
    """Whether an address is a folder's or that of something in it."""
    return address == folder or address.startswith(f"{folder.rstrip('/')}/")
