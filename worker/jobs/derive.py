"""Derive: other formats and comparisons of a run's poses, made when asked for, kept beside them.

``derived/<what>/asked.json`` asks; ``made.json`` beside it is written once, and last: the file that
was made, or why it can't be. Each attempt is a record, as those of an ingest are. Of a run's tables
the CSV alone is opened, in which nothing is ever executed; the film for its copy alone (``view``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from posedrop.buckets import layout, names
from posedrop.buckets.layout import RUN_LOG, Run
from posedrop.buckets.records.attempts import Attempt
from posedrop.buckets.records.derived import DERIVED_VERSION, Derived, DerivedRequest, derived_name
from posedrop.buckets.records.requests import Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact, RunError
from posedrop.errors import AnalysisError, CancelledRunError, RecordError
from posedrop.hashing import sha256_of
from worker.child import messages
from worker.child.patience import QUIET_SECONDS, Patience
from worker.context import Context
from worker.jobs import artefacts, claim, publish
from worker.jobs.attempt import fetch_film
from worker.jobs.claim import Exhausted, Held
from worker.jobs.render import DEFAULT_PCUTOFF, SLOWEST_FRAME
from worker.jobs.work import FINAL_ERRORS, check_machine, in_words, is_left, work_on

log = logging.getLogger(__name__)

#: Bytes of a table that a child reads, and writes as something else, in a second at least.
BYTES_A_SECOND = 250_000
#: What is made of the film, not of its poses.
VIEW = "view"
POSES, TIMESTAMPS = "poses.csv", "timestamps.csv"


@dataclass(frozen=True)
class _Job:
    """Something that is to be made of a run's poses."""

    context: Context
    run: Run
    what: str
    name: str
    """Of the file."""
    asked: DerivedRequest
    request: Request
    result: Result

    @property
    def bucket(self) -> str:
        return self.context.settings.results_bucket

    def send(self) -> None:
        self.context.send("derive", run=self.run.prefix, what=self.what)


def derive(context: Context, run: str, what: str) -> None:
    """Make something of a run's poses, unless it is there, being made, or deleted.

    Args:
        context: this worker's.
        run: its folder.
        what: as :func:`posedrop.buckets.records.derived.derived_name` takes it.

    Raises:
        Exception: the store or the broker is away; the message is to come again.
    """
    if is_left(context, "derive", run=run, what=what):
        return
    if (name := derived_name(what)) is None:
        log.warning("left to a newer worker: %s of %s", what, run)
        return
    storage, bucket, place = context.storage, context.settings.results_bucket, Run(run)
    try:
        asked = storage.read_record(bucket, place.derived_request(what), DerivedRequest)
        request = storage.read_record(bucket, place.request, Request)
        result = storage.read_record(bucket, place.result, Result)
    except RecordError as error:
        storage.report(error)
        return
    is_made = storage.head(bucket, place.derived_record(what)) is not None
    if request is None or result is None or is_made or asked is None:
        log.info("nothing to be made", extra={"run": run, "what": what})
        return
    job = _Job(context, place, what, name, asked, request, result)
    folder = place.derived_attempts(what)
    with context.scratch_dir() as scratch:  # a full disk makes no attempt fail
        attempt = claim.begin_unless_spent(
            storage,
            bucket,
            folder,
            claim.history(storage, bucket, folder, "derive").after(asked.after),
            "derive",
            context.name,
            context.settings.lease_seconds,
            context.settings.max_attempts,
            context.clock(),
        )
        if isinstance(attempt, Exhausted):
            _tell(job, error=attempt.error("it", "derive"))
        elif isinstance(attempt, Attempt):
            _attempt(job, Held(storage, bucket, folder, attempt), scratch)


def _attempt(job: _Job, held: Held, scratch: Path) -> None:
    """Make it, and record how that ended."""
    context = job.context

    def work() -> None:
        versions = _make(job, held, scratch)
        artefact = _publish(job, held, scratch / job.name)
        held.end("done")
        _tell(job, artefact=artefact, versions=versions)

    error = work_on(
        context,
        held,
        job.request.video.key,
        work,
        run=job.run.prefix,
        check_fault=lambda error: check_machine(error, scratch),
        tell=lambda error: claim.run_error(in_words(error), "derive"),
    )
    if error is None:
        return
    if isinstance(error, FINAL_ERRORS):
        known = claim.run_error(error, "derive")
        held.end("failed", known)
        _tell(job, error=known)
    elif context.closing or isinstance(error, CancelledRunError):
        if not held.lost:  # taken over, or deleted
            held.end("handed_back")
            job.send()
    else:
        extra = {"run": job.run.prefix, "what": job.what}
        log.warning("attempt failed: %s", error, extra=extra)
        held.end("failed", claim.run_error(in_words(error), "derive"))
        job.send()


def _make(job: _Job, held: Held, scratch: Path) -> dict[str, str]:
    """Have a child write the file, and take it; return the versions of the libraries."""
    context = job.context
    folder = scratch / "derive"
    out = folder / "out" / job.name
    out.parent.mkdir(parents=True)
    held.stage("fetch")
    if job.what == VIEW:
        _copy_film(job, held, folder)
        _take(job, folder, scratch)
        return {}
    other = layout.compared_with(job.what)
    task = _export(job, folder, out) if other is None else _comparison(job, other, folder, out)
    size = sum(path.stat().st_size for path in folder.rglob("*.csv"))
    held.stage("write")
    output = messages.ask(
        context.cpu_tables.call,
        task,
        wall_seconds=QUIET_SECONDS + size / BYTES_A_SECOND,
        on_progress=held.progress,
        should_stop=lambda: held.lost or context.closing,
        folder=folder,
        log=folder / RUN_LOG,
    )
    _take(job, folder, scratch)
    return output.versions


def _take(job: _Job, folder: Path, scratch: Path) -> None:
    """Take the file that a child has left.

    Raises:
        AnalysisError: code ``bad_answer``: it left none, or something else in its place.
    """
    probe = job.request.probe
    most = artefacts.largest(probe.frames, probe.width, probe.height)
    left = artefacts.take(folder / "out", scratch, (job.name,), most)
    if not (scratch / job.name).is_file():
        why = "; ".join(left) or "it left no such file"
        raise AnalysisError(f"{job.name} could not be made: {why}"[:1000], code="bad_answer")


def _export(job: _Job, folder: Path, out: Path) -> messages.ExportPoses:
    """Fetch what an export is made of; return the child's task."""
    request, result, probe = job.request, job.result, job.request.probe
    poses = _fetch_poses(job.context, job.run, result, folder)
    times = _fetch(job.context, job.run, result, folder, TIMESTAMPS)
    software = [f"{name} {version}" for name, version in sorted(result.versions.items())]
    return messages.ExportPoses.model_validate(
        {
            "format": job.what,
            "poses": str(poses),
            "timestamps": str(times) if times is not None else None,
            "out": str(out),
            "analysis_id": request.analysis_id,
            "created_at": request.created_at.isoformat(),
            "video": request.video.key,
            "description": f"Poses by {request.analysis} {result.analysis_version} in "
            f"{request.video.key}. The time of the session is when they were asked for.",
            "software": ", ".join(software) or request.analysis,
            "software_version": result.versions.get("deeplabcut") or "unknown",
            "fps": probe.fps,
            "frames": probe.frames,
            "width": probe.width,
            "height": probe.height,
            "skeleton": skeleton_of(result),
            "pcutoff": pcutoff_of(result),
            "missing": [(each.first, each.last) for each in result.missing],
        }
    )


def _comparison(job: _Job, other: str, folder: Path, out: Path) -> messages.ComparePoses:
    """Fetch what a comparison with another run is made of; return the child's task.

    Raises:
        AnalysisError: the other run has no poses, or not of the same film.
    """
    context, result = job.context, job.result
    run = Run(job.asked.other or "")
    there = None
    if run.prefix.endswith(f"-{other}"):
        there = context.storage.read_whole_record(job.bucket, run.result, Result)
    if there is None or there.analysis_id != other:
        words = f"the run {other} is not there any more: ask for the comparison again"
        raise AnalysisError(words, code="gone")
    if not is_same_film(result, there):
        words = f"{result.video.key} and {there.video.key} are different films"
        raise AnalysisError(words, code="different_films")
    (folder / "b").mkdir()
    poses = [
        _fetch_poses(context, job.run, result, folder),
        _fetch_poses(context, run, there, folder / "b"),
    ]
    times = _fetch(context, job.run, result, folder, TIMESTAMPS)
    a, b = (
        messages.PosesToCompare(
            analysis_id=each.analysis_id,
            poses=str(path),
            model=each.model.name if each.model is not None else None,
            pcutoff=pcutoff_of(each),
        )
        for each, path in zip((result, there), poses, strict=True)
    )
    return messages.ComparePoses(
        a=a,
        b=b,
        by_name=all(each.args.get("identity_only") is True for each in (result, there)),
        timestamps=str(times) if times is not None else None,
        fps=job.request.probe.fps,
        out=str(out),
    )


def is_same_film(a: Result, b: Result) -> bool:
    """Tell whether two runs are of one film, under whatever names."""
    return a.sha256 == b.sha256 if a.sha256 and b.sha256 else a.video == b.video


def pcutoff_of(result: Result) -> float:
    """Return the likelihood from which a run's positions are taken for sure."""
    for known in (result.args.get("pcutoff"), result.details.get("pcutoff")):
        if isinstance(known, int | float) and 0 <= known <= 1:
            return float(known)
    return DEFAULT_PCUTOFF


def _fetch_poses(context: Context, run: Run, result: Result, folder: Path) -> Path:
    """Put a run's table into the folder.

    Raises:
        AnalysisError: code ``no_poses``; ``damaged_poses``, as :func:`_fetch` has it.
    """
    poses = _fetch(context, run, result, folder, POSES)
    if poses is None:
        raise AnalysisError(f"{result.analysis_id} has no table of poses", code="no_poses")
    return poses


def _copy_film(job: _Job, held: Held, folder: Path) -> None:
    """Have the child that draws write a copy of the film that browsers play."""
    context, video, args = job.context, folder / "video", job.request.args
    frames = job.request.probe.frames
    fetch_film(context, job.request, video)
    task = messages.CopyFilm(
        video=str(video),
        out=str(folder / "out" / job.name),
        frames=frames,
        start=args.get("start", 0),
        stop=args.get("stop"),
        stride=args.get("stride", 1),
    )
    held.stage("copy")
    messages.ask(
        context.cpu.call,
        task,
        wall_seconds=Patience(frames, SLOWEST_FRAME),
        on_progress=held.progress,
        should_stop=lambda: held.lost or context.closing,
        folder=folder,
        log=folder / RUN_LOG,
    )


def _fetch(context: Context, run: Run, result: Result, folder: Path, name: str) -> Path | None:
    """Put a table of the run into the folder; None: it has none.

    Raises:
        AnalysisError: code ``damaged_poses``: it has other content than result.json says.
    """
    artefact = names.find(result.artefacts, name)
    if artefact is None:
        return None
    bucket, path = context.settings.results_bucket, folder / name
    for _ in range(2):  # once may be the network's fault
        sha256 = publish.fetch_if_there(
            context.storage, bucket, run.key(artefact.object_name), path
        )
        if sha256 == artefact.sha256:
            return path
        path.unlink(missing_ok=True)
    raise AnalysisError(
        f"{artefact.name} of this run is gone, or not what was published: run it anew with --force",
        code="damaged_poses",
    )


def skeleton_of(result: Result) -> list[list[str]]:
    """Return the pairs of bodyparts that result.json says are joined."""
    told = result.details.get("skeleton")
    pairs = [pair for pair in told if isinstance(pair, list)] if isinstance(told, list) else []
    return [pair for pair in pairs if all(isinstance(name, str) for name in pair)]


def _publish(job: _Job, held: Held, path: Path) -> Artefact:
    """Upload a file; where a late attempt has left one of its name, below this one's number.

    Raises:
        CancelledRunError: another worker is at it, or it was deleted.
    """
    held.stage("publish")
    held.look()
    if held.lost:
        raise CancelledRunError("this worker has to stop")
    storage, run = job.context.storage, job.run
    sha256, kind = sha256_of(path), publish.content_type_of(path.name)
    key = run.derived_file(path.name)
    if not storage.upload_new(job.bucket, key, path, kind, sha256):
        key = f"{run.derived_attempts(job.what)}/{held.number}/{path.name}"
        storage.upload(job.bucket, key, path, kind)
    return publish.describe(path, sha256, run.name(key))


def _tell(
    job: _Job,
    *,
    artefact: Artefact | None = None,
    versions: dict[str, str] | None = None,
    error: RunError | None = None,
) -> None:
    """Write the record, once; of a run that was deleted meanwhile nothing comes back."""
    storage, bucket, run = job.context.storage, job.bucket, job.run
    record = Derived(
        what=job.what,
        version=DERIVED_VERSION,
        artefact=artefact,
        versions=versions or {},
        error=error,
        made_at=job.context.clock(),
    )
    storage.create(bucket, run.derived_record(job.what), record.to_json())
    others = (job.asked.other,) if job.asked.other is not None else ()
    for each in (run, *map(Run, others)):
        if storage.head(bucket, each.request) is None:
            below = run.derived if each == run else run.derived_attempts(job.what)
            storage.delete(bucket, [found.key for found in storage.objects(bucket, below)])
