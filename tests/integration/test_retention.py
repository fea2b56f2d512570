"""What is removed by itself, on a real MinIO: a film that may not be deleted, one under a lock."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from handlers.context import Context
from handlers.upkeep import reconcile
from posedrop.buckets import layout
from posedrop.buckets.records.videos import VideoRecord, VideoRef
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.transport import queue
from tests.support.bootstrapped import Store

#: Days: what was there when the clock told another second.
A_SECOND = 0.9 / 86400


def ready(context: Context, key: str) -> None:
    """Have a film ready, as its ingest would."""
    bucket = context.settings.videos_bucket
    there = context.storage.head(bucket, key)
    assert there is not None
    ref = VideoRef(
        file_id=layout.file_id_of(bucket, key),
        bucket=bucket,
        key=key,
        etag=there.etag,
        size=there.size,
    )
    record = VideoRecord(
        video=ref, last_modified=there.last_modified, ingested_at=there.last_modified
    )
    place = layout.video_record(context.video_prefix(bucket, key))
    context.storage.write("results", place, record.to_json())
    context.index.file_ingested(record)


def swept(reconciler: reconcile.Reconciler, wanted: int) -> tuple[int, int]:
    """Return how many films went and how many could not, once that is so many in one round."""
    end = time.monotonic() + 30
    while True:
        time.sleep(1)  # the store's clock counts whole seconds
        found = reconciler.round()
        if found.expired + found.undeletable >= wanted or time.monotonic() > end:
            return found.expired, found.undeletable


def test_old_films_go_and_a_denied_one_stops_nothing(store: Store, tmp_path: Path) -> None:
    """By the handlers' own key, on the store's clock; what is pinned stays."""
    root = store.s3("ROOT")
    for key in ("gone/a.mp4", "gone/denied.mp4", "gone/z.mp4", "gone/kept/a.mp4"):
        root.put_object(Bucket="videos", Key=key, Body=key.encode())
    root.put_object(Bucket="videos", Key="gone/kept/posedrop.json", Body=b'{"keep": true}')
    admin = store.admin("ROOT")
    name = store.pair("HANDLERS")[0]
    policy = json.loads(admin.policy_info(name))
    denied = {
        "Effect": "Deny",
        "Action": ["s3:DeleteObject"],
        "Resource": ["arn:aws:s3:::videos/gone/denied.mp4"],
    }
    body = policy.get("Policy", policy)
    body = json.loads(body) if isinstance(body, str) else body
    changed = {**body, "Statement": [*body["Statement"], denied]}
    admin.policy_add(policy_name=name, policy=changed)
    context = Context(
        store.settings(retention_days=A_SECOND, expire_share=1),
        Storage(store.settings()),
        Index(tmp_path / "index.sqlite"),
        queue.connect("stub://"),
    )
    try:
        reconciler = reconcile.Reconciler(context)
        reconciler.round()
        for row in context.index.files(prefix="gone/").rows:
            ready(context, row.key)
        assert swept(reconciler, 3) == (2, 1)
        left = root.list_objects_v2(Bucket="videos", Prefix="gone/")["Contents"]
        assert {each["Key"] for each in left} == {
            "gone/denied.mp4",
            "gone/kept/a.mp4",
            "gone/kept/posedrop.json",
        }
    finally:
        admin.policy_add(policy_name=name, policy=body)
        context.index.close()
        for each in root.list_objects_v2(Bucket="videos", Prefix="gone/")["Contents"]:
            root.delete_object(Bucket="videos", Key=each["Key"])


def test_a_lock_keeps_the_version_and_lets_the_name_go(store: Store, tmp_path: Path) -> None:
    """S3's object lock is of versions: a locked film is gone, once, and its version is there."""
    root = store.s3("ROOT")
    root.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(minutes=10)
    for key in ("locked.mp4", "free.mp4"):
        root.put_object(Bucket="locked", Key=key, Body=key.encode())
    root.put_object_retention(
        Bucket="locked",
        Key="locked.mp4",
        Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until},
    )
    access_key, secret_key = store.pair("ROOT")
    settings = store.settings(
        s3_access_key=access_key,
        s3_secret_key=secret_key,
        videos_bucket="locked",
        retention_days=A_SECOND,
        expire_share=1,
    )
    context = Context(
        settings,
        Storage(settings),
        Index(tmp_path / "index.sqlite"),
        queue.connect("stub://"),
    )
    try:
        reconciler = reconcile.Reconciler(context)
        reconciler.round()
        for row in context.index.files().rows:
            ready(context, row.key)
        assert swept(reconciler, 2) == (2, 0)
        assert reconciler.round().mended == 0
        assert context.index.files().rows == []
        versions = root.list_object_versions(Bucket="locked")
        assert {v["Key"] for v in versions["Versions"]} == {"locked.mp4", "free.mp4"}
    finally:
        context.index.close()
