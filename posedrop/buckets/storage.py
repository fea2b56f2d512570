"""The object store: the only user of boto3.

Every method raises :class:`StorageError` when the store can't do what was asked, whatever boto3
raised. ``create`` is the only concurrency control there is (``If-None-Match: *``).
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from posedrop import __version__, metrics
from posedrop.buckets import layout
from posedrop.buckets.connections import reject_truncated_headers
from posedrop.buckets.part import Part
from posedrop.buckets.records import Record, newer_schema
from posedrop.errors import ConfigurationError, ObjectChangedError, RecordError, StorageError
from posedrop.proxies import proxies_for_boto3
from posedrop.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_CHUNK = 1 << 20
#: What is read into memory, bytes: no record of posedrop's is nearly as large.
MAX_READ_BYTES = 32 * 2**20
_MAX_MESSAGE = 1000
#: So many records that can't be read are remembered, so that each is told of once.
_MAX_REPORTED = 10_000
#: Of a copy in one step, and of each part of a larger one. S3 allows 5 GB; a store on one slow disk
#: would not answer for so much within a request's timeout.
COPY_BYTES = 1 << 30
#: A stream's parts, bytes: S3 takes none below five MiB but the last.
MIN_PART_BYTES, MAX_PART_BYTES = 8 * 2**20, 64 * 2**20
_MAX_PARTS = 10_000
#: How long the redirect of ``curl -LT`` may be followed, in seconds. It is followed at once, and a
#: signature is checked when a request begins, however long its body then takes. Unless the client
#: said If-None-Match itself, or something before the store adds it, all that keeps the holder of
#: such a URL from putting another film of the same size there is that it ends soon.
PLAIN_PUT_SECONDS = 60
#: How long the URLs of an upload in parts are good, in seconds, or for longer if others are.
PARTS_SECONDS = 12 * 3600


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of a bucket, as listed or asked for."""

    key: str
    etag: str
    size: int
    last_modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects below a prefix, and the store's own time when it answered.

    ``is_timed`` is False for a store that does not tell its time: ``now`` is this machine's then.
    """

    objects: list[ObjectInfo]
    now: datetime
    is_timed: bool = True


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload in parts that was neither completed nor given up."""

    key: str
    upload_id: str
    begun: datetime


@dataclass(frozen=True, slots=True)
class Presigned:
    """A request that anybody may make until it expires; every header is signed and required."""

    method: str
    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PresignedParts:
    """A multipart upload: PUT each part, then POST their ETags to ``complete``."""

    upload_id: str
    part_bytes: int
    parts: list[str]
    complete: str
    abort: str


class Storage:
    """The buckets, as one caller with one key sees them."""

    def __init__(
        self, settings: Settings, *, read_seconds: float = 60.0, attempts: int = 5
    ) -> None:
        """Nothing is asked yet.

        Args:
            settings: where the store is, and the keys.
            read_seconds: how long an answer is waited for.
            attempts: how often the same is asked before it counts as not done.
        """
        self._waits = read_seconds, attempts
        self._client = self._made(
            settings,
            settings.s3_endpoint,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        )
        public = settings.s3_public_endpoint or settings.s3_endpoint
        self._public = self._made(
            settings,
            public,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        )
        self._presigner = self._public
        self._parts_client = self._client
        if settings.presign_access_key and settings.presign_secret_key:
            secret = settings.presign_secret_key.get_secret_value()
            self._presigner = self._made(settings, public, settings.presign_access_key, secret)
            self._parts_client = self._made(
                settings, settings.s3_endpoint, settings.presign_access_key, secret
            )
        self._expires = settings.presign_seconds
        self._part_bytes = settings.multipart_bytes
        self._transfer = TransferConfig(
            multipart_threshold=settings.multipart_bytes,
            multipart_chunksize=settings.multipart_bytes,
            max_concurrency=4,
        )

    def ping(self, bucket: str) -> None:
        """See whether the store answers for a bucket.

        Raises:
            StorageError: it does not, or says that there is no such bucket.
        """
        with _translated(f"reach the bucket {bucket}"):
            self._client.list_objects_v2(Bucket=bucket, MaxKeys=1)

    def _made(
        self, settings: Settings, endpoint: str | None, access_key: str | None, secret: str | None
    ) -> S3Client:
        read_seconds, attempts = self._waits
        return _client(settings, endpoint, access_key, secret, read_seconds, attempts)

    # -- reading ---------------------------------------------------------------------------------

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """Return what the store knows of an object, None if there is none."""
        with _translated(f"look at {bucket}/{key}"):
            try:
                answer = self._client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _code(error) in _MISSING:
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
        with _translated(f"read {bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=bucket, Key=key, **extra)
                if answer["ContentLength"] > MAX_READ_BYTES:
                    answer["Body"].close()
                    raise RecordError(
                        f"{bucket}/{key} has {answer['ContentLength']:,} bytes: no record has"
                    )
                return answer["Body"].read()
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                if _code(error) in {"412", "PreconditionFailed"}:
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
        former = layout.former_prefix(key)
        if former is not None and (
            self.head(results, layout.video_record(former)) is not None
            or next(self.objects(results, f"{former}/asked/"), None) is not None
        ):
            return former
        return layout.video_prefix(bucket, key)

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
        with _translated(f"download {bucket}/{key}"):
            try:
                answer = self._client.get_object(Bucket=bucket, Key=key, **extra)
            except ClientError as error:
                if _code(error) in _MISSING | {"412", "PreconditionFailed"}:
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

    def objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below ``prefix``, in the order of their keys, page by page."""
        for page in self._pages(bucket, prefix):
            yield from _objects(page)

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

    def folders(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the names of the folders right below ``prefix``."""
        names: list[str] = []
        for page in self._pages(bucket, prefix, delimiter="/"):
            names += [
                common["Prefix"].removeprefix(prefix).rstrip("/")
                for common in page.get("CommonPrefixes", [])
            ]
        return names

    def _pages(self, bucket: str, prefix: str, delimiter: str = "") -> Iterator[Any]:
        with _translated(f"list {bucket}/{prefix}"):
            yield from self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, Delimiter=delimiter
            )

    # -- writing ---------------------------------------------------------------------------------

    def create(self, bucket: str, key: str, data: bytes) -> bool:
        """Write a JSON object if there is none yet; return whether this caller was the one."""
        with _translated(f"create {bucket}/{key}"):
            try:
                self._client.put_object(
                    Bucket=bucket,
                    Key=key,
                    Body=data,
                    ContentType="application/json",
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
                # A first try may have been stored and its answer lost on the way: then this is the
                # caller's own object that stands in its way.
                return _was_tried_again(error) and self.read(bucket, key) == data
        return True

    def write(
        self, bucket: str, key: str, data: bytes, content_type: str = "application/json"
    ) -> None:
        """Write a small object, whatever stood there before."""
        with _translated(f"write {bucket}/{key}"):
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

    def upload(
        self,
        bucket: str,
        key: str,
        source: Path | IO[bytes],
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a file of any length, in parts when it is large; or a stream of a small one."""
        extra: dict[str, Any] = {"ContentType": content_type}
        if metadata:
            extra["Metadata"] = dict(metadata)
        with _translated(f"upload {bucket}/{key}"):
            if isinstance(source, Path):
                self._client.upload_file(
                    str(source), bucket, key, ExtraArgs=extra, Config=self._transfer
                )
            else:
                self._client.upload_fileobj(
                    source, bucket, key, ExtraArgs=extra, Config=self._transfer
                )

    def upload_stream(
        self,
        bucket: str,
        key: str,
        source: io.RawIOBase,
        size: int,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write what comes from a stream, holding one part of it in memory.

        Args:
            source: read to its end.
            size: bytes that it has at most: a store takes 10,000 parts. Beyond 640 GB they would
                be larger than :data:`MAX_PART_BYTES`, and the stream is refused at their end.
        """
        same: Any = {"Bucket": bucket, "Key": key}
        part_bytes = min(MAX_PART_BYTES, max(MIN_PART_BYTES, -(-size // _MAX_PARTS)))
        with Part(part_bytes) as part, _translated(f"upload {bucket}/{key}"):
            body: Any = part  # like a file, as far as botocore asks
            if part.fill(source) < part_bytes:
                more: Any = {"ContentType": content_type, "Metadata": dict(metadata or {})}
                self._client.put_object(**same, **more, Body=body)
                return
            with self._parts_of(same, content_type, metadata) as (this, parts):
                while len(part):
                    number = len(parts) + 1
                    answer = self._client.upload_part(**this, PartNumber=number, Body=body)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                    part.fill(source)
                self._client.complete_multipart_upload(**this, MultipartUpload={"Parts": parts})

    def upload_new(self, bucket: str, key: str, path: Path, content_type: str, sha256: str) -> bool:
        """Write a file of any length if there is no such object yet; never replace one.

        Args:
            sha256: of the file, hexadecimal; in one part, the store refuses other content.

        Returns:
            Whether this caller was the one. After a lost answer that can't be known: then False.
        """
        same: Any = {"Bucket": bucket, "Key": key}
        with _translated(f"upload {bucket}/{key}"):
            try:
                if path.stat().st_size > self._part_bytes:
                    self._put_new_parts(same, path, content_type)
                else:
                    with path.open("rb") as file:
                        self._client.put_object(
                            **same,
                            Body=file,
                            ContentType=content_type,
                            ChecksumSHA256=b64encode(bytes.fromhex(sha256)).decode(),
                            IfNoneMatch="*",
                        )
            except ClientError as error:
                if _code(error) in _TAKEN:
                    return False
                raise
        return True

    def _put_new_parts(self, same: Any, path: Path, content_type: str) -> None:
        with self._parts_of(same, content_type) as (this, parts), path.open("rb") as file:
            while part := file.read(self._part_bytes):
                number = len(parts) + 1
                answer = self._client.upload_part(**this, PartNumber=number, Body=part)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._client.complete_multipart_upload(
                **this, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )

    @contextmanager
    def _parts_of(
        self, same: Any, content_type: str, metadata: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Any, list[Any]]]:
        """Begin an upload in parts, to be completed within the block; else it is given up."""
        upload = self._client.create_multipart_upload(
            **same, ContentType=content_type, Metadata=dict(metadata or {})
        )
        this = {**same, "UploadId": upload["UploadId"]}
        try:
            yield this, []
        except BaseException:
            # What is left of it would cost space until the store's own cleaning, nothing else.
            with suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**this)
            raise

    def copy(self, bucket: str, source: ObjectInfo, key: str, content_type: str) -> bool:
        """Have the store copy an object within its bucket, over whatever is under ``key``.

        Args:
            source: the object as it was listed: of no other bytes is a copy made.

        Returns:
            False: the source is gone, or has been replaced.
        """
        target: Any = {"Bucket": bucket, "Key": key}
        which: Any = {
            "CopySource": {"Bucket": bucket, "Key": source.key},
            "CopySourceIfMatch": f'"{source.etag}"',
        }
        with _translated(f"copy {bucket}/{source.key} to {key}"):
            try:
                if source.size > COPY_BYTES:
                    self._copy_parts(target, which, source.size, content_type)
                else:
                    self._client.copy_object(
                        **target, **which, ContentType=content_type, MetadataDirective="REPLACE"
                    )
            except ClientError as error:
                if _code(error) in _MISSING | {"412", "PreconditionFailed"}:
                    return False
                raise
        return True

    def _copy_parts(self, target: Any, which: Any, size: int, content_type: str) -> None:
        step = max(COPY_BYTES, -(-size // 10_000))
        with self._parts_of(target, content_type) as (this, parts):
            for number, first in enumerate(range(0, size, step), 1):
                span = f"bytes={first}-{min(first + step, size) - 1}"
                answer = self._client.upload_part_copy(
                    **this, **which, PartNumber=number, CopySourceRange=span
                )
                etag = answer["CopyPartResult"]["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
            self._client.complete_multipart_upload(**this, MultipartUpload={"Parts": parts})

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Remove objects; one that is gone already is no error."""
        with _translated(f"delete objects of {bucket}"):
            for key in keys:
                self._client.delete_object(Bucket=bucket, Key=key)

    def unfinished_uploads(self, bucket: str) -> Iterator[UnfinishedUpload]:
        """Yield the uploads in parts that are not over, as far as the store tells of them.

        MinIO tells of none but by its exact key, and removes old ones by itself, as SeaweedFS does.
        """
        with _translated(f"list the unfinished uploads of {bucket}"):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket
            ):
                for each in page.get("Uploads", []):
                    yield UnfinishedUpload(each["Key"], each["UploadId"], each["Initiated"])

    def abort_upload(self, bucket: str, upload: UnfinishedUpload) -> None:
        """Give up an upload in parts; one that is over already is no error."""
        with _translated(f"give up an upload of {bucket}/{upload.key}"):
            try:
                self._client.abort_multipart_upload(
                    Bucket=bucket, Key=upload.key, UploadId=upload.upload_id
                )
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket if there is none."""
        with _translated(f"create the bucket {bucket}"):
            try:
                self._client.head_bucket(Bucket=bucket)
            except ClientError as error:
                if _code(error) not in _MISSING | {"NoSuchBucket"}:
                    raise
                self._client.create_bucket(Bucket=bucket)

    def claim_bucket(self, bucket: str) -> bool:
        """Make a bucket if there is none; return whether the store calls it this key's own."""
        with _translated(f"create the bucket {bucket}"):
            try:
                self._client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if _code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
                return _code(error) == "BucketAlreadyOwnedByYou"
        return True

    # -- presigned -------------------------------------------------------------------------------

    def presign_put(
        self,
        bucket: str,
        key: str,
        *,
        content_type: str,
        size: int | None,
        sha256: str | None,
        metadata: Mapping[str, str],
    ) -> Presigned:
        """Let anybody put one object, once (``If-None-Match: *``), within the minutes set.

        Args:
            size: bytes; when given, no other length is taken.
            sha256: hexadecimal; when given, the store refuses other content.
        """
        url, headers = self._signed_put(
            bucket,
            key,
            self._expires,
            size=size,
            content_type=content_type,
            sha256=sha256,
            once=True,
            metadata=metadata,
        )
        return Presigned("PUT", url, headers)

    def presign_plain_put(
        self,
        bucket: str,
        key: str,
        *,
        size: int,
        content_type: str | None = None,
        sha256: str | None = None,
        once: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Presigned:
        """Like :meth:`presign_put` for a client that sends its own headers again (curl -LT).

        What it declared is bound; what it did not can't be, as it would not send it. The URL lasts
        for :data:`PLAIN_PUT_SECONDS` at most.

        Args:
            size: bytes; no other length is taken.
            once: the client sends ``If-None-Match: *``.
        """
        url, headers = self._signed_put(
            bucket,
            key,
            min(self._expires, PLAIN_PUT_SECONDS),
            size=size,
            content_type=content_type,
            sha256=sha256,
            once=once,
            metadata=metadata or {},
        )
        return Presigned("PUT", url, headers)

    def _signed_put(
        self,
        bucket: str,
        key: str,
        seconds: int,
        *,
        size: int | None,
        content_type: str | None,
        sha256: str | None,
        once: bool,
        metadata: Mapping[str, str],
    ) -> tuple[str, dict[str, str]]:
        """Return a URL, and the headers that have to come with it: those that are signed."""
        params: dict[str, Any] = {"Bucket": bucket, "Key": key, "Metadata": dict(metadata)}
        headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        checksum = b64encode(bytes.fromhex(sha256)).decode() if sha256 is not None else None
        for param, header, value in (
            ("ContentType", "Content-Type", content_type),
            ("IfNoneMatch", "If-None-Match", "*" if once else None),
            ("ContentLength", "Content-Length", size),
            ("ChecksumSHA256", "x-amz-checksum-sha256", checksum),
        ):
            if value is not None:
                params[param] = value
                headers[header] = str(value)
        url = self._presigner.generate_presigned_url("put_object", Params=params, ExpiresIn=seconds)
        return url, headers

    def presign_parts(
        self, bucket: str, key: str, *, content_type: str, size: int, metadata: Mapping[str, str]
    ) -> PresignedParts:
        """Let anybody put one large object in parts; ``size`` in bytes."""
        part_bytes = max(self._part_bytes, -(-size // 10_000))
        with _translated(f"start a multipart upload of {bucket}/{key}"):
            upload_id = self._parts_client.create_multipart_upload(
                Bucket=bucket, Key=key, ContentType=content_type, Metadata=dict(metadata)
            )["UploadId"]
        same = {"Bucket": bucket, "Key": key, "UploadId": upload_id}

        def sign(method: str, **more: Any) -> str:
            return self._presigner.generate_presigned_url(
                method, Params={**same, **more}, ExpiresIn=max(self._expires, PARTS_SECONDS)
            )

        return PresignedParts(
            upload_id,
            part_bytes,
            [
                # No other length is taken: who holds a part's URL could put five GB there.
                sign("upload_part", PartNumber=number, ContentLength=min(part_bytes, size - start))
                for number, start in enumerate(range(0, max(1, size), part_bytes), start=1)
            ],
            sign("complete_multipart_upload"),
            sign("abort_multipart_upload"),
        )

    def presign_get(self, bucket: str, key: str, *, content_type: str, filename: str) -> str:
        """Return a URL that gives one object to anybody, within the minutes set."""
        ascii_name = filename.encode("ascii", "replace").decode().replace('"', "'")
        return self._public.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": bucket,
                "Key": key,
                "ResponseContentType": content_type,
                "ResponseContentDisposition": f'inline; filename="{ascii_name}"',
            },
            ExpiresIn=self._expires,
        )


def _client(
    settings: Settings,
    endpoint: str | None,
    access_key: str | None,
    secret_key: str | None,
    read_seconds: float,
    attempts: int,
) -> S3Client:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=min(5.0, read_seconds),
        read_timeout=read_seconds,
        max_pool_connections=32,
        # Its own is made anew, in a tenth of each call's time, and names this machine.
        user_agent=f"posedrop/{__version__}",
        # Newer boto3 adds trailers that older stores refuse; the hashes in our records do it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=proxies_for_boto3(endpoint),
    )
    try:
        client = _session(own=bool(endpoint and access_key)).client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"no S3 client can be made of POSEDROP_S3_ENDPOINT, the AWS_ variables and "
            f"~/.aws: {error}"
        ) from error
    reject_truncated_headers(client)
    metrics.watch_store(client)
    return client


@functools.cache
def _session(*, own: bool) -> boto3.Session:
    """Return where boto3's clients are made; where all is told to it (``own``), it looks nowhere.

    Else a person's AWS_PROFILE, AWS_USE_FIPS_ENDPOINT or damaged ~/.aws/config would stand in the
    way to a store that has nothing to do with AWS. AWS_CA_BUNDLE is obeyed.
    """
    if not own:
        return boto3.Session()
    defaults = {
        name: (None, None, default, convert)
        for name, (_, _, default, convert) in botocore.session.Session.SESSION_VARIABLES.items()
        if name != "ca_bundle"
    }
    nothing = (None, None, os.devnull, None)
    return boto3.Session(
        botocore_session=botocore.session.Session(
            session_vars={**defaults, "config_file": nothing, "credentials_file": nothing}
        )
    )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise StorageError(f"can't {what}: {error}") from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"can't write {path} ({error}): is the disk of POSEDROP_SCRATCH_DIR full?",
            code="scratch_unwritable",
        ) from error


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


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
