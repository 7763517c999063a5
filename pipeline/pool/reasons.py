"""Why an image of the pool is not used: kinds of reasons, which stand before the colon of `set_aside_reason`."""

UNREAD = "cannot be read"
TOO_LARGE = "too large"
OUTSIDE = "outside the pool's folder"
LINKED = "linked from outside the pool"
ADDRESS = "an address, not a file"
OTHER_FORMAT = "of a format that is not read"
CHANGED = "file changed since it was indexed"
GONE = "not in the object store"
IN_AUDIT = "of a group in the audit set: found later, and not to be trained on"
NOT_NAMED = "no longer in the manifest"
PASSED_OVER = "passed over: no image that a person put into the pool"
NOT_SHOWN = "cannot be shown"
NOT_BY_NAME = "not an image: suffix "
NO_SUFFIX = "not an image: no suffix"
LASTING = ("damaged", "not an image", "not supported")
"""Kinds of reasons that the content of a file gives: they stand as long as it is the same."""
PASSING = (UNREAD, TOO_LARGE)
"""Kinds of reasons that may be gone the next time: rights are given, a limit is raised."""


class PoolError(ValueError):
    """The pool cannot be indexed as asked, or an image of it cannot be read."""


class ImageError(PoolError):
    """An image cannot be read.

    Attributes:
        uri: of the image.
        reason: why; the part before the colon is the kind.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class PoolUnavailable(Exception):
    """The place of the images does not answer: no image of it is at fault, and the same command may work later."""


class PoolRefused(PoolUnavailable):
    """The place of the images lets nobody in with these credentials, or is not there: they must be changed first."""
