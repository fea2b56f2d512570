"""The memory of how fast models are, the parent's half: texts in the results bucket.

``_posedrop/tuning/<model digest>/<name>.json``; what they say is the child's business
(:mod:`worker.precision.tuning`). Nothing depends on them: they can be lost or deleted at any time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from heapq import nlargest
from itertools import islice

from posedrop.buckets import layout
from posedrop.buckets.storage import Storage
from posedrop.errors import StorageError

log = logging.getLogger(__name__)

#: Bytes of one, and how many of a model are looked at, the newest: a lab's films have a few sizes.
MAX_BYTES, MAX_KNOWN = 1 << 16, 64
#: Of so many at most these are looked for.
MAX_LISTED = 1000
#: What is older is timed anew: a machine that was busy while it timed is not believed for ever.
MAX_AGE = timedelta(days=30)
#: A job has one new one or two.
MAX_LEARNED = 8
_NAME = re.compile(r"[0-9a-f]{32}\.json")


def fetch(storage: Storage, bucket: str, digest: str) -> dict[str, str]:
    """Return the texts that are remembered of a model, by name; none if the store is away."""
    prefix = layout.tunings(digest)
    oldest = datetime.now(UTC) - MAX_AGE
    known = {}
    try:
        young = (
            one
            for one in islice(storage.objects(bucket, prefix), MAX_LISTED)
            if one.last_modified > oldest
            and one.size <= MAX_BYTES
            and _NAME.fullmatch(one.key.removeprefix(prefix))
        )
        for one in nlargest(MAX_KNOWN, young, key=lambda one: one.last_modified):
            text = storage.read(bucket, one.key)
            known[one.key.removeprefix(prefix)] = (text or b"").decode(errors="replace")
    except StorageError as error:
        log.warning("how fast the model is has to be found again: %s", error)
    return known


def keep(storage: Storage, bucket: str, digest: str, learned: Mapping[str, str]) -> None:
    """Write the texts that a child has learned of a model's speed; malformed ones are left out."""
    for name, text in islice(learned.items(), MAX_LEARNED):
        if not _NAME.fullmatch(name) or len(text) > MAX_BYTES:
            continue
        try:
            storage.write(bucket, layout.tunings(digest) + name, text.encode())
        except StorageError as error:
            log.warning("how fast the model is was not remembered: %s", error)
            return
