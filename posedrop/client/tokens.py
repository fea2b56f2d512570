"""The API tokens of a person's servers, by their URLs, so that `posedrop` works from any folder.

`posedrop up` writes one file a server into ``~/.config/posedrop/tokens/`` (``XDG_CONFIG_HOME``). A
token goes to the very URL that it was kept for: ``localhost`` may be somebody else's ``[::1]``.
"""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from urllib.parse import quote, unquote

from posedrop.errors import ConfigurationError
from posedrop.folders import own_folder, write_private

log = logging.getLogger(__name__)


def folder() -> Path:
    """Return the folder of the tokens.

    Raises:
        RuntimeError: this user has no home.
    """
    told = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (told if told.is_absolute() else Path.home() / ".config") / "posedrop" / "tokens"


def keep(url: str, token: str) -> None:
    """Keep a server's token; where that can't be, its folder's posedrop.env is the only one."""
    try:
        own_folder(folder())
        write_private(_path(url), f"{token}\n")
    except (OSError, RuntimeError, ConfigurationError) as error:
        log.warning("the token is not kept for other folders (%s): use --data-dir there", error)


def forget(url: str, token: str) -> None:
    """Remove a server's token, unless another server has come to its URL."""
    try:
        if hmac.compare_digest((of(url) or "").encode(), token.encode()):
            _path(url).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.warning("a token stays behind: %s", error)


def of(url: str) -> str | None:
    """Return the token of the server at a URL, None if none is kept that can be read."""
    try:
        return _path(url).read_text(encoding="ascii").strip() or None
    except (OSError, RuntimeError, ValueError):
        return None


def latest() -> str | None:
    """Return the URL of the server that was started last, None if none is known."""
    try:
        found = sorted(folder().glob("http*"), key=lambda path: path.lstat().st_mtime)
    except (OSError, RuntimeError):
        return None
    return unquote(found[-1].name) if found else None


def _path(url: str) -> Path:
    return folder() / quote(url.rstrip("/").lower(), safe="")
