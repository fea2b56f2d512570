"""Requests that no client of ours would send, to the whole API on a real uvicorn."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from handlers.app import create_app
from posedrop import queue
from posedrop.index import Index
from posedrop.records import Request
from posedrop.settings import Settings
from posedrop.storage import Storage
from tests.samples import PROBE
from tests.serving import serving


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    app = create_app(settings, queue.connect("stub://"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/analyse", rb'{"file_id": "\ud800", "analysis": "dummy"}', 404),
        ("/analyse", rb'{"file_id": "x", "analysis": "\ud800"}', 404),
        ("/analyse", rb'{"file_id": "x", "analysis": "dummy", "\ud800": 1}', 422),
        ("/upload", rb'{"filename": "\ud800.mp4"}', 422),
        ("/upload", '{"filename": "a.mp4", "content_type": "vidéo/mp4"}'.encode(), 422),
        ("/upload", b'{"filename": "a.mp4", "args": ' + b"[" * 5000 + b"}", 422),
    ],
)
def test_half_a_character_and_the_like_are_answered_as_errors(
    api: httpx.Client, path: str, body: bytes, status: int
) -> None:
    """The error quotes the request in a form that can be sent; nothing is a 500."""
    answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
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


def test_a_newer_result_is_no_store_that_is_away(
    api: httpx.Client, settings: Settings, storage: Storage
) -> None:
    """GET /results says that this posedrop is too old: 500, as asking again changes nothing."""
    storage.create_bucket(settings.results_bucket)
    request = Request.model_validate(
        {
            "analysis_id": "a" * 16,
            "analysis": "dummy",
            "analysis_version": "1",
            "args": {},
            "video": {"file_id": "b" * 16, "bucket": "v", "key": "k", "etag": "e", "size": 1},
            "sha256": "0" * 64,
            "probe": PROBE,
            "asked_by": "api",
            "created_at": "2026-01-01T00:00:00Z",
        }
    )
    index = Index(settings.index_file)
    index.analysis_planned(request, f"k/dummy-{request.analysis_id}")
    index.close()
    key = f"k/dummy-{request.analysis_id}/result.json"
    storage.write(settings.results_bucket, key, b'{"schema": 2}')
    answer = api.get(f"/results/{request.analysis_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "newer_record")
    assert "upgrade" in answer.json()["error"]["message"]


def test_metadata_too_deep_to_read_is_answered_as_an_error(api: httpx.Client) -> None:
    """Arguments nested beyond Python's recursion are no JSON object, and no 500."""
    headers = {"x-amz-meta-analysis": "dummy", "x-amz-meta-args": "[" * 1500}
    answer = api.put("/upload/film.mp4", content=b"film", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_args")
