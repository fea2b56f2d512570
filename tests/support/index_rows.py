"""Records to tell an index, and all that can be asked of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.quality import BodypartQuality, BoneQuality, Quality, Stretches
from posedrop.buckets.records.requests import PendingRequest, Request
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import Artefact, RunError
from posedrop.buckets.records.videos import Duplicate, Refusal, VideoRecord, VideoRef
from posedrop.index.index import Index
from posedrop.transport.events import Event, ObjectCreated
from tests.support.samples import PROBE

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BUCKET = "videos"
ERROR = RunError(code="out_of_memory", message="The GPU is full.", stage="infer")


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def video_record(number: int = 0, *, version: int = 0, refused: bool = False) -> VideoRecord:
    return VideoRecord(
        video=VideoRef(
            file_id=f"file{number:012}",
            bucket=BUCKET,
            key=f"day1/mouse_{number}.mp4",
            etag=f"etag-{number}-{version}",
            size=100 + version,
        ),
        last_modified=at(100 * version + number),
        ingested_at=at(100 * version + number + 30.5),
        sha256=None if refused else f"{number:032}{version:032}",
        sha1=None if refused else f"{number:040}",
        probe=None if refused else PROBE,
        duplicate_of=None if refused else Duplicate(file_id="first", key="first.mp4"),
        refusal=Refusal(reason="not_a_video", message="This is a letter.") if refused else None,
        metadata={"analysis": "dummy"},
    )


def request_of(number: int = 0) -> Request:
    video = video_record(number)
    return Request(
        analysis_id=f"run{number:013}",
        analysis="deeplabcut_2d",
        analysis_version="1",
        args={"batch": 8, "model": "mäuse"},
        video=video.video,
        sha256="0" * 64,
        probe=PROBE,
        model=ModelRef(name="mice", digest="d" * 16),
        asked_by="api",
        created_at=at(50 + number),
    )


def result_of(number: int = 0, state: str = "succeeded") -> Result:
    request = request_of(number)
    return Result.model_validate(
        {
            **request.model_dump(exclude={"probe", "asked_by", "analysis_version", "force"}),
            "state": state,
            "artefacts": [
                Artefact(
                    name="poses.h5", size=9, sha256="a" * 64, content_type="application/x-hdf5"
                )
            ],
            "frames_decoded": 300,
            "rows": 300,
            "error": ERROR if state == "failed" else None,
            "finished_at": at(500 + number),
        }
    )


def judged(result: Result, score: float | None) -> Result:
    """Return a result with a score of its poses, or without one."""
    quality = None
    if score is not None:
        none = Stretches(frames=0, stretches=0, longest_seconds=0)
        quality = Quality(
            version=1,
            score=score,
            reasons=["it is dark"],
            pcutoff=0.6,
            bodyparts=[
                BodypartQuality(
                    name="snout", below_cutoff=0.5, longest_gap_seconds=2, jumps=3, outside=None
                )
            ],
            missing=none,
            black=none,
            frozen=None,
            odd_timestamps=0,
            bones=[BoneQuality(bodyparts=("snout", "尾"), outliers=7)],
            fewer_animals=None,
            suspected_swaps=None,
        )
    return result.model_copy(update={"quality": quality})


def pending_request(number: int = 0) -> PendingRequest:
    return PendingRequest(
        pending_id=f"pending{number:09}",
        file_id=video_record().video.file_id,
        key=video_record().video.key,
        analysis="dummy",
        args={"seconds": 1},
        created_at=at(number),
        force="again" if number else None,
    )


def receive(index: Index, video: VideoRecord, **changes: datetime) -> None:
    index.file_received(
        bucket=video.video.bucket,
        key=video.video.key,
        file_id=video.video.file_id,
        etag=video.video.etag,
        size=video.video.size,
        metadata={"analysis": "dummy"},
        last_modified=changes.get("last_modified", video.last_modified),
    )


def run_of(number: int = 0) -> str:
    return f"day1/mouse_{number}.mp4/deeplabcut_2d-run{number:013}"


def everything(index: Index) -> object:
    """Return all that can be asked of a small index, to compare two of them."""
    files = index.files(limit=1000).rows
    return (
        files,
        index.analyses(limit=1000).rows,
        [index.pending(pending_request(n).pending_id) for n in range(3)],
        index.pending_open(),
        [index.files(query=word).rows for word in ("mouse", "day1", "mp4")],
        [index.analyses(query=word).rows for word in ("mouse", "deeplabcut")],
        index.counts(),
    )


def created(number: int = 0, key: str = "k") -> Event:
    return ObjectCreated(BUCKET, key, "etag", None, f"{number:016}", NOW)
