"""What goes wrong on the line to Label Studio is told without keys."""

import httpx
import pytest

from connectors.annotation import AnnotationToolError
from connectors.label_studio.connection import Connection

KEY = '{"private_key":\n  "-----BEGIN\nhunter2"}'


@pytest.mark.parametrize("pages", [{"json": {"detail": "x" * 480 + KEY}}, {"text": "x" * 480 + KEY}, {"text": KEY}])
@pytest.mark.parametrize("status", [400, 401, 503])
def test_keys_are_hidden_before_the_words_are_cut(monkeypatch, pages, status):
    connection = Connection("http://ls", "token", say=print)
    connection.hide([KEY, "\n"])
    answer = httpx.Response(status, request=httpx.Request("GET", "http://ls/api"), **pages)
    monkeypatch.setattr(connection, "send", lambda *_, **__: answer)
    with pytest.raises(AnnotationToolError) as told, connection.talk():
        connection.read("GET", "/api")
    assert "[secret]" in str(told.value)
    assert "private_key" not in str(told.value)
