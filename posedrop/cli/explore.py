"""``posedrop explore``: the index in a browser, by Datasette, read-only, while it is written."""

from __future__ import annotations

import base64
import hmac
import re
import sqlite3
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from posedrop.address import is_loopback
from posedrop.cli.options import Options
from posedrop.errors import ConfigurationError
from posedrop.terminal import say

#: Columns that a view has of what is written as JSON: of the newest runs' keys, so many at most.
_RUNS, _COLUMNS = 10_000, 300
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._-]{0,63}")
_SETTINGS = {"default_cache_ttl": 0, "allow_download": False}
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8001, show_default=True, help="Port to listen on.")
@click.pass_obj
def explore(options: Options, host: str, port: int) -> None:
    """Show the index in a browser, to search, sort and count it, with SQL where that helps.

    Nothing can be changed there, and what the server writes meanwhile is seen. `runs` has a column
    for each argument and version, `films` for what is known of each video. A browser asks for a
    password: the API's token, by any name. Where the server has no token, loopback alone is taken.

    Needs Datasette: pip install 'posedrop[explore]', on the machine that has the index.

    \b
    posedrop explore
    posedrop --data-dir /srv/posedrop explore --port 8002
    """
    if find_spec("datasette") is None:
        raise ConfigurationError("Datasette is not installed: pip install 'posedrop[explore]'")
    import uvicorn

    told = options.settings.api_token
    token = told.get_secret_value() if told is not None else None
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"on {host} others would read the index: set POSEDROP_API_TOKEN, or leave out --host"
        )
    app = application(options.settings.index_file, token)
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}/index (Ctrl-C ends it)")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


def application(index: Path, token: str | None) -> Any:
    """Return an ASGI application that shows an index.

    Args:
        index: its SQLite file, which others may be writing.
        token: that each caller needs; None: loopback's names need none.

    Raises:
        ConfigurationError: there is no index, or one of an older posedrop.
    """
    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.plugins import pm

    # With it, each SQL that is refused fills the terminal with all that the server has at hand.
    pm.get_plugin("datasette.handle_exception").rich = None

    views = _views(index)

    class IndexFile(Database):  # type: ignore[misc]
        """The index's file: each connection has the views as its own, and the file has none."""

        def connect(self, write: bool = False) -> sqlite3.Connection:
            if write:
                raise sqlite3.OperationalError("nothing is written here")
            connection = _connect(index)
            for name, select in views.items():
                connection.execute(f"CREATE TEMP VIEW {name} AS {select}")
            connection.execute("PRAGMA query_only = 1")
            return connection

        async def view_names(self) -> list[str]:
            return list(views)

        async def get_view_definition(self, view: str) -> str | None:
            return views.get(view)

    shown = Datasette(settings=_SETTINGS, metadata={"title": "posedrop"})
    shown.remove_database("_memory")
    shown.add_database(IndexFile(shown, str(index), is_mutable=True), name="index")
    return _Door(shown.app(), token)


def _connect(index: Path) -> sqlite3.Connection:
    # Not immutable: SQLite would then read no WAL, and take no lock that keeps what is read whole.
    address = f"{index.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=True, check_same_thread=False)


def _views(index: Path) -> dict[str, str]:
    """Return views by name, as SQL: what stands in JSON has a column for each key.

    Raises:
        ConfigurationError: as :func:`application`.
    """
    if not index.is_file():
        words = f"there is no index at {index}: name the folder of `posedrop up` by --data-dir"
        raise ConfigurationError(words)
    try:
        connection = _connect(index)
        try:
            known = {row[1] for row in connection.execute("PRAGMA table_info(analysis)")}
            if "versions" not in known:
                words = f"{index} was left by an older posedrop: start the server once"
                raise ConfigurationError(words)
            found = {column: _keys(connection, column) for column in ("args", "versions")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ConfigurationError(f"{index} can't be read as an index: {error}") from error
    reasons = (f"json_extract(quality_reasons, '$[{n}]') AS reason_{n + 1}" for n in range(3))
    runs = (
        "analysis_id, key, state, analysis, model, model_digest, quality",
        *reasons,
        "created_at, finished_at, rows, frames_decoded, json_extract(error, '$.code') AS error",
        "json_extract(error, '$.message') AS error_message",
        *_columns("args", "arg", found["args"]),
        *_columns("versions", "version", found["versions"]),
        "run, file_id, sha256, retry_of",
    )
    probed = ("width", "height", "fps", "frames", "duration", "codec", "variable_frame_rate")
    films = (
        "file_id, key, state, size, created_at",
        *_columns("probe", "film", probed),
        "refusal_reason, refusal_message, waits_for, duplicate_of, sha256",
        "(SELECT count(*) FROM main.analysis AS a WHERE a.file_id = f.file_id) AS runs",
    )
    return {
        "runs": f"SELECT {', '.join(runs)} FROM main.analysis ORDER BY number DESC",  # noqa: S608
        "films": f"SELECT {', '.join(films)} FROM main.uploaded_file AS f ORDER BY number DESC",  # noqa: S608
    }


def _keys(connection: sqlite3.Connection, column: str) -> list[str]:
    """Return the keys of what the newest runs have as JSON in a column."""
    newest = f"SELECT {column} AS told FROM analysis ORDER BY number DESC LIMIT {_RUNS}"  # noqa: S608
    sql = f"SELECT DISTINCT each.key FROM ({newest}) AS run, json_each(run.told) AS each"  # noqa: S608
    keys = (key for (key,) in connection.execute(sql) if isinstance(key, str))
    return sorted(key for key in keys if _KEY.fullmatch(key))[:_COLUMNS]


def _columns(column: str, prefix: str, keys: Iterable[str]) -> list[str]:
    """Return SQL for a column of each key of a JSON object."""
    return [f"""json_extract({column}, '$."{key}"') AS "{prefix}_{key}\"""" for key in keys]


class _Door:
    """What stands before Datasette: the token, and that nothing is asked but to read."""

    def __init__(self, app: Callable[..., Any], token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            refused = self._refusal(scope["method"], Headers(scope=scope))
            if refused is not None:
                await refused(scope, receive, send)
                return
            # What Datasette never has, it can tell nobody.
            headers = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
            scope = {**scope, "headers": headers}
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        if self._token is not None and not _is_told(headers.get("authorization", ""), self._token):
            asks = {"WWW-Authenticate": 'Basic realm="posedrop"'}
            words = "the API's token is needed, as a bearer token or as a password\n"
            return PlainTextResponse(words, 401, asks)
        host = _HOST.fullmatch(headers.get("host", ""))
        if self._token is None and (host is None or not is_loopback(host[1].strip("[]").lower())):
            return PlainTextResponse("this is for this machine's own names alone\n", 403)
        if method not in {"GET", "HEAD"}:
            return PlainTextResponse("nothing is written here\n", 405, {"Allow": "GET, HEAD"})
        return None


def _is_told(authorization: str, token: str) -> bool:
    """Tell whether a header has the token: as a bearer token, or as HTTP Basic's password."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given).decode().partition(":")[2]
        except ValueError:  # no base64, no UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())
