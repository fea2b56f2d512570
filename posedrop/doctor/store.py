"""The store: reachable, on time, with its buckets, keys and notifications."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from posedrop.buckets.presigned import PLAIN_PUT_SECONDS
from posedrop.buckets.storage import Storage
from posedrop.doctor.finding import FAIL, OK, WARN, Finding, ask, how_to_start
from posedrop.errors import StorageError
from posedrop.minio import notifications
from posedrop.proxies import proxy_of
from posedrop.settings import Settings

#: Half of what the shortest presigned URL lasts, the one that `curl -LT` is sent to.
MAX_SKEW_SECONDS = PLAIN_PUT_SECONDS / 2


def store(settings: Settings) -> Iterator[Finding]:
    """Check that the store answers, and keeps the promises that posedrop needs."""
    endpoint = settings.s3_endpoint or f"https://s3.{settings.s3_region}.amazonaws.com"
    try:
        answer = ask("GET", endpoint)
    except httpx.HTTPError as error:
        start = how_to_start(settings, "the store")
        yield Finding(
            "store",
            FAIL,
            f"nobody answers at {endpoint}: {error}",
            f"{start}, or correct POSEDROP_S3_ENDPOINT; the buckets were not looked at",
        )
        return
    by = " by the proxy of the environment" if proxy_of(endpoint) else ""
    yield Finding("store", OK, f"answers at {endpoint}{by}")
    yield _clock(answer)
    yield from _public(settings, endpoint)
    storage = Storage(settings)
    # Named like a checkpoint of a run, the only kind of object that a worker's key may remove.
    probe = f"_content/doctor-{uuid.uuid4().hex[:16]}/parts/probe"
    reachable = True
    for finding in _buckets(settings, storage, probe):
        reachable &= finding.state != FAIL
        yield finding
    if not reachable:
        return
    yield _conditional_writes(settings, storage, probe)
    yield _presigner(settings, probe)
    yield from _closed(settings, endpoint)
    yield from _notifications(
        settings, is_minio="minio" in answer.headers.get("server", "").lower()
    )


def _clock(answer: httpx.Response) -> Finding:
    date = answer.headers.get("date", "")
    try:
        # With no zone (as -0000) it is UTC all the same, and no subtraction of naive times.
        told = parsedate_to_datetime(date).replace(tzinfo=UTC)
    except ValueError:
        return Finding(
            "clock",
            WARN,
            f"the store tells no time ({date!r}), so clocks could not be compared",
            "compare them by hand: date -u here, and there",
        )
    skew = (datetime.now(UTC) - told).total_seconds()
    if abs(skew) > MAX_SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        return Finding(
            "clock",
            FAIL,
            f"this machine is {abs(skew):.0f} s {ahead} the store",
            "set both clocks by NTP: presigned URLs and signatures break",
        )
    return Finding("clock", OK, f"within {max(1.0, abs(skew)):.0f} s of the store's")


def _public(settings: Settings, endpoint: str) -> Iterator[Finding]:
    public = settings.s3_public_endpoint
    if public is None or public == endpoint:
        return
    try:
        ask("GET", public)
    except httpx.HTTPError as error:
        yield Finding(
            "public store",
            WARN,
            f"nobody answers at {public}, seen from here: {error}",
            "presigned URLs lead there: try it from a client, or set POSEDROP_S3_PUBLIC_ENDPOINT",
        )
    else:
        yield Finding("public store", OK, f"answers at {public}")


def _buckets(settings: Settings, storage: Storage, probe: str) -> Iterator[Finding]:
    for bucket in (settings.videos_bucket, settings.results_bucket, settings.models_bucket):
        try:
            # A read, because it is all that a worker may do with videos and models.
            storage.read(bucket, probe)
        except StorageError as error:
            yield Finding("buckets", FAIL, error.message, _what_to_do_about(error))
            if "NoSuchBucket" not in error.message:
                return  # the other buckets would say the same
        else:
            yield Finding("buckets", OK, f"{bucket} is there, and the key may read it")


def _what_to_do_about(error: StorageError) -> str:
    for code, todo in (
        ("NoSuchBucket", "make it: `posedrop bootstrap` (MinIO) or `posedrop up`"),
        ("InvalidAccessKeyId", "POSEDROP_S3_ACCESS_KEY is not known to the store"),
        ("SignatureDoesNotMatch", "POSEDROP_S3_SECRET_KEY is not the one of that access key"),
        ("RequestTimeTooSkewed", "set both clocks by NTP"),
        ("AccessDenied", "give the key the policy of its role: `posedrop bootstrap`"),
        ("credentials", "set POSEDROP_S3_ACCESS_KEY and POSEDROP_S3_SECRET_KEY"),
    ):
        if code in error.message:
            return todo
    return "look at the store's own log"


def _conditional_writes(settings: Settings, storage: Storage, probe: str) -> Finding:
    check = "conditional writes"
    bucket = settings.results_bucket
    try:
        first = storage.create(bucket, probe, b"{}")
        second = storage.create(bucket, probe, b"{}")
        storage.delete(bucket, [probe])
    except StorageError as error:
        return Finding(check, FAIL, error.message, _what_to_do_about(error))
    if first and not second:
        return Finding(check, OK, "of two writers of one object one wins")
    return Finding(
        check,
        FAIL,
        "the store takes a second PUT in spite of If-None-Match: *",
        "use MinIO, SeaweedFS 4 or AWS: without it two workers take the same run",
    )


def _presigner(settings: Settings, probe: str) -> Finding:
    if settings.presign_access_key is None:
        return Finding(
            "presigner",
            WARN,
            "no key of its own: presigned uploads carry the rights of the whole service key",
            "set POSEDROP_PRESIGN_ACCESS_KEY and _SECRET_KEY (`posedrop bootstrap` makes them)",
        )
    key = {
        "s3_access_key": settings.presign_access_key,
        "s3_secret_key": settings.presign_secret_key,
    }
    try:
        Storage(settings.model_copy(update=key)).read(settings.results_bucket, probe)
    except StorageError as error:
        if "AccessDenied" in error.message:
            return Finding("presigner", OK, "has a key of its own, which can't read results")
        todo = "set POSEDROP_PRESIGN_ACCESS_KEY and _SECRET_KEY to a key that the store knows"
        return Finding("presigner", FAIL, error.message, todo)
    return Finding(
        "presigner",
        WARN,
        "its key can read results: whoever abuses a presigned URL can do more than upload",
        "give it the policy posedrop/minio/policy_files/presigner.json: `posedrop bootstrap`",
    )


def _closed(settings: Settings, endpoint: str) -> Iterator[Finding]:
    if settings.s3_endpoint is None:
        return  # AWS addresses buckets otherwise, and blocks public access by itself
    buckets = (settings.videos_bucket, settings.results_bucket, settings.models_bucket)
    opened = [
        bucket for bucket in buckets if ask("GET", f"{endpoint.rstrip('/')}/{bucket}").is_success
    ]
    if opened:
        yield Finding(
            "nothing public",
            FAIL,
            f"anybody may list {', '.join(opened)}",
            "remove the bucket's policy (mc anonymous set none)",
        )
    else:
        yield Finding("nothing public", OK, "nobody without a key may list a bucket")


def _notifications(settings: Settings, *, is_minio: bool) -> Iterator[Finding]:
    check = "notifications"
    found_anyway = f"the reconciler finds what arrives, every {settings.reconcile_seconds:g} s"
    if settings.broker_url.startswith("stub:"):
        yield Finding(check, OK, "`posedrop up` has its store tell the API itself")
        return
    if not is_minio:
        yield Finding(
            check,
            WARN,
            "not a MinIO, so they can't be checked",
            f"have videos and results tell POST /events or SQS; without it {found_anyway}",
        )
        return
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    for bucket in (settings.videos_bucket, settings.results_bucket):
        try:
            told = notifications.notified(settings, settings.s3_access_key or "", secret, bucket)
        except StorageError as error:
            why = "this key may not ask" if "AccessDenied" in error.message else error.message
            todo = "ask with the handlers' key; a worker's need not know"
            yield Finding(check, WARN, f"{bucket}: {why}", todo)
            continue
        missing = [name for name in notifications.TARGETS if name not in told]
        if missing:
            yield Finding(
                check,
                FAIL,
                f"{bucket} does not tell {' and '.join(missing)}",
                f"run `posedrop bootstrap`; until then {found_anyway}",
            )
        else:
            yield Finding(check, OK, f"{bucket} tells {' and '.join(notifications.TARGETS)}")
