"""Why an image of the pool is not used: kinds of reasons, which stand before the colon of `set_aside_reason`."""

UNREAD = "cannot be read"
TOO_LARGE = "too large"
OUTSIDE = "outside the pool's folder"
LINKED = "linked from outside the pool"
ADDRESS = "an address, not a file"
OTHER_FORMAT = "of a format that is not read"
CHANGED = "file changed since it was indexed"
IN_AUDIT = "of a group in the audit set: found later, and not to be trained on"
NOT_NAMED = "no longer in the manifest"
PASSED_OVER = "passed over: no image that a person put into the pool"
NOT_BY_NAME = "not an image: suffix "
NO_SUFFIX = "not an image: no suffix"


class PoolError(ValueError):
    """The pool cannot be indexed as asked, or an image of it cannot be read."""
