"""A folder's posedrop.json as a person keeps it from the page: shown, and written without loss.

It is written on condition of its ETag, so that what somebody else wrote meanwhile stays. What it
says of other things (``keep``, ``exports``, a comment) stays too.
"""

from __future__ import annotations

import json
from typing import Any

from handlers.context import Context
from handlers.runs import rules, validation
from posedrop.api.rules import FolderRule, FolderRuleRequest
from posedrop.buckets import folder_rules, layout
from posedrop.buckets.folder_rules import WrongRuleError
from posedrop.errors import BadRequestError, ObjectChangedError, PosedropError
from posedrop.index.rows import FileRow

#: How many videos that wait are counted, and how many of them are named.
_COUNTED, _NAMED = 500, 10
#: Bytes of a folder's name: a key has 1,024.
_MOST_FOLDER = 1024 - len(layout.FOLDER_RULES)


class ChangedRuleError(PosedropError):
    """The folder's posedrop.json is not the one that the caller has seen."""

    code = "rule_changed"


def describe(context: Context, folder: str) -> FolderRule:
    """Return what the posedrop.json of a folder says, and which videos one there would start.

    Raises:
        BadRequestError: there can be no such folder.
        StorageError: the store did not answer.
    """
    key = _key(folder)
    rule = rules.read(context, key)
    films, more = _waiting(context, key)
    return FolderRule(
        rule=key,
        etag=rule.etag if rule is not None else None,
        analysis=rule.analysis if rule is not None else None,
        args=(rule.args if rule is not None else None) or {},
        existing=rule is None or rule.existing,
        problem=rule.problem.message if rule is not None and rule.problem is not None else None,
        waiting=len(films),
        more=more,
        films=films[:_NAMED],
    )


def keep(context: Context, folder: str, wanted: FolderRuleRequest, etag: str | None) -> FolderRule:
    """Write what is to be run in a folder into its posedrop.json; its event starts what waits.

    Args:
        context: the handlers' tools.
        folder: its name, with its slash; empty: the whole bucket.
        wanted: what it is to say.
        etag: of the posedrop.json that the caller has seen, None: there was none.

    Raises:
        BadRequestError: it could not be followed; ``field`` and ``errors`` say which part.
        ChangedRuleError: another one stands there; nothing was written.
        StorageError: the store did not answer.
    """
    key, bucket = _key(folder), context.settings.videos_bucket
    asked = validation.validate(context, wanted.analysis, wanted.args)
    value = _said_before(context, key, etag)
    value |= {"analysis": wanted.analysis, "args": wanted.args, "existing": wanted.existing}
    if wanted.existing:
        del value["existing"]
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")
    folder_rules.check_size(len(data))
    rule = folder_rules.parse(data)  # as it will be read
    read = rules.Rule(key, "", None, analysis=rule.analysis, args=rule.args)
    validation.validate_rule(context, read)
    if validation.validate(context, asked.analysis.name, rule.args).args != asked.args:
        raise BadRequestError("these args can't be kept in a file as they are", field="args")
    films, more = _waiting(context, key) if wanted.existing else ([], False)
    if etag is None:
        is_written = context.storage.create(bucket, key, data)
    else:
        is_written = context.storage.replace(bucket, key, data, etag)
    if not is_written:
        raise _changed(key)
    there = context.storage.head(bucket, key)
    return FolderRule(
        rule=key,
        etag=there.etag if there is not None else None,
        analysis=rule.analysis,
        args=rule.args,
        existing=rule.existing,
        problem=None,
        waiting=len(films),
        more=more,
        films=films[:_NAMED],
    )


def _key(folder: str) -> str:
    """Return the key of a folder's posedrop.json."""
    name = folder.rstrip("/") + "/" if folder else ""
    parts = name.split("/")[:-1]
    if len(parts) > layout.RULES_DEPTH:
        raise BadRequestError(
            f"rules count in the upper {layout.RULES_DEPTH} folders of a key: keep one further up",
            field="folder",
        )
    if (
        not name.isprintable()
        or any(part in {"", ".", ".."} for part in parts)
        or len(name.encode(errors="replace")) > _MOST_FOLDER
    ):
        raise BadRequestError(f"{folder[:80]!r} can be no folder of the bucket", field="folder")
    return name + layout.FOLDER_RULES


def _said_before(context: Context, key: str, etag: str | None) -> dict[str, Any]:
    """Return the posedrop.json with this ETag as an object, empty where it is none or wrong."""
    bucket = context.settings.videos_bucket
    found = context.storage.head(bucket, key)
    if (found.etag if found is not None else None) != etag:
        raise _changed(key)
    if found is None:
        return {}
    try:
        folder_rules.check_size(found.size)
        data = context.storage.read(bucket, key, found.etag)
        return folder_rules.load(data or b"")
    except WrongRuleError:
        return {}
    except ObjectChangedError as error:
        raise _changed(key) from error


def _changed(key: str) -> ChangedRuleError:
    return ChangedRuleError(
        f"{key} was written, changed or removed by somebody else: look at it again, nothing was "
        "overwritten"
    )


def _waiting(context: Context, key: str) -> tuple[list[str], bool]:
    """Return the keys of videos that would follow a rule, and whether there may be more of them."""
    folder = key.removesuffix(layout.FOLDER_RULES)
    rows = context.index.files_waiting(folder, "", _COUNTED, None)
    silent: dict[str, bool] = {}
    films = [row.key for row in rows if _would_follow(context, row, key, silent)]
    return films, len(rows) == _COUNTED


def _would_follow(context: Context, row: FileRow, key: str, silent: dict[str, bool]) -> bool:
    for nearer in layout.folder_rules(row.key):
        if nearer == key:
            break
        known = context.index.rule(nearer)
        if known is None or known.etag is None:
            continue
        if nearer not in silent:
            rule = rules.read(context, nearer)
            silent[nearer] = rule is None or rule.is_silent
        if not silent[nearer]:
            return False
    # As a plan does: a video that has a run follows no rule that comes after.
    return not context.index.analyses_of_file(row.file_id)
