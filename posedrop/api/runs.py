"""Runs: to ask for one, how far it is, what it made; lists and counts of runs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

from posedrop.api.answer import Answer, Status, example
from posedrop.buckets import names
from posedrop.buckets.records.attempts import Progress
from posedrop.buckets.records.comparison import Comparison
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import FINAL, Artefact, RunError

#: How many videos one batch may name by their ids.
BATCH_FILE_IDS = 10_000
R = TypeVar("R")


def _as_names(value: Any) -> Any:
    return [each.name if isinstance(each, Artefact) else each for each in value]


def _as_labelled_video(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    found = names.find([each for each in value if isinstance(each, Artefact)], "pose.mp4")
    return found.name if found is not None else None


class AnalyseRequest(BaseModel):
    """What POST /analyse is asked: for one video (``file_id``), or for many, which are a batch."""

    model_config = example(
        file_id="mfzgs3tfebzw63lf",
        analysis="deeplabcut_2d",
        args={"model": "openfield", "filter": "median"},
    )

    file_id: str | None = Field(default=None, max_length=100, description="of one video")
    prefix: str | None = Field(
        default=None,
        max_length=1024,
        description="a batch: the videos whose keys begin so and that are there now; empty: all",
    )
    file_ids: list[Annotated[str, Field(max_length=100)]] | None = Field(
        default=None,
        min_length=1,
        max_length=BATCH_FILE_IDS,
        description="a batch: these videos",
    )
    analysis: str = Field(max_length=200)
    args: dict[str, Any] = Field(default_factory=dict)
    force: bool = Field(default=False, description="run it anew though results exist")
    retry: bool = Field(
        default=True,
        description="make anew what failed or was cancelled; false: only what had done so before "
        "this video was uploaded, of a batch nothing",
    )
    dry_run: bool = Field(
        default=False, description="say what would be done and what it costs, and do nothing"
    )
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="of a batch: the same request with the same key is the same batch for 90 "
        "days; without one, as long as that batch is not over",
    )
    notify: list[str] | None = Field(
        default=None,
        max_length=20,
        description="aliases of the server that are told when it is done; null: POSEDROP_NOTIFY",
    )


class Cost(Answer):
    """What a run costs, as far as that is known beforehand."""

    network: bool = Field(description="false: it is made of what an earlier run found")
    seconds: float | None = Field(
        description="of work, the wait for a worker apart, by how fast the workers were on films "
        "like this one; null: that is not known"
    )


class Started(Answer):
    """The id under which GET /results answers; ``status`` is ``new`` of what a dry run would make.

    A dry run of a video that is not ingested yet has no id.
    """

    analysis_id: str
    file_id: str
    status: Status
    cost: Cost | None = Field(default=None, description="null: the video is not ingested yet")


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
    model: str | None = Field(default=None, description="its name")
    asked_by: str | None = Field(
        default=None, description="api, metadata, folder, default; null: not known"
    )
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


class RunAttempt(Answer):
    """One attempt at a run."""

    number: int
    task: str = Field(description="infer or render")
    worker: str
    started_at: datetime
    progress: Progress
    outcome: str | None = Field(description="done, handed_back, failed; null: at work, or dead")
    error: RunError | None
    log_tail: str | None = Field(default=None, description="the end of its log")


class Attempts(Answer):
    """The attempts at a run, the newest last."""

    items: list[RunAttempt]


class Reason(Answer):
    """Why runs failed, or films were refused."""

    message: str
    count: int


class Summary(Answer):
    """How many runs and films of a folder are in each state."""

    runs: dict[str, int]
    files: dict[str, int]
    reasons: list[Reason] = Field(description="the most frequent first")
    all: bool = Field(description="false: there are more than were counted")


class ComparisonAnswer(Comparison, Answer):
    """How far apart two runs of one film put their keypoints."""
