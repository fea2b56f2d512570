"""What an analysis is, and which ones are installed (entry points ``posedrop.analyses``).

An analysis has two halves. This one is light: a name, a version and a pydantic model of its
arguments; the handlers import it. The other is a function that runs in the child process, named by
its import path, so that nobody but the child ever imports torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from posedrop.bounded import bounded
from posedrop.buckets import layout
from posedrop.buckets.records.models import Model
from posedrop.buckets.records.requests import Request
from posedrop.errors import BadRequestError, WrongPart

ENTRY_POINT_GROUP = "posedrop.analyses"
#: A file of ``Job.out`` that is not whole yet is called so at its end: no such one is published.
UNFINISHED = ".unfinished"
#: Files that an analysis may leave, by their names, unless it names others.
DEFAULT_ARTEFACTS = ("*.csv", "*.jpg", "*.json", "*.mp4", "*.npy", "*.npz", "*.png", "*.txt")
#: What ``worker.poses.tables`` leaves.
POSES = (
    "poses.h5",
    "poses.csv",
    "poses_filtered.h5",
    "poses_filtered.csv",
    "meta.pickle",
    "timestamps.csv",
    "viewer.bin",
)
#: Of models that stay loaded in a child.
DEFAULT_MODEL_BYTES = 2**30


class Args(BaseModel):
    """The base of an analysis' arguments: an unknown one is an error that names it.

    The page's form is made of their JSON Schema: names, descriptions, bounds and defaults. A field
    with ``json_schema_extra={"group": "drawing"}`` stands in a part of it that is closed at first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def _patience(args: Mapping[str, Any], frames: int) -> float:  # noqa: ARG001
    # Ten minutes to fetch and load, and five times what ResNet-50 takes a frame on two cores.
    return 600.0 + 5.0 * frames


@dataclass(frozen=True, slots=True)
class Analysis:
    """An analysis as a plug-in offers it."""

    name: str
    version: str
    """A whole number, part of the analysis_id: a newer version computes anew what an older one had
    computed, and a worker leaves runs of a newer one than its own to others."""
    args: type[Args]
    run: str
    """``package.module:function``, called in the child as ``function(job)`` with a :class:`Job`."""
    summary: str
    finish: str | None = None
    """For what needs no accelerator: called as ``function(job)`` in another child, while the next
    job runs, and where no film ever is. It returns the answer that counts, made of
    ``predictions.npz`` in ``job.out`` alone, which ``run`` has left there: that is published in
    between, and a later attempt, or a run that is made anew, calls this with it and not ``run``.
    An analysis with poses to be drawn (``renders``) has one, which leaves ``poses.h5``."""
    artefacts: tuple[str, ...] = DEFAULT_ARTEFACTS
    """Patterns of the names of the files that are published, of those that ``finish`` leaves, or
    ``run`` where there is no ``finish``. Names have ASCII letters, digits and ``. _ + -``. HDF5 and
    pickles, which run code where they are opened, are taken of ``finish`` alone."""
    makes_ready: bool = False
    """Whether ``run`` takes ``job.permit`` for the network alone: so its video is opened, and
    decoded ahead, while another has the accelerator. Else it is called when it has it."""
    drawn: frozenset[str] = frozenset()
    """Arguments that change the drawing alone: with others of these, poses are not found anew."""
    for_network: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Returns those of complete arguments that ``run`` goes by, where ``finish`` alone goes by the
    others: a run that has the same ones, of the same content, takes the ``predictions.npz`` that
    another has left. None: ``run`` goes by all, but for ``drawn``. Where it leaves out ``pcutoff``,
    predictions are taken if the precision was watched above no higher one (:func:`is_covered`)."""
    needs_model: bool = False
    takes_poses: bool = False
    """True: it is made of the poses of another run of the same content, ``args.run``, and needs no
    network: the workers of the cpu queue do it."""
    renders: bool = True
    """False: it makes no poses, so there is nothing to draw."""
    wall_seconds: Callable[[Mapping[str, Any], int], float] | None = _patience
    """``(args, frames) -> seconds`` after which a run that still goes on is taken for hung. None:
    it reports its frames, stage ``infer``, and is taken for hung where it reports none for long."""
    slowest_frame: float = 5.0
    """Seconds that a frame takes at most, on a slow processor."""
    check: Callable[[Args, Model], None] | None = None
    """Raises BadRequestError where the arguments don't fit the model. Light: no torch."""

    def normalise(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``args`` validated and complete, as JSON types.

        Raises:
            BadRequestError: an argument is unknown or wrong; ``field`` names it.
        """
        try:
            whole = self.args.model_validate(args).model_dump(mode="json")
        except ValidationError as error:
            first, *_ = errors = [
                WrongPart(("args", *each["loc"]), each["msg"])
                for each in error.errors(include_url=False)
            ]
            field = ".".join(str(part) for part in first.loc)
            raise BadRequestError(
                f"{self.name}: {field}: {first.message}",
                code="bad_args",
                field=field,
                errors=errors,
            ) from error
        try:
            normalised: dict[str, Any] = bounded(whole)
        except ValueError as error:
            raise BadRequestError(
                f"{self.name}: args: {error}", code="bad_args", field="args"
            ) from error
        return normalised

    def network_args(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of complete arguments on which ``predictions.npz`` depends.

        The model counts by its digest, not by its name.
        """
        seen = args
        if self.for_network is not None:
            with suppress(Exception):  # what a plug-in can't tell apart, matters
                seen = self.for_network(args)
        without = self.drawn | {"model"}
        return {name: value for name, value in seen.items() if name not in without}


@dataclass(frozen=True, slots=True)
class Job:
    """One video for an analysis; every path is in a scratch folder, under a generated name."""

    video: Path
    """The film; of ``finish`` an empty file."""
    out: Path
    """An empty folder: what is left in it are the artefacts."""
    args: dict[str, Any]
    model: Path | None
    model_digest: str | None
    report: Callable[[str, int, int | None], None]
    """``report(stage, frames_done, frames_total)``; cheap, call it as often as you like."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, mps."""
    decode: str = "auto"
    """Who decodes the film: auto, cpu, cuda."""
    parts: Path | None = None
    """A folder for checkpoints: files put there come back in the next attempt; None: keep none."""
    part_seconds: float = 60.0
    """Seconds of work between two checkpoints."""
    sha256: str = ""
    """Of the video."""
    version: str = ""
    """Of the analysis as it is installed here, whatever the request's."""
    fps: float = 0.0
    """Average frames per second of the film; ``finish`` alone is told."""
    model_bytes: int = DEFAULT_MODEL_BYTES
    """How much of models may stay loaded behind the job, in memory or on the device."""
    tuning: Mapping[str, str] = field(default_factory=dict)
    """What is remembered of how fast the model is in which way; texts by name. An answer's own
    ``tuning`` is what is new."""
    permit: Callable[[], AbstractContextManager[None]] = nullcontext
    """``with job.permit():`` has the accelerator for itself, once others had theirs."""
    frame_size: tuple[int, int] | None = None
    """Of ``finish``, which has no film: width and height of the film's frames, in pixels."""
    pcutoff: float | None = None
    """Of ``finish``: the model's own; None: it is not known."""
    is_own: bool = True
    """Of ``finish``: False, the predictions were found by another run with the same
    :meth:`Analysis.network_args`; those that are not good for this one (:func:`is_covered`) are an
    AnalysisError, code ``not_covered``."""


@functools.cache
def installed() -> dict[str, Analysis]:
    """Return the installed analyses by name."""
    found = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        analysis = entry.load()
        if not isinstance(analysis, Analysis):
            raise TypeError(f"entry point {entry.value} of {ENTRY_POINT_GROUP} is no Analysis")
        found[analysis.name] = analysis
    return dict(sorted(found.items()))


def is_newer(version: str, than: str) -> bool:
    """Tell whether one version of an analysis is newer than another; they are whole numbers."""
    return version.isdecimal() and than.isdecimal() and int(version) > int(than)


def poses_id(request: Request) -> str:
    """Return an id of the poses that a request asks for, whatever the drawing of them.

    Raises:
        BadRequestError: the request's analysis is not installed.
    """
    drawn = get(request.analysis).drawn | {"model"}
    return _id_of(request, {n: value for n, value in request.args.items() if n not in drawn})


def predictions_id(request: Request) -> str:
    """Return an id of the predictions that a request asks for, whatever is made of them.

    Two runs of one id share them, where the precision of the first one's was watched for the second
    one's ``pcutoff`` as well (:func:`is_covered`). An argument that an analysis says nothing about
    is taken to matter.

    Raises:
        BadRequestError: the request's analysis is not installed.
    """
    return _id_of(request, get(request.analysis).network_args(request.args))


def _id_of(request: Request, args: Mapping[str, Any]) -> str:
    return layout.make_id(
        request.sha256,
        request.analysis,
        request.analysis_version,
        request.model.digest if request.model else "",
        json.dumps(args, sort_keys=True),
    )


def is_covered(details: Mapping[str, Any], pcutoff: float | None, model: float | None) -> bool:
    """Tell whether predictions are good for a cutoff: fewer bits move no keypoint above it.

    Args:
        details: what the run that found them says of itself; nothing of it is believed.
        pcutoff: of the run that wants them; None: the model's.
        model: the model's own cutoff, up to which the precision is watched in any case; None: it is
            not known.
    """
    precision = details.get("precision")
    told = precision if isinstance(precision, Mapping) else {}
    # Both: it may have begun in fewer bits.
    if told.get("used") == "fp32" and not told.get("frames_checked_in_fp32"):
        return True
    watched = told.get("pcutoff", details.get("pcutoff"))
    wanted = model if pcutoff is None else pcutoff
    if not isinstance(watched, int | float) or wanted is None:
        return False
    if model is not None:
        watched, wanted = min(watched, model), min(wanted, model)
    return watched <= wanted


def get(name: str) -> Analysis:
    """Return the analysis called ``name``.

    Raises:
        BadRequestError: none has this name.
    """
    analyses = installed()
    if name not in analyses:
        raise BadRequestError(
            f"there is no analysis {name[:60]!r}; there are: {', '.join(analyses)}",
            code="unknown_analysis",
            field="analysis",
        )
    return analyses[name]
