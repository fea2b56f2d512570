"""Copies: each name of a content has its own results, copied by the store, never computed again.

A run has one folder beside each video of its content, under one analysis_id. Each folder begins
with a request.json that names its own video, so that any of them can be made by a worker; one is
(the first of ``Index.places``), and the others are filled from it, result.json last. Which folders
are to be filled stands in the buckets alone: a request without a result, of a run that has one
elsewhere. When a film is deleted, its runs pass to the names that are left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from handlers import gpu_queue
from handlers.context import Context
from posedrop.buckets import layout
from posedrop.buckets.names import Naming
from posedrop.buckets.records.attempts import Attempt, Progress
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact
from posedrop.buckets.records.videos import Duplicate, VideoRecord, VideoRef
from posedrop.buckets.storage import ObjectInfo
from posedrop.errors import RecordError, StorageError
from posedrop.index.index import AnalysisRow, FileRow, IndexBusyError
from posedrop.index.rows import failed_by_its_folder
from posedrop.transport.queue import QueueError

log = logging.getLogger(__name__)

_PAGE = 100
#: So many copies fail one after the other, and the store is taken for away.
_STORE_IS_AWAY = 3
#: A round of the copier without a call: what failed is tried again then.
_PAUSE_SECONDS = 60.0
#: What a run without a request would be taken for another's by, beside its attempts.
_TELLING = frozenset({layout.RESULT, layout.CANCEL, layout.INFERENCE})
_JSON = "application/json"
_UNKNOWN_TYPE = "application/octet-stream"


class Copier:
    """The thread that fills folders; no copy, however long, holds up an event or the reconciler."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the copy at hand."""
        self._stop.set()
        self._context.to_copy.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._context.to_copy.wait(_PAUSE_SECONDS)
            self._context.to_copy.clear()
            try:
                go_on(self._context, self._stop)
            except Exception:
                log.exception("the copier goes on after an error")


def go_on(context: Context, stop: threading.Event | None = None) -> int:
    """Fill folders of runs that are over in another folder; return how many were filled.

    One that can't be filled holds up no other. Each is tried again when this is called again.
    """
    filled = failed = 0
    after = ""
    while page := context.index.places_to_fill(after, _PAGE):
        for place in page:
            if stop is not None and stop.is_set():
                return filled
            try:
                filled += _fill(context, place)
                failed = 0
            except IndexBusyError:
                raise
            except StorageError as error:
                log.warning("%s is filled later: %s", place.run, error)
                failed += not isinstance(error, RecordError)
                if failed == _STORE_IS_AWAY:
                    return filled
            except Exception:
                log.exception("%s is filled later", place.run)
        after = page[-1].run
    return filled


# -- a folder of its own ---------------------------------------------------------------------------


def join(context: Context, video: VideoRef, row: AnalysisRow, *, shared: bool = False) -> None:
    """Give a video a folder for a run that its content has under another name.

    Args:
        context: the handlers' tools.
        video: the name that is to have it.
        row: the run, where it is read.
        shared: nobody asked for it under this name.
    """
    if context.index.place(row.analysis_id, _folder(context, video, row.run)) is not None:
        return
    bucket = context.settings.results_bucket
    request = context.storage.read_whole_record(bucket, layout.Run(row.run).request, Request)
    if request is not None:
        _give(context, video, request, row.run, shared=shared)


def share(context: Context, video: VideoRecord, also: str | None) -> None:
    """Give a video all that was made, or is being made, of its content under other names.

    Args:
        also: the id of a run that is given to it though it failed, as it was this video's own.
    """
    if video.sha256 is None:
        return
    for row in context.index.analyses_of_content(video.sha256):
        if row.state not in {"failed", "cancelled"} or row.analysis_id == also:
            join(context, video.video, row, shared=row.analysis_id != also)


def share_new(context: Context, request: Request, run: str) -> None:
    """Give a run that is about to be created to the other names of its content."""
    for file in _others(context, request.sha256, request.video.file_id):
        _give(context, _ref(file), request, run, shared=True)


def has_others(context: Context, sha256: str, file_id: str) -> bool:
    """Tell whether a content has another name than this file's."""
    return bool(_others(context, sha256, file_id))


def _others(context: Context, sha256: str, file_id: str) -> list[FileRow]:
    files = context.index.files_with_content(sha256)
    return [file for file in files if file.file_id != file_id and file.state == "ready"]


def _ref(file: FileRow) -> VideoRef:
    return VideoRef(
        file_id=file.file_id,
        bucket=file.bucket,
        key=file.key,
        etag=file.etag or "",
        size=file.size or 0,
    )


def _folder(context: Context, video: VideoRef, run: str) -> str:
    """Return the folder that a video has, or will have, for the run of another of its names."""
    prefix = context.video_prefix(video.bucket, video.key)
    return f"{prefix}/{run.rsplit('/', 1)[-1]}"


def _give(context: Context, video: VideoRef, request: Request, run: str, *, shared: bool) -> None:
    bucket, mine = context.settings.results_bucket, _folder(context, video, run)
    if context.index.place(request.analysis_id, mine) is not None:
        return
    own = request.model_copy(
        update={
            "video": video,
            "shared": shared,
            # Of the folders of a run, the one that was asked for first is made by a worker.
            "created_at": max(context.clock(), request.created_at + timedelta(microseconds=1)),
        }
    )
    key = layout.Run(mine).request
    is_there = clear_unless_requested(context, mine)
    if is_there or not context.storage.create(bucket, key, own.to_json()):
        own = context.storage.read_whole_record(bucket, key, Request) or own
    context.index.analysis_requested(own, mine)
    context.to_copy.set()


def clear_unless_requested(context: Context, run: str) -> bool:
    """Clear away what lies in a run's folder without a request; return whether there is one.

    A deletion that was cut short may have left a result, and whoever stops a run that is gone a
    wish to cancel it: a new run would take both for its own. Only before a run is created, as what
    lies there afterwards is its own. Files that can't be deleted may stay: a new run steps
    aside for them.

    Raises:
        StorageError: what a run would be taken for can't be cleared away.
    """
    names = _below(context, run)
    if layout.REQUEST in names:
        return True
    telling = [
        name for name in names if name in _TELLING or layout.attempt_number(name) is not None
    ]
    delete_run(context, telling, run)
    with suppress(StorageError):
        delete_run(context, [name for name in names if name not in telling], run)
    return False


# -- filled ----------------------------------------------------------------------------------------


def _fill(context: Context, target: AnalysisRow) -> bool:
    for source in context.index.places(target.analysis_id):
        if _is_whole(source) and source.run != target.run:
            with context.copying:
                if _copy(context, source.run, target):
                    log.info("results copied", extra={"analysis_id": target.analysis_id})
                    return True
    return False


def _is_whole(place: AnalysisRow) -> bool:
    """Tell whether a run is over in a folder, and not just because of that folder."""
    return place.finished_at is not None and not failed_by_its_folder(place)


def _copy(context: Context, source: str, target: AnalysisRow, *, with_gaps: bool = False) -> bool:
    """Copy the results of a run from one of its folders to another; result.json last, and once.

    Killed anywhere, it is done again. While the two are compared and copied no film is deleted by
    the API; what an S3 tool deletes meanwhile is noticed, or left for the sweep.

    Args:
        with_gaps: do without the files that are not there, at once; else somebody may be deleting
            the folder, and only what still lacks after a lease is left out.

    Returns:
        False where it has to be tried later, or there is nothing to do.
    """
    storage, bucket = context.storage, context.settings.results_bucket
    to = layout.Run(target.run)
    listing = storage.listing(bucket, to.folder)
    there = {to.name(found.key): found for found in listing.objects}
    if layout.REQUEST not in there:
        moved(context, context.index.place_removed(target.analysis_id, target.run))
        return False
    if layout.RESULT in there:
        known = storage.read_record(bucket, to.result, Result)
        if known is not None:
            context.index.analysis_finished(known, target.run)
        return known is not None
    below = _below(context, source)
    result = storage.read_record(bucket, layout.Run(source).result, Result)
    own = storage.read_record(bucket, to.request, Request)
    if layout.REQUEST not in below or result is None or own is None:
        return False
    apart = None
    if any(layout.attempt_number(name) for name in there):
        silent = listing.now - max(found.last_modified for found in there.values())
        if silent < timedelta(seconds=context.settings.lease_seconds):
            return False
        apart = _claimed(context, target.run, there)
        if apart is None:
            return False
    inference = None
    if layout.INFERENCE in below:
        inference = storage.read_record(bucket, layout.Run(source).inference, Inference)
    files = {a.object_name: a for a in (inference.artefacts if inference is not None else [])}
    files |= {a.object_name: a for a in result.artefacts}
    naming = Naming.of(own.video.key, result.details, result.args.get("pcutoff"))
    places = {n: _own_place(a, naming, target.run) for n, a in files.items()}
    if apart is not None:
        # As a worker does: nothing that another attempt has published is ever replaced.
        taken = {n: place for n, place in places.items() if place in there}
        places |= {n: f"{apart}/{place.rpartition('/')[2]}" for n, place in taken.items()}
    copied_to = _copy_files(context, files, below, to, places)
    lacking = frozenset(files.keys() - copied_to.keys())
    if lacking and not with_gaps and not _lacks_for_good(context, target.run, lacking):
        return False
    copied = [to.key(place) for place in copied_to.values()]
    if inference is not None:
        _copy_inference(context, inference, below, to, copied_to)
        copied.append(to.inference)
    own_fields = {name: getattr(own, name) for name in ("video", "retry_of", "created_at")}
    update = {**own_fields, "artefacts": _at(result.artefacts, copied_to)}
    return _publish(context, target, result.model_copy(update=update), copied)


def _copy_files(
    context: Context,
    files: dict[str, Artefact],
    below: dict[str, ObjectInfo],
    to: layout.Run,
    places: dict[str, str],
) -> dict[str, str]:
    """Copy a run's files to their places in another folder; return where each is that was there."""
    storage, bucket = context.storage, context.settings.results_bucket
    copied_to: dict[str, str] = {}
    for name, artefact in files.items():
        found, kind = below.get(name), artefact.content_type or _UNKNOWN_TYPE
        if found is not None and storage.copy(bucket, found, to.key(places[name]), kind):
            copied_to[name] = places[name]
    return copied_to


def _publish(context: Context, target: AnalysisRow, result: Result, copied: list[str]) -> bool:
    """Write a copy's result.json, last and once; return whether this call wrote it."""
    storage, bucket = context.storage, context.settings.results_bucket
    key = layout.Run(target.run).result
    is_ours = _is_requested(context, target.run) and storage.create(bucket, key, result.to_json())
    if not _is_requested(context, target.run):
        # Cleared away by an S3 tool meanwhile: nothing of it comes back.
        storage.delete(bucket, [*copied, key])
        moved(context, context.index.place_removed(target.analysis_id, target.run))
        return False
    if is_ours:
        context.index.analysis_finished(result, target.run)
        context.lacking.pop(target.run, None)
    return is_ours


def _own_place(artefact: Artefact, naming: Naming | None, run: str) -> str:
    """Return where a file lies in another folder; one with its plain name keeps that."""
    plain, place = artefact.plain_name, artefact.object_name
    if naming is None or artefact.name == plain:
        return place
    return place.removesuffix(artefact.name) + naming.name(plain, run)


def _copy_inference(
    context: Context,
    inference: Inference,
    below: dict[str, ObjectInfo],
    to: layout.Run,
    copied_to: dict[str, str],
) -> None:
    storage, bucket = context.storage, context.settings.results_bucket
    if all(copied_to.get(a.object_name) == a.object_name for a in inference.artefacts):
        storage.copy(bucket, below[layout.INFERENCE], to.inference, _JSON)
        return
    record = inference.model_copy(update={"artefacts": _at(inference.artefacts, copied_to)})
    storage.create(bucket, to.inference, record.to_json())


def _below(context: Context, run: str) -> dict[str, ObjectInfo]:
    """Return the objects in a run's folder by their names."""
    keys = layout.Run(run)
    found = context.storage.objects(context.settings.results_bucket, keys.folder)
    return {keys.name(each.key): each for each in found}


def _is_requested(context: Context, run: str) -> bool:
    key = layout.Run(run).request
    return context.storage.head(context.settings.results_bucket, key) is not None


def _claimed(context: Context, run: str, there: Iterable[str]) -> str | None:
    """Take the next attempt of a folder where a worker has been, so that it stops if it wakes up.

    Returns:
        The folder of that attempt; None if a worker was there first.
    """
    number = 1 + max(layout.attempt_number(name) or 0 for name in there)
    attempt = Attempt(
        number=number,
        task="render",
        worker="handlers",
        started_at=context.clock(),
        progress=Progress(stage="copy"),
        outcome="handed_back",
    )
    key = layout.Run(run).attempt(number)
    bucket = context.settings.results_bucket
    created = context.storage.create(bucket, key, attempt.to_json())
    return f"attempts/{number}" if created else None


def _lacks_for_good(context: Context, run: str, lacking: frozenset[str]) -> bool:
    before, since = context.lacking.setdefault(run, (lacking, context.clock()))
    if before != lacking:
        context.lacking[run] = lacking, context.clock()
        return False
    if context.clock() - since < timedelta(seconds=context.settings.lease_seconds):
        return False
    log.warning("%s: these files are nowhere, and are left out: %s", run, sorted(lacking))
    return True


def _at(artefacts: Iterable[Artefact], copied_to: dict[str, str]) -> list[Artefact]:
    """Return the artefacts that were copied, each with where it is now."""
    found = []
    for artefact in artefacts:
        if (place := copied_to.get(artefact.object_name)) is not None:
            name = place.rpartition("/")[2]
            update = {"name": name, "place": place if place != name else None}
            found.append(artefact.model_copy(update=update))
    return found


# -- handed over -----------------------------------------------------------------------------------


def places(context: Context, sha256: str | None, run: str) -> list[AnalysisRow]:
    """Return all folders of a run, where it is read first, those too that no event has told of.

    Args:
        sha256: of the content, None: it is not known.
        run: one of the folders.
    """
    storage, bucket = context.storage, context.settings.results_bucket
    analysis_id = run.rsplit("-", 1)[-1]
    for file in context.index.files_with_content(sha256) if sha256 is not None else []:
        folder = _folder(context, _ref(file), run)
        if context.index.place(analysis_id, folder) is not None:
            continue
        request = storage.read_whole_record(bucket, layout.Run(folder).request, Request)
        if request is not None:
            context.index.analysis_requested(request, folder)
            result = storage.read_whole_record(bucket, layout.Run(folder).result, Result)
            if result is not None:
                context.index.analysis_finished(result, folder)
    return context.index.places(analysis_id)


def hand_over(context: Context, file: FileRow, runs: Iterable[str]) -> None:
    """Copy the runs of a film to another name of its content, before the film is deleted.

    What is over is copied; what is being made goes on elsewhere, from what there is of it.

    Args:
        context: the handlers' tools; ``copying`` is held.
        file: the film.
        runs: the folders of its runs.

    Raises:
        StorageError: it can't be copied now: delete nothing.
    """
    for run in runs:
        others = [p for p in places(context, file.sha256, run) if p.file_id != file.file_id]
        # The first that has it is enough: a content may have thousands of names.
        if any(
            _is_whole(place) and _is_requested(context, place.run) and _is_over(context, place)
            for place in others
        ):
            continue
        left = [place for place in others if _is_requested(context, place.run)]
        if left:
            if layout.RESULT in (names := _below(context, run)):
                for place in left:  # to one, if it can be
                    if _copied_now(context, run, place):
                        break
            else:
                _hand_over_unfinished(context, run, names, left)


def _copied_now(context: Context, run: str, target: AnalysisRow) -> bool:
    try:
        return _copy(context, run, target, with_gaps=True)
    except StorageError as error:
        if error.code != "damaged_record":
            raise
        log.warning("%s can't be copied, and is made anew elsewhere: %s", run, error)
        return False


def _is_over(context: Context, place: AnalysisRow) -> bool:
    key = layout.Run(place.run).result
    return context.storage.head(context.settings.results_bucket, key) is not None


def _hand_over_unfinished(
    context: Context, run: str, names: dict[str, ObjectInfo], left: Iterable[AnalysisRow]
) -> None:
    """Copy what a run that is not over has so far, to where it is made from now on."""
    storage, bucket = context.storage, context.settings.results_bucket
    target = next((place for place in left if _has_film(context, place)), None)
    if target is None or any(layout.attempt_number(name) for name in _below(context, target.run)):
        return
    inference = None
    if layout.INFERENCE in names:
        inference = storage.read_whole_record(bucket, layout.Run(run).inference, Inference)
    found = inference.artefacts if inference is not None else []
    naming = Naming.of(target.key, inference.details) if inference is not None else None
    files = {a.object_name: a for a in found}
    places = {n: _own_place(a, naming, target.run) for n, a in files.items()}
    to = layout.Run(target.run)
    wanted = [name for name in names if name in files or name.startswith("parts/")]
    # What says that something is done comes after what it says so of.
    if layout.PREDICTIONS in names and layout.PREDICTIONS not in files:
        wanted.append(layout.PREDICTIONS)
    for name in sorted(wanted, key=lambda name: name == layout.PREDICTIONS):
        kind = files[name].content_type if name in files else _UNKNOWN_TYPE
        storage.copy(bucket, names[name], to.key(places.get(name, name)), kind)
    if inference is not None:
        # With all its files: done again, it may be that the source has lost some meanwhile.
        record = inference.model_copy(update={"artefacts": _at(found, places)})
        storage.create(bucket, to.inference, record.to_json())


def _has_film(context: Context, place: AnalysisRow) -> bool:
    return context.storage.head(place.bucket, place.key) is not None


def first_goes(context: Context, sha256: str, file_id: str) -> None:
    """Have another file named as the first with a content, or none, if it is this one."""
    storage, bucket = context.storage, context.settings.results_bucket
    key = layout.content(sha256)
    first = storage.read_whole_record(bucket, key, Duplicate)
    if first is None or first.file_id != file_id:
        return
    others = _others(context, sha256, file_id)
    if others:
        next_ = Duplicate(file_id=others[0].file_id, key=others[0].key)
        storage.write(bucket, key, next_.to_json())
    else:
        storage.delete(bucket, [key])


def forget(context: Context, analysis_id: str, runs: Iterable[str]) -> None:
    """Delete a run in these folders, and what leads to it."""
    for run in runs:
        delete_run(context, list(_below(context, run)), run)
        context.index.place_removed(analysis_id, run)


def delete_run(context: Context, names: Iterable[str], run: str) -> None:
    """Delete the objects of a run by name, so that no run is there of which only files are gone.

    Its request goes first: without that there is none. Its result goes last: until then it reads
    as over, and who deletes it again is not taken for one who stops it.
    """
    order = {layout.REQUEST: 0, layout.RESULT: 2}
    ordered = sorted(names, key=lambda name: order.get(name, 1))
    context.storage.delete(
        context.settings.results_bucket, [layout.Run(run).key(name) for name in ordered]
    )


def film_gone(context: Context, file_id: str) -> None:
    """Have the runs that are being made of a film that was removed made of another of its names.

    What is over stays where it is.
    """
    for place in context.index.places_of_file(file_id):
        if place.finished_at is not None:
            continue
        first, *others = context.index.places(place.analysis_id) or [place]
        if first.run != place.run or not any(_has_film(context, other) for other in others):
            continue
        with context.copying:
            names = _below(context, place.run)
            if layout.RESULT in names:
                continue
            _hand_over_unfinished(context, place.run, names, others)
            # The request first: a worker that is at it sees that its run is gone, and stops.
            keys = sorted(names, key=lambda name: name != layout.REQUEST)
            bucket = context.settings.results_bucket
            context.storage.delete(bucket, [layout.Run(place.run).key(name) for name in keys])
            moved(context, context.index.place_removed(place.analysis_id, place.run))


def moved(context: Context, row: AnalysisRow | None, before: str | None = None) -> None:
    """Have a run made where it is read from now on, if it is not over there.

    Args:
        row: the folder where it is read; None: there is none.
        before: the folder where it was being made, which may still have what was found.
    """
    if row is None or row.finished_at is not None:
        return
    if before is not None and (names := _below(context, before)):
        with context.copying:
            _hand_over_unfinished(context, before, names, [row])
    names = _below(context, row.run)
    try:
        if layout.INFERENCE in names:
            context.enqueue_render(row.analysis_id, row.run)
        else:
            gpu_queue.go_on(context, row.analysis_id, row.run, names)
            gpu_queue.send_next(context)
    except QueueError as error:
        log.warning("%s", error)  # the reconciler sends it
