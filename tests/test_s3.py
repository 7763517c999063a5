"""The S3 server of the tests does what tests of object stores rely on."""

from datetime import timedelta

import httpx
import obstore
import pytest
from obstore.exceptions import PermissionDeniedError, PreconditionError
from tenacity import Retrying, stop_after_delay, wait_fixed

from tests.s3 import IMPOSTOR, READER


def test_who_may_read_what_is_checked(s3, bucket):
    s3.put(bucket, {"open/a b?%.png": b"a", "closed/b.png": b"b"})
    reader = s3.store(bucket, READER)
    assert {one["path"] for page in obstore.list(reader) for one in page} == {"open/a b?%.png", "closed/b.png"}
    assert obstore.get(reader, "open/a b?%.png").bytes() == b"a"
    for store, key in ((reader, "closed/b.png"), (s3.store(bucket, IMPOSTOR), "open/a b?%.png")):
        with pytest.raises(PermissionDeniedError):
            obstore.get(store, key)


def test_what_changed_vanished_or_expired_is_told(s3, bucket):
    s3.put(bucket, {"a": b"1", "b": b"2"})
    store = s3.store(bucket)
    tag = obstore.head(store, "a")["e_tag"]
    lasting, short = (obstore.sign(store, "GET", "a", timedelta(seconds=seconds)) for seconds in (600, 1))
    assert httpx.get(lasting, trust_env=False).content == b"1"
    for attempt in Retrying(stop=stop_after_delay(30), wait=wait_fixed(0.2), reraise=True):
        with attempt:
            assert "has expired" in httpx.get(short, trust_env=False).text
    s3.put(bucket, {"a": b"3"})
    s3.delete(bucket, "b")
    with pytest.raises(PreconditionError):
        obstore.get(store, "a", options={"if_match": tag})
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "b")
