"""Errors that a person reads: what went wrong, with which file, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class WrongPart(NamedTuple):
    """A part of a request that is wrong: where it stands, such as ("args", "crop", "x1"), and why.

    ``loc`` has names of fields and numbers of items, from the whole request inwards.
    """

    loc: tuple[str | int, ...]
    message: str


class PosedropError(Exception):
    """The base of all errors that posedrop raises on purpose.

    ``code`` is stable and machine-readable (it stands in result.json and in the API's answers);
    the message is for the person. ``errors`` are all parts that are wrong, where more is known of
    them than ``field`` says.
    """

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        errors: Sequence[WrongPart] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.errors = tuple(errors)
        if not errors and field is not None:
            self.errors = (WrongPart(tuple(field.split(".")), message),)
        if code is not None:
            self.code = code


class ConfigurationError(PosedropError):
    """A setting, a port or a directory that posedrop can't start with."""

    code = "configuration"


class NotFoundError(PosedropError):
    """There is no such file, analysis, model or object."""

    code = "not_found"


class BadRequestError(PosedropError):
    """What was asked can't be done as asked; ``field`` names the part of the request."""

    code = "bad_request"


class RefusedVideoError(PosedropError):
    """The object is not a video that can be analysed; final, asking again changes nothing."""

    code = "refused"


class AnalysisError(PosedropError):
    """An analysis can't be done on this video or with this model; final, no retry helps."""

    code = "analysis_failed"


class ModelError(AnalysisError):
    """A model is missing, damaged, or made for another engine."""

    code = "model_unusable"


class StorageError(PosedropError):
    """The object store did not do what was asked; worth a retry."""

    code = "storage"


class ObjectChangedError(StorageError):
    """The object was replaced or removed since it was planned; its own event says what follows."""

    code = "object_changed"


class RecordError(StorageError):
    """A record of a bucket can't be read, and no retry helps: it is damaged, or from a newer one.

    Code ``newer_record``: it has a schema that only a newer posedrop knows, which may well be at
    work on it. Code ``damaged_record``: nobody can read it.
    """

    code = "damaged_record"


class ChildDiedError(PosedropError):
    """The child process ended or was killed before it answered (crash, memory, time limit)."""

    code = "child_died"


class BusyError(PosedropError):
    """More is asked at this moment than can be done; worth asking again."""

    code = "busy"


class CancelledRunError(PosedropError):
    """Somebody asked for the run to stop."""

    code = "cancelled"
