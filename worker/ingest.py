"""Ingest: what is this object? Hashes, probe and thumbnail, or a refusal; written as video.json."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from posedrop import layout
from posedrop.errors import ChildDiedError, ObjectChangedError, RefusedVideoError
from posedrop.records import Duplicate, Probe, Refusal, VideoRecord, VideoRef
from posedrop.storage import ObjectInfo
from worker.workshop import Workshop

log = logging.getLogger(__name__)

#: How long a probe of the largest file may take, in seconds, before its decoder is killed.
PROBE_SECONDS = 900.0


def ingest(shop: Workshop, bucket: str, key: str, etag: str) -> None:
    """Write the video.json of an object, unless it is gone, replaced or ingested already."""
    results = shop.settings.results_bucket
    prefix = layout.video_prefix(bucket, key)
    found = shop.storage.head(bucket, key)
    if found is None or found.etag != etag:
        log.info("gone or replaced before its ingest", extra={"key": key})
        return
    known = shop.storage.read_record(results, layout.video_record(prefix), VideoRecord)
    if known is not None and known.video.etag == etag:
        return
    try:
        record = _examine(shop, bucket, found, prefix)
    except ObjectChangedError:
        log.info("replaced during its ingest", extra={"key": key})
        return
    now = shop.storage.head(bucket, key)
    if now is not None and now.etag == etag:
        shop.storage.write(results, layout.video_record(prefix), record.to_json())
        log.info(
            "ingested", extra={"file_id": record.video.file_id, "refused": bool(record.refusal)}
        )


def _examine(shop: Workshop, bucket: str, found: ObjectInfo, prefix: str) -> VideoRecord:
    video = VideoRef(
        file_id=layout.file_id_of(bucket, found.key),
        bucket=bucket,
        key=found.key,
        etag=found.etag,
        size=found.size,
    )
    record = VideoRecord(
        video=video,
        last_modified=found.last_modified,
        ingested_at=datetime.now(UTC),
        metadata=layout.user_metadata(found.metadata),
    )
    try:
        _check_size(found.size, shop.settings.max_video_bytes)
        with shop.bench() as folder:
            local = folder / "video"
            hashes = shop.storage.download(bucket, found.key, local, found.etag)
            shop.cache.keep_video(hashes["sha256"], local)
            record = record.model_copy(update=hashes)
            thumbnail = folder / "thumbnail.jpg"
            probe = _probe(shop, local, thumbnail)
            if thumbnail.is_file():
                shop.storage.upload(
                    shop.settings.results_bucket, layout.thumbnail(prefix), thumbnail, "image/jpeg"
                )
    except RefusedVideoError as error:
        refusal = Refusal(reason=error.code, message=error.message)
        return record.model_copy(update={"refusal": refusal})
    duplicate = _first_of_its_content(shop, hashes["sha256"], video)
    return record.model_copy(update={"probe": probe, "duplicate_of": duplicate})


def _check_size(size: int, limit: int) -> None:
    if size == 0:
        raise RefusedVideoError("the file is empty (0 bytes): upload it again", code="empty")
    if size > limit:
        raise RefusedVideoError(
            f"the file has {size:,} bytes, more than the {limit:,} this server takes; "
            "cut it or ask for POSEDROP_MAX_VIDEO_BYTES to be raised",
            code="too_large",
        )


def _probe(shop: Workshop, video: Path, thumbnail: Path) -> Probe:
    payload = {
        "video": str(video),
        "thumbnail": str(thumbnail),
        "max_pixels": shop.settings.max_pixels,
        "max_frames": shop.settings.max_frames,
    }
    # Twice, because a child can also die of something that was not this video's fault.
    for last in (False, True):
        try:
            answer = shop.cpu.call(
                "worker.preflight:probe",
                payload,
                on_progress=lambda _: None,
                should_stop=lambda: shop.closing,
                wall_seconds=PROBE_SECONDS,
                log=video.with_name("probe.log"),
            )
            return Probe.model_validate(answer["probe"])
        except ChildDiedError as error:
            if last:
                raise RefusedVideoError(
                    f"the decoder died twice of this file ({error.message}); re-encode it, e.g. "
                    "ffmpeg -i IN -c:v libx264 OUT.mp4",
                    code="decoder_crashed",
                ) from error
    raise AssertionError("unreachable")


def _first_of_its_content(shop: Workshop, sha256: str, video: VideoRef) -> Duplicate | None:
    """Return the first file with this content, None if it is this one (or the first is gone)."""
    results = shop.settings.results_bucket
    name = layout.content(sha256)
    mine = Duplicate(file_id=video.file_id, key=video.key)
    if shop.storage.create(results, name, mine.to_json()):
        return None
    first = shop.storage.read_record(results, name, Duplicate)
    if first is None or first.file_id == video.file_id:
        return None
    record = shop.storage.read_record(
        results, layout.video_record(layout.video_prefix(video.bucket, first.key)), VideoRecord
    )
    still_there = shop.storage.head(video.bucket, first.key) is not None
    if still_there and record is not None and record.sha256 == sha256:
        return first
    shop.storage.write(results, name, mine.to_json())
    return None
