"""Requests that anybody may make for some minutes: uploads and downloads past the handlers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from posedrop.buckets.s3 import Clients, translated

#: How long the redirect of ``curl -LT`` may be followed, in seconds. It is followed at once, and a
#: signature is checked when a request begins, however long its body then takes. Unless the client
#: said If-None-Match itself, or something before the store adds it, all that keeps the holder of
#: such a URL from putting another film of the same size there is that it ends soon.
PLAIN_PUT_SECONDS = 60
#: How long the URLs of an upload in parts are good, in seconds, or for longer if others are.
PARTS_SECONDS = 12 * 3600


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


class Presigning(Clients):
    """The part of :class:`posedrop.buckets.storage.Storage` that signs requests for others."""

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
        with translated(f"start a multipart upload of {bucket}/{key}"):
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
        return self._public.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": bucket,
                "Key": key,
                "ResponseContentType": content_type,
                "ResponseContentDisposition": content_disposition(filename),
            },
            ExpiresIn=self._expires,
        )


def content_disposition(filename: str) -> str:
    """Return the header by which a browser saves an object under a name of any script (RFC 6266).

    Those that don't know ``filename*`` get a name of the characters that all of them agree on.
    """
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in filename)
    header = f'inline; filename="{plain}"'
    if plain == filename:
        return header
    # The characters that RFC 5987 lets stand; what UTF-8 can't say has become a question mark.
    encoded = quote(filename.encode(errors="replace"), safe="!#$&+-.^_`|~")
    return f"{header}; filename*=UTF-8''{encoded}"
