"""The requests and answers of the HTTP API, as the handlers give and the client takes them.

A field that is added to an answer has a default: an older server does not send it. What a newer
server adds is kept by the client, and shown where answers are shown as JSON.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from posedrop.buckets import names
from posedrop.buckets.records import FINAL, Artefact, Progress, Result, RunError

#: How many of what is due GET /expire lists.
DUE_SHOWN = 1000

#: Why something goes, and what of it: ``limit`` and ``age`` a film and all that was made of it,
#: ``space`` the film alone, ``results`` one run of a film that is gone, ``orphan`` all its results.
DueKind = Literal["limit", "age", "space", "results", "orphan"]

R = TypeVar("R")


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


def _without_additional(schema: dict[str, Any]) -> None:
    # That a client keeps what it does not know is no promise of the server.
    schema.pop("additionalProperties", None)


def _as_dict(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _as_names(value: Any) -> Any:
    return [each.name if isinstance(each, Artefact) else each for each in value]


def _as_labelled_video(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    found = names.find([each for each in value if isinstance(each, Artefact)], "pose.mp4")
    return found.name if found is not None else None


class Answer(BaseModel):
    """An answer of the API; a row of the index becomes one by its attributes."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        from_attributes=True,
        json_schema_extra=_without_additional,
    )


#: Of a run, which a row of the index calls its state.
Status = Annotated[str, Field(validation_alias=AliasChoices("status", "state"))]


# -- errors ----------------------------------------------------------------------------------------


class Problem(Answer):
    """What is wrong, for a program and for a person."""

    code: str
    message: str
    field: str | None = Field(default=None, description="the part of the request that is wrong")


class ErrorAnswer(Answer):
    """Every answer from 400 on."""

    error: Problem


# -- videos ----------------------------------------------------------------------------------------


class UploadRequest(BaseModel):
    """What POST /upload is asked."""

    model_config = _example(
        filename="mouse3-day1.mp4",
        size=2216380,
        analysis="deeplabcut_2d",
        args={"model": "openfield"},
    )

    filename: str = Field(min_length=1, max_length=1000)
    size: int | None = Field(default=None, ge=0, description="bytes; no other length is taken then")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="no other content is taken then"
    )
    content_type: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.+-]+/[A-Za-z0-9_.+-]+$", max_length=100
    )
    analysis: str | None = Field(default=None, description="run this as soon as the video is there")
    args: dict[str, Any] = Field(default_factory=dict)
    multipart: bool = Field(default=False, description="in parts; needs size; for files over 5 GB")


class Ticket(Answer):
    """Where and how to put the video."""

    file_id: str
    bucket: str
    key: str
    upload: dict[str, Any]
    expires_at: datetime


class Refusal(Answer):
    """Why a video will not be analysed."""

    reason: str
    message: str | None = None


class WrongRule(Answer):
    """A rule that can't be followed: the videos below it wait until it is mended."""

    rule: str = Field(description="the key of the posedrop.json, or the setting's name")
    code: str
    message: str
    since: datetime


class RunName(Answer):
    """A run, as a file lists it."""

    analysis_id: str
    analysis: str
    status: Status


class File(Answer):
    """A file, as the index knows it."""

    file_id: str
    bucket: str
    key: str
    filename: str
    state: str
    size: int | None
    etag: str | None
    sha256: str | None
    sha1: str | None
    probe: Annotated[dict[str, Any] | None, BeforeValidator(_as_dict)]
    duplicate_of: str | None
    refusal: Refusal | None
    waiting: WrongRule | None = Field(default=None, description="why nothing is run on it")
    created_at: datetime
    analyses: list[RunName] = Field(default_factory=list)


class FilesPage(Answer):
    """A page of files; ``next`` is the cursor of the next one."""

    items: list[File]
    next: str | None


class ReingestRequest(BaseModel):
    """What POST /reingest is asked."""

    model_config = _example(prefix="day1/")

    prefix: str = Field(max_length=1024, description="of the videos' keys; empty: all refused ones")
    cursor: str | None = Field(default=None, description="`next` of the answer before")


class Reingested(Answer):
    """A video that is looked at anew."""

    file_id: str
    key: str


class ReingestedPage(Answer):
    """The refused videos that are looked at anew; ``next``: there are more."""

    items: list[Reingested]
    next: str | None


# -- runs ------------------------------------------------------------------------------------------


class AnalyseRequest(BaseModel):
    """What POST /analyse is asked."""

    model_config = _example(
        file_id="mfzgs3tfebzw63lf",
        analysis="deeplabcut_2d",
        args={"model": "openfield", "filter": "median"},
    )

    file_id: str
    analysis: str
    args: dict[str, Any] = Field(default_factory=dict)
    force: bool = Field(default=False, description="run it anew though results exist")
    retry: bool = Field(
        default=True,
        description="make anew what failed or was cancelled; false: only what had done so before "
        "this video was uploaded",
    )


class Started(Answer):
    """The id under which GET /results answers."""

    analysis_id: str
    file_id: str
    status: Status


class ResultFile(Answer):
    """One file of a result."""

    name: str
    url: str
    size: int
    sha256: str
    content_type: str
    role: str | None = Field(default=None, description="what it is: poses, labelled_video, ...")

    @property
    def plain_name(self) -> str:
        """The name that files of this role have in every run, such as ``poses.h5``."""
        return names.plain_name(self)


class _Run(Answer, Generic[R]):
    analysis_id: str
    file_id: str
    analysis: str
    status: Status
    progress: Progress | None = None
    position: int | None = Field(default=None, description="how many runs are before this one")
    result: R | None = None
    video_file: str | None = Field(default=None, description="the labelled video")
    files: list[ResultFile] = Field(default_factory=list)
    error: RunError | None = None
    retry_of: str | None = Field(default=None, description="the run that this one was made for")
    retried_by: str | None = Field(default=None, description="the run that was made for this one")

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in FINAL

    @property
    def has_results(self) -> bool:
        """Whether it is over and its results count: all of them, or those of most frames."""
        return self.status in {"succeeded", "partial"}


class RunAnswer(_Run[Result]):
    """A run: how far it is, or what it made."""


class Run(_Run[dict[str, Any]]):
    """A run as the client takes it: with all of its result.json, whatever posedrop wrote that."""


class RunRow(Answer):
    """A run in a list."""

    analysis_id: str
    file_id: str
    key: str
    analysis: str
    args: dict[str, Any]
    status: Status
    error: RunError | None
    files: Annotated[
        list[str],
        BeforeValidator(_as_names),
        Field(validation_alias=AliasChoices("files", "artefacts")),
    ]
    labelled_video: Annotated[
        str | None,
        BeforeValidator(_as_labelled_video),
        Field(
            default=None,
            validation_alias=AliasChoices("labelled_video", "artefacts"),
            description="which of the files it is",
        ),
    ]
    retry_of: str | None
    quality: float | None = Field(
        default=None, description="the score of its poses, 0 to 100; null: it has none"
    )
    quality_reasons: list[str] | None = Field(
        default=None, description="of the score, in words; the worst first"
    )
    created_at: datetime
    finished_at: datetime | None


class RunsPage(Answer):
    """A page of runs; ``next`` is the cursor of the next one."""

    items: list[RunRow]
    next: str | None


# -- operation -------------------------------------------------------------------------------------


class DeadLetter(Answer):
    """A dead letter: what it said, the first 64,000 characters, and why it is one."""

    id: int
    received_at: datetime
    reason: str
    body: str


class DeadLettersPage(Answer):
    """A page of dead letters, the newest first; ``next`` is the cursor of the next one."""

    items: list[DeadLetter]
    next: int | None


class ReplayRequest(BaseModel):
    """Which dead letters are to be followed again."""

    model_config = _example(ids=[17, 18])

    ids: list[StrictInt] | None = Field(
        default=None, max_length=10_000, description="null: all of them"
    )


class Replayed(Answer):
    """How many dead letters are followed again, and how many are kept, as they can't be read."""

    replayed: int
    kept: int


class Due(Answer):
    """Something that is to go, and why."""

    kind: DueKind = Field(
        description="age, limit: the film with its results; space: the film; results: one run; "
        "orphan: all results of a film that is gone"
    )
    id: str = Field(description="the file's, or the run's")
    key: str
    size: int = Field(description="bytes")
    why: str


class Expiry(Answer):
    """What would be removed by itself now."""

    due: int = Field(description="how many films and runs")
    size: int = Field(description="bytes")
    films: int = Field(description="how many films there are")
    kept: int = Field(description="how many would be due, and are pinned")
    held: bool = Field(
        description="true: that is more than POSEDROP_EXPIRE_SHARE, and a person has to say so"
    )
    items: list[Due] = Field(description=f"the first {DUE_SHOWN} of them")


class ExpireRequest(BaseModel):
    """What POST /expire is asked."""

    model_config = _example(due=12)

    due: int = Field(
        strict=True, ge=0, lt=2**63, description="as GET /expire said: no more than so many go"
    )


class Expired(Answer):
    """What POST /expire did."""

    expired: int
    undeletable: int


class Notice(Answer):
    """Something that a person is to see to."""

    about: str
    message: str


class Ready(Answer):
    """Whether the handlers do their work: a part is ``ok``, or has the code of what is wrong."""

    status: Literal["ready", "not ready"]
    parts: dict[str, str]
