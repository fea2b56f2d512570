"""The memory of how fast models are, the parent's half: texts in the results bucket.

``_posedrop/tuning/<model digest>/<name>.json``; what they say is the child's business
(:mod:`worker.precision.tuning`). Nothing depends on them: they can be lost or deleted at any time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import islice

from posedrop.buckets import layout
from posedrop.buckets.storage import Storage
from posedrop.errors import StorageError

log = logging.getLogger(__name__)

#: Bytes of one, and how many of a model are looked at: a lab's films have a few sizes.
MAX_BYTES, MAX_KNOWN = 1 << 16, 64
#: A job has one new one or two.
MAX_LEARNED = 8
_NAME = re.compile(r"[0-9a-f]{32}\.json")


def fetch(storage: Storage, bucket: str, digest: str) -> dict[str, str]:
    """Return the texts that are remembered of a model, by name; none if the store is away."""
    prefix = layout.tunings(digest)
    known = {}
    try:
        for one in islice(storage.objects(bucket, prefix), MAX_KNOWN):
            name = one.key.removeprefix(prefix)
            if one.size <= MAX_BYTES and _NAME.fullmatch(name):
                text = storage.read(bucket, one.key)
                known[name] = (text or b"").decode(errors="replace")
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
