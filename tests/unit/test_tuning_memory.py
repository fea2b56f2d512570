"""What is remembered of how fast models are: the parent's half, on moto's server."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from posedrop.buckets import layout
from posedrop.buckets.storage import Storage
from worker import tuning_memory

DIGEST = "d" * 64
NAMES = [f"{letter * 32}.json" for letter in "cab"]


def test_the_newest_are_known_and_none_for_ever(
    storage: Storage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many the newest; what is old is timed anew; what is no tuning is passed by."""
    storage.write(bucket, f"{layout.tunings(DIGEST)}notes.txt", b"by hand")
    for name in NAMES:
        tuning_memory.keep(storage, bucket, DIGEST, {name: f"text of {name}"})
        time.sleep(1.1)  # stores tell times in seconds
    assert tuning_memory.fetch(storage, bucket, DIGEST) == {n: f"text of {n}" for n in NAMES}
    monkeypatch.setattr(tuning_memory, "MAX_KNOWN", 2)
    assert set(tuning_memory.fetch(storage, bucket, DIGEST)) == set(NAMES[1:])
    monkeypatch.setattr(tuning_memory, "MAX_AGE", timedelta(0))
    assert tuning_memory.fetch(storage, bucket, DIGEST) == {}
    assert tuning_memory.fetch(storage, f"{bucket}-gone", DIGEST) == {}
