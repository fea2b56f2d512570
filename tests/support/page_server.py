"""The API behind the page, on a store that moto plays: started, cut off and started again at once.

Quick, as no worker runs: what workers would tell, a test tells the index.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moto.server import ThreadedMotoServer
from starlette.types import Receive, Scope, Send

from handlers.app import create_app
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.settings import Settings, load
from posedrop.transport import queue
from tests.support.serving import serving
from tests.support.tools import find_free_port

TOKEN = "of-the-page"


class PageServer:
    """The API on one port of loopback, with the index that a test tells of runs."""

    def __init__(self, settings: Settings) -> None:
        """Prepare it; :meth:`running` serves."""
        self.settings = settings
        self.port = find_free_port()
        #: How often each path was asked for.
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def link(self) -> str:
        """The link that lets a browser in."""
        return f"{self.url}session#token={TOKEN}"

    @contextmanager
    def running(self) -> Iterator[Index]:
        """Serve within the block; yields the index of this process."""
        index = Index(self.settings.index_file, timeout=5)
        with patch("handlers.app._index", lambda _: index):
            app = create_app(self.settings, queue.connect("stub://"))

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                with self._lock:
                    self.asked[scope["path"]] += 1

            await app(scope, receive, send)

        served: Any = counted
        with serving(served, self.port):
            yield index


@contextmanager
def page_server(folder: Path) -> Iterator[PageServer]:
    """Yield a page's server; it does not run yet."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    settings = load(
        folder,
        {
            "s3_endpoint": f"http://{host}:{port}",
            "s3_access_key": "test",
            "s3_secret_key": "test-secret",
            "api_token": TOKEN,
            # A sweep of a bucket that is not there removes no rows: behind these stands no object.
            "videos_bucket": "not-there",
        },
    )
    storage = Storage(settings)
    for bucket in (settings.results_bucket, settings.models_bucket):
        storage.create_bucket(bucket)
    try:
        yield PageServer(settings)
    finally:
        store.stop()
