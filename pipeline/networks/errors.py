"""What can be wrong with a network."""


class ModelError(ValueError):
    """A network cannot be built as asked, or a file does not hold its weights."""
