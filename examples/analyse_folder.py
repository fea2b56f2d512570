"""Analyse all films of a folder and fetch what comes of them, with posedrop's own client.

    python examples/analyse_folder.py FILMS RESULTS ANALYSIS [NAME=VALUE ...]
    python examples/analyse_folder.py day1/ results/ deeplabcut_2d model=openfield

The server is the one that `posedrop up` started last on this machine, or that of POSEDROP_URL and
POSEDROP_API_TOKEN.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from posedrop.client import Client, tokens
from posedrop.errors import PosedropError

SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def analyse_folder(
    client: Client, films: Path, results: Path, analysis: str, args: dict[str, str]
) -> int:
    """Upload every film below ``films``, wait for all, download into ``results``.

    Returns:
        How many films have no results: refused, failed or cancelled.
    """
    paths = sorted(path for path in films.rglob("*") if path.suffix.lower() in SUFFIXES)
    tickets = {path: client.upload(path, analysis=analysis, args=args) for path in paths}
    without = 0
    for path, ticket in tickets.items():
        film = client.wait_for_file(ticket.file_id)
        if film.refusal is not None:
            print(f"{path}: refused: {film.refusal.message}")
            without += 1
            continue
        # The upload asked for the analysis already: the same question only tells its id.
        started = client.analyse(ticket.file_id, analysis, args)
        run = client.wait(started.analysis_id)
        if run.error is not None:
            print(f"{path}: {run.status}: {run.error.message}")
        if not run.has_results:
            without += 1
            continue
        files = client.download(run, results / path.relative_to(films))
        print(f"{path}: {run.status}: {', '.join(sorted(file.name for file in files))}")
    return without


def main() -> None:
    """Read the command line, and say what went wrong in one line."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    films, results, analysis, *pairs = sys.argv[1:]
    args = dict(pair.split("=", 1) for pair in pairs)
    url = os.environ.get("POSEDROP_URL") or tokens.latest()
    if url is None:
        sys.exit("no server is known: start one with `posedrop up`, or set POSEDROP_URL")
    token = os.environ.get("POSEDROP_API_TOKEN") or tokens.of(url)
    try:
        with Client(url, token) as client:
            sys.exit(min(analyse_folder(client, Path(films), Path(results), analysis, args), 100))
    except PosedropError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
