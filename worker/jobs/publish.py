"""Results: artefacts first, result.json last and once.

No artefact of a run is ever replaced by another attempt. A worker that wakes up long after its run
was taken over may still upload, and may even be the one that ends the run: what a result.json names
is what its own writer wrote, whoever else was at work.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from posedrop.analyses import UNFINISHED
from posedrop.buckets.layout import REQUEST, Run
from posedrop.buckets.names import ROLES, Naming
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact, FinalState, RunError
from posedrop.buckets.storage import Storage
from posedrop.hashing import sha256_of

log = logging.getLogger(__name__)

_TYPES = {
    ".h5": "application/x-hdf5",
    ".csv": "text/csv; charset=utf-8",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".log": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".nwb": "application/x-hdf5",
    ".slp": "application/x-hdf5",
    ".nc": "application/x-netcdf",
    ".zip": "application/zip",
    ".parquet": "application/vnd.apache.parquet",
}


def upload_artefacts(
    storage: Storage,
    bucket: str,
    run: Run,
    paths: Iterable[Path],
    attempt: int,
    *,
    apart: Collection[str] = (),
    naming: Naming | None = None,
) -> list[Artefact]:
    """Upload files into a run's folder; return what they are and where.

    Files have plain names, and are called as ``naming`` says, if there is one. Where another
    attempt has left a file of that name, and for the plain names in ``apart``, the file goes to
    ``attempts/<attempt>/``. Unfinished files are left out.
    """
    artefacts = []
    for path in sorted(paths):
        # No links: a child that somebody has taken over would have us publish our secrets.
        # (What is gone, with its folder, fails the publication: it is no file to be left out.)
        if not stat.S_ISREG(path.lstat().st_mode) or path.suffix == UNFINISHED:
            continue
        content_type = content_type_of(path.name)
        sha256 = sha256_of(path)
        name = naming.name(path.name, run.prefix) if naming is not None else path.name
        place = None
        if path.name in apart or not storage.upload_new(
            bucket, run.key(name), path, content_type, sha256
        ):
            place = f"attempts/{attempt}/{name}"
            storage.upload(bucket, run.key(place), path, content_type)
        described = describe(path, sha256, place)
        artefacts.append(described.model_copy(update={"name": name}))
    return artefacts


def content_type_of(name: str) -> str:
    """Return what an artefact is served as."""
    return _TYPES.get(Path(name).suffix, "application/octet-stream")


def describe(path: Path, sha256: str, place: str | None = None) -> Artefact:
    """Return the artefact that a file on the disk is, by its own name, which is a plain one."""
    return Artefact(
        name=path.name,
        size=path.stat().st_size,
        sha256=sha256,
        content_type=content_type_of(path.name),
        place=place,
        role=ROLES.get(path.name),
    )


def fetch_if_there(storage: Storage, bucket: str, key: str, path: Path) -> str | None:
    """Fetch an object into a file; return its SHA-256, None where there is no such object."""
    there = storage.head(bucket, key)
    return storage.download(bucket, key, path, there.etag)["sha256"] if there is not None else None


def finish(
    storage: Storage,
    bucket: str,
    run: Run,
    request: Request,
    state: FinalState,
    *,
    now: datetime,
    attempts: int,
    inference: Inference | None = None,
    artefacts: list[Artefact] | None = None,
    timings: dict[str, float] | None = None,
    error: RunError | None = None,
) -> bool:
    """Write result.json if there is none; return whether this call wrote it."""
    result = Result.of(
        request,
        state,
        artefacts=artefacts or [],
        frames_expected=inference.frames_expected if inference else None,
        frames_decoded=inference.frames_decoded if inference else None,
        rows=inference.rows if inference else None,
        missing=inference.missing if inference else [],
        cut=inference.cut if inference else False,
        concealed=inference.concealed if inference else 0,
        timestamps=inference.timestamps if inference else None,
        quality=inference.quality if inference else None,
        timings={**(inference.timings if inference else {}), **(timings or {})},
        versions=inference.versions if inference else {},
        analysis_version=(inference.analysis_version if inference else "")
        or request.analysis_version,
        details=inference.details if inference else {},
        attempts=attempts,
        error=error,
        finished_at=now,
    )
    written = storage.create(bucket, run.result, result.to_json())
    log.info(
        "%s",
        "run is over" if written else "run was over already",
        extra={"analysis_id": request.analysis_id, "state": state, "attempt": attempts},
    )
    return written


def clear_if_deleted(storage: Storage, bucket: str, run: Run, request: Request | None) -> None:
    """Delete what an attempt wrote of a run that was deleted meanwhile.

    The same film under the same key has the same run: it would be over at once, with files that are
    gone. Whoever deletes a run begins with its request. Where it was asked for anew by then, only
    what says that something is there goes: the files are those that would be made again.

    Args:
        storage: the object store.
        bucket: of results.
        run: its keys.
        request: the one that the attempt was made for; None: it was gone, and no attempt is made.

    Raises:
        StorageError: something may stay. When its message comes again, that is deleted.
    """
    now = storage.read_record(bucket, run.request, Request)
    if now is not None and (request is None or now.created_at == request.created_at):
        return
    there = {run.name(found.key) for found in storage.objects(bucket, run.folder)}
    if now is None and REQUEST not in there:
        storage.delete(bucket, [run.key(name) for name in sorted(there)])
    elif request is not None:  # asked for anew, maybe that very moment
        storage.delete(bucket, _untrue(storage, bucket, run, request, there))
    log.info("deleted meanwhile", extra={"run": run.prefix})


def _untrue(
    storage: Storage, bucket: str, run: Run, request: Request, there: Collection[str]
) -> list[str]:
    """Return the keys of records that tell of files which are gone, or end the request before."""
    found = []
    result = storage.read_record(bucket, run.result, Result)
    if result is not None and result.created_at == request.created_at:
        found.append(run.result)
    inference = storage.read_record(bucket, run.inference, Inference)
    if inference is not None and any(a.object_name not in there for a in inference.artefacts):
        found.append(run.inference)
    return found
