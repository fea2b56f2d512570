"""What a check of the doctor finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import httpx

from posedrop.proxies import ProxyTransport
from posedrop.settings import ENV_FILE, Settings

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
        """Return the finding as a script reads it, as JSON types."""
        return asdict(self)


def ask(method: str, url: str, **more: Any) -> httpx.Response:
    """Return a server's answer; errors are httpx's, and ConfigurationError for a wrong proxy."""
    with httpx.Client(transport=ProxyTransport(), timeout=HTTP_SECONDS) as client:
        return client.request(method, url, **more)


def how_to_start(settings: Settings, what: str) -> str:
    """Return what to do about a server that does not answer: a stack's, or one called ``what``."""
    if (settings.data_dir / ENV_FILE).is_file():
        return f"start it, `posedrop --data-dir {settings.data_dir} up`"
    return f"start {what}"
