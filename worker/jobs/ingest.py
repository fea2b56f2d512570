"""Ingest: what is this object? Hashes, probe and thumbnail, or a refusal; written as video.json.

A decoder may die, hang or fail of a film. Each attempt to decode one is a record of its own, and
after the third that failed the film is refused: whatever is put into the bucket, its ingest ends.
A full disk, a store that is away and a worker that is stopped are not the film's fault. A film that
the store has, and does not give, is refused after ten attempts.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeGuard

from posedrop.buckets import layout
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.records.videos import (
    INGEST_VERSION,
    Duplicate,
    Probe,
    Refusal,
    VideoRecord,
    VideoRef,
)
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import (
    CancelledRunError,
    ChildDiedError,
    ObjectChangedError,
    PosedropError,
    RecordError,
    RefusedVideoError,
    StorageError,
)
from posedrop.settings import Settings
from posedrop.transport.queue import QueueError
from worker import room
from worker.child import messages
from worker.context import Context
from worker.jobs import artefacts, claim
from worker.jobs.claim import Held, History
from worker.jobs.work import check_processes, is_left, work_on

log = logging.getLogger(__name__)

#: How long a probe may take before its decoder is killed: so many seconds, and those in which a
#: slow disk reads the file.
PROBE_SECONDS = 300.0
PROBE_BYTES_A_SECOND = 5e6
#: Attempts that ended without a word are those of a worker that was killed, by whom can't be known.
#: One that so many were killed at is given up all the same: it may be what kills them.
MAX_DIED = 10
#: Seconds before a second attempt, four times as long before a third, and for as long again as the
#: one that failed took: behind the other films. Not longer than it takes for the reconciler to miss
#: the message.
RETRY_SECONDS = 2.0
#: Bytes of a thumbnail; preflight draws one of some kilobytes.
MAX_THUMBNAIL_BYTES = 2**20
#: The reason of a refusal by attempts that failed.
DECODER_FAILED = "decoder_failed"
#: The reason of a refusal by a store that has the film, and does not give it.
NOT_GIVEN = "not_given"
#: What an attempt ended with that had no film to read any more: a disk's fault, or its child's.
UNREADABLE = "scratch_unreadable"
_JPEG = b"\xff\xd8\xff"
_CHUNK = 1 << 20
#: What says nothing about the film that was to be decoded.
_NOT_THE_FILM = (StorageError, QueueError)


class Examined(NamedTuple):
    """What an ingest says of a video, to be written if no other has come to its key meanwhile."""

    record: VideoRecord
    thumbnail: bytes | None = None


def ingest(context: Context, bucket: str, key: str, etag: str) -> None:
    """Write the video.json of an object, unless it is gone, replaced or ingested already."""
    if is_left(context, "ingest", bucket=bucket, key=key, etag=etag):
        return
    results = context.settings.results_bucket
    found = context.storage.head(bucket, key)
    if found is None or found.etag != etag:
        log.info("gone or replaced before its ingest", extra={"key": key})
        return
    prefix = context.storage.video_prefix(results, bucket, key)
    if _is_known(context, prefix, etag):
        return
    try:
        examined = _examine(context, bucket, found, prefix)
    except ObjectChangedError:
        log.info("replaced during its ingest", extra={"key": key})
        examined = None
    now = context.storage.head(bucket, key)
    if now is None:
        _clear(context, prefix, context.storage.file_id(results, bucket, key), etag)
    elif examined is not None and now.etag == etag:
        record, picture = examined
        # Put again as it is meanwhile, it is to be analysed as its newest metadata ask.
        asked = {"metadata": layout.user_metadata(now.metadata), "last_modified": now.last_modified}
        record = record.model_copy(update=asked)
        if picture is not None:
            context.storage.write(results, layout.thumbnail(prefix), picture, "image/jpeg")
        context.storage.write(results, layout.video_record(prefix), record.to_json())
        log.info(
            "ingested", extra={"file_id": record.video.file_id, "refused": bool(record.refusal)}
        )


def _clear(context: Context, prefix: str, file_id: str, etag: str) -> None:
    """Remove the objects that an ingest wrote about a video which was deleted meanwhile."""
    results = context.settings.results_bucket
    folder = f"{layout.ingest(file_id, etag)}/"
    attempts = [found.key for found in context.storage.objects(results, folder)]
    context.storage.delete(results, [*attempts, layout.thumbnail(prefix)])


def _is_known(context: Context, prefix: str, etag: str) -> bool:
    record = layout.video_record(prefix)
    results = context.settings.results_bucket
    try:
        known = context.storage.read_whole_record(results, record, VideoRecord)
    except RecordError as error:  # a newer worker's, which is not to be written over
        context.storage.report(error)
        return True
    return known is not None and known.video.etag == etag and known.has_its_id


def _examine(context: Context, bucket: str, found: ObjectInfo, prefix: str) -> Examined | None:
    """Return what is known of a video after one more attempt, if the video needs one.

    Returns:
        None where that is for another worker, or for a later attempt, to say.
    """
    record = _begun_record(context, bucket, found)
    video = record.video
    try:
        _check_size(found.size, context.settings.max_video_bytes)
        room.check_fits(found.size, context.settings.scratch_dir)
    except RefusedVideoError as error:
        return _refused(record, error)
    results = context.settings.results_bucket
    folder = layout.ingest(video.file_id, video.etag)
    before = claim.history(context.storage, results, folder, "ingest")
    if before.is_busy(context.settings.lease_seconds):
        log.info("another worker is at this ingest", extra={"file_id": video.file_id})
        return None
    if (why := _is_given_up(before, context.settings)) is not None:
        return _refused(record.model_copy(update=_hashes(before)), why)
    with context.scratch_dir() as scratch:
        local = scratch / "video"
        began = context.clock(), time.monotonic()
        try:
            hashes = _fetch(context, video, before, local)
        except StorageError as error:
            _note_if_not_given(context, video, before, error, *began)
            raise
        record = record.model_copy(update=hashes)
        # What would make any attempt fail makes none.
        room.fetch_with_room(context.cache, lambda: room.check_room(scratch))
        context.cpu.start()
        attempt = claim.begin(
            context.storage,
            results,
            folder,
            before,
            "ingest",
            context.name,
            now=context.clock(),
            **hashes,
        )
        if attempt is None:
            return None
        held = Held(context.storage, results, folder, attempt)
        return _decode(context, held, before, record, local, prefix)


def _begun_record(context: Context, bucket: str, found: ObjectInfo) -> VideoRecord:
    """Return the record of a video of which nothing but its object is known."""
    video = VideoRef(
        file_id=context.storage.file_id(context.settings.results_bucket, bucket, found.key),
        bucket=bucket,
        key=found.key,
        etag=found.etag,
        size=found.size,
    )
    return VideoRecord(
        video=video,
        last_modified=found.last_modified,
        ingested_at=context.clock(),
        ingest_version=INGEST_VERSION,
        metadata=layout.user_metadata(found.metadata),
    )


def _decode(
    context: Context, held: Held, before: History, record: VideoRecord, local: Path, prefix: str
) -> Examined | None:
    """Have a child probe the video at ``local``; return what :func:`_examine` does."""
    sha256 = str(record.sha256)
    thumbnail = local.with_name("thumbnail.jpg")
    probes: list[Probe] = []

    def work() -> None:
        probes.append(_probe(context, held, local, thumbnail))
        held.end("done")

    error = work_on(
        context,
        held,
        record.video.key,
        work,
        check_fault=lambda error: _check_fault(context, held, error, local),
        tell=lambda error: _told(error, local),
    )
    if error is not None and _is_verdict(error):
        held.end("done")
        context.cache.forget_video(sha256)
        return _refused(record, error)
    if error is not None:
        return _failed(context, held, before, record, local, prefix, error)
    context.cache.keep_video(sha256, local)
    duplicate = _first_of_its_content(context, sha256, record.video)
    known = record.model_copy(update={"probe": probes[-1], "duplicate_of": duplicate})
    return Examined(known, _picture(thumbnail))


def _check_size(size: int, limit: int) -> None:
    if size == 0:
        raise RefusedVideoError("the file is empty (0 bytes): upload it again", code="empty")
    if size > limit:
        raise RefusedVideoError(
            f"the file has {size:,} bytes, more than the {limit:,} this server takes; "
            "cut it or ask for POSEDROP_MAX_VIDEO_BYTES to be raised",
            code="too_many_bytes",
        )


def _refused(record: VideoRecord, error: RefusedVideoError) -> Examined:
    refusal = Refusal(reason=error.code, message=error.message)
    return Examined(record.model_copy(update={"refusal": refusal}))


def _hashes(before: History) -> dict[str, str]:
    """Return the hashes of these bytes that an earlier attempt found; empty: none did."""
    for attempt in reversed(before.attempts):
        if attempt.sha256 is not None and attempt.sha1 is not None:
            return {"sha256": attempt.sha256, "sha1": attempt.sha1}
    return {}


def _fetch(context: Context, video: VideoRef, before: History, local: Path) -> dict[str, str]:
    known = _hashes(before)
    if known and context.cache.link_video(known["sha256"], local):
        return known
    return room.fetch_with_room(
        context.cache, lambda: context.storage.download(video.bucket, video.key, local, video.etag)
    )


def _note_if_not_given(
    context: Context,
    video: VideoRef,
    before: History,
    error: StorageError,
    now: datetime,
    began: float,
) -> None:
    """Count an attempt for which the store did not give the film, though it has it.

    Args:
        now: when it began; so ``began``, by ``time.monotonic``.

    Raises:
        StorageError: the store is away, which says nothing of the film.
    """
    if error.code != StorageError.code:  # it was replaced, or the disk is full
        return
    there = context.storage.head(video.bucket, video.key)
    if there is None or there.etag != video.etag:
        return
    results, folder = context.settings.results_bucket, layout.ingest(video.file_id, video.etag)
    attempt = claim.begin(context.storage, results, folder, before, "ingest", context.name, now=now)
    if attempt is not None:
        held = Held(context.storage, results, folder, attempt, began)
        held.stage("fetch")
        held.end("handed_back", claim.run_error(error, "fetch"))


# -- how an attempt ends ---------------------------------------------------------------------------


def _failed(
    context: Context,
    held: Held,
    before: History,
    record: VideoRecord,
    local: Path,
    prefix: str,
    error: Exception,
) -> Examined | None:
    """Count an attempt that failed by the film's fault, and have it tried again or refuse it."""
    video = record.video
    if _is_ending(context, error):
        held.end("handed_back")
        is_left(context, "ingest", bucket=video.bucket, key=video.key, etag=video.etag)
        return None
    if held.lost:  # it was deleted, or taken over: what comes of it is not ours to say
        return None
    log.warning("ingest failed: %s", error, extra={"file_id": video.file_id})
    attempt = held.end("failed", _told(error, local))
    now = History([*before.attempts, attempt], attempt.number, 0.0)
    why = _is_given_up(now, context.settings)
    if why is None:
        context.cache.keep_video(str(record.sha256), local)
        took = (context.clock() - attempt.started_at).total_seconds()
        delay = RETRY_SECONDS * 4.0 ** (len(now.spent("failed")) - 1) + max(0.0, took)
        delay = min(delay, context.settings.lease_seconds)
        context.send(
            "ingest", delay_seconds=delay, bucket=video.bucket, key=video.key, etag=video.etag
        )
        return None
    context.cache.forget_video(str(record.sha256))
    if _is_known(context, prefix, video.etag):  # by a worker that took over meanwhile
        return None
    return _refused(record, why)


def _is_verdict(error: Exception) -> TypeGuard[RefusedVideoError]:
    """Tell whether a film is refused at once; a decoder that fails once says little of it."""
    return isinstance(error, RefusedVideoError) and error.code != DECODER_FAILED


def _is_ending(context: Context, error: Exception) -> bool:
    """Tell whether an attempt was cut short because this process ends."""
    return context.closing and isinstance(error, CancelledRunError | ChildDiedError)


def _check_fault(context: Context, held: Held, error: Exception, local: Path) -> None:
    """Raise ``error``, or what is the matter, unless it can only be the film's fault.

    It is where the film itself can be read and the disk takes what is written.
    """
    if _is_verdict(error) or _is_ending(context, error):
        return
    if isinstance(error, _NOT_THE_FILM):
        raise error
    check_processes(error)
    try:
        with artefacts.opened(local, links=None) as file:
            while file.read(_CHUNK):
                pass
    except artefacts.NotTakenError as other:  # its child put that there
        log.warning("%s: %s", local, other)
    except OSError as gone:
        raise StorageError(f"can't read {local} ({gone})", code=UNREADABLE) from gone
    room.check_room(local.parent)
    held.look()


def _told(error: Exception, local: Path) -> RunError:
    code = error.code if isinstance(error, PosedropError) else "internal"
    words = error.message if isinstance(error, PosedropError) else repr(error)
    # Where a worker has its files is nobody's business, and says nothing to a person.
    words = words.replace(f"file:{local}", "the film").replace(str(local.parent), "...")
    return RunError(code=code, message=words[:1000], stage="probe")


def _is_given_up(before: History, settings: Settings) -> RefusedVideoError | None:
    """Return the refusal of a video whose attempts are used up, None: another may be made."""
    failed, died = before.spent("failed"), before.spent(None)
    back = before.spent("handed_back")
    unreadable = [a for a in back if a.error is not None and a.error.code == UNREADABLE]
    not_given = [a for a in back if a.error is not None and a.error.stage == "fetch"]
    if claim.are_too_many(not_given):
        said = not_given[-1].error
        return RefusedVideoError(
            f"the store has this file, and gave it in none of {len(not_given)} attempts; the last "
            f"time: {said.message[:1000] if said else '?'} (restore it if it is archived or "
            "damaged, or let the worker's key read it; then `posedrop reingest` it)",
            code=NOT_GIVEN,
        )
    if len(failed) >= settings.max_attempts:
        said = failed[-1].error
        what = f"failed {len(failed)} times; the last time: {said.message if said else '?'}"
    elif len(died) >= MAX_DIED:
        what = f"was cut short {len(died)} times, as its worker was killed each time"
    elif len(unreadable) >= MAX_DIED:
        what = f"failed {len(unreadable)} times, as the film was gone from the disk each time"
    else:
        return None
    return RefusedVideoError(
        f"decoding this file {what} (re-encode it, e.g. ffmpeg -i IN -c:v libx264 OUT.mp4)",
        code=DECODER_FAILED,
    )


# -- the probe -------------------------------------------------------------------------------------


def _probe(context: Context, held: Held, video: Path, thumbnail: Path) -> Probe:
    task = messages.ProbeVideo(
        video=str(video),
        thumbnail=str(thumbnail),
        max_pixels=context.settings.max_pixels,
        max_frames=context.settings.max_frames,
    )
    output = messages.ask(
        context.cpu.call,
        task,
        on_progress=held.progress,
        should_stop=lambda: context.closing or held.lost,
        wall_seconds=PROBE_SECONDS + video.stat().st_size / PROBE_BYTES_A_SECOND,
        folder=video.parent,
        log=video.with_name("probe.log"),
    )
    return output.probe


def _picture(path: Path) -> bytes | None:
    """Return the thumbnail that the child left, None if there is none, or something else."""
    try:
        with artefacts.opened(path, MAX_THUMBNAIL_BYTES) as file:
            picture = file.read(MAX_THUMBNAIL_BYTES)
    except (artefacts.NotTakenError, OSError):
        return None
    return picture if picture.startswith(_JPEG) else None


def _first_of_its_content(context: Context, sha256: str, video: VideoRef) -> Duplicate | None:
    """Return the first file with this content, None if it is this one (or the first is gone)."""
    results = context.settings.results_bucket
    name = layout.content(sha256)
    mine = Duplicate(file_id=video.file_id, key=video.key)
    if context.storage.create(results, name, mine.to_json()):
        return None
    first = context.storage.read_whole_record(results, name, Duplicate)
    if first is not None and first.file_id == video.file_id:
        return None
    if first is not None and _is_still_there(context, video.bucket, first.key, sha256):
        return first
    context.storage.write(results, name, mine.to_json())
    return None


def _is_still_there(context: Context, bucket: str, key: str, sha256: str) -> bool:
    results = context.settings.results_bucket
    prefix = context.storage.video_prefix(results, bucket, key)
    record = context.storage.read_whole_record(results, layout.video_record(prefix), VideoRecord)
    there = context.storage.head(bucket, key) is not None
    return there and record is not None and record.sha256 == sha256
