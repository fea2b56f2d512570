"""The JSON records that live in the buckets. Everything posedrop knows is in one of them.

Each is written once (or, for a video's record and an attempt's heartbeat, by one writer alone) and
carries a ``schema`` version, so that a later posedrop can read what an earlier one wrote.

Whoever may write into a bucket may write any record: each number, time and tree in one has a bound,
so that what is read can be kept in SQLite and written again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from posedrop.bounded import bounded
from posedrop.buckets import names

#: ``film gone``: an S3 tool has removed the film, and its results are there.
FileState = Literal["expected", "received", "ready", "refused", "film gone"]
RunState = Literal["waiting", "queued", "running", "succeeded", "partial", "failed", "cancelled"]
FinalState = Literal["succeeded", "partial", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset(get_args(FinalState))
Task = Literal["ingest", "infer", "render", "derive"]
#: Formats in which a run's poses can be had, beside DeepLabCut's own.
ExportFormat = Literal["nwb", "slp", "nc", "parquet", "coco"]
#: The file of each format.
EXPORTS: dict[str, str] = {
    "nwb": "poses.nwb",
    "slp": "poses.slp",
    "nc": "poses.nc",
    "parquet": "poses.parquet",
    "coco": "coco.json",
}

#: What video.json says of a video is looked at anew where an older ingest refused it; raised when
#: a later posedrop reads what an earlier one could not.
INGEST_VERSION = 2

#: Raised when what is made of poses changes.
DERIVED_VERSION = 1

#: Bodyparts, and bones, of a record of quality.
MOST_QUALITIES = 1000

#: What SQLite takes as a whole number.
_MOST = 2**63


def _details(tree: Any) -> Any:
    return bounded(tree, is_finite=False)


def _told_of_our_time(moment: datetime) -> datetime:
    if not 1970 <= moment.year < 2100:
        raise ValueError("a time between the years 1970 and 2100 is needed")
    return moment


Count = Annotated[int, Field(ge=0, lt=_MOST)]
Pixels = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Finite
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
#: A few words, or the name of a bodypart, on one line.
Words = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
Json = Annotated[dict[str, Any], AfterValidator(bounded)]
#: What an analysis tells for people, in which a number may be missing.
Details = Annotated[dict[str, Any], AfterValidator(_details)]
Moment = Annotated[datetime, AfterValidator(_told_of_our_time)]


class Record(BaseModel):
    """A frozen JSON object; fields a newer posedrop added are kept out of the way, not an error."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def to_json(self) -> bytes:
        """Return the record as indented UTF-8 JSON, for a person with a text editor."""
        return self.model_dump_json(indent=1, by_alias=True).encode()


class Versioned(Record):
    """A record that stands alone in an object of its own."""

    schema_version: Literal[1] = Field(default=1, alias="schema")


class _Schema(Record):
    version: int = Field(alias="schema")


def newer_schema(data: bytes, kind: type[Record]) -> int | None:
    """Return the schema of a JSON record that is newer than this posedrop's, None if it is not."""
    if not issubclass(kind, Versioned):
        return None
    try:
        version = _Schema.model_validate_json(data).version
    except ValueError:
        return None
    known: int = kind.model_fields["schema_version"].default
    return version if version > known else None


class VideoRef(Record):
    """Which bytes: an object under its name, and the ETag that they had."""

    file_id: str
    bucket: str
    key: str
    etag: str
    size: Count = Field(description="bytes")


class Probe(Record):
    """What a video is, as decoded."""

    codec: str
    pixel_format: str
    width: Pixels = Field(description="pixels, as DeepLabCut sees the frame: after rotation")
    height: Pixels = Field(description="pixels, as DeepLabCut sees the frame: after rotation")
    fps: Finite = Field(description="average frames per second")
    frames: Count
    frames_counted: bool = Field(description="True: each was seen; False: the container says so")
    duration: Seconds
    rotation: int = Field(
        gt=-360, lt=360, description="degrees, clockwise, that the container asks for"
    )
    variable_frame_rate: bool


class Refusal(Record):
    """Why a video will not be analysed; final, but for ``posedrop reingest``."""

    reason: str = Field(description="machine-readable: not_a_video, empty, truncated, ...")
    message: str


class Duplicate(Record):
    """The first file that had the same content."""

    file_id: str
    key: str


class VideoRecord(Versioned):
    """``video.json``: what ingest found out about a video."""

    video: VideoRef
    last_modified: Moment
    ingested_at: Moment
    ingest_version: Count = Field(default=1, description="of the posedrop that looked at it")
    sha256: str | None = None
    sha1: str | None = None
    probe: Probe | None = None
    duplicate_of: Duplicate | None = None
    refusal: Refusal | None = None
    metadata: dict[str, str] = Field(
        default_factory=dict, description="analysis and args asked for"
    )


class ModelRef(Record):
    """A model, by name and by the digest of its files."""

    name: str
    digest: str


class RunRef(Record):
    """Another run, by its id and its folder of the results bucket."""

    analysis_id: str
    run: str


class Request(Versioned):
    """``request.json``: what to do with a video, complete, so that a worker needs nothing else."""

    analysis_id: str
    analysis: str
    analysis_version: str
    args: Json = Field(description="normalised: every argument, defaults filled in")
    video: VideoRef
    sha256: str
    probe: Probe
    model: ModelRef | None = None
    asked_by: Literal["api", "metadata", "folder", "default"]
    created_at: Moment
    force: str | None = Field(default=None, description="made unique by a run that was forced")
    shared: bool = Field(
        default=False,
        description="nobody asked for it here: the same content has it under another name",
    )
    retry_of: RunRef | None = Field(
        default=None, description="the run that failed or was cancelled, and is made anew by this"
    )
    exports: list[ExportFormat] = Field(
        default_factory=list, description="made as soon as the run is over"
    )


class PendingRequest(Versioned):
    """``asked/<id>.json``: an analysis asked for before its video was ingested."""

    pending_id: str
    file_id: str
    key: str
    analysis: str
    args: Json
    created_at: Moment
    force: str | None = None


class Followed(Record):
    """What decided about a video: ``none`` is open to the rule of a folder that comes later."""

    kind: Literal["metadata", "question", "folder", "default", "none"]
    key: str | None = Field(default=None, description="folder: of the posedrop.json")
    etag: str | None = Field(default=None, description="folder: of the posedrop.json, as it was")


class Planned(Versioned):
    """What a video with these bytes was planned for, so that no reindex plans it anew.

    ``_planned/<file_id>.json``: which rule was followed; written by the handlers alone, again when
    the video is replaced, or when a rule reaches it that followed none.
    ``asked/<id>.planned.json``: what became of a pending request, whatever replaces the
    video later; created once.
    """

    file_id: str
    key: str
    etag: str
    sha256: str | None = None
    rule: Followed | None = Field(
        default=None, description="null: not known, an older posedrop wrote this"
    )
    analysis_id: str | None = Field(default=None, description="null: nothing is to be run")
    error: RunError | None = Field(default=None, description="why a request can't become a run")
    shared: bool = Field(
        default=False,
        description="the runs that its content had under other names then were shared with it; "
        "false: an older posedrop wrote this",
    )
    planned_at: Moment

    @property
    def is_open(self) -> bool:
        """Whether the rule of a folder that comes later reaches this video."""
        return self.rule is not None and self.rule.kind == "none"


class Progress(Record):
    """How far a run is."""

    stage: str = Field(description="fetch, wait (for the network), load, infer, render...")
    done: Count = Field(default=0, description="frames")
    total: Count | None = Field(default=None, description="frames")
    frames_per_second: Finite | None = None


class Attempt(Versioned):
    """``N.json``: the claim of one worker on one run or ingest, and its heartbeat."""

    number: Count
    task: Task
    worker: str
    started_at: Moment
    beat: Count = Field(default=0, description="how often this worker has said that it lives")
    progress: Progress
    outcome: Literal["done", "handed_back", "failed"] | None = Field(
        default=None, description="null: at work, or dead if its heartbeat has stopped"
    )
    error: RunError | None = None
    sha256: str | None = Field(default=None, description="of an ingest: what was downloaded")
    sha1: str | None = None
    artefacts: list[Artefact] = Field(
        default_factory=list,
        description="what it has published: a run that fails lists it",
    )

    @property
    def is_unpublished(self) -> bool:
        """Whether the attempt was handed back because the store did not take its files."""
        return self.error is not None and self.progress.stage == "publish"


class WorkerJob(Record):
    """The job that a worker is at."""

    task: Task
    key: str = Field(max_length=1024, description="of the video")
    run: str | None = Field(default=None, max_length=1024, description="null: an ingest")
    attempt: Count
    started_at: Moment
    progress: Progress


class Speed(Record):
    """How fast a model was on the last film of one size."""

    analysis: str = Field(max_length=100)
    model: ModelRef | None = None
    width: Pixels
    height: Pixels
    frames_per_second: float = Field(gt=0, allow_inf_nan=False, description="through the network")
    frames: Count = Field(description="of the film, or of what was left of it")
    measured_at: Moment


class WorkerRecord(Versioned):
    """``_posedrop/workers/<id>.json``: a worker process that lives, rewritten as its heartbeat.

    It goes when the worker ends; of one that was killed, after some minutes of silence.
    """

    worker_id: str = Field(max_length=40)
    name: str = Field(max_length=300, description="as the attempts name it: host and process")
    started_at: Moment
    beat: Count = Field(default=0, description="how often it was written")
    queues: list[str] = Field(max_length=10)
    device: str = Field(max_length=200, description="where its networks run, as far as it is known")
    jobs: list[WorkerJob] = Field(default_factory=list, max_length=1000)
    speeds: list[Speed] = Field(default_factory=list, max_length=64, description="newest last")
    versions: dict[str, str] = Field(default_factory=dict, max_length=100)
    log_tail: str = Field(default="", max_length=8000, description="its last lines")


class NeedsNewer(Versioned):
    """``attempts/needs-newer.json``: a worker left a run to those that have a newer analysis."""

    worker: str
    analysis: str
    has: str = Field(description="the analysis version that this worker has")
    needs: str = Field(description="the one that was asked for")


class RunError(Record):
    """Why a run failed, for a person and for a program."""

    code: str
    message: str
    stage: str | None = None
    field: str | None = None
    log_tail: str | None = None


class FrameRange(Record):
    """Frames ``first`` to ``last``, both included, counted from 0."""

    first: Count
    last: Count


class Stretches(Record):
    """Frames with one defect, and the longest stretch of them."""

    frames: Count
    stretches: Count = Field(description="how often they follow each other without a break")
    longest_seconds: Duration
    first_frame: Count | None = Field(default=None, description="of the longest stretch")


class BodypartQuality(Record):
    """What is wrong with one bodypart, over all animals that have it."""

    name: Words
    below_cutoff: Share = Field(description="of its positions, in frames that were decoded")
    longest_gap_seconds: Duration = Field(description="without a position above the cutoff")
    jumps: Count | None = Field(description="null: the animals are not followed")
    outside: Count | None = Field(description="positions out of the frame; null: size not known")


class BoneQuality(Record):
    """How often the length of a bone of the skeleton is unlikely."""

    bodyparts: tuple[Words, Words]
    outliers: Count


class Quality(Record):
    """How good the poses of a run are; docs/quality.md says how each number is found."""

    version: Count = Field(description="of the formula")
    score: float = Field(ge=0, le=100)
    reasons: list[Words] = Field(max_length=3, description="the worst first")
    pcutoff: Finite
    bodyparts: list[BodypartQuality] = Field(max_length=MOST_QUALITIES)
    missing: Stretches
    black: Stretches | None = Field(description="null: the brightness is not known")
    frozen: Stretches | None = Field(description="null: the brightness is not known")
    odd_timestamps: Count
    bones: list[BoneQuality] = Field(max_length=MOST_QUALITIES)
    fewer_animals: Count | None = Field(description="frames; null: one animal, or any number")
    suspected_swaps: Count | None = Field(description="null: one animal, or none is followed")


class Inference(Versioned):
    """``inference.json``: what infer hands to render; poses.h5 stands beside it."""

    analysis_id: str
    frames_expected: Count
    frames_decoded: Count
    rows: Count
    missing: list[FrameRange] = Field(default_factory=list)
    timings: dict[str, Seconds] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    details: Details = Field(default_factory=dict, description="scorer, snapshot, device, ...")
    artefacts: list[Artefact] = Field(default_factory=list)
    analysis_version: str = Field(default="", description="of what found the poses")
    cut: bool = Field(default=False, description="the film's end is missing")
    concealed: Count = Field(default=0, description="frames that the decoder gave, flagged corrupt")
    timestamps: str | None = Field(default=None, description="where timestamps.csv has its times")
    quality: Quality | None = Field(default=None, description="null: it was not looked at")


class Encoded(Record):
    """The encoder of pose.mp4: ``libx264`` or ``h264_nvenc``, and why that one."""

    used: str = Field(max_length=40)
    why: str = Field(max_length=500)


class DerivedRequest(Versioned):
    """``derived/<what>/asked.json``: somebody wants this made of the poses."""

    what: str = Field(max_length=40)
    asked_at: Moment


class Derived(Versioned):
    """``derived/<what>/made.json``: what was made of the poses, or why it can't be; created once.

    ``artefact`` is null where ``error`` is not.
    """

    what: str = Field(max_length=40)
    version: Count = Field(description="of the posedrop that made it: DERIVED_VERSION")
    artefact: Artefact | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries")
    error: RunError | None = None
    made_at: Moment


class PosesOf(Versioned):
    """``_poses/<id>.json``: a run whose poses serve who asks for the same, drawn otherwise."""

    analysis_id: str
    run: str


class Artefact(Record):
    """One file of a result."""

    name: str
    size: Count = Field(description="bytes")
    sha256: str
    content_type: str
    place: str | None = Field(
        default=None,
        description="the object's name below the run's folder, where it is not ``name``: "
        "an earlier attempt, dead or late, has left something under that",
    )
    role: str | None = Field(
        default=None, max_length=40, description="what it is: poses, labelled_video, ..."
    )

    @property
    def plain_name(self) -> str:
        """The name by which posedrop itself knows it, such as ``poses.h5``."""
        return names.plain_name(self)

    @property
    def object_name(self) -> str:
        """The name of its object, below the run's folder."""
        return self.place or self.name


class Result(Versioned):
    """``result.json``: written last; it exists if and only if the run is over."""

    analysis_id: str
    analysis: str
    state: FinalState
    video: VideoRef
    sha256: str | None = None
    args: Json
    model: ModelRef | None = None
    artefacts: list[Artefact] = Field(default_factory=list)
    frames_expected: Count | None = None
    frames_decoded: Count | None = None
    rows: Count | None = None
    missing: list[FrameRange] = Field(
        default_factory=list, description="frames that were lost: their rows are NaN"
    )
    cut: bool = Field(default=False, description="the film's end is missing, and has no rows")
    concealed: Count = Field(default=0, description="frames that the decoder gave, flagged corrupt")
    timestamps: str | None = Field(default=None, description="where timestamps.csv has its times")
    quality: Quality | None = Field(default=None, description="null: it was not looked at")
    timings: dict[str, Seconds] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    analysis_version: str = Field(default="", description="of what found the poses")
    details: Details = Field(default_factory=dict)
    attempts: Count = 0
    error: RunError | None = None
    retry_of: RunRef | None = Field(default=None, description="the run that this one was made for")
    created_at: Moment
    finished_at: Moment

    @classmethod
    def of(
        cls, request: Request, state: FinalState, *, finished_at: datetime, **more: Any
    ) -> Result:
        """Return the result of a run: what its request says, and ``more`` fields."""
        return cls(
            analysis_id=request.analysis_id,
            analysis=request.analysis,
            state=state,
            video=request.video,
            sha256=request.sha256,
            args=request.args,
            model=request.model,
            retry_of=request.retry_of,
            created_at=request.created_at,
            finished_at=finished_at,
            **more,
        )


class ModelFile(Record):
    """One file of a model, by its path inside the model's folder."""

    path: str
    size: Count
    sha256: str


class Model(Versioned):
    """``models/<name>/<digest>/model.json``: written last, after the files that it lists."""

    name: str
    digest: str
    kind: Literal["project", "export", "zoo"]
    task: str = Field(description="the DeepLabCut project's Task")
    scorer: str
    bodyparts: list[str]
    individuals: list[str]
    skeleton: list[list[str]] = Field(default_factory=list)
    multianimal: bool
    net_type: str
    pcutoff: Finite
    snapshots: list[str]
    files: list[ModelFile]
    created_at: Moment


class FolderRules(Versioned):
    """``posedrop.json`` in a folder of the videos bucket: what to do with the videos below it."""

    analysis: str | None = Field(default=None, description="null: nothing, stop looking further up")
    args: Json = Field(default_factory=dict)
    existing: bool = Field(
        default=True, description="also for videos that were there before and followed no rule"
    )
    exports: list[ExportFormat] = Field(
        default_factory=list,
        max_length=len(EXPORTS),
        description="formats in which the poses are to be had once a run is over",
    )
    keep: bool | list[str] | None = Field(
        default=None,
        description="the videos below that posedrop never removes by itself: all of them, or those "
        "of these names; false: none, whatever the folders above say; null: as those say",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _keeps(cls, value: Any) -> Any:
        # As text, "no" or a file's name would be taken for something else than was meant.
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if value is None or isinstance(value, bool) or names:
            return value
        raise PydanticCustomError(
            "keep", 'it is true, false, or a list of names, like ["mouse3.mp4", "day2/"]'
        )

    @property
    def is_silent(self) -> bool:
        """Whether the rule names no analysis, only what is kept: the next rule up is followed."""
        return self.keep is not None and "analysis" not in self.model_fields_set


class WrongRule(Versioned):
    """``_posedrop/rules/<id>.json``: why videos wait; gone once the rule is mended or removed."""

    key: str = Field(description="of the posedrop.json, or the setting of the server's default")
    etag: str
    code: str
    message: str
    since: Moment


Attempt.model_rebuild()
WorkerRecord.model_rebuild()
Planned.model_rebuild()
Inference.model_rebuild()
Derived.model_rebuild()
