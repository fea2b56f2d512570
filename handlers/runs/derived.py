"""What is made of a run's poses when somebody asks for it: asked for, found, sent again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from handlers.context import Context
from posedrop.buckets import names
from posedrop.buckets.layout import Run
from posedrop.buckets.records import EXPORTS, Artefact, Derived, DerivedRequest
from posedrop.errors import BadRequestError, BusyError, RecordError
from posedrop.index.index import AnalysisRow
from posedrop.transport import queue

#: The name of a file -> what is asked for.
WHAT = {name: what for what, name in EXPORTS.items()}


class BeingMadeError(BusyError):
    """A file that was asked for is being made; worth asking again soon."""

    code = "being_made"


def can_be_made(row: AnalysisRow, name: str) -> bool:
    """Tell whether a file of this name can be made of a run: it is over, and has its table."""
    if name not in WHAT or row.finished_at is None:
        return False
    return names.find(row.artefacts, "poses.csv") is not None


def find(context: Context, row: AnalysisRow, name: str) -> Artefact:
    """Return a file that is made when it is asked for; ask for it, if nobody has.

    Args:
        context: the handlers' tools.
        row: a run of which it can be made.
        name: of the file.

    Raises:
        BeingMadeError: it is not there yet.
        BadRequestError: it can't be made; the message says why.
    """
    what, run = WHAT[name], Run(row.run)
    bucket = context.settings.results_bucket
    record = context.storage.read_record(bucket, run.derived_record(what), Derived)
    if record is None:
        ask(context, run, [what])
        raise BeingMadeError(f"{name} is being made of this run: ask again in some seconds")
    if record.artefact is None:
        why = record.error
        words = why.message if why is not None else "it says nothing of why"
        code = why.code if why is not None else None
        raise BadRequestError(f"{name} can't be made of this run: {words}", code=code)
    return record.artefact


def ask(context: Context, run: Run, wanted: Iterable[str]) -> None:
    """Have something made of a run that is over, unless it was asked for before."""
    bucket = context.settings.results_bucket
    for what in wanted:
        record = DerivedRequest(what=what, asked_at=context.clock())
        if context.storage.create(bucket, run.derived_request(what), record.to_json()):
            queue.send(context.broker, "derive", run=run.prefix, what=what)


def made(context: Context, prefix: str) -> list[Artefact]:
    """Return the files that were made of a run so far."""
    run, bucket = Run(prefix), context.settings.results_bucket
    there = {found.key for found in context.storage.objects(bucket, run.derived)}
    artefacts = []
    for what in EXPORTS:
        if (key := run.derived_record(what)) not in there:
            continue
        try:
            record = context.storage.read_record(bucket, key, Derived)
        except RecordError as error:
            context.storage.report(error)
            continue
        if record is not None and record.artefact is not None:
            artefacts.append(record.artefact)
    return artefacts


def send_again(context: Context, prefix: str, what: str) -> bool:
    """Send the message of what was asked for and is not there, if it seems lost; tell if it was."""
    run, bucket = Run(prefix), context.settings.results_bucket
    if what not in EXPORTS or queue.ready(context.broker, queue.CPU):
        return False
    folder = run.derived_attempts(what)
    listing = context.storage.listing(bucket, f"{folder}/")
    keys = {found.key for found in listing.objects}
    if run.derived_request(what) not in keys or run.derived_record(what) in keys:
        return False
    silent = listing.now - max(found.last_modified for found in listing.objects)
    if silent < timedelta(seconds=context.settings.lease_seconds):
        return False
    for key in (run.request, run.result):
        if context.storage.head(bucket, key) is None:
            return False
    queue.send(context.broker, "derive", run=prefix, what=what)
    return True
