"""Folders of films on this machine: what of them goes up, and under which names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from posedrop.api.uploads import CheckedFile
from posedrop.buckets import folder_rules, layout, targets

#: Of a posedrop.json so much is read; a larger one is refused by its size.
_MOST_OF_RULE = 65536


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that goes up: where it is, its name below the target folder, its size in bytes."""

    path: Path
    name: str
    size: int

    def to_check(self) -> CheckedFile:
        """Return what the server is asked of it before it goes up."""
        content = None
        if layout.is_folder_rule(self.name) and self.size <= _MOST_OF_RULE:
            # Unreadable, that is told when its turn comes to go up; no text, by the server.
            with suppress(OSError):
                content = _text(self.path.read_bytes())
        name = self.name.encode(errors="backslashreplace").decode()
        return CheckedFile(path=name, size=self.size, content=content)


def _text(data: bytes) -> str:
    """Return a posedrop.json's text, read as it will be once it is in the bucket."""
    try:
        return folder_rules.decode(data)
    except folder_rules.WrongRuleError:
        return data.decode(errors="replace")


def name_below(path: PurePath, root: PurePath) -> str:
    """Return a path's name below a folder, with ``/`` between, whatever this system has there."""
    return path.relative_to(root).as_posix()


def is_wanted(name: str) -> bool:
    """Tell whether a file of a folder goes up, by its name: a film, or a posedrop.json."""
    folders = name.split("/")[:-1]
    if any(targets.is_systems(each) for each in folders):
        return False
    return layout.is_folder_rule(name) or targets.is_film(name)


def walk(root: Path, others: list[str] | None = None) -> Iterator[LocalFile]:
    """Yield what goes up of a folder, by name; what can't be read is passed over.

    Links to files are followed, links to folders are not: those could be endless.

    Args:
        root: the folder.
        others: gets the names of files that are no films by their endings, a system's own excepted.
    """
    found: list[LocalFile] = []
    for folder, _, names in os.walk(root):
        for each in names:
            path = Path(folder) / each
            name = name_below(path, root)
            if not is_wanted(name):
                if others is not None and not any(map(targets.is_systems, name.split("/"))):
                    others.append(name)
                continue
            try:
                if path.is_file():
                    found.append(LocalFile(path, name, path.stat().st_size))
            except OSError:
                continue
    yield from rules_first(found)


def rules_first(files: Iterable[LocalFile]) -> list[LocalFile]:
    """Return files by name, each posedrop.json before all films."""
    return sorted(files, key=lambda file: (not layout.is_folder_rule(file.name), file.name))
