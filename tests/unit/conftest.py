"""Fixtures of the unit tests: a store that is AWS's, as moto's server plays it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.settings import Settings, load


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The address of a running moto server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def settings(moto_endpoint: str, tmp_path: Path) -> Settings:
    """Settings that point at moto's S3."""
    return load(
        tmp_path,
        {
            "s3_endpoint": moto_endpoint,
            "s3_access_key": "test",
            "s3_secret_key": "test-secret",
            "multipart_bytes": 5 * 2**20,
        },
    )


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """The name of a bucket that no other test uses."""
    return f"b{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def storage(settings: Settings, bucket: str) -> Storage:
    """A store with one empty bucket."""
    storage = Storage(settings)
    storage.create_bucket(bucket)
    return storage


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An empty index."""
    opened = Index(tmp_path / "index.db", timeout=5)
    yield opened
    opened.close()
