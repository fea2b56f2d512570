"""Requests that no client of ours would send, to the whole API on a real uvicorn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from handlers.app import create_app
from posedrop import queue
from posedrop.settings import Settings
from tests.serving import serving


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    app = create_app(settings, queue.connect("stub://"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def nested(body: bytes, deep: int) -> bytes:
    """Return a body with arguments that are nested so deep."""
    return body % (b'{"a":' * deep + b"1" + b"}" * deep)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/analyse", rb'{"file_id": "\ud800", "analysis": "dummy"}', 404),
        ("/analyse", rb'{"file_id": "x", "analysis": "\ud800"}', 404),
        ("/analyse", rb'{"file_id": "x", "analysis": "dummy", "\ud800": 1}', 422),
        ("/upload", rb'{"filename": "\ud800.mp4"}', 422),
        ("/upload", '{"filename": "a.mp4", "content_type": "vidéo/mp4"}'.encode(), 422),
        ("/upload", b'{"filename": "a.mp4", "args": ' + b"[" * 5000 + b"}", 422),
        ("/upload", nested(b'{"filename": "a.mp4", "analysis": "dummy", "args": %b}', 988), 422),
        ("/analyse", nested(b'{"file_id": "x", "analysis": "dummy", "args": %b}', 100), 422),
        ("/analyse", nested(b'{"file_id": "x", "analysis": "dummy", "args": %b}', 988), 422),
        ("/analyse", nested(b'{"file_id": "x", "analysis": "dummy", "args": %b}', 10**5), 422),
        ("/analyse", b'{"file_id": "' + b"x" * 2**20 + b'"}', 413),
        ("/reingest", b'{"prefix": "' + b"x" * 2**22 + b'"}', 413),
        ("/reconcile", b"x" * 2**22, 413),
    ],
)
def test_half_a_character_and_the_like_are_answered_as_errors(
    api: httpx.Client, path: str, body: bytes, status: int, chunked: bool
) -> None:
    """The error quotes the request in a form that can be sent; nothing is a 500.

    Nor what is larger or deeper than a request can be, whether it says so before or not.
    """
    sent: Any = iter([body]) if chunked else body
    answer = api.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/analyse", b"{}", "application/x-www-form-urlencoded"),
        ("/analyse", b"", "text/plain"),
        ("/analyse", b"{", "application/json"),
        ("/analyse", b"[]", "application/json"),
        ("/upload", b"", "application/x-www-form-urlencoded"),
        ("/reingest", b"{}", "text/plain"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_so(
    api: httpx.Client, path: str, body: bytes, kind: str
) -> None:
    """It is no field that is wrong; curl's own content type is told how to be another."""
    answer = api.post(path, content=body, headers={"Content-Type": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error.get("field")) == (422, None)
    assert error["message"].startswith("the body has to be a JSON object: ")
    assert ("'Content-Type: application/json'" in error["message"]) is ("json" not in kind)


@pytest.mark.parametrize("args", ["[" * 1500, "[" * 700 + "]" * 700])
def test_metadata_too_deep_to_read_is_answered_as_an_error(api: httpx.Client, args: str) -> None:
    """Arguments nested beyond Python's recursion are no JSON object, and no 500."""
    headers = {"x-amz-meta-analysis": "dummy", "x-amz-meta-args": args}
    answer = api.put("/upload/film.mp4", content=b"film", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_args")
