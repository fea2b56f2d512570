"""What all requests and answers of the HTTP API have in common.

A field that is added to an answer has a default: an older server does not send it. What a newer
server adds is kept by the client, and shown where answers are shown as JSON.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


def example(**request: Any) -> ConfigDict:
    """Return the configuration of a request: no further fields, and ``request`` as its example."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [request]})


def _without_additional(schema: dict[str, Any]) -> None:
    # That a client keeps what it does not know is no promise of the server.
    schema.pop("additionalProperties", None)


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
