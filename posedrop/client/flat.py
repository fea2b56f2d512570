"""Results of a whole folder of videos in one directory, as DeepLabCut would have left them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from posedrop.api.files import File
from posedrop.api.runs import ResultFile, Run
from posedrop.buckets import layout, names
from posedrop.buckets.names import Naming
from posedrop.client.client import Client
from posedrop.client.transfers import OnBytes, is_whole
from posedrop.errors import PosedropError


@dataclass(frozen=True, slots=True)
class FlatFile:
    """One file, and what it is called in the directory."""

    name: str
    video: str
    """The key of its video."""
    file: ResultFile


@dataclass(frozen=True, slots=True)
class Flat:
    """What is to be fetched, and what is not."""

    files: list[FlatFile] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    """Words about files that would overwrite others: they are left out, each of them."""
    without: list[str] = field(default_factory=list)
    """The keys of videos that have no poses."""


def videos_below(client: Client, folder: str) -> list[File]:
    """Return the videos below a folder, by their keys; or one video, by its key.

    Raises:
        PosedropError: there is none.
    """
    below = f"{folder.rstrip('/')}/" if folder.rstrip("/") else ""
    videos = list(client.files(prefix=below))
    if not videos and not folder.endswith("/"):
        videos = [video for video in client.files(prefix=folder) if video.key == folder]
    if not videos:
        raise PosedropError(f"there is no video below {folder!r}; `posedrop ls` lists them")
    return sorted(videos, key=lambda video: video.key)


def collect(client: Client, folder: str, directory: Path) -> Flat:
    """Find the files of the newest run with poses of each video below a folder.

    Args:
        client: of the API.
        folder: of the videos bucket, with or without its slash; empty: all of it. Or one video.
        directory: where the files are to go; what is there is compared, and left as it is.

    Raises:
        PosedropError: there is no video.
    """
    found = Flat()
    by_name: dict[str, list[FlatFile]] = {}
    videos = videos_below(client, folder)
    for video in videos:
        run = _newest(client, video)
        if run is None:
            found.without.append(video.key)
            continue
        for flat in _named(video, run):
            # As the file systems of Windows and macOS compare names: case and accents, however put.
            same_name = unicodedata.normalize("NFC", flat.name.casefold())
            by_name.setdefault(same_name, []).append(flat)
    for same in by_name.values():
        flat = same[0]
        if len(same) > 1:
            of = " and ".join(sorted({each.video for each in same}))
            found.clashes.append(f"{flat.name} would be the file of {of}: download each by its id")
        elif _is_another(directory / flat.name, flat.file):
            found.clashes.append(f"{directory / flat.name} is there, and is another file: move it")
        else:
            found.files.append(flat)
    return found


def fetch(client: Client, flat: Flat, directory: Path, on_bytes: OnBytes) -> list[Path]:
    """Fetch the files; what is there and whole stays, and what was interrupted goes on."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for each in flat.files:
        path = directory / each.name
        if _is_another(path, each.file):  # since it was looked for
            flat.clashes.append(f"{path} is there, and is another file: move it")
            continue
        client.fetch(each.file, path, on_bytes)
        paths.append(path)
    return paths


def _newest(client: Client, video: File) -> Run | None:
    """Return the newest run of a video that is over and has poses."""
    for known in client.file(video.file_id).analyses:
        if known.status in {"succeeded", "partial"}:
            run = client.run(known.analysis_id)
            if run.has_results and any(names.role_of(file) == "poses" for file in run.files):
                return run
    return None


def _named(video: File, run: Run) -> Iterator[FlatFile]:
    """Yield the files that DeepLabCut would have left, under the names that it would have given."""
    result = run.result or {}
    pcutoff = (result.get("args") or {}).get("pcutoff")
    naming = Naming.of(video.key, result.get("details") or {}, pcutoff)
    for file in run.files:
        if names.role_of(file) not in names.DEEPLABCUTS:
            continue
        plain = names.plain_name(file)
        if plain not in names.ROLES:  # an analysis of its own kind
            continue
        name = naming.name(plain) if naming is not None else plain
        if name == plain:  # there is no long name, or no room for it
            name = layout.safe_filename(f"{video.file_id}_{plain}")
        yield FlatFile(name, video.key, file)


def _is_another(path: Path, file: ResultFile) -> bool:
    is_there = path.exists() or path.is_symlink()
    return is_there and not is_whole(path, file.size, file.sha256)
