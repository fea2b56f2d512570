"""Videos that wait for a rule: planned when one comes, when a wrong one is mended, or goes.

A video that followed no rule is open to the next one that comes into any of its folders. A video
whose nearest rule is wrong waits for that. What happens to a rule is noted in the index, and the
videos below it are planned a few at a time, between events, so that a large folder holds up nothing
and a process that dies goes on where it was.
"""

from __future__ import annotations

import logging

from handlers.context import Context
from handlers.runs import plan, rules, validation
from posedrop.errors import BadRequestError, StorageError
from posedrop.index.index import FileRow, IndexBusyError

log = logging.getLogger(__name__)

#: So many videos are planned before the next events are looked at: each takes some ten calls.
SLICE = 8
#: So many wrong rules are looked at in a round of the reconciler: a model may have been pushed.
_AGAIN = 20


def rule_changed(context: Context, key: str) -> None:
    """Look at a rule that came, was replaced or is gone; the videos below it are planned anew.

    Raises:
        StorageError: the store did not answer; whoever asked has to ask again.
    """
    rule = rules.default(context) if key == rules.DEFAULT else rules.read(context, key)
    if rule is None:
        rules.tell(context, key, None, None)
        return
    try:
        validation.validate_rule(context, rule)
    except BadRequestError as error:
        rules.tell(context, key, rule.etag, error)
    else:
        rules.tell(context, key, rule.etag, None)


def try_again(context: Context) -> None:
    """Look again at wrong rules: the model that one lacked may be there now."""
    for row in context.index.rules_wrong(_AGAIN):
        try:
            rule_changed(context, row.key)
        except StorageError as error:
            log.warning("%s is looked at later: %s", row.key, error)


def go_on(context: Context) -> int:
    """Plan the next few videos that wait for a rule which has changed; 0: no rule has."""
    row = context.index.rule_to_follow()
    if row is None:
        return 0
    only = row.key if row.key == rules.DEFAULT else None
    waiting = context.index.files_waiting(rules.folder_of(row), row.after or "", SLICE, only)
    for file in waiting:
        _plan_again(context, file)
    context.index.rule_followed(
        row, waiting[-1].key if len(waiting) == SLICE else None, context.clock()
    )
    return max(1, len(waiting))


def _plan_again(context: Context, file: FileRow) -> None:
    try:
        there = context.storage.head(file.bucket, file.key)
        if there is None or there.etag != file.etag:
            # Of what has replaced it since, its own event tells, or the sweep.
            return
        video = context.video_record(file.bucket, file.key)
        if video is not None:
            plan.plan_runs(context, video)
    except IndexBusyError:
        raise
    except Exception as error:
        # It holds up no other; the reconciler comes back to it.
        log.warning("%s is planned later: %r", file.key, error)
        context.index.file_unplanned(file.file_id)
