"""Names of a run's files, as DeepLabCut 3 gives them, so that its tools find them. Pure.

DeepLabCut, and many readers of what it writes, go by a file's name: the film's, the scorer's, what
the file is. A worker's children leave each file under a plain name (``poses.h5``); it is published
under its long one (``mouse1DLC_Resnet50_...snapshot_200.h5``), and found by either. Where the long
name has no room, or can't be trusted, the plain one is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

#: Bytes of an object's key, and of its last part, that S3 and the file systems below it take.
MAX_KEY_BYTES, MAX_NAME_BYTES = 1024, 255
#: What a worker may put between a run's folder and a name.
_ASIDE = "/attempts/999999/"
#: What each file of a run is, by its plain name.
ROLES = {
    "poses.h5": "poses",
    "poses.csv": "poses",
    "poses_filtered.h5": "poses_filtered",
    "poses_filtered.csv": "poses_filtered",
    "meta.pickle": "metadata",
    "pose.mp4": "labelled_video",
    "predictions.npz": "predictions",
    "timestamps.csv": "timestamps",
    "trajectory.png": "trajectory",
    "likelihood.png": "likelihood",
    "viewer.bin": "viewer",
    "view.mp4": "view",
    "run.log": "log",
    "labeled-data.zip": "labeled_data",
    "frames.pkg.slp": "sleap_package",
    "coco.zip": "coco",
}
_PLAIN = {(role, PurePosixPath(plain).suffix): plain for plain, role in ROLES.items()}
#: The files that DeepLabCut leaves as well, which are named as it names them.
DEEPLABCUTS = frozenset({"poses", "poses_filtered", "metadata", "labelled_video"})
#: What DeepLabCut's trackers add to the name of a table.
_TRACKERS = {"box": "_bx", "ctd": "_ctd", "ellipse": "_el", "skeleton": "_sk"}


class Named(Protocol):
    """A file of a result: an artefact, or what the API tells of one."""

    @property
    def name(self) -> str:
        """Its own name."""

    @property
    def role(self) -> str | None:
        """What it is; None: an older posedrop wrote it, or an analysis of its own kind did."""


F = TypeVar("F", bound=Named)


def plain_name(file: Named) -> str:
    """Return the name by which posedrop itself knows a file, such as ``poses.h5``."""
    return _PLAIN.get((file.role or "", PurePosixPath(file.name).suffix), file.name)


def role_of(file: Named) -> str | None:
    """Return what a file is, also of a result that does not say so itself."""
    return file.role or ROLES.get(file.name)


def find(files: Iterable[F], name: str) -> F | None:
    """Return the file of a name: its own, its plain one, or its role and suffix; None: no such."""
    files = list(files)
    for known_as in (lambda f: f.name, plain_name, lambda f: f"{role_of(f)}{_suffix(f.name)}"):
        for file in files:
            if known_as(file) == name:
                return file
    return None


@dataclass(frozen=True, slots=True)
class Naming:
    """What the names of a run's files are made of; nothing of it is believed."""

    key: str
    """Of the video."""
    scorer: str
    track_method: str | None = None
    several: bool = False
    """Whether the model is one for several animals."""
    pcutoff: float = 0.6

    @classmethod
    def of(cls, key: str, details: Mapping[str, Any], pcutoff: object = None) -> Naming | None:
        """Return it as the ``details`` of a run have it, None where those name no scorer."""
        scorer, tracked = details.get("scorer"), details.get("track_method")
        if not isinstance(scorer, str) or not scorer:
            return None
        pcutoff = details.get("pcutoff") if pcutoff is None else pcutoff
        return cls(
            key=key,
            scorer=scorer,
            track_method=tracked if isinstance(tracked, str) else None,
            several=bool(details.get("individuals")),
            pcutoff=float(pcutoff) if isinstance(pcutoff, float | int) else 0.6,
        )

    def name(self, plain: str, run: str | None = None) -> str:
        """Return the name of a file, as DeepLabCut 3.0.2 makes it, or its plain one.

        Args:
            plain: the file's plain name.
            run: the folder that has it; None: it is to lie on a disk.
        """
        role = ROLES.get(plain)
        if role not in DEEPLABCUTS:
            return plain
        # analyze_videos joins the two without a sign, video_inference_superanimal by one.
        is_project = self.scorer.startswith("DLC")
        scorer = self.scorer if is_project else f"_{self.scorer}"
        long = stem_of(self.key) + scorer + self._end(role, is_project) + _suffix(plain)
        return long if _is_fit(long, run) else plain

    def _end(self, role: str | None, is_project: bool) -> str:
        if role == "metadata":
            return "_meta"
        tracked = _TRACKERS.get(self.track_method or "", "")
        if role == "poses_filtered":
            return f"{tracked}_filtered"
        if role != "labelled_video":
            return tracked
        if not is_project:
            return "_labeled"
        # create_labeled_video: "_id" where colours tell animals apart; here they tell bodyparts.
        coloured = "_bp" if self.several else ""
        return f"{tracked}{coloured}_p{_percent(self.pcutoff)}_labeled"


def stem_of(key: str) -> str:
    """Return what DeepLabCut takes for a video's name: that of its file, without its suffix."""
    return PurePosixPath(key.rstrip("/").rsplit("/", 1)[-1]).stem


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def _percent(pcutoff: float) -> int:
    return int(100 * pcutoff) if 0 <= pcutoff <= 1 else 0


def _is_fit(name: str, run: str | None) -> bool:
    """Tell whether an object, and a file on anybody's disk, may have this name."""
    try:
        size = len(name.encode())
        most = MAX_KEY_BYTES if run is None else MAX_KEY_BYTES - len((run + _ASIDE).encode())
    except UnicodeEncodeError:
        return False
    return (
        size <= min(most, MAX_NAME_BYTES)
        and name.isprintable()
        and not any(sign in name for sign in "/\\")
        and name.lower() not in ROLES
    )
