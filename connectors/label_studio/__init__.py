"""Label Studio: the only room that knows its API."""
