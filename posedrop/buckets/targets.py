"""Keys of films that are put into a folder of a person's own choice. Pure.

``POST /uploads/parts`` takes a folder (``to``) and a film's path below it; the film's key is both,
joined. Names are kept as they are, in whatever script: what no store can keep is refused in words.
"""

from __future__ import annotations

import unicodedata

from posedrop.buckets import layout
from posedrop.errors import BadRequestError

#: S3's bound on a key, and that of the file systems under a store on each of its parts, bytes.
MAX_KEY_BYTES = 1024
#: The endings by which a folder's films are told from all else that lies there, in lower case.
FILM_ENDINGS = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".cine", ".dav", ".dv", ".f4v", ".flv", ".gxf",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg",
    ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu",
    ".ogm", ".ogv", ".qt", ".rm", ".ts", ".vc1", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
})  # fmt: skip


class NameRefusedError(BadRequestError):
    """A folder or a file has a name that a store can't keep."""

    code = "name_refused"


def check_folder(folder: str) -> str:
    """Return a folder as keys have it: ``cohort3/day1``, without a slash at either end.

    Both kinds of slash separate, as a person types them.

    Raises:
        NameRefusedError: a part of it is ``..``, too long, or has a control character.
    """
    segments = [each for each in folder.replace("\\", "/").split("/") if each.strip()]
    for segment in segments:
        _check_segment(segment, "to")
    return "/".join(each.strip() for each in segments)


def key_in(folder: str, path: str) -> str:
    """Return the key of a film at ``path`` below a folder that :func:`check_folder` has returned.

    Args:
        folder: empty: the path's own folders are the key's.
        path: relative, with ``/`` between its folders.

    Raises:
        NameRefusedError: it can't be a key.
    """
    for segment in path.split("/"):
        _check_segment(segment, "path")
    key = f"{folder}/{path}" if folder else path
    if len(key.encode()) > MAX_KEY_BYTES:
        raise NameRefusedError(
            f"{path[-60:]}: with its folders the name has more than {MAX_KEY_BYTES:,} bytes, which "
            "no store takes: choose a shorter folder",
            field="path",
        )
    return key


def is_film(path: str) -> bool:
    """Tell by its ending whether a file of a folder is a film.

    Names that begin with a dot are the system's own: ``._film.mp4`` is what macOS leaves beside
    ``film.mp4``.
    """
    name = path.rsplit("/", 1)[-1]
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and f"{dot}{ending}".lower() in FILM_ENDINGS


def is_systems(folder: str) -> bool:
    """Tell by its name whether a folder is a system's own: .Trash-1000, @eaDir, $RECYCLE.BIN."""
    return folder.startswith((".", "@", "$"))


def _check_segment(segment: str, field: str) -> None:
    shown = segment[:60].encode(errors="backslashreplace").decode()
    if segment in {"", ".", ".."}:
        raise NameRefusedError(f"{shown or 'an empty name'!r} is no name of a folder", field=field)
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in segment):
        raise NameRefusedError(
            f"{shown!r} has a character that no store takes (a control character, or bytes that "
            "are no UTF-8): rename it",
            field=field,
        )
    if len(segment.encode()) > layout.MAX_SEGMENT_BYTES:
        raise NameRefusedError(
            f"{shown}...: a name may have {layout.MAX_SEGMENT_BYTES} bytes", field=field
        )
