"""Counts of what the reconciler has found and mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass

_NO_REPAIRS = frozenset({"videos_seen", "results_seen", "held_back", "undeletable", "damaged"})


@dataclass
class Repairs:
    """Counts of one round of the reconciler: what it found and mended."""

    videos_seen: int = 0
    results_seen: int = 0
    uploads_found: int = 0
    rules_found: int = 0
    files_gone: int = 0
    records_indexed: int = 0
    runs_gone: int = 0
    results_copied: int = 0
    ingests_sent: int = 0
    runs_sent: int = 0
    requests_planned: int = 0
    exports_sent: int = 0
    comparisons_gone: int = 0
    expired: int = 0
    old_records: int = 0
    """Records of notices and batches that ended months ago."""
    given_up: int = 0
    """Uploads that never came, and pending requests about them."""
    held_back: int = 0
    """Films and runs that are due, too many at once: `posedrop expire` removes them."""
    undeletable: int = 0
    damaged: int = 0

    def as_counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    @property
    def mended(self) -> int:
        """How many things were not as they should be."""
        return sum(n for name, n in self.as_counts().items() if name not in _NO_REPAIRS)
