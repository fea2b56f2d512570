"""Uploads: in one piece, in parts, and a look ahead at what would become of files."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from posedrop.api.answer import Answer, example


class UploadRequest(BaseModel):
    """What POST /upload is asked."""

    model_config = example(
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


#: So many files are looked at in one call of POST /uploads/check.
CHECKED_AT_ONCE = 500
_CRC32 = Field(pattern="^[0-9a-f]{8}$", description="hexadecimal")
_PATH = Field(min_length=1, max_length=1024, description="below the folder, with / between")
_TO = Field(default="", max_length=1024, description="the folder, such as cohort3/day1")
#: What would become of a file: it goes up, it is there, it is no film, it can't go up.
CheckState = Literal["new", "exists", "passed over", "refused"]


class CheckedFile(BaseModel):
    """A file that may go up."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(max_length=4096, description="below the folder, with / between")
    size: int = Field(strict=True, ge=0, lt=2**63, description="bytes")
    content: str | None = Field(
        default=None, max_length=65536, description="of a posedrop.json: what it says"
    )


class CheckRequest(BaseModel):
    """What POST /uploads/check is asked."""

    model_config = example(to="cohort3", files=[{"path": "day1/mouse3.mp4", "size": 2216380}])

    to: str = _TO
    files: list[CheckedFile] = Field(max_length=CHECKED_AT_ONCE)
    analysis: str | None = Field(default=None, description="what is asked for all of them")


class Checked(Answer):
    """What would become of a file."""

    path: str
    key: str | None = Field(default=None, description="null: it gets one of its own, or none")
    state: CheckState
    why: str | None = Field(default=None, description="of what does not go up")
    etag: str | None = Field(default=None, description="of what is there")
    rule: str | None = Field(default=None, description="the posedrop.json that counts, by its key")
    runs: str | None = Field(default=None, description="the analysis that is run on it")


class CheckAnswer(Answer):
    """What would become of each file, in their order."""

    items: list[Checked]


class Folders(Answer):
    """Folders of the videos bucket, the first thousand."""

    items: list[str]


class PartsRequest(BaseModel):
    """What POST /uploads/parts is asked: a film is to go up in parts, or goes on doing so."""

    model_config = example(to="cohort3/day1", path="mouse3.mp4", size=2216380)

    path: str = _PATH
    size: int = Field(strict=True, gt=0, lt=2**63, description="bytes")
    to: str = _TO
    file_id: str | None = Field(
        default=None,
        pattern="^[a-z2-7]{16}$",
        description="of an upload without a folder that goes on",
    )
    content_type: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.+-]+/[A-Za-z0-9_.+-]+$", max_length=100
    )
    analysis: str | None = Field(default=None, description="run this as soon as the video is there")
    args: dict[str, Any] = Field(default_factory=dict)


class Part(Answer):
    """A part that the store has."""

    number: int
    size: int
    etag: str
    crc32: str | None = Field(default=None, description="null: this store does not tell")


class PartsTicket(Answer):
    """An upload in parts, and how far it is; ``exists``: a film of this size is there."""

    file_id: str
    bucket: str
    key: str
    size: int
    state: Literal["new", "resumed", "exists"]
    upload_id: str = ""
    part_bytes: int = Field(default=0, description="of each part but the last")
    parts: list[Part] = Field(default_factory=list, description="those that the store has")
    crc32: str | None = Field(
        default=None, description="of what is there, as S3 makes it of parts; null: not known"
    )
    etag: str | None = Field(default=None, description="of what is there")


class PartsOf(BaseModel):
    """Which upload in parts: as POST /uploads/parts answered."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=1024)
    upload_id: str = Field(min_length=1, max_length=1024)
    size: int = Field(strict=True, gt=0, lt=2**63, description="bytes")
    part_bytes: int = Field(ge=5 * 2**20, le=5 * 2**30)


class WantedPart(BaseModel):
    """A part that is to be put."""

    model_config = ConfigDict(extra="forbid")

    number: int = Field(ge=1, le=10_000)
    crc32: str = _CRC32


class SignRequest(PartsOf):
    """What POST /uploads/parts/sign is asked."""

    parts: list[WantedPart] = Field(min_length=1, max_length=100)


class SignedPart(Answer):
    """Where and how to put a part; the store refuses other content."""

    number: int
    url: str
    headers: dict[str, str]


class SignAnswer(Answer):
    """The parts that were asked for, signed."""

    items: list[SignedPart]


class CompleteRequest(PartsOf):
    """What POST /uploads/parts/complete is asked."""

    crc32: list[Annotated[str, _CRC32]] = Field(
        min_length=1, max_length=10_000, description="of each part, in their order"
    )


class AbortRequest(BaseModel):
    """What POST /uploads/parts/abort is asked."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=1024)
    upload_id: str = Field(min_length=1, max_length=1024)


class Uploaded(Answer):
    """A film that is there."""

    file_id: str
    key: str
    size: int
