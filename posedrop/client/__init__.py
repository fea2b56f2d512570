"""The HTTP API from the caller's side: for the command line, the demo and people's own scripts."""

from posedrop.client.client import (
    Answer,
    Client,
    DeadLetter,
    Due,
    Expiry,
    File,
    Refusal,
    ResultFile,
    Run,
    RunName,
    RunRow,
    Started,
    Ticket,
    UnreachableError,
    WrongRule,
    pause,
)

__all__ = [
    "Answer",
    "Client",
    "DeadLetter",
    "Due",
    "Expiry",
    "File",
    "Refusal",
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
