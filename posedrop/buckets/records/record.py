"""What every record has: JSON, and a version of its schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
