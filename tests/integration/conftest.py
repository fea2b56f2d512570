"""A MinIO that `posedrop bootstrap` prepared, one a file of tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.support.bootstrapped import SEEDS, Store, Webhook, read_variables, run_bootstrap
from tests.support.minio_server import (
    MinioServer,
)


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    seen: list[tuple[str | None, dict[str, Any]]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if body:
                seen.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        do_HEAD = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Webhook(f"http://127.0.0.1:{server.server_port}/events", seen)
    server.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, webhook: Webhook) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("minio")
    server = MinioServer(folder, webhook.url).start()
    env_file = folder / "keys.env"
    done = run_bootstrap(server, folder, "--write-env", str(env_file))
    assert done.exit_code == 0, done.output
    store = Store(server, read_variables(env_file), done.output, folder)
    root = store.s3("ROOT")
    root.create_bucket(Bucket="other")
    for bucket, key in SEEDS:
        root.put_object(Bucket=bucket, Key=key, Body=b"a secret")
    yield store
    server.stop()
