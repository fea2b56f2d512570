"""Objects of any length on their way into the store, and copies within it: in one part or many."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from posedrop.buckets.part import Part
from posedrop.buckets.s3 import MISSING, TAKEN, Clients, code_of, translated

#: Of a copy in one step, and of each part of a larger one. S3 allows 5 GB; a store on one slow disk
#: would not answer for so much within a request's timeout.
COPY_BYTES = 1 << 30
#: A stream's parts, bytes: S3 takes none below five MiB but the last.
MIN_PART_BYTES, MAX_PART_BYTES = 8 * 2**20, 64 * 2**20
_MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of a bucket, as listed or asked for."""

    key: str
    etag: str
    size: int
    last_modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An upload in parts that was neither completed nor given up."""

    key: str
    upload_id: str
    begun: datetime


class Uploads(Clients):
    """The part of :class:`posedrop.buckets.storage.Storage` that writes large objects."""

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
        with translated(f"upload {bucket}/{key}"):
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
        with Part(part_bytes) as part, translated(f"upload {bucket}/{key}"):
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
        with translated(f"upload {bucket}/{key}"):
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
                if code_of(error) in TAKEN:
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
        """Begin an upload in parts, which is given up unless the block ends without an error."""
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
        with translated(f"copy {bucket}/{source.key} to {key}"):
            try:
                if source.size > COPY_BYTES:
                    self._copy_parts(target, which, source.size, content_type)
                else:
                    self._client.copy_object(
                        **target, **which, ContentType=content_type, MetadataDirective="REPLACE"
                    )
            except ClientError as error:
                if code_of(error) in MISSING | {"412", "PreconditionFailed"}:
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

    def unfinished_uploads(self, bucket: str) -> Iterator[UnfinishedUpload]:
        """Yield the uploads in parts that are not over, as far as the store tells of them.

        MinIO tells of none but by its exact key, and removes old ones by itself, as SeaweedFS does.
        """
        with translated(f"list the unfinished uploads of {bucket}"):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket
            ):
                for each in page.get("Uploads", []):
                    yield UnfinishedUpload(each["Key"], each["UploadId"], each["Initiated"])

    def abort_upload(self, bucket: str, upload: UnfinishedUpload) -> None:
        """Give up an upload in parts; one that is over already is no error."""
        with translated(f"give up an upload of {bucket}/{upload.key}"):
            try:
                self._client.abort_multipart_upload(
                    Bucket=bucket, Key=upload.key, UploadId=upload.upload_id
                )
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
