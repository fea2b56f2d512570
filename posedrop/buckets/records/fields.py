"""The types of records' fields.

Whoever may write into a bucket may write any record: each number, time and tree in one has a bound,
so that what is read can be kept in SQLite and written again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from posedrop.bounded import bounded

#: What SQLite takes as a whole number.
_MOST = 2**63


def _details(tree: Any) -> Any:
    return bounded(tree, is_finite=False)


def _told_of_our_time(moment: datetime) -> datetime:
    if not 1970 <= moment.year < 2100:
        raise ValueError("a time between the years 1970 and 2100 is needed")
    return moment


Count = Annotated[int, Field(ge=0, lt=_MOST)]
Pixels = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Finite
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
#: A few words, or the name of a bodypart, on one line.
Words = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
Json = Annotated[dict[str, Any], AfterValidator(bounded)]
#: What an analysis tells for people, in which a number may be missing.
Details = Annotated[dict[str, Any], AfterValidator(_details)]
Moment = Annotated[datetime, AfterValidator(_told_of_our_time)]
#: The name of a receiver of notices, as the server's settings and a posedrop.json have it.
Alias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Aliases = Annotated[list[Alias], Field(max_length=20)]
