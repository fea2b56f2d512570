"""Requests that no client of ours would send, to the whole API on a real uvicorn."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from handlers.app import create_app
from posedrop import logs
from posedrop.buckets.records.requests import Request
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.settings import Settings
from posedrop.transport import queue
from tests.support.index_rows import judged, result_of, run_of
from tests.support.samples import PROBE
from tests.support.serving import serving

EVENTS = Path(__file__).parents[1] / "fixtures" / "events"
TOKEN = "token+of/the=api%"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def up(settings: Settings) -> Iterator[str]:
    """The address of the API as `posedrop up` serves it on loopback."""
    own = settings.model_copy(update={"api_token": SecretStr(TOKEN)})
    with serving(create_app(own, queue.connect("stub://"), local=True)) as url:
        yield url


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
        ("/analyse", rb'{"file_id": "\ud800", "analysis": "dummy"}', 422),
        ("/analyse", rb'{"file_id": "x", "analysis": "\ud800"}', 422),
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
    index.analysis_requested(request, f"k/dummy-{request.analysis_id}")
    index.close()
    key = f"k/dummy-{request.analysis_id}/result.json"
    storage.write(settings.results_bucket, key, b'{"schema": 2}')
    answer = api.get(f"/results/{request.analysis_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "newer_record")
    assert "upgrade" in answer.json()["error"]["message"]


@pytest.mark.parametrize("args", ["[" * 1500, "[" * 700 + "]" * 700])
def test_metadata_too_deep_to_read_is_answered_as_an_error(api: httpx.Client, args: str) -> None:
    """Arguments nested beyond Python's recursion are no JSON object, and no 500."""
    headers = {"x-amz-meta-analysis": "dummy", "x-amz-meta-args": args}
    answer = api.put("/upload/film.mp4", content=b"film", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_args")


def test_a_rule_that_is_in_no_folder_is_refused_however_it_comes(api: httpx.Client) -> None:
    """A posedrop.json sent as a film is, by JSON, curl or form, would count for nothing."""
    for answer in (
        api.post("/upload", json={"filename": r"C:\day1\posedrop.json"}),
        api.put("/upload/posedrop.json", content=b"{}"),
        api.post("/upload", files={"file": ("posedrop.json", b"{}")}),
    ):
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["message"].startswith("a posedrop.json counts for a folder: say for which")
    # Other tests' objects may be in the bucket.
    there = api.get("/files").json()["items"]
    assert not any(each["key"].endswith("posedrop.json") for each in there)


def test_nothing_is_due_where_nothing_is_set(settings: Settings, bucket: str) -> None:
    """What is due is told, and no more removed than was seen."""
    names = {f"{kind}_bucket": f"{bucket}-{kind}" for kind in ("videos", "results")}
    mine = settings.model_copy(update=names)
    for name in names.values():
        Storage(mine).create_bucket(name)
    app = create_app(mine, queue.connect("stub://"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as api:
        found = api.get("/expire").json()
        assert (found["due"], found["held"], found["items"]) == (0, False, [])
        assert api.post("/expire", json={"due": 0}).json() == {"expired": 0, "undeletable": 0}
        for wrong in ({}, {"due": -1}, {"due": 2**63}, {"due": 1, "share": 1}):
            assert api.post("/expire", json=wrong).status_code == 422


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/run/abc", "text/html"),
        ("/session", "text/html"),
        ("/page/upload.js", "text/javascript"),
        ("/page/page.css", "text/css"),
    ],
)
def test_browsers_ask_whether_the_page_is_still_what_they_have(
    api: httpx.Client, path: str, kind: str
) -> None:
    """Else they would run the one from before an upgrade for days; what they have is not sent."""
    sent = api.get(path)
    assert (sent.status_code, sent.headers["Cache-Control"]) == (200, "no-cache")
    assert sent.headers["Content-Type"] == f"{kind}; charset=utf-8"
    etag = sent.headers["ETag"]
    for known in (etag, f'"older", W/{etag}'):  # a proxy that compresses makes it a weak one
        again = api.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["Cache-Control"], again.headers["ETag"]) == ("no-cache", etag)
    assert api.get(path, headers={"If-None-Match": '"older"'}).content == sent.content


def test_the_token_is_traded_for_a_cookie_that_pictures_and_streams_can_use(up: str) -> None:
    """HttpOnly, Strict, named by the port, not the token itself; only what was traded lets in."""
    assert httpx.get(f"{up}/session").status_code == 200
    assert httpx.get(f"{up}/page/session.js").status_code == 200
    assert httpx.post(f"{up}/session").status_code == 401
    assert httpx.post(f"{up}/session", headers={"Authorization": "Bearer x"}).status_code == 401
    said = httpx.post(f"{up}/session", headers=BEARER).headers["Set-Cookie"]
    cookie, *flags = said.split("; ")
    name, _, value = cookie.partition("=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    assert name == f"posedrop_{httpx.URL(up).port}"
    assert TOKEN not in said
    expires, _, signature = value.partition(".")

    def status(given: str) -> int:
        sent = {"Cookie": given.encode("latin-1")}
        return httpx.get(f"{up}/files", headers=sent).status_code

    assert status(cookie) == 200
    assert status(f"a=b; {name}=tossed.by-another-port; {cookie}") == 200
    for wrong in (
        f"{name}={TOKEN}",
        f"{name}={int(expires) + 1}.{signature}",
        f"{name}={value[:-1]}",
        f"{name}=1.{signature}",
        f"{name}=\u00b9.\u00b9",
        f"posedrop_80={value}",
        f"{name}={'9' * 5000}.{signature}",
    ):
        assert status(wrong) == 401, wrong


def test_with_the_cookie_only_the_own_page_changes_or_reads_anything(up: str) -> None:
    """Browsers send it to and from all ports of a machine; some of them are other people's."""
    cookie = httpx.post(f"{up}/session", headers=BEARER).headers["Set-Cookie"].split(";")[0]

    def status(method: str, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.request(
            method, f"{up}/analyse/a" if method != "GET" else f"{up}/files", headers=named
        ).status_code

    ours = {"cookie": cookie, "origin": up}
    assert status("DELETE", **ours) == 404
    assert status("DELETE", **ours, sec_fetch_site="same-origin") == 404
    assert status("GET", cookie=cookie, sec_fetch_site="none") == 200
    assert status("GET", cookie=cookie, sec_fetch_site="same-origin") == 200
    assert status("DELETE", cookie=cookie) == 403
    assert status("DELETE", cookie=cookie, origin="null") == 403
    assert status("DELETE", cookie=cookie, origin="http://127.0.0.1:1") == 403
    assert status("DELETE", cookie=cookie, sec_fetch_site="none") == 403
    assert status("GET", cookie=cookie, sec_fetch_site="same-site") == 403
    assert status("GET", cookie=cookie, sec_fetch_site="cross-site") == 403
    assert status("GET", cookie=cookie, host="rebound.example") == 403
    assert httpx.delete(f"{up}/analyse/a", headers=BEARER).status_code == 404  # curl has no page


def test_up_is_called_by_its_own_name_alone(up: str) -> None:
    """The token does not make another name right (DNS rebinding), but for who asks if it lives."""
    assert httpx.get(f"{up}/files", headers=BEARER | {"Host": "rebound.example"}).status_code == 403
    assert httpx.get(f"{up}/session", headers={"Host": "rebound.example"}).status_code == 403
    assert httpx.get(f"{up}/healthz", headers={"Host": "rebound.example"}).status_code == 200


def test_each_change_is_a_line_with_who_what_and_from_where(
    up: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """By token, password or cookie. What is read or refused is no change."""
    for bucket in ("videos", "results", "models"):
        Storage(settings).create_bucket(bucket)
    caplog.set_level(logging.INFO, "handlers.changes")
    cookie = httpx.post(f"{up}/session", headers=BEARER).headers["Set-Cookie"].split(";")[0]

    told = httpx.post(f"{up}/upload", json={"filename": "a\n.mp4"}, headers=BEARER)
    file_id = told.json()["file_id"]
    body = {"file_id": file_id, "analysis": "dummy", "args": {"seconds": 1}}
    asked = httpx.post(f"{up}/analyse", json=body, auth=("me", TOKEN)).json()["analysis_id"]
    httpx.post(f"{up}/analyse", json=body | {"file_id": "nosuch"}, auth=("me", TOKEN))
    httpx.get(f"{up}/upload/{file_id}", headers=BEARER)
    httpx.delete(f"{up}/analyse/{asked}", headers={"Cookie": cookie, "Origin": up})
    httpx.delete(f"{up}/upload/{file_id}", headers={"Cookie": cookie, "Origin": up})
    httpx.delete(f"{up}/upload/{file_id}", headers={"Cookie": cookie, "Origin": "http://evil"})
    httpx.post(f"{up}/reindex", headers=BEARER)
    lines = [vars(record) for record in caplog.records if record.name == "handlers.changes"]
    assert [(line["msg"], line["who"]) for line in lines] == [
        ("cookie given", "token"),
        ("upload allowed", "token"),
        ("asked for", "basic"),
        ("deleted", "cookie"),
        ("deleted", "cookie"),
        ("reindexed", "token"),
    ]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert [lines[n]["file_id"] for n in (1, 2, 4)] == [file_id] * 3
    assert {lines[n]["analysis_id"] for n in (2, 3)} == {asked}
    assert "\n" not in logs.Formatter().format(caplog.records[-1])


def test_what_was_put_by_a_tool_is_a_line_with_the_stores_user(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """MinIO tells it to both of its targets: the second is no news. Results are no change."""
    caplog.set_level(logging.INFO, "handlers.changes")
    own = settings.model_copy(update={"events_token": SecretStr(TOKEN)})
    told = json.loads((EVENTS / "minio" / "put.json").read_text())
    forged = {"principalId": "x" * 100_000 + "\n"}
    with serving(create_app(own, queue.connect("stub://"))) as url:
        for key, who in (("day1/a.mp4", None), ("day1/posedrop.json", forged), ("b", "no object")):
            told["Records"][0]["s3"]["object"]["key"] = key
            if who is not None:
                told["Records"][0]["userIdentity"] = who
            for _ in range(2):
                assert httpx.post(f"{url}/events", json=told, headers=BEARER).status_code == 204
    lines = [vars(record) for record in caplog.records if record.name == "handlers.changes"]
    assert [(line["msg"], line["key"], line["who"][:10], line["address"]) for line in lines] == [
        ("video put", "day1/a.mp4", "minioadmin", "127.0.0.1"),
        ("rule put", "day1/posedrop.json", "xxxxxxxxxx", "127.0.0.1"),
        ("video put", "b", "store", "127.0.0.1"),
    ]
    assert len(lines[1]["who"]) == 200


def test_runs_are_listed_in_order_of_quality(settings: Settings) -> None:
    """Page by page, the worst first, with the reasons; the cursor of another order is refused."""
    index = Index(settings.index_file)
    for number, score in enumerate((90, None, 12.5, 61.3)):
        index.analysis_finished(judged(result_of(number), score), run_of(number))
    index.close()
    # A sweep of a bucket that is not there removes no rows.
    own = settings.model_copy(update={"results_bucket": "never-made"})
    with serving(create_app(own, queue.connect("stub://"))) as url:
        check_order_of_quality(httpx.Client(base_url=url, timeout=30))


def check_order_of_quality(api: httpx.Client) -> None:
    asked: dict[str, Any] = {"order": "quality", "limit": 3}
    first = api.get("/analyses", params=asked).json()
    assert [item["quality"] for item in first["items"]] == [12.5, 61.3, 90]
    assert first["items"][0]["quality_reasons"] == ["it is dark"]
    last = api.get("/analyses", params={**asked, "cursor": first["next"]}).json()
    assert [(item["quality"], item["quality_reasons"]) for item in last["items"]] == [(None, None)]
    assert last["next"] is None
    for wrong in ({"cursor": first["next"]}, {"order": "beauty"}):
        assert api.get("/analyses", params=wrong).status_code in {400, 422}
