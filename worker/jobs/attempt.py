"""One attempt at half a run: its request, claim and folders, and what infer and render share.

A film comes from the store or the worker's cache; files that a child left are taken with care, and
published once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posedrop import analyses
from posedrop.buckets import layout
from posedrop.buckets.layout import RUN_LOG, Run
from posedrop.buckets.names import Naming
from posedrop.buckets.records.derived import DerivedRequest
from posedrop.buckets.records.inference import Inference
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.records.workers import Step
from posedrop.errors import AnalysisError, CancelledRunError, ObjectChangedError, PosedropError
from posedrop.transport.queue import QueueError
from worker import room
from worker.child.child import Child
from worker.child.pool import ChildPool
from worker.context import Context
from worker.jobs import artefacts, checkpoints, claim, publish
from worker.jobs.claim import Claim

log = logging.getLogger(__name__)

#: What a child says that it is at; the other stages are steps of this process.
STAGES = frozenset({"infer", "track", "filter", "write", "render"})
POSES = "poses.h5"
_END_BYTES, _TAIL_BYTES = 64 << 10, 2000
#: How Python's last line begins when it crashes: hundreds of names, before which all else is lost.
_NO_NEWS = b"Extension modules: "


@dataclass(frozen=True)
class Folders:
    """The folders of an attempt: those that children write to, and that of the files taken."""

    scratch: Path
    """The folder of the other three, removed with the attempt."""
    left_out: list[str] = field(default_factory=list)
    """Words about files that children left and that were not taken."""

    def __post_init__(self) -> None:
        """Make the folders."""
        self.film.mkdir()
        self.kept.mkdir()

    @property
    def film(self) -> Path:
        """For the child that opens the film: ``video``, ``out``, ``parts``, ``run.log``."""
        return self.scratch / "film"

    @property
    def tables(self) -> Path:
        """For the child that makes tables, where no film ever is: ``out``, ``run.log``."""
        return self.scratch / "tables"

    @property
    def kept(self) -> Path:
        """What is published, and no child writes to."""
        return self.scratch / "kept"

    @property
    def predictions(self) -> Path:
        """The file in ``kept`` of what a network found, for this run or for another."""
        return self.kept / layout.PREDICTIONS


@dataclass(frozen=True)
class RunAttempt:
    """One attempt at half a run: what was asked for, the claim on it, and where its files are."""

    context: Context
    run: Run
    request: Request
    claim: Claim
    folders: Folders
    actor: str
    """By which message it came."""

    @property
    def bucket(self) -> str:
        """The bucket that has the run."""
        return self.context.settings.results_bucket

    # -- whether to go on

    def check(self, *, look: bool = False) -> None:
        """End this attempt if the run is cancelled or taken over, or if this process ends.

        Args:
            look: whether to ask the store; else what the last heartbeat saw counts.

        Raises:
            CancelledRunError: there is nothing more to do here.
        """
        if look:
            self.claim.look()
        if self.claim.cancelled:
            raise CancelledRunError("somebody asked for this run to stop")
        if self.claim.lost or self.context.closing:
            raise CancelledRunError("this worker has to stop")

    def should_stop(self) -> bool:
        """Tell whether :meth:`check` would end this attempt."""
        return self.claim.cancelled or self.claim.lost or self.context.closing

    @property
    def next_actor(self) -> str:
        """Who goes on with this half of the run: with predictions, none that has a network."""
        is_found = self.claim.task == "infer" and self.folders.predictions.exists()
        return "finish" if is_found else self.actor

    # -- what comes from the store

    def fetch_video(self) -> Path:
        """Put the film at ``film/video``, from the cache or the store; return its path.

        Raises:
            ObjectChangedError: the object is gone, or has other content than when it was planned.
            RefusedVideoError: code ``no_room``: it is too large for the disk.
        """
        self.claim.stage("fetch")
        local = self.folders.film / "video"
        fetch_film(self.context, self.request, local)
        return local

    def fetch(self, key: str, path: Path, sha256: str) -> bool:
        """Fetch an object of the results bucket; return whether it has this content."""
        return _download(self.context, self.bucket, key, path, sha256)

    def model(self) -> Model | None:
        """Return the record of the run's model; None: it has none, or the record is gone."""
        ref = self.request.model
        if ref is None:
            return None
        bucket, key = self.context.settings.models_bucket, f"{ref.name}/{ref.digest}/model.json"
        return self.context.storage.read_whole_record(bucket, key, Model)

    # -- what children are asked for, and leave

    @property
    def tables_child(self) -> Child:
        """The child that makes tables: each queue has its own, so that neither waits for long."""
        context = self.context
        return context.tables_child if self.actor == "infer" else context.cpu_tables

    def measured(self, step: Step, frames: int, seconds: float) -> None:
        """Note how long a step of the run took."""
        request, record = self.request, self.context.record
        size = request.frame_size
        record.measured(request.analysis, request.model, size, step, frames, seconds)

    def unless_tried(self, by: str) -> str:
        """Return the setting for decoding or encoding; ``cpu`` once an attempt has failed.

        A card's driver that hangs, or takes its process along, can't say so.
        """
        return by if self.claim.is_first else "cpu"

    def call_options(self, folder: Path) -> dict[str, Any]:
        """Return the options that a call to any child has; ``folder`` is what it may write to."""
        return {
            "on_progress": self.claim.progress,
            "should_stop": self.should_stop,
            "folder": folder,
            "log": folder / RUN_LOG,
        }

    @property
    def most_bytes(self) -> int:
        """How many bytes a file of the run may have."""
        probe = self.request.probe
        return artefacts.largest(probe.frames, probe.width, probe.height)

    def take(self, out: Path, names: Collection[str]) -> None:
        """Take the files that a child left in ``out``, by these names alone."""
        folders = self.folders
        given = (layout.PREDICTIONS,) if out.parent == folders.tables else ()
        refused = artefacts.take(out, folders.kept, names, self.most_bytes, besides=given)
        for words in refused:
            log.warning("left out: %s", words, extra={"analysis_id": self.request.analysis_id})
        folders.left_out.extend(refused)

    def take_tables(self) -> None:
        """Take the files that the child without the film left, if there was one."""
        if self.folders.tables.exists():
            names = artefacts.names_of(analyses.get(self.request.analysis), opens_film=False)
            self.take(self.folders.tables / "out", names)

    # -- what is published

    def publish(
        self, paths: Iterable[Path], apart: Collection[str] = (), naming: Naming | None = None
    ) -> None:
        """Publish files that this attempt has not published yet.

        Args:
            paths: files on this disk, under plain names.
            apart: names that go below the attempt's own number.
            naming: what the files are called from now on; None: as they are.
        """
        known = {artefact.plain_name for artefact in self.claim.artefacts}
        new = [path for path in paths if path.name not in known]
        storage = self.context.storage
        self.claim.published(
            publish.upload_artefacts(
                storage, self.bucket, self.run, new, self.claim.number, apart=apart, naming=naming
            )
        )

    def publish_kept(
        self,
        child: str,
        needed: str | None,
        apart: Collection[str] = (),
        naming: Naming | None = None,
    ) -> None:
        """Publish all files that were taken, and the log, unless this attempt has to end.

        Args:
            child: what has left them, for words.
            needed: the name of a file without which they are no answer.
            apart: as :meth:`publish` has it.
            naming: likewise.

        Raises:
            AnalysisError: code ``bad_answer``: the file that is needed is missing.
        """
        self.keep_log()
        self.check(look=True)
        if needed is not None and not (self.folders.kept / needed).is_file():
            why = "; ".join(self.folders.left_out) or "it left no such file"
            raise bad_answer(child, f"{needed}: {why}")
        self.publish(self.folders.kept.iterdir(), apart, naming)

    def keep_log(self) -> None:
        """Put the end of a job's log to its artefacts; of a child gone mad there may be none."""
        folders = self.folders
        logs = [_end_of_log(folders.film), _end_of_log(folders.tables)]
        words = "".join(f"left out: {each}\n" for each in folders.left_out).encode()
        if whole := b"".join([*logs, words]):
            (folders.kept / RUN_LOG).write_bytes(whole)

    def error(self, error: PosedropError) -> RunError:
        """Return an error as a record tells it, with the stage and the end of the log."""
        at = stage_of(self.claim.at, self.claim.task)
        return claim.run_error(error, at, self.log_tail())

    def log_tail(self) -> str | None:
        """Return the last lines that a child has logged by now, None if there are none."""
        folders = self.folders
        end = _end_of_log(folders.tables, _END_BYTES) or _end_of_log(folders.film, _END_BYTES)
        lines = [line for line in end.splitlines(True) if not line.startswith(_NO_NEWS)]
        return b"".join(lines)[-_TAIL_BYTES:].decode(errors="replace") or None

    def succeed(self, inference: Inference, timings: dict[str, float]) -> None:
        """End the run with its poses: ``partial`` where frames are missing.

        Args:
            inference: what was found; its artefacts are those of the result.
            timings: seconds, beside those of ``inference``.
        """
        whole = (
            inference.rows == inference.frames_decoded
            and inference.frames_decoded == inference.frames_expected
            and not inference.missing
            and not inference.cut
        )
        now = self.context.clock()
        # Before the result: what is asked for of a run that is over, the reconciler sends.
        for what in self.request.exports:
            record = DerivedRequest(what=what, asked_at=now)
            key = self.run.derived_request(what)
            self.context.storage.create(self.bucket, key, record.to_json())
        publish.finish(
            self.context.storage,
            self.bucket,
            self.run,
            self.request,
            "succeeded" if whole else "partial",
            now=now,
            attempts=self.claim.number,
            inference=inference,
            artefacts=inference.artefacts,
            timings={**timings, "total": (now - self.request.created_at).total_seconds()},
        )
        for what in self.request.exports:
            try:
                self.context.send("derive", run=self.run.prefix, what=what)
            except QueueError as error:
                log.warning("%s", error)

    def clear_checkpoints(self) -> None:
        """Delete the run's checkpoints, which nobody needs any more."""
        checkpoints.clear(self.context.storage, self.bucket, self.run)


def fetch_film(context: Context, request: Request, local: Path) -> None:
    """Put a run's film at a path, from the cache or the store.

    Raises:
        ObjectChangedError: the object is gone, or has other content than when it was planned.
        RefusedVideoError: code ``no_room``: it is too large for the disk.
    """
    video, sha256 = request.video, request.sha256
    there = context.storage.head(video.bucket, video.key)
    # The same bytes have another ETag where a mount copies a film onto itself, or a backup is put
    # back in other parts. Then they alone tell: what the cache has may be of a film before this.
    is_certain = there is not None and there.etag == video.etag
    if there is None or not (is_certain or there.size == video.size):
        raise ObjectChangedError(f"{video.key} was replaced or removed since it was planned")
    if is_certain and context.cache.link_video(sha256, local):
        return
    room.check_fits(video.size, context.settings.scratch_dir)
    if not room.fetch_with_room(
        context.cache,
        lambda: _download(context, video.bucket, video.key, local, sha256, there.etag),
    ):
        raise ObjectChangedError(f"{video.key} has other content than when it was planned")
    context.cache.keep_video(sha256, local)


def _download(
    context: Context, bucket: str, key: str, path: Path, sha256: str, etag: str | None = None
) -> bool:
    """Fetch an object; False if its content is wrong twice: once may be the network's fault."""
    for _ in range(2):
        if context.storage.download(bucket, key, path, etag)["sha256"] == sha256:
            return True
        log.warning("%s came with another sha256", key)
    return False


def stage_of(at: str, task: str) -> str:
    """Return the stage that an error tells of: a child's own, else the half of the run."""
    return at if at in STAGES else task


def bad_answer(child: str, why: str) -> AnalysisError:
    """Return the error of a child whose answer, or files, can't be what was asked for."""
    return AnalysisError(f"{child} gave no answer that can be one: {why}"[:1000], code="bad_answer")


def walls(child: Child | ChildPool) -> list[str]:
    """Return which walls stood around a child, by the names of :data:`worker.child.walls.NAMES`."""
    return child.walls.stand if child.walls is not None else []


def _end_of_log(folder: Path, most: int = artefacts.MAX_LOG_BYTES) -> bytes:
    return artefacts.end_of(folder / RUN_LOG, most)
