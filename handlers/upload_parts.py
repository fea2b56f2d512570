"""Uploads in parts: looked at before they begin, begun or gone on with, signed, completed.

Nothing of an upload is remembered here: which parts are there, the store says. So one goes on after
the page, the command line or this process was killed, and within a week, when
:mod:`handlers.upkeep.abandoned_parts` gives it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from handlers import changes, upload
from handlers.context import Context
from handlers.runs import rules
from posedrop.api.uploads import (
    CheckAnswer,
    Checked,
    CheckedFile,
    CheckRequest,
    CompleteRequest,
    Part,
    PartsOf,
    PartsRequest,
    PartsTicket,
    SignAnswer,
    SignedPart,
    SignRequest,
    Uploaded,
)
from posedrop.buckets import folder_rules, layout, targets
from posedrop.buckets.parts import (
    MAX_PARTS,
    KeyTakenError,
    NoUploadError,
    OtherPartsError,
    StoredPart,
    composite,
    part_length,
    part_size,
)
from posedrop.buckets.records.rules import FolderRules
from posedrop.buckets.uploads import UnfinishedUpload
from posedrop.errors import BadRequestError, PosedropError

#: Of the errors of this module that are no 503.
STATUSES: dict[type[PosedropError], int] = {
    KeyTakenError: 409,
    OtherPartsError: 409,
    NoUploadError: 404,
}


class MissingPartsError(OtherPartsError):
    """Parts are not there; the client puts them, and completes the upload then."""

    code = "parts_missing"


# -- before they begin -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drop:
    """What goes up together, and the rules that count for it.

    ``dropped`` has, by key, those of its own rules that go up or are there already, and of those
    that can't go up, why not; ``known`` those of the bucket. One that stands there is followed,
    whatever was dropped.
    """

    folder: str
    analysis: str | None
    dropped: dict[str, FolderRules | BadRequestError | None]
    known: dict[str, rules.Rule | None]


@dataclass(frozen=True)
class _There:
    """An object under a file's key; ``data`` of a rule that may be the same, else None."""

    etag: str
    size: int
    data: bytes | None = None


def check(context: Context, wanted: CheckRequest) -> CheckAnswer:
    """Tell what would become of files; nothing is begun.

    Raises:
        BadRequestError: there can be no such folder, or no such analysis.
        StorageError: the store is away.
    """
    if wanted.analysis is not None:
        upload.check_metadata(context, wanted.analysis, None)
    drop = _Drop(targets.check_folder(wanted.to), wanted.analysis, {}, {})
    # Its rules first: they count for all of its films.
    order = sorted(wanted.files, key=lambda file: not layout.is_folder_rule(file.path))
    answers: dict[str, Checked] = {}
    looks = context.lookers.map(lambda file: _look(context, drop, file), order)
    for file, there in zip(order, looks, strict=True):
        if file.path in answers:
            continue
        try:
            answers[file.path] = _check(context, drop, file, there)
        except BadRequestError as error:
            answers[file.path] = Checked(path=file.path, state="refused", why=error.message)
    return CheckAnswer(items=[answers[file.path] for file in wanted.files])


def _look(context: Context, drop: _Drop, file: CheckedFile) -> _There | None:
    try:
        key = _key(drop.folder, file.path)
    except BadRequestError:
        return None
    if _passed_over(file.path) is not None:
        return None  # of these there may be a hundred thousand
    bucket = context.settings.videos_bucket
    found = context.storage.head(bucket, key) if key is not None else None
    if found is None or key is None:
        return None
    data = None
    may_be_same = layout.is_folder_rule(key) and file.content is not None
    if may_be_same and found.size == file.size <= folder_rules.MAX_BYTES:
        data = context.storage.read(bucket, key, found.etag)
    return _There(found.etag, found.size, data)


def _key(folder: str, path: str) -> str | None:
    """Return a film's key, None for one without a folder: it gets one of its own."""
    return targets.key_in(folder, path) if folder or "/" in path else None


def _check(context: Context, drop: _Drop, file: CheckedFile, there: _There | None) -> Checked:
    key = _key(drop.folder, file.path)
    is_rule = layout.is_folder_rule(file.path)
    answer = Checked(path=file.path, key=key, state="new")
    passed_over = _passed_over(file.path)
    if passed_over is not None:
        return answer.model_copy(update={"state": "passed over", "why": passed_over})
    if is_rule:
        _check_rule(drop, file, key, there)
    elif file.size == 0:
        raise BadRequestError("it is empty: is it still being recorded?")
    else:
        upload.check_size(context, file.size, "size")
    if there is not None:
        _check_same(file, key, there)
        return answer.model_copy(update={"state": "exists", "etag": there.etag})
    rule, runs = (None, None) if is_rule else _what_runs(context, drop, file.path, key)
    return answer.model_copy(update={"rule": rule, "runs": runs})


def _passed_over(path: str) -> str | None:
    """Return why a file is none of those that go up of a folder, None if it is one."""
    # The first folder is what a person dropped, whatever its name.
    for folder in path.split("/")[1:-1]:
        if targets.is_systems(folder):
            return f"it is in {folder[:60]}, which a system keeps for itself"
    if "/" in path and not layout.is_folder_rule(path) and not targets.is_film(path):
        return "it is no film"
    return None


def _check_rule(drop: _Drop, file: CheckedFile, key: str | None, there: _There | None) -> None:
    """Refuse a rule that can't go up, and note what those of its films are to go by."""
    if there is not None:
        _check_same(file, key, there)  # rather than what is wrong with one that does not go up
    try:
        parsed = _parsed(file, key)
    except BadRequestError as error:
        if there is None:
            # The next rule further up was not meant for its films.
            wrong = BadRequestError(f"mend {file.path} first: {error.message}")
            drop.dropped[key or layout.FOLDER_RULES] = wrong
        raise
    if key is not None and (there is None or there.data is not None):
        drop.dropped[key] = parsed  # one that is there says the same


def _parsed(file: CheckedFile, key: str | None) -> FolderRules | None:
    """Return a dropped rule, None if it is not told what it says."""
    if key is None:
        raise BadRequestError("a posedrop.json counts for a folder: say for which")
    folder_rules.check_size(file.size)
    return folder_rules.parse(file.content.encode()) if file.content is not None else None


def _check_same(file: CheckedFile, key: str | None, there: _There) -> None:
    """Refuse a file under whose key the bucket has another one.

    Films go by their size alone, rules by what they say: an edited one may be as long as before.
    """
    if there.size != file.size:
        raise BadRequestError(
            f"{key} is there with {there.size:,} bytes, and this one has {file.size:,}; nothing is "
            "replaced: choose another folder or name, or delete that one first"
        )
    if there.data is None or file.content is None:
        return
    try:
        is_same = folder_rules.decode(there.data) == file.content.lstrip("\ufeff")
    except folder_rules.WrongRuleError:
        is_same = False
    if not is_same:
        raise BadRequestError(
            f"{key} is there, says something else, and is the one that counts; nothing is "
            "replaced: choose another folder, or delete that one first"
        )


def _what_runs(
    context: Context, drop: _Drop, path: str, key: str | None
) -> tuple[str | None, str | None]:
    """Return the key of the rule that counts for a film, if one does, and what is run on it.

    Raises:
        BadRequestError: the film's own rule can't go up with it.
    """
    if drop.analysis is not None:
        return None, drop.analysis
    # A film without a folder gets one of its own, where no rule is.
    for each in layout.folder_rules(key if key is not None else f"uploads/{path}"):
        if each in drop.dropped:
            dropped = drop.dropped[each]
            if isinstance(dropped, BadRequestError):
                raise dropped
            if dropped is None or not dropped.is_silent:
                return each, dropped.analysis if dropped is not None else None
            continue
        if each not in drop.known:
            drop.known[each] = rules.read(context, each)
        rule = drop.known[each]
        if rule is not None and not rule.is_silent:
            return each, rule.analysis
    return None, context.settings.default_analysis


# -- on their way ----------------------------------------------------------------------------------


def begin(context: Context, wanted: PartsRequest) -> PartsTicket:
    """Begin an upload in parts, or return the one of the same key with the parts that are there.

    Raises:
        BadRequestError: the name, size, analysis or its arguments are wrong.
        KeyTakenError: an object of another size is there.
    """
    is_rule = layout.is_folder_rule(wanted.path)
    if is_rule:
        folder_rules.check_size(wanted.size)
    upload.check_size(context, wanted.size, "size")
    metadata = {} if is_rule else upload.metadata_of(context, wanted.analysis, wanted.args)
    bucket = context.settings.videos_bucket
    key = _key(targets.check_folder(wanted.to), wanted.path)
    if key is None:
        if is_rule:
            raise BadRequestError("a posedrop.json counts for a folder: say for which", field="to")
        file_id = layout.new_file_id(wanted.file_id or upload.new_file_id())
        key = upload.upload_key(file_id, wanted.path)
    else:
        file_id = context.file_id(key)
    part_bytes = part_size(wanted.size, context.settings.multipart_bytes)
    ticket = PartsTicket(
        file_id=file_id,
        bucket=bucket,
        key=key,
        size=wanted.size,
        part_bytes=part_bytes,
        state="exists",
    )
    there = context.storage.head(bucket, key)
    if there is not None:
        if there.size != wanted.size:
            raise KeyTakenError(
                f"{key} is there with {there.size:,} bytes, and this one has {wanted.size:,}; "
                "nothing is replaced: choose another folder or name, or delete that one first",
                field="path",
            )
        crc32 = context.storage.checksum(bucket, key)
        return ticket.model_copy(update={"crc32": crc32, "etag": there.etag})
    upload_id, parts = _go_on(context, ticket, metadata)
    state = "resumed"
    if upload_id is None:
        state = "new"
        content_type = wanted.content_type or upload.guess_type(key)
        upload_id = context.storage.begin_parts(bucket, key, content_type, metadata)
        changes.note("upload allowed", file_id=file_id, key=key)
    if not is_rule:
        context.index.expect_file(
            file_id, bucket, key, context.clock(), size=wanted.size, metadata=metadata
        )
    return ticket.model_copy(
        update={
            "state": state,
            "upload_id": upload_id,
            "parts": [Part.model_validate(part) for part in parts],
        }
    )


def _go_on(
    context: Context, ticket: PartsTicket, metadata: dict[str, str]
) -> tuple[str | None, Sequence[StoredPart]]:
    """Return the upload of a key that can be gone on with, None if there is none."""
    upload_id = context.storage.find_parts(ticket.bucket, ticket.key)
    if upload_id is None:
        return None, ()
    try:
        parts = context.storage.stored_parts(ticket.bucket, ticket.key, upload_id)
    except NoUploadError:
        return None, ()
    row = context.index.file(ticket.file_id)
    asked = row.metadata if row is not None and row.state == "expected" else metadata
    fits = all(
        part.size == part_length(part.number, ticket.size, ticket.part_bytes) for part in parts
    )
    if fits and (asked or {}) == metadata:
        return upload_id, parts
    # Of another film, or for another analysis, which its object would carry.
    give_up(context, ticket.key, upload_id)
    return None, ()


def sign(context: Context, wanted: SignRequest) -> SignAnswer:
    """Return presigned PUTs of parts, each for its own length and CRC32.

    Raises:
        BadRequestError: the upload has no such part.
    """
    bucket = context.settings.videos_bucket
    _check_parts(context, wanted)
    items = []
    for part in wanted.parts:
        length = part_length(part.number, wanted.size, wanted.part_bytes)
        if length <= 0:
            raise BadRequestError(f"there is no part {part.number}", field="parts")
        signed = context.storage.presign_part(
            bucket, wanted.key, wanted.upload_id, part.number, length, part.crc32
        )
        items.append(SignedPart(number=part.number, url=signed.url, headers=signed.headers))
    return SignAnswer(items=items)


def complete(context: Context, wanted: CompleteRequest) -> Uploaded:
    """Make a film of its parts; one that was made of them before is as good.

    Raises:
        MissingPartsError: not all of them are there.
        OtherPartsError: others are there; the upload is given up, and can begin anew.
        KeyTakenError: another object has come under the key meanwhile; nothing is replaced.
        NoUploadError: there is no such upload, and no such film.
    """
    bucket, storage = context.settings.videos_bucket, context.storage
    _check_parts(context, wanted)
    count = -(-wanted.size // wanted.part_bytes)
    if len(wanted.crc32) != count:
        raise BadRequestError(f"crc32 of {count} parts are needed", field="crc32")
    try:
        stored = storage.stored_parts(bucket, wanted.key, wanted.upload_id)
        _compare(wanted, count, stored)
        storage.complete_parts(bucket, wanted.key, wanted.upload_id, stored, wanted.crc32)
    except MissingPartsError:
        raise
    except OtherPartsError as error:
        _begin_anew(context, wanted, error)
    except (KeyTakenError, NoUploadError) as error:
        # The answer of an earlier try may have been lost.
        if not _is_there(context, wanted):
            raise
        if isinstance(error, KeyTakenError):
            give_up(context, wanted.key, wanted.upload_id)
    file_id = context.file_id(wanted.key)
    changes.note("uploaded", file_id=file_id)
    return Uploaded(file_id=file_id, key=wanted.key, size=wanted.size)


def _check_parts(context: Context, wanted: PartsOf) -> None:
    targets.key_in("", wanted.key)
    upload.check_size(context, wanted.size, "size")
    if wanted.size > MAX_PARTS * wanted.part_bytes:
        raise BadRequestError(f"an upload has {MAX_PARTS:,} parts at most", field="part_bytes")


def _compare(wanted: CompleteRequest, count: int, stored: Sequence[StoredPart]) -> None:
    there = {part.number: part for part in stored}
    missing = [number for number in range(1, count + 1) if number not in there]
    if missing:
        named = ", ".join(map(str, missing[:10]))
        raise MissingPartsError(f"{wanted.key}: of {count} parts these are not there: {named}")
    for number, crc in enumerate(wanted.crc32, start=1):
        length = part_length(number, wanted.size, wanted.part_bytes)
        if there[number].size != length or there[number].crc32 not in {None, crc}:
            raise OtherPartsError(f"{wanted.key}: part {number} is another in the store")
    if len(there) > count:
        raise OtherPartsError(f"{wanted.key}: the store has more parts than {count}")


def _begin_anew(context: Context, wanted: CompleteRequest, error: OtherPartsError) -> NoReturn:
    give_up(context, wanted.key, wanted.upload_id)
    raise OtherPartsError(f"{error.message}: the upload begins anew") from error


def _is_there(context: Context, wanted: CompleteRequest) -> bool:
    bucket = context.settings.videos_bucket
    found = context.storage.head(bucket, wanted.key)
    if found is None or found.size != wanted.size:
        return False
    return context.storage.checksum(bucket, wanted.key) in {None, composite(wanted.crc32)}


def give_up(context: Context, key: str, upload_id: str) -> None:
    """Have the store drop the parts of an upload."""
    bucket = context.settings.videos_bucket
    unfinished = UnfinishedUpload(key, upload_id, context.clock())
    context.storage.abort_upload(bucket, unfinished)
