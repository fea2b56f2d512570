"""PUT /upload/NAME: what `curl -LT` declares is all that its redirect lets in, on both stores."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from posedrop.buckets.presigned import PLAIN_PUT_SECONDS
from tests.support.lab import Lab, clean_environment
from tests.support.tools import tool

BODY = b"a film of forty-two bytes, one of its kind"
SHA256 = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
FOR_THE_STORE = {
    "Content-Type": "video/mp4",
    "If-None-Match": "*",
    "x-amz-checksum-sha256": SHA256,
    "x-amz-meta-analysis": "dummy",
    "x-amz-meta-args": '{"seconds":  0.1}',
}
FOR_NOBODY = {
    "Cookie": "a=b",
    "Cache-Control": "no-cache",
    "Accept-Language": "de",
    "Range": "bytes=0-1",
    "Traceparent": "00-1-2-01",
}


def curl(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [tool("curl"), "-sS", *words],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env=clean_environment(),
    )


def ask(lab: Lab, name: str, **headers: str) -> httpx.Response:
    """Send what curl sends first; the answer is not followed."""
    return lab.http.put(f"/upload/{name}", content=BODY, headers=headers)


def put(url: str, body: bytes = BODY, **headers: str) -> int:
    return httpx.put(url, content=body, headers=headers).status_code


def test_curl_sends_a_film_once_with_all_that_it_declares(lab: Lab, clip: Path) -> None:
    """Type, hash, metadata, If-None-Match arrive; others do no harm; the API sees no body."""
    sum_of_clip = base64.b64encode(hashlib.sha256(clip.read_bytes()).digest()).decode()
    headers = FOR_THE_STORE | FOR_NOBODY | {"x-amz-checksum-sha256": sum_of_clip}
    # Debian's curl says it by itself from 1 MB on.
    given = [f"{n}: {v}" for n, v in headers.items()] + ["Expect: 100-continue"]
    words = [word for header in [*given, lab.header] for word in ("-H", header)]
    done = curl("-v", "--fail", *words, "-LT", str(clip), f"{lab.url}/upload/declared.mp4")
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said
    answers = [line[11:14] for line in said.splitlines() if line.startswith("< HTTP/1.1 ")]
    assert answers == ["307", "100", "200"]
    (row,) = lab.until(lambda: lab.get("/files", q="declared")["items"], "the file's row")
    over = lab.over(lab.run_of(row["file_id"]))
    assert (over["status"], over["result"]["args"]) == ("succeeded", {"seconds": 0.1})
    head = lab.s3().head_object(Bucket="videos", Key=row["key"])
    assert head["ContentType"] == "video/mp4"
    assert head["Metadata"] == {"analysis": "dummy", "args": '{"seconds":  0.1}'}


def test_a_redirect_takes_what_was_declared_once_and_soon(lab: Lab) -> None:
    """Its URL lasts a minute, for one key, length, type, hash and metadata; it replaces nothing."""
    answer = ask(lab, "bound.mp4", **FOR_THE_STORE)
    assert answer.status_code == 307, answer.text
    url = answer.headers["location"]
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == [str(PLAIN_PUT_SECONDS)]
    (row,) = lab.get("/files", q="bound")["items"]
    assert (row["state"], row["size"]) == ("expected", len(BODY))
    elsewhere = url.replace(row["file_id"], "a" * 16)
    longer = url.replace("X-Amz-Expires=", "X-Amz-Expires=9")
    without = [{n: v for n, v in FOR_THE_STORE.items() if n != name} for name in FOR_THE_STORE]
    refused = [
        put(url, BODY + b"!", **FOR_THE_STORE),
        put(url, BODY[:-1], **FOR_THE_STORE),
        put(url, BODY[::-1], **FOR_THE_STORE),
        put(url, **FOR_THE_STORE | {"Content-Type": "text/html"}),
        put(url, **FOR_THE_STORE | {"x-amz-meta-analysis": "superanimal"}),
        put(elsewhere, **FOR_THE_STORE),
        put(longer, **FOR_THE_STORE),
        *(put(url, **headers) for headers in without),
    ]
    assert set(refused) <= {400, 403}, refused
    assert put(url, **FOR_THE_STORE) == 200
    assert put(url, **FOR_THE_STORE) == 412
    stored = lab.s3().get_object(Bucket="videos", Key=row["key"])["Body"].read()
    assert stored == BODY


def test_a_bare_curl_binds_key_and_length(lab: Lab) -> None:
    """What curl sends by itself is its length: no other is taken, under no other key."""
    url = ask(lab, "bare.mp4").headers["location"]
    (row,) = lab.get("/files", q="bare")["items"]
    assert put(url, BODY + b"!") == 403
    assert put(url, b"") == 403
    assert put(url.replace(row["file_id"], "a" * 16)) == 403
    assert put(url) == 200


@pytest.mark.parametrize(
    ("headers", "status", "code", "says"),
    [
        ({"Transfer-Encoding": "chunked"}, 411, "length_required", "save the video to a file"),
        ({}, 411, "length_required", "how long it is"),
        ({"Content-Length": str(10**13)}, 422, "too_many_bytes", "bytes are more than"),
        ({"x-amz-checksum-sha256": "0" * 64}, 422, "bad_request", "openssl"),
        ({"x-amz-acl": "public-read"}, 422, "bad_request", "x-amz-acl"),
        ({"x-minio-source-mtime": "2001-01-01T00:00:00Z"}, 422, "bad_request", "x-minio-source"),
        ({"x-amz-meta-analysis": "nonsense"}, 422, None, "nonsense"),
        ({"x-amz-meta-args": "{"}, 422, "bad_args", "not JSON"),
        ({"x-amz-meta-note": "x" * 2000}, 422, "bad_request", "POST /analyse"),
        ({"x-amz-meta-note": "K\xe4fig"}, 422, "bad_request", "ASCII"),
        ({"Content-Type": "vid\xe9o/mp4"}, 422, "bad_request", "ASCII"),
    ],
)
def test_what_the_store_would_refuse_or_obey_is_refused_before(
    lab: Lab, headers: dict[str, str], status: int, code: str | None, says: str
) -> None:
    """A pipe, a giant, a hash that is none, rights, metadata: each gets a message, and no row."""
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=30)
    connection.putrequest("PUT", "/upload/refused.mp4")
    connection.putheader("Authorization", f"Bearer {lab.api_token}")
    if headers and not {"Transfer-Encoding", "Content-Length"} & set(headers):
        headers = {"Content-Length": str(len(BODY)), **headers}
    for name, value in headers.items():
        connection.putheader(name, value.encode("latin-1"))
    connection.endheaders()
    answer = connection.getresponse()
    error: dict[str, Any] = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == status, error
    assert code in {None, error["code"]}
    assert says in error["message"]
    assert lab.get("/files", q="refused")["items"] == []


def test_curl_with_a_pipe_is_told_what_to_do(lab: Lab) -> None:
    """`curl -LT -` has no length: the error says so instead of a store's XML."""
    done = curl("-H", lab.header, "-LT", "-", f"{lab.url}/upload/piped.mp4", stdin=BODY)
    assert json.loads(done.stdout)["error"]["code"] == "length_required"
