"""The object store: small objects read and written, larger ones downloaded, listings, buckets.

Every method raises :class:`StorageError` when the store can't do what was asked, whatever boto3
raised. ``create`` (``If-None-Match: *``) is the concurrency control that all stores have; runs
rely on no other.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import ClientError
from pydantic import ValidationError

from posedrop.buckets import layout
from posedrop.buckets.parts import PartUploads
from posedrop.buckets.presigned import Presigned, PresignedParts, Presigning
from posedrop.buckets.records.record import Record, newer_schema
from posedrop.buckets.records.videos import VideoRecord
from posedrop.buckets.s3 import MISSING, TAKEN, code_of, translated
from posedrop.buckets.uploads import ObjectInfo, UnfinishedUpload, Uploads
from posedrop.errors import ObjectChangedError, RecordError, StorageError

__all__ = [
    "Listing",
    "ObjectInfo",
    "Presigned",
    "PresignedParts",
    "Storage",
    "UnfinishedUpload",
]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
_CHUNK = 1 << 20
#: What is read into memory, bytes: no record of posedrop's is nearly as large.
MAX_READ_BYTES = 32 * 2**20
_MAX_MESSAGE = 1000
#: So many records that can't be read are remembered, so that each is told of once.
_MAX_REPORTED = 10_000


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects below a prefix, and the store's own time when it answered.

    ``is_timed`` is False for a store that does not tell its time: ``now`` is this machine's then.
    """

    objects: list[ObjectInfo]
    now: datetime
    is_timed: bool = True


class Storage(Uploads, Presigning, PartUploads):
    """The buckets, as one caller with one key sees them."""

    def ping(self, bucket: str) -> None:
        """Check that the store answers for a bucket.

        Raises:
            StorageError: it does not, or says that there is no such bucket.
        """
        with translated(f"reach the bucket {bucket}"):
            self._client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    # -- reading ---------------------------------------------------------------------------------

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """Return what the store knows of an object, None if there is none."""
        with translated(f"look at {bucket}/{key}"):
            try:
                answer = self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
        return ObjectInfo(
            key,
            answer["ETag"].strip('"'),
            answer["ContentLength"],
            answer["LastModified"],
            answer["Metadata"],
        )

    def read(self, bucket: str, key: str, etag: str | None = None) -> bytes | None:
        """Return a small object's bytes, None if there is none.

        Raises:
            ObjectChangedError: its ETag is no longer ``etag``.
            RecordError: it is larger than :data:`MAX_READ_BYTES`.
        """
        extra: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
        with translated(f"read {bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=bucket, Key=key, **extra)
                if answer["ContentLength"] > MAX_READ_BYTES:
                    answer["Body"].close()
                    raise RecordError(
                        f"{bucket}/{key} has {answer['ContentLength']:,} bytes: no record has"
                    )
                return answer["Body"].read()
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                if code_of(error) in {"412", "PreconditionFailed"}:
                    raise ObjectChangedError(f"{bucket}/{key} was replaced") from error
                raise

    def read_record(self, bucket: str, key: str, kind: type[R]) -> R | None:
        """Return the record in an object, None if there is none.

        Raises:
            RecordError: what stands there is no such record, or one of a newer posedrop.
        """
        data = self.read(bucket, key)
        if data is None:
            return None
        try:
            record = kind.model_validate_json(data)
        except ValidationError as error:
            newer = newer_schema(data, kind)
            if newer is not None:
                raise RecordError(
                    f"{bucket}/{key} was written by a newer posedrop (schema {newer}): upgrade "
                    "this one, its handlers and all its workers",
                    code="newer_record",
                ) from error
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            said = f"{bucket}/{key} is not a {kind.__name__}: {where}: {first['msg']}"
            raise RecordError(said[:_MAX_MESSAGE]) from error
        named = layout.parse_result_key(key)
        own = getattr(record, "analysis_id", None)
        if isinstance(named, layout.RunObject) and own not in {None, named.analysis_id}:
            raise RecordError(f"{bucket}/{key} is of another run: {own[:40]!r}")
        return record

    def read_whole_record(self, bucket: str, key: str, kind: type[R]) -> R | None:
        """Return a JSON record, None if there is none, or one that is damaged (the log says so).

        Raises:
            RecordError: a newer posedrop has written it.
        """
        try:
            return self.read_record(bucket, key, kind)
        except RecordError as error:
            if error.code == "newer_record":
                raise
            self.report(error)
            return None

    def report(self, error: RecordError) -> None:
        """Log a record that can't be read and is passed over: once, however often it is met."""
        if error.message in self._reported:
            return
        if len(self._reported) >= _MAX_REPORTED:
            self._reported.clear()
        self._reported.add(error.message)
        log.warning("passed over: %s", error)

    @functools.cached_property
    def _reported(self) -> set[str]:
        return set()

    def video_prefix(self, results: str, bucket: str, key: str) -> str:
        """Return the folder of the bucket ``results`` in which a video's results are, or will be.

        As layout.video_prefix, but for what an older posedrop has left where none is put today.
        """
        former_id = layout.former_file_id(key)
        if former_id is not None and self.file_id(results, bucket, key) == former_id:
            return layout.former_video_record(key, former_id).rpartition("/")[0]
        former = layout.former_prefix(key)
        if former is not None and (
            self.head(results, layout.video_record(former)) is not None
            or next(self.objects(results, f"{former}/asked/"), None) is not None
        ):
            return former
        return layout.video_prefix(bucket, key)

    def file_id(self, results: str, bucket: str, key: str) -> str:
        """Return the file_id of an object of the bucket ``bucket``.

        As layout.file_id_of, but for a film that an older posedrop gave another: its video.json, in
        the bucket ``results``, says so.
        """
        former = layout.former_file_id(key)
        if former is not None:
            where = layout.former_video_record(key, former)
            record = self.read_whole_record(results, where, VideoRecord)
            if record is not None and (record.video.file_id, record.video.key) == (former, key):
                return former
        return layout.file_id_of(bucket, key)

    def download(
        self, bucket: str, key: str, path: Path, etag: str | None = None
    ) -> dict[str, str]:
        """Stream an object into ``path`` and return its hashes, ``{"sha256": ..., "sha1": ...}``.

        Raises:
            ObjectChangedError: it is gone, or its ETag is no longer ``etag``.
        """
        extra: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
        # SHA-1 names content (the older API found duplicates by it), it guards nothing.
        hashes = {
            "sha256": hashlib.sha256(),
            "sha1": hashlib.sha1(usedforsecurity=False),
        }
        with translated(f"download {bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=bucket, Key=key, **extra)
            except ClientError as error:
                if code_of(error) in MISSING | {"412", "PreconditionFailed"}:
                    raise ObjectChangedError(
                        f"{bucket}/{key} was replaced or removed since it was planned"
                    ) from error
                raise
            got = 0
            with _written(path), path.open("wb") as file:
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    got += len(chunk)
                    file.write(chunk)
                    for each in hashes.values():
                        each.update(chunk)
        if got != answer["ContentLength"]:
            raise StorageError(f"{bucket}/{key}: {got} of {answer['ContentLength']} bytes came")
        return {name: each.hexdigest() for name, each in hashes.items()}

    def objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below ``prefix``, in the order of their keys, behind ``after``."""
        for page in self._pages(bucket, prefix, after):
            yield from _objects(page)

    def folders(self, bucket: str, under: str) -> list[str]:
        """Return the first thousand folders just below ``under``, each without its last slash."""
        with translated(f"list the folders of {bucket}/{under}"):
            page = self._client.list_objects_v2(Bucket=bucket, Prefix=under, Delimiter="/")
        return [each["Prefix"].rstrip("/") for each in page.get("CommonPrefixes", [])]

    def listing(self, bucket: str, prefix: str) -> Listing:
        """Return the objects below ``prefix`` with the store's clock, for leases."""
        found: list[ObjectInfo] = []
        now: datetime | None = None
        for page in self._pages(bucket, prefix):
            found += _objects(page)
            now = _date(page) or now
        return Listing(found, now or datetime.now(UTC), is_timed=now is not None)

    def time(self, bucket: str) -> datetime:
        """Return the store's own time, for what must not depend on this machine's clock.

        Raises:
            StorageError: the store is away, or does not tell its time (``no_date``).
        """
        found = self.listing(bucket, layout.CLOCK)
        if not found.is_timed:
            raise StorageError(
                "the store's answers have no Date, so nothing can be said of how old its objects "
                "are: is a proxy before it that takes it out?",
                code="no_date",
            )
        return found.now

    def _pages(self, bucket: str, prefix: str, after: str = "") -> Iterator[Any]:
        pages = self._client.get_paginator("list_objects_v2")
        with translated(f"list {bucket}/{prefix}"):
            if after:
                yield from pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=after)
            else:
                yield from pages.paginate(Bucket=bucket, Prefix=prefix)

    # -- writing ---------------------------------------------------------------------------------

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        """Write a JSON object if there is none yet; return whether this caller was the one."""
        with translated(f"create {bucket}/{key}"):
            try:
                self._client.put_object(
                    Bucket=bucket,
                    Key=key,
                    Body=data,
                    ContentType="application/json",
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if code_of(error) not in TAKEN:
                    raise
                # A first try may have been stored and its answer lost on the way: then this is the
                # caller's own object that stands in its way.
                return _was_tried_again(error) and self.read(bucket, key) == data
        return True

    def replace(self, bucket: str, key: str, data: bytes, etag: str) -> bool:
        """Write a JSON object in the place of the one with this ETag; return whether it was there.

        As ETags are made of contents, an object that is as it was before counts as the same.
        """
        with translated(f"replace {bucket}/{key}"):
            try:
                self._client.put_object(
                    Bucket=bucket,
                    Key=key,
                    Body=data,
                    ContentType="application/json",
                    IfMatch=f'"{etag}"',
                )
            except ClientError as error:
                if code_of(error) not in TAKEN | MISSING:
                    raise
                # As in create(): it may be this caller's own.
                return _was_tried_again(error) and self.read(bucket, key) == data
        return True

    def write(
        self, bucket: str, key: str, data: bytes, content_type: str = "application/json"
    ) -> None:
        """Write a small object, whatever stood there before."""
        with translated(f"write {bucket}/{key}"):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Remove objects; one that is gone already is no error."""
        with translated(f"delete objects of {bucket}"):
            for key in keys:
                self._client.delete_object(Bucket=bucket, Key=key)

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket if there is none."""
        with translated(f"create the bucket {bucket}"):
            try:
                self._client.head_bucket(Bucket=bucket)
            except ClientError as error:
                if code_of(error) not in MISSING | {"NoSuchBucket"}:
                    raise
                self._client.create_bucket(Bucket=bucket)

    def claim_bucket(self, bucket: str) -> bool:
        """Make a bucket if there is none; return whether the store calls it this key's own."""
        with translated(f"create the bucket {bucket}"):
            try:
                self._client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if code_of(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
                return code_of(error) == "BucketAlreadyOwnedByYou"
        return True


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"can't write {path} ({error}): is the disk of POSEDROP_SCRATCH_DIR full?",
            code="scratch_unwritable",
        ) from error


def _was_tried_again(error: ClientError) -> bool:
    return bool(error.response.get("ResponseMetadata", {}).get("RetryAttempts"))


def _objects(page: Any) -> list[ObjectInfo]:
    return [
        ObjectInfo(item["Key"], item["ETag"].strip('"'), item["Size"], item["LastModified"])
        for item in page.get("Contents", [])
    ]


def _date(page: Any) -> datetime | None:
    date = page["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else None
