"""The HTTP API from the caller's side: for the command line, the demo and people's own scripts."""

from posedrop.api import (
    Answer,
    DeadLetter,
    Due,
    Expired,
    Expiry,
    File,
    Refusal,
    Replayed,
    ResultFile,
    Run,
    RunName,
    RunRow,
    Started,
    Ticket,
    WrongRule,
)
from posedrop.client.client import Client, UnreachableError, pause

__all__ = [
    "Answer",
    "Client",
    "DeadLetter",
    "Due",
    "Expired",
    "Expiry",
    "File",
    "Refusal",
    "Replayed",
    "ResultFile",
    "Run",
    "RunName",
    "RunRow",
    "Started",
    "Ticket",
    "UnreachableError",
    "WrongRule",
    "pause",
]
