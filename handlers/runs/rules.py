"""Rules of folders (posedrop.json) and the server's default: found, read, and told when wrong.

A wrong one is told once, in a record of its own, and not beside each video below it: those wait
until it is mended. The record goes when it is, or when the rule is removed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from handlers.context import Context
from posedrop.buckets import folder_rules, layout
from posedrop.buckets.folder_rules import WrongRuleError
from posedrop.buckets.records.derived import ExportFormat
from posedrop.buckets.records.rules import WrongRule
from posedrop.buckets.records.runs import RunError
from posedrop.errors import BadRequestError, PosedropError, RecordError
from posedrop.index.index import RuleRow

log = logging.getLogger(__name__)

#: Under this name the server's default is told when it is wrong; no object's key can be it.
DEFAULT = "POSEDROP_DEFAULT_ANALYSIS"
_MAX_MESSAGE = 2000


@dataclass(frozen=True)
class Rule:
    """A rule as it was read; ``problem`` says why it can't be followed, None for a right one.

    ``is_silent``: it says which videos are kept, and nothing of analyses.
    """

    key: str
    etag: str
    last_modified: datetime | None
    analysis: str | None = None
    args: dict[str, Any] | None = None
    existing: bool = True
    problem: BadRequestError | None = None
    keep: bool | list[str] | None = None
    is_silent: bool = False
    exports: tuple[ExportFormat, ...] = ()
    notify: tuple[str, ...] = ()


def nearest(context: Context, key: str, seen: dict[str, str | None]) -> Rule | None:
    """Return the rule of the nearest folder that says what is run on a video, wrong or not.

    Of those folders that ``layout.folder_rules`` names: of a key of hundreds, the upper ones.

    Args:
        key: of the video.
        seen: gets the ETags of the rules that were looked for, None where there was none.

    Raises:
        StorageError: the store did not answer, or the rule was replaced that moment.
    """
    for each in layout.folder_rules(key):
        rule = read(context, each)
        seen[each] = rule.etag if rule is not None else None
        if rule is not None and not rule.is_silent:
            return rule
    return None


def read(context: Context, key: str) -> Rule | None:
    """Read a posedrop.json from the videos bucket; None: there is none under this key.

    Raises:
        StorageError: the store did not answer, or the rule was replaced that moment.
    """
    bucket = context.settings.videos_bucket
    found = context.storage.head(bucket, key)
    if found is None:
        return None
    try:
        folder_rules.check_size(found.size)
        # Of these bytes, whose number is within bounds, and which the ETag names.
        data = context.storage.read(bucket, key, found.etag)
        if data is None:
            return None
        rules = folder_rules.parse(data)
    except WrongRuleError as error:
        return Rule(key, found.etag, found.last_modified, problem=error)
    return Rule(
        key,
        found.etag,
        found.last_modified,
        rules.analysis,
        rules.args,
        rules.existing,
        keep=rules.keep,
        is_silent=rules.is_silent,
        exports=tuple(dict.fromkeys(rules.exports)),
        notify=tuple(dict.fromkeys(rules.notify)),
    )


def default(context: Context) -> Rule | None:
    """Return the server's default analysis as a rule, None if none is set."""
    settings = context.settings
    if settings.default_analysis is None:
        return None
    etag = layout.make_id(settings.default_analysis, repr(sorted(settings.default_args.items())))
    return Rule(DEFAULT, etag, None, settings.default_analysis, settings.default_args)


def tell(context: Context, key: str, etag: str | None, problem: PosedropError | None) -> None:
    """Record what is wrong with a rule, or that nothing is (any more); ``etag`` None: it is gone.

    The bucket is told before the index, so that what was cut short is told again.
    """
    bucket, record = context.settings.results_bucket, layout.wrong_rule(key)
    row = context.index.rule(key)
    if problem is None or etag is None:
        if row is None or row.error is not None:
            context.storage.delete(bucket, [record])
        context.index.rule_told(key, etag, None, context.clock(), context.clock())
        return
    message = problem.message[:_MAX_MESSAGE]
    error = RunError(code=problem.code, message=message, stage="plan", field=problem.field)
    since = row.since if row is not None and row.etag == etag and row.error is not None else None
    if since is None or row is None or row.error != error:
        known = wrong(context, record)
        since = known.since if known is not None and known.etag == etag else context.clock()
        told = WrongRule(key=key, etag=etag, code=error.code, message=message, since=since)
        if told != known:
            context.storage.write(bucket, record, told.to_json())
            log.warning("%s is wrong, the videos below it wait: %s", key, message)
    context.index.rule_told(key, etag, error, since, context.clock())


def wrong(context: Context, record: str) -> WrongRule | None:
    """Return what a record says is wrong with a rule, None if it is gone or can't be read."""
    try:
        return context.storage.read_whole_record(context.settings.results_bucket, record, WrongRule)
    except RecordError:  # of a newer posedrop
        return None


def folder_of(row: RuleRow) -> str:
    """Return the prefix of the keys of all videos that a rule is for."""
    return "" if row.key == DEFAULT else row.key.removesuffix(layout.FOLDER_RULES)
