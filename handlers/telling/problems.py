"""What will keep somebody from being told, found before there is anything to tell."""

from __future__ import annotations

from collections.abc import Iterator

from handlers.context import Context
from handlers.runs import rules
from handlers.telling.receiver import Child
from posedrop.api.telling import NotifyChecked, NotifyProblem
from posedrop.errors import StorageError

#: So many rules are read from the bucket at most, and named at most.
_RULES, _NAMED, _PAGE = 1000, 100, 200


def check(context: Context) -> NotifyChecked:
    """Look at each alias of the settings, and at the aliases that rules of folders name."""
    aliases = context.settings.notify_urls
    items = []
    for alias in sorted(aliases):
        receiver = Child(context.settings, alias)
        try:
            error = receiver.check()
        finally:
            receiver.close()
        if error is not None:
            items.append(NotifyProblem(alias=alias, rule=None, message=error))
    looked_at = 0
    for key, named in _rules(context):
        looked_at += 1
        for alias in named:
            if alias not in aliases and len(items) < _NAMED:
                words = "the server has no such alias: POSEDROP_NOTIFY_URLS has them"
                items.append(NotifyProblem(alias=alias, rule=key, message=words))
    return NotifyChecked(items=items, aliases=len(aliases), rules=looked_at)


def _rules(context: Context) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield rules that can be read, with the aliases that they name."""
    after: str | None = ""
    left = _RULES
    while after is not None and left > 0:
        page = context.index.rules(after, min(_PAGE, left))
        for row in page:
            if row.key == rules.DEFAULT or row.etag is None:
                continue
            try:
                rule = rules.read(context, row.key)
            except StorageError:  # the check of the store says so
                continue
            if rule is not None:
                yield row.key, rule.notify
        left -= len(page)
        after = page[-1].key if len(page) == _PAGE else None
