"""The API on a store that an earlier posedrop has filled: films and runs of every state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from handlers.app import create_app
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.old_buckets import BUCKETS, OldBuckets
from tests.support.serving import serving

TOKEN = "of-the-api"


@contextmanager
def filled_api(folder: Path) -> Iterator[str]:
    """Serve the API, with a token, on buckets with films and runs of every state; its address."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    given = {
        "s3_endpoint": f"http://{host}:{port}",
        "s3_access_key": "test",
        "s3_secret_key": "test-secret",
        "api_token": TOKEN,
    }
    client = boto3.client(
        "s3",
        endpoint_url=given["s3_endpoint"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test-secret",
    )
    old = OldBuckets("cf9bc21")
    for bucket in BUCKETS:
        client.create_bucket(Bucket=bucket)
    for bucket, key in old.objects:
        client.put_object(Bucket=bucket, Key=key, Body=old.read(bucket, key))
    try:
        with serving(create_app(load(folder, given), queue.connect("stub://"))) as url:
            yield url
    finally:
        store.stop()
