"""How large a test is: as CI has room for, or at full size, as ``make soak`` and ``uploads`` do."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
FULL_SIZE = bool(os.environ.get("POSEDROP_FULL_SIZE"))


def size(in_ci: T, full: T) -> T:
    """Return how many there are of something."""
    return full if FULL_SIZE else in_ci
