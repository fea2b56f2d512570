"""What a worker and its child processes say to each other: every message is a type with bounds.

A child decodes the films of strangers, and one of them may have taken it over. So what its parent
takes from it is one of these messages, or a child that failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from posedrop import errors
from posedrop.analyses import DEFAULT_MODEL_BYTES
from posedrop.analyses.outliers import MOST_FRAMES
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.derived import ExportFormat
from posedrop.buckets.records.fields import Count, Details, Seconds
from posedrop.buckets.records.inference import Encoded
from posedrop.buckets.records.quality import Quality
from posedrop.buckets.records.record import Record
from posedrop.buckets.records.runs import FrameRange
from posedrop.buckets.records.videos import Probe
from posedrop.errors import AnalysisError, PosedropError

#: Bytes of one line. A child gone mad must not fill its parent's memory, and as objects of Python
#: JSON may take twenty times as much.
MAX_LINE_BYTES = 8 << 20
#: Ranges of lost frames in an answer.
MAX_RANGES = 20_000
#: Characters of what a child says for people, which goes into records.
MAX_WORDS = 2000
MAX_NAME = 100
#: Entries of a table of timings or versions.
_MAX_ENTRIES = 100
_CODE = re.compile(r"^[a-z][a-z0-9_]{0,63}$")
#: What a task may raise as itself. Anything else speaks for what the parent alone can know: that
#: the store is away, or that somebody asked for an end.
_RAISED = (errors.AnalysisError, errors.BadRequestError, errors.RefusedVideoError)


def _cut_to(most: int) -> BeforeValidator:
    return BeforeValidator(lambda text: text[:most] if isinstance(text, str) else text)


def _briefly(progress: Progress) -> Progress:
    return progress.model_copy(update={"stage": progress.stage[:MAX_NAME]})


Name = Annotated[str, Field(max_length=MAX_NAME)]


# -- lines: what a child sends ---------------------------------------------------------------------


class Failure(Record):
    """Why a task failed, as its child tells it."""

    kind: Annotated[str, _cut_to(MAX_NAME)] = Field(
        alias="class", description="the name of a class of posedrop.errors"
    )
    code: str
    message: Annotated[str, _cut_to(MAX_WORDS)]
    field: Annotated[str, _cut_to(MAX_NAME)] | None = None

    def as_error(self) -> PosedropError:
        """Return the task's error, as its own class if a task may raise that."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, _RAISED)):
            kind = AnalysisError
        code = self.code if _CODE.match(self.code) else "internal"
        return kind(self.message, code=code, field=self.field)


class Line(Record):
    """One line of a child; exactly one of the first five is there."""

    hello: Count | None = Field(default=None, description="it is ready: its process id")
    progress: Annotated[Progress, AfterValidator(_briefly)] | None = None
    permit: Literal["wanted", "over"] | None = Field(default=None, description="of the accelerator")
    result: Details | None = Field(default=None, description="the task is done")
    error: Failure | None = Field(default=None, description="the task failed")
    walls: list[Name] = Field(
        default_factory=list, max_length=_MAX_ENTRIES, description="with hello: those that stand"
    )
    lack: dict[Name, Annotated[str, _cut_to(MAX_NAME)]] = Field(
        default_factory=dict,
        max_length=_MAX_ENTRIES,
        description="with hello: and why others don't",
    )
    fresh: bool = Field(default=False, description="with error: go on with a new process")

    @model_validator(mode="after")
    def _says_one_thing(self) -> Line:
        said = (self.hello, self.progress, self.permit, self.result, self.error)
        if sum(each is not None for each in said) != 1:
            raise ValueError("a line says one thing")
        return self


def parse(line: bytes) -> Line:
    """Return the message in a line of a child.

    Raises:
        ValueError: there is none: it is no JSON, says nothing or two things at once, is nested too
            deep, or has a number that is out of bounds.
    """
    return Line.model_validate_json(line)


# -- answers: what a task's result is --------------------------------------------------------------


class ProbeOutput(Record):
    """What a film is."""

    probe: Probe


class AnalysisOutput(Record):
    """What an analysis found out about its frames; ``inference.json`` is made of it."""

    frames_expected: Count
    frames_decoded: Count
    rows: Count
    missing: list[FrameRange] = Field(default_factory=list, max_length=MAX_RANGES)
    cut: bool = False
    concealed: Count = 0
    timestamps: Name | None = None
    quality: Quality | None = None
    analysis_version: Name = ""
    timings: dict[Name, Seconds] = Field(default_factory=dict, max_length=_MAX_ENTRIES)
    versions: dict[Name, Name] = Field(default_factory=dict, max_length=_MAX_ENTRIES)
    details: Details = Field(default_factory=dict)
    tuning: dict[Name, str] = Field(
        default_factory=dict, description="new to remember of the model's speed: texts by name"
    )


class RenderOutput(Record):
    """How the drawing went."""

    timings: dict[Name, Seconds] = Field(max_length=_MAX_ENTRIES)
    encode: Encoded | None = None


class DeviceOutput(Record):
    """What a child's first task tells of the machine."""

    accelerated: bool = Field(description="networks are computed beside the processor")


# -- tasks: what a child is asked for --------------------------------------------------------------

Output = TypeVar("Output", bound=Record)


class Task(Record, Generic[Output]):
    """Something to be done by a child; paths are files and folders of the job's own."""

    NAME: ClassVar[str]
    """The task's name in :data:`worker.child.tasks.TASKS`."""
    OUTPUT: ClassVar[type[Record]]

    def output(self, answer: dict[str, Any]) -> Output:
        """Return a child's answer as this task's output.

        Raises:
            AnalysisError: code ``bad_answer``: it has another form; the message says where.
        """
        try:
            output: Any = self.OUTPUT.model_validate(answer)
            self._check(output)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))[:MAX_NAME]
            raise self._bad(f"{where}: {first['msg'][:MAX_NAME]}") from error
        found: Output = output
        return found

    def _check(self, output: Output) -> None:
        """Raise AnalysisError if an output can't be this task's."""

    def _bad(self, why: str) -> AnalysisError:
        who = getattr(self, "analysis", None) or self.NAME
        return AnalysisError(f"{who} gave no answer that can be one: {why}", code="bad_answer")


class Begin(Task[DeviceOutput]):
    """Find out what networks are computed on: the first task of a child for them."""

    NAME = "begin"
    OUTPUT = DeviceOutput

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")


class ProbeVideo(Task[ProbeOutput]):
    """Find out what a film is, and draw its thumbnail."""

    NAME = "probe"
    OUTPUT = ProbeOutput

    video: str
    thumbnail: str = Field(description="a JPEG to write")
    max_pixels: int = Field(description="of a frame")
    max_frames: int

    def _check(self, output: ProbeOutput) -> None:
        probe = output.probe
        for what, is_good in {
            "size": 0 < probe.width * probe.height <= self.max_pixels,
            "frames": 0 < probe.frames <= self.max_frames,
            "fps": probe.fps > 0,
            "duration": probe.duration >= 0,
            "codec": max(len(probe.codec), len(probe.pixel_format)) <= MAX_NAME,
        }.items():
            if not is_good:
                raise self._bad(f"its {what} can't be")


class _Analyse(Task[AnalysisOutput]):
    OUTPUT = AnalysisOutput

    analysis: str
    out: str = Field(description="an empty folder: what is left in it are the artefacts")
    args: dict[str, Any]
    sha256: str = Field(default="", description="of the film")
    model_digest: str | None = None


class RunAnalysis(_Analyse):
    """Run an analysis on a film."""

    NAME = "run_analysis"

    video: str
    model: str | None = Field(default=None, description="the folder of its files")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    decode: str = Field(default="auto", description="auto, cpu, cuda")
    parts: str | None = Field(default=None, description="a folder for checkpoints")
    part_seconds: float = Field(default=60.0, description="between two checkpoints")
    model_bytes: int = Field(default=DEFAULT_MODEL_BYTES, description="that stay loaded")
    tuning: dict[str, str] = Field(
        default_factory=dict, description="what is remembered of the model's speed"
    )


class FinishAnalysis(_Analyse):
    """Finish an analysis from ``predictions.npz``, alone in ``out``; there is no film."""

    NAME = "finish_analysis"

    fps: float = Field(default=0.0, description="of the film: frames per second, on average")
    frame_size: tuple[int, int] | None = Field(
        default=None, description="width and height of the film's frames, in pixels"
    )
    is_own: bool = Field(
        default=True, description="false: the predictions are another run's, by the same network"
    )
    pcutoff: float | None = Field(default=None, description="the model's own; null: not known")


class RenderVideo(Task[RenderOutput]):
    """Draw the labelled video and the plots."""

    NAME = "render"
    OUTPUT = RenderOutput

    video: str | None = Field(description="null: none is to be drawn, the plots alone")
    frame_size: tuple[int, int] = Field(description="width and height, in pixels")
    poses: str = Field(description="DeepLabCut's table, HDF5")
    out: str
    pcutoff: float
    style: dict[str, Any] = Field(default_factory=dict)
    skeleton: list[list[str]] = Field(default_factory=list)
    start: int = 0
    stop: int | None = None
    stride: int = 1
    device: str = "auto"
    encode: str = "cpu"


class ExportOutput(Record):
    """Which libraries wrote a file in another format."""

    versions: dict[Name, Name] = Field(max_length=_MAX_ENTRIES)


class ExportPoses(Task[ExportOutput]):
    """Write a run's table of poses in another format; there is no film."""

    NAME = "export"
    OUTPUT = ExportOutput

    format: ExportFormat | Literal["viewer"]
    poses: str = Field(description="poses.csv")
    timestamps: str | None = Field(default=None, description="timestamps.csv")
    out: str = Field(description="the file to write")
    analysis_id: str
    created_at: str = Field(description="when the run was asked for: ISO 8601")
    video: str = Field(description="the film's key")
    description: str = Field(description="of the run, for people")
    software: str = Field(description="what found the poses, with versions")
    software_version: str = Field(description="DeepLabCut's")
    fps: float = Field(gt=0, description="frames a second, on average")
    frames: int = Field(description="of the film")
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    skeleton: list[list[str]] = Field(default_factory=list)
    pcutoff: float = 0.6
    missing: list[tuple[int, int]] = Field(
        default_factory=list, description="ranges of lost frames, both ends included"
    )


class CopyOutput(Record):
    """How many frames a copy of a film has."""

    frames: Count


class CopyFilm(Task[CopyOutput]):
    """Make a copy of a film that browsers play, with the frames that were analysed."""

    NAME = "copy_film"
    OUTPUT = CopyOutput

    video: str
    out: str = Field(description="an MP4 to write")
    frames: int = Field(description="of the film")
    start: int = 0
    stop: int | None = None
    stride: int = 1


class PosesToCompare(Record):
    """One of two runs whose poses are compared."""

    analysis_id: str
    poses: str = Field(description="poses.csv")
    model: str | None = None
    pcutoff: float


class ComparePoses(Task[ExportOutput]):
    """Compare the tables of poses of two runs of one film; there is no film."""

    NAME = "compare"
    OUTPUT = ExportOutput

    a: PosesToCompare
    b: PosesToCompare
    by_name: bool = Field(description="animals of one name are the same one")
    timestamps: str | None = Field(default=None, description="timestamps.csv of the first run")
    fps: float = Field(gt=0, description="frames a second, on average")
    out: str = Field(description="the file to write")


class PickOutput(Record):
    """Which frames of a film are worth correcting."""

    frames: list[Count] = Field(max_length=MOST_FRAMES, description="their numbers, ascending")
    candidates: Count = Field(description="frames of which they were chosen")
    words: list[Annotated[str, _cut_to(MAX_WORDS)]] = Field(default_factory=list, max_length=10)
    versions: dict[Name, Name] = Field(default_factory=dict, max_length=_MAX_ENTRIES)


class PickFrames(Task[PickOutput]):
    """Pick the frames of a film that are worth correcting, and leave their pixels."""

    NAME = "pick_frames"
    OUTPUT = PickOutput

    video: str
    poses: str = Field(description="poses.csv of a run on it")
    pixels: str = Field(description="a file to write: NumPy, uint8 (frames, height, width, 3), RGB")
    args: dict[str, Any] = Field(description="posedrop.analyses.outliers.OutlierArgs")
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")

    def _check(self, output: PickOutput) -> None:
        if not output.frames or output.frames != sorted(set(output.frames)):
            raise self._bad("its frames can't be")


class PackOutput(Record):
    """Which libraries wrote the files."""

    versions: dict[Name, Name] = Field(max_length=_MAX_ENTRIES)


class PackFrames(Task[PackOutput]):
    """Write frames and their poses as other tools take them for correction; there is no film."""

    NAME = "pack_frames"
    OUTPUT = PackOutput

    poses: str = Field(description="poses.csv")
    pixels: str = Field(description="as PickFrames has left them")
    frames: list[int] = Field(description="their numbers in the film, ascending")
    out: str = Field(description="an empty folder for the files")
    video: str = Field(description="the film's key")
    film_frames: int = Field(description="of the film, which says how long the images' names are")
    fps: float = Field(gt=0, description="frames a second, on average")
    iteration: int = Field(ge=0, description="of the DeepLabCut project that the poses are of")
    skeleton: list[list[str]] = Field(default_factory=list)


def ask(call: Callable[..., dict[str, Any]], task: Task[Output], **options: Any) -> Output:
    """Have a child do a task, and return its answer as the type that it has to be.

    Args:
        call: of a :class:`worker.child.child.Child` or of what has several.
        task: what to do.
        options: of that ``call``.

    Raises:
        AnalysisError: code ``bad_answer``: it is no such answer.
        PosedropError: what ``call`` raises.
    """
    return task.output(call(task.NAME, task.model_dump(mode="json"), **options))
