"""What is made of a run's poses when somebody asks for it: asked for, found, sent again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

from handlers.context import Context
from posedrop.buckets import layout, names
from posedrop.buckets.layout import Run
from posedrop.buckets.records.derived import (
    DERIVED,
    DERIVED_VERSION,
    Derived,
    DerivedRequest,
    derived_name,
)
from posedrop.buckets.records.runs import Artefact
from posedrop.errors import BadRequestError, BusyError, RecordError, StorageError
from posedrop.index.index import AnalysisRow
from posedrop.transport import queue

#: The name of a file -> what is asked for.
WHAT = {name: what for what, name in DERIVED.items()}


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
    return outcome(context, Run(row.run), WHAT[name])


def outcome(context: Context, run: Run, what: str, other: str | None = None) -> Artefact:
    """Return what is made of a run's poses; ask for it, if nobody has.

    What an older posedrop failed to make is asked for once more.

    Args:
        context: the handlers' tools.
        run: a run that is over.
        what: to be made.
        other: the folder of the run that it is compared with.

    Raises:
        BeingMadeError: it is not there yet.
        BadRequestError: it can't be made; the message says why.
    """
    bucket, name = context.settings.results_bucket, derived_name(what)
    record = context.storage.read_record(bucket, run.derived_record(what), Derived)
    if record is None:
        ask(context, run, [what], other)
        raise BeingMadeError(f"{name} is being made of this run: ask again in some seconds")
    if record.artefact is not None:
        return record.artefact
    if record.version < DERIVED_VERSION:
        asked = context.storage.read_whole_record(bucket, run.derived_request(what), DerivedRequest)
        if asked is None or asked.version < DERIVED_VERSION:
            ask_again(context, run, what, other)
            raise BeingMadeError(f"{name} is being made of this run: ask again in some seconds")
    words = record.error.message if record.error is not None else "it says nothing of why"
    code = record.error.code if record.error is not None else None
    raise BadRequestError(f"{name} can't be made of this run: {words}", code=code)


def ask(context: Context, run: Run, wanted: Iterable[str], other: str | None = None) -> None:
    """Have something made of a run that is over, unless it was asked for before, and is on its way.

    Where nothing was heard of it for a lease, its message seems lost, and goes once more.
    """
    bucket = context.settings.results_bucket
    for what in wanted:
        record = _request(context, what, other)
        if context.storage.create(bucket, run.derived_request(what), record.to_json()):
            queue.send(context.broker, "derive", run=run.prefix, what=what)
        else:
            _send_if_silent(context, run, what)


def ask_again(context: Context, run: Run, what: str, other: str | None = None) -> bool:
    """Have something made that was not, or could not be; tell whether it is to be made now.

    The attempts so far count no more. They stay, as a worker that is still at one must not think
    that another's is its own.
    """
    storage, bucket = context.storage, context.settings.results_bucket
    record = storage.read_whole_record(bucket, run.derived_record(what), Derived)
    if record is not None and record.artefact is not None:
        return False
    if record is None:
        ask(context, run, [what], other)
        return True
    folder = run.derived_attempts(what)
    found = storage.objects(bucket, f"{folder}/")
    last = max((layout.number_of(each.key, folder) or 0 for each in found), default=0)
    asked = _request(context, what, other).model_copy(update={"after": last})
    # In this order: what is asked for and was not made, the sweep sends.
    storage.write(bucket, run.derived_request(what), asked.to_json())
    storage.delete(bucket, [run.derived_record(what)])
    queue.send(context.broker, "derive", run=run.prefix, what=what)
    return True


def _request(context: Context, what: str, other: str | None) -> DerivedRequest:
    return DerivedRequest(what=what, asked_at=context.clock(), other=other, version=DERIVED_VERSION)


def forget_comparisons(context: Context, sha256: str | None, analysis_id: str) -> None:
    """Delete what other runs of the same content keep of their comparison with a run."""
    for file in context.index.files_with_content(sha256) if sha256 is not None else []:
        for place in context.index.places_of_file(file.file_id):
            delete_comparison(context, place.run, analysis_id)


def delete_comparison(context: Context, run: str, analysis_id: str) -> bool:
    """Delete a run's comparison with another one; tell whether there was one."""
    storage, bucket = context.storage, context.settings.results_bucket
    # With or without a slash behind it: the folder of its records, and its file.
    below = Run(run).derived_attempts(layout.comparison(analysis_id))
    keys = [found.key for found in storage.objects(bucket, below)]
    storage.delete(bucket, keys)
    return bool(keys)


def made(context: Context, prefix: str) -> list[Artefact]:
    """Return the files that were made of a run so far."""
    run, bucket = Run(prefix), context.settings.results_bucket
    there = {found.key for found in context.storage.objects(bucket, run.derived)}
    artefacts = []
    for what in DERIVED:
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
    """Send the message of what was asked for and is not there, if it seems lost; tell if it was.

    While messages wait in its queue it may be one of them. Who wants it by then asks again, and has
    it sent all the same.
    """
    if derived_name(what) is None or queue.ready(context.broker, queue.CPU):
        return False
    return _send_if_silent(context, Run(prefix), what)


def _send_if_silent(context: Context, run: Run, what: str) -> bool:
    """Send a message once more, if nothing was written of what it asks for within a lease."""
    storage, bucket = context.storage, context.settings.results_bucket
    request = run.derived_request(what)
    listing = storage.listing(bucket, f"{run.derived_attempts(what)}/")
    there = {found.key: found for found in listing.objects}
    if request not in there or run.derived_record(what) in there:
        return False
    silent = listing.now - max(found.last_modified for found in listing.objects)
    if silent < timedelta(seconds=context.settings.lease_seconds):
        return False
    for key in (run.request, run.result):
        if storage.head(bucket, key) is None:
            return False
    queue.send(context.broker, "derive", run=run.prefix, what=what)
    # Written anew, it is silent no more: who asks every second sends one message a lease. One that
    # was deleted meanwhile does not come back.
    with suppress(StorageError):  # it is sent; a store that can't do this has it sent once more
        asked = storage.read(bucket, request)
        if asked is not None:
            storage.replace(bucket, request, asked, there[request].etag)
    return True
