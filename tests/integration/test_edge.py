"""The edge as production has it: curl, a real Caddy with its Caddyfile, handlers, a real MinIO."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from handlers.app import create_app
from posedrop.buckets.storage import Storage
from posedrop.settings import Settings, load
from posedrop.transport import queue
from tests.support.caddy import API, S3, Caddy
from tests.support.lab import POSEDROP, clean_environment
from tests.support.minio_server import ROOT_ACCESS_KEY, ROOT_SECRET_KEY, MinioServer
from tests.support.serving import serving
from tests.support.tools import find_free_port, tool

API_TOKEN = "token-of-the-api"
#: Large enough for curl to ask before it sends.
FILM_BYTES = 3_000_000


@dataclass
class Edge:
    """What a client on the internet reaches, and the store as its operator sees it."""

    caddy: Caddy
    settings: Settings
    root: Storage

    @property
    def url(self) -> str:
        return f"https://{API}:{self.caddy.port}"

    def curl(self, *words: str) -> tuple[int, str, str]:
        """Run curl; return its last status, what was answered and all that it said."""
        port = self.caddy.port
        hosts = [w for host in (API, S3) for w in ("--resolve", f"{host}:{port}:127.0.0.1")]
        trusted = ["--cacert", str(self.caddy.root)]
        done = subprocess.run(
            [tool("curl"), "-v", *hosts, *trusted, "-w", "\n%{http_code}", *words],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=120,
            env=clean_environment(),
        )
        assert done.returncode == 0, done.stderr
        answer, _, status = done.stdout.rpartition("\n")
        return int(status), answer, done.stderr

    def ask(self, film: Path, *words: str) -> str:
        """Return the URL that curl is sent to."""
        bearer = f"Authorization: Bearer {API_TOKEN}"
        words = ("-w", "\n%{redirect_url}\n%{http_code}", "-H", bearer, *words)
        status, answer, said = self.curl(*words, "-T", str(film), f"{self.url}/upload/")
        assert status == 307, said
        return answer.strip()

    def put(self, film: Path, url: str, *words: str) -> int:
        return self.curl(*words, "-T", str(film), url)[0]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    port = find_free_port()
    store = MinioServer(folder / "minio", f"http://127.0.0.1:{port}/events").start()
    root = {
        "s3_endpoint": store.endpoint,
        "s3_access_key": ROOT_ACCESS_KEY,
        "s3_secret_key": ROOT_SECRET_KEY,
    }
    keys = folder / "keys.env"
    caddy = Caddy(folder, port, store.port)
    try:
        bootstrap(store, keys)
        given = dict(line.split("=", 1) for line in keys.read_text().splitlines())
        settings = load(
            folder,
            {
                "s3_endpoint": store.endpoint,
                "s3_public_endpoint": f"https://{S3}:{caddy.port}",
                "s3_access_key": given["POSEDROP_HANDLERS_ACCESS_KEY"],
                "s3_secret_key": given["POSEDROP_HANDLERS_SECRET_KEY"],
                "presign_access_key": given["POSEDROP_PRESIGN_ACCESS_KEY"],
                "presign_secret_key": given["POSEDROP_PRESIGN_SECRET_KEY"],
                "api_token": API_TOKEN,
                "multipart_bytes": 5 * 2**20,
            },
        )
        app = create_app(settings, queue.connect("stub://"))
        with serving(app, port):
            yield Edge(caddy.start(), settings, Storage(load(folder, root)))
    finally:
        caddy.stop()
        store.stop()


def bootstrap(store: MinioServer, keys: Path) -> None:
    environment = {
        "POSEDROP_S3_ENDPOINT": store.endpoint,
        "POSEDROP_ROOT_ACCESS_KEY": ROOT_ACCESS_KEY,
        "POSEDROP_ROOT_SECRET_KEY": ROOT_SECRET_KEY,
    }
    subprocess.run(
        [POSEDROP, "--data-dir", str(keys.parent), "bootstrap", "--write-env", str(keys)],
        env=clean_environment() | environment,
        check=True,
        capture_output=True,
        timeout=120,
    )


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "day1.mp4"
    path.write_bytes(bytes(FILM_BYTES))
    return path


def key_of(url: str) -> str:
    return url.partition("?")[0].partition("/videos/")[2]


def test_curl_sends_a_large_film_once(edge: Edge, film: Path) -> None:
    """One line uploads; neither Caddy nor the API asks for the body that goes to the store."""
    bearer = f"Authorization: Bearer {API_TOKEN}"
    status, _, said = edge.curl("-H", bearer, "-LT", str(film), f"{edge.url}/upload/")
    assert status == 200
    answers = [line[11:14] for line in said.splitlines() if line.startswith("< HTTP/1.1 ")]
    assert answers[0] == "307"
    assert answers[-1] == "200"
    assert set(answers[1:-1]) == {"100"}


def test_a_body_that_was_not_wanted_is_nobody_elses_trouble(edge: Edge, film: Path) -> None:
    """Caddy's connections to the API are shared: refused and redirected PUTs leave them sound."""
    bearer = f"Authorization: Bearer {API_TOKEN}"
    for _ in range(3):
        assert edge.put(film, f"{edge.url}/upload/") == 401
        edge.ask(film)
        assert edge.curl("-H", bearer, f"{edge.url}/files")[0] == 200


def test_a_redirects_url_creates_once(edge: Edge, film: Path) -> None:
    """A second PUT, another If-None-Match, a query as of a part: nothing is replaced."""
    url = edge.ask(film)
    first = edge.put(film, url)
    before = edge.root.head("videos", key_of(url))
    assert (first, before is not None) == (200, True)
    film.write_bytes(bytes(FILM_BYTES - 1) + b"1")
    status, answer, said = edge.curl("-T", str(film), url)
    assert status == 412
    assert "PreconditionFailed" in answer
    # And it was refused before it was sent.
    assert "100 Continue" not in said
    assert edge.put(film, url, "-H", 'If-None-Match: "other"') == 412
    for query in ("uploadId=x", "uploadId=x&partNumber=1", "uploadId"):
        assert edge.put(film, f"{url}&{query}") == 403
    assert edge.put(film, f"{url};uploadId=x") in {400, 403}
    assert edge.put(film, url, "-H", "Authorization: AWS4-HMAC-SHA256 x") in {400, 403}
    assert edge.root.head("videos", key_of(url)) == before


def test_a_redirects_url_takes_the_film_that_was_announced(edge: Edge, film: Path) -> None:
    """Another size and another key are refused by the store; MinIO's own headers do nothing."""
    url = edge.ask(film)
    other = film.with_name("other.mp4")
    other.write_bytes(bytes(FILM_BYTES + 1))
    assert edge.put(other, url) == 403
    assert edge.put(film, url.replace("/uploads/", "/elsewhere/")) == 403
    words = ("-H", "X-Minio-Source-Mtime: 2001-01-01T00:00:00Z", "-H", "X-Minio-Source-Etag: abc")
    assert edge.put(film, url, *words) == 200
    found = edge.root.head("videos", key_of(url))
    assert found is not None
    assert found.last_modified.year > 2001
    assert found.etag != "abc"


def test_what_is_signed_to_create_once_still_does(edge: Edge, film: Path) -> None:
    """POST /upload's own URL: 200, then 412; with its header left out Caddy gives it."""
    asked = json.dumps({"filename": "day1.mp4", "size": FILM_BYTES})
    bearer = f"Authorization: Bearer {API_TOKEN}"
    words = ("-H", bearer, "-H", "Content-Type: application/json", "-d", asked)
    status, answer, _ = edge.curl(*words, f"{edge.url}/upload")
    assert status == 201
    upload = json.loads(answer)["upload"]
    headers = [word for n, v in upload["headers"].items() for word in ("-H", f"{n}: {v}")]
    assert [edge.put(film, upload["url"], *headers) for _ in range(2)] == [200, 412]
    less = [word for n, v in upload["headers"].items() if n != "If-None-Match"
            for word in ("-H", f"{n}: {v}")]  # fmt: skip
    assert edge.put(film, upload["url"], *less) == 412


def test_parts_pass_and_may_be_sent_again(edge: Edge, tmp_path: Path) -> None:
    """A part's URL names its upload: it is not made to create once, as a part may need a retry."""
    storage = Storage(edge.settings)
    key = "uploads/mfzgs3tfebzw63lf/parts.mp4"
    signed = storage.presign_parts(
        "videos", key, content_type="video/mp4", size=6 * 2**20, metadata={}
    )
    tags = []
    for number, url in enumerate(signed.parts):
        part = tmp_path / f"part{number}"
        part.write_bytes(bytes(min(5 * 2**20, 6 * 2**20 - number * 5 * 2**20)))
        for _ in range(2):
            status, _, said = edge.curl("-T", str(part), url)
            assert status == 200
        tags += [
            line.split(": ")[1] for line in said.splitlines() if line.lower().startswith("< etag: ")
        ]
    body = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
        for number, tag in enumerate(tags, 1)
    )
    document = f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>"
    assert edge.curl("--data-raw", document, signed.complete)[0] == 200
    # The upload is over, so its URLs are, too.
    assert edge.curl("--data-raw", document, signed.complete)[0] == 404
    found = edge.root.head("videos", key)
    assert found is not None
    assert found.size == 6 * 2**20
