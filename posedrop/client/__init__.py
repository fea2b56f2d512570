"""The HTTP API from the caller's side: for the command line, the demo and people's own scripts."""

from posedrop.api.answer import Answer
from posedrop.api.batches import Batch, BatchStarted, DryRun
from posedrop.api.files import File, Refusal, RunName
from posedrop.api.letters import DeadLetter, Replayed
from posedrop.api.retention import Due, Expired, Expiry
from posedrop.api.rules import WrongRule
from posedrop.api.runs import ComparisonAnswer, ResultFile, Run, RunRow, Started
from posedrop.api.uploads import Ticket
from posedrop.client.client import Client, UnreachableError, pause

__all__ = [
    "Answer",
    "Batch",
    "BatchStarted",
    "Client",
    "ComparisonAnswer",
    "DeadLetter",
    "DryRun",
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
