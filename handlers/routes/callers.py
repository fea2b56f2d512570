"""What the routes share: threads and contexts for calls that wait for the object store."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from handlers.context import LOOK_SECONDS, Context
from handlers.door.threads import Threads

#: How many requests wait for the object store at a time: for what is there, and for a change.
_ASKING, _CHANGING = 40, 8

#: How many rows a page of a list has.
Limit = Annotated[int, Query(ge=1, le=1000)]


class Callers:
    """Threads and contexts of the calls that wait for the object store, apart from all others."""

    def __init__(self, context: Context) -> None:
        self.context = context.for_callers()
        self.asking = Threads(_ASKING, LOOK_SECONDS)
        """Threads for what is looked up, with ``context``, whose waits for the store are short."""
        self.patient_context = context
        self.changing = Threads(_CHANGING, LOOK_SECONDS)
        """Threads for what is removed or copied, with ``patient_context``: that takes as long as
        there are objects, and ought not to be left half done."""
