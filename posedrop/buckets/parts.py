"""Uploads in parts that a client does itself, each part checked by its CRC32.

The store is the truth of how far one is: what it lists is there. The checksum of a part is signed
into its URL, so that the store takes no other content for it, and all of them are named when the
upload is completed. (Seen: MinIO and SeaweedFS refuse a part, and a completion, whose checksum is
another; moto checks neither. MinIO lists the checksums of parts, SeaweedFS does not.)
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from botocore.exceptions import ClientError

from posedrop.buckets.presigned import Presigned
from posedrop.buckets.s3 import MISSING, TAKEN, Clients, code_of, translated
from posedrop.errors import StorageError

#: S3 takes no smaller part but the last, bytes; and so many of an upload.
MIN_PART_BYTES, MAX_PARTS = 5 * 2**20, 10_000
#: A part is so much of a film, if that is within the bounds: what an interruption costs.
_SHARE = 100
#: Codes of errors that say: a part is not there, or not the one that was named.
_OTHER_PARTS = {"InvalidPart", "InvalidPartOrder", "BadDigest", "EntityTooSmall", "InvalidRequest"}


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that the store has; ``crc32`` in hexadecimal, None where it does not tell."""

    number: int
    size: int
    etag: str
    crc32: str | None = None


class OtherPartsError(StorageError):
    """The parts in the store are not those that the client has sent; the upload begins anew."""

    code = "parts_differ"


class KeyTakenError(StorageError):
    """An object is there under the key."""

    code = "exists"


class NoUploadError(StorageError):
    """The store knows no such upload: it is completed, given up, or too old."""

    code = "no_upload"


def part_size(size: int, most: int) -> int:
    """Return the bytes of each part but the last of a film of ``size`` bytes.

    Args:
        size: of the film, bytes.
        most: bytes of a part, as far as 10,000 parts are enough.
    """
    return max(min(max(MIN_PART_BYTES, -(-size // _SHARE)), most), -(-size // MAX_PARTS))


def part_length(number: int, size: int, part_bytes: int) -> int:
    """Return the bytes of part ``number`` (from 1); 0 or less: there is no such part."""
    return min(part_bytes, size - (number - 1) * part_bytes)


def composite(crcs: Sequence[str]) -> str:
    """Return the checksum that S3 gives an object of parts with these CRC32s."""
    joined = b"".join(bytes.fromhex(each) for each in crcs)
    return f"{whole(f'{crc32(joined):08x}')}-{len(crcs)}"


def whole(crc: str) -> str:
    """Return the checksum that S3 gives an object with this CRC32 that came in one piece."""
    return _base64(crc)


def composite_etag(md5s: Sequence[str]) -> str:
    """Return the ETag that S3 gives an object of parts with these MD5s."""
    joined = b"".join(bytes.fromhex(each) for each in md5s)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(md5s)}"


class PartUploads(Clients):
    """The part of :class:`posedrop.buckets.storage.Storage` for what clients send in parts."""

    def begin_parts(
        self, bucket: str, key: str, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        """Begin an upload in parts; return its id."""
        with translated(f"start a multipart upload of {bucket}/{key}"):
            return self._parts_client.create_multipart_upload(
                Bucket=bucket,
                Key=key,
                ContentType=content_type,
                Metadata=dict(metadata),
                ChecksumAlgorithm="CRC32",
            )["UploadId"]

    def find_parts(self, bucket: str, key: str) -> str | None:
        """Return the id of the upload in parts of a key that was begun last, None if there is none.

        MinIO tells of uploads by their exact key alone, which this is.
        """
        with translated(f"look for uploads of {bucket}/{key}"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=key
            )
            found: list[Any] = []
            for page in pages:
                found += [each for each in page.get("Uploads", []) if each["Key"] == key]
                if any(each["Key"] > key for each in page.get("Uploads", [])):
                    break  # those of longer keys follow
        latest = max(found, key=lambda each: each["Initiated"], default=None)
        return latest["UploadId"] if latest is not None else None

    def stored_parts(self, bucket: str, key: str, upload_id: str) -> list[StoredPart]:
        """Return the parts that the store has of an upload, by number, each as it was put last.

        Raises:
            NoUploadError: the store knows no such upload.
        """
        with translated(f"list the parts of {bucket}/{key}"):
            try:
                pages = self._client.get_paginator("list_parts").paginate(
                    Bucket=bucket, Key=key, UploadId=upload_id
                )
                # SeaweedFS lists a part that was put twice twice, in whatever order.
                listed = [each for page in pages for each in page.get("Parts", [])]
                listed.sort(key=lambda each: (each["PartNumber"], each["LastModified"]))
                latest = {each["PartNumber"]: each for each in listed}
            except ClientError as error:
                if code_of(error) in MISSING:
                    raise _no_upload(key) from error
                raise
        return [
            StoredPart(
                number,
                each["Size"],
                each["ETag"].strip('"'),
                _hexadecimal(each.get("ChecksumCRC32")),
            )
            for number, each in latest.items()
        ]

    def presign_part(
        self, bucket: str, key: str, upload_id: str, number: int, length: int, crc: str
    ) -> Presigned:
        """Let anybody put one part: of this length and checksum, and no other.

        Args:
            number: from 1.
            length: bytes.
            crc: CRC32 of the part, hexadecimal.
        """
        url = self._presigner.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": bucket,
                "Key": key,
                "UploadId": upload_id,
                "PartNumber": number,
                "ContentLength": length,
                "ChecksumCRC32": _base64(crc),
            },
            ExpiresIn=self._expires,
        )
        headers = {"Content-Length": str(length), "x-amz-checksum-crc32": _base64(crc)}
        return Presigned("PUT", url, headers)

    def complete_parts(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[StoredPart],
        crcs: Sequence[str],
    ) -> None:
        """Make an object of parts, if there is none under its key.

        Args:
            parts: all of them, as the store has listed them.
            crcs: of each, as the client has sent it, hexadecimal.

        Raises:
            KeyTakenError: there is an object.
            NoUploadError: the store knows no such upload.
            OtherPartsError: the store has other parts.
        """
        named: Any = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32": _base64(crc)}
            for part, crc in zip(parts, crcs, strict=True)
        ]
        with translated(f"complete the upload of {bucket}/{key}"):
            try:
                self._parts_client.complete_multipart_upload(
                    Bucket=bucket,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": named},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                code = code_of(error)
                if code in TAKEN:
                    raise KeyTakenError(f"{key}: there is an object of this name") from error
                if code in MISSING:
                    raise _no_upload(key) from error
                if code in _OTHER_PARTS:
                    raise OtherPartsError(f"{key}: the store has other parts: {error}") from error
                raise

    def checksum(self, bucket: str, key: str) -> str | None:
        """Return an object's CRC32 as its store tells it, None if it does not."""
        with translated(f"look at {bucket}/{key}"):
            try:
                answer = self._client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
        return answer.get("ChecksumCRC32")


def _no_upload(key: str) -> NoUploadError:
    return NoUploadError(f"{key}: this upload is over, or too old: it begins anew")


def _base64(crc: str) -> str:
    return b64encode(bytes.fromhex(crc)).decode()


def _hexadecimal(crc: str | None) -> str | None:
    return b64decode(crc).hex() if crc else None
