"""What a check of the doctor finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OK = "ok"
WARN = "warn"
FAIL = "fail"

#: How long a check waits for a server's answer.
HTTP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``todo`` is for the person, empty if there is nothing to do."""

    check: str
    state: str
    message: str
    todo: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it for a script."""
        return asdict(self)
