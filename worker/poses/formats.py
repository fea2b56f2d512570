"""A table of poses in the formats of other tools, each by its own library.

movement makes NetCDF, pynwb with ndx-pose NWB, sleap-io SLEAP's files and COCO, Arrow Parquet; what
the page of a run reads is posedrop's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posedrop.errors import AnalysisError
from worker.child.messages import ExportPoses
from worker.poses import table, viewer
from worker.poses.table import PoseTable

#: What else lies beside the series of a PoseEstimation, or beside those in the module.
_TAKEN = frozenset(
    {
        "Skeletons",
        "comments",
        "description",
        "dimensions",
        "labeled_video",
        "labeled_videos",
        "original_videos",
        "scorer",
        "skeleton",
        "source_software",
        "source_video",
    }
)
#: Formats whose libraries make objects of each pose of an animal, some 2 KB a pose; and how many
#: poses are made such.
_OF_OBJECTS = frozenset({"slp", "coco"})
MOST_INSTANCES = 2_000_000
_ANY_ANIMAL = "http://purl.obolibrary.org/obo/NCBITaxon_33208"


@dataclass(frozen=True)
class _Export:
    """What is written: a table, when its frames are shown (seconds), and what the run says."""

    poses: PoseTable
    seconds: npt.NDArray[np.float64]
    task: ExportPoses

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The skeleton as pairs of places in ``poses.bodyparts``."""
        return edges_of(self.task.skeleton, self.poses.bodyparts)


def edges_of(skeleton: list[list[str]], bodyparts: list[str]) -> list[tuple[int, int]]:
    """Return a skeleton as pairs of places in ``bodyparts``."""
    pairs = (pair for pair in skeleton if len(pair) == 2 and {*pair} <= {*bodyparts})
    found = ((bodyparts.index(a), bodyparts.index(b)) for a, b in pairs if a != b)
    return list(dict.fromkeys(found))


def export(payload: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Write a run's poses in another format.

    Args:
        payload: :class:`worker.child.messages.ExportPoses` as JSON.
        report: tells the parent that it goes on.

    Returns:
        :class:`worker.child.messages.ExportOutput` as JSON.

    Raises:
        AnalysisError: code ``damaged_poses``: the run's table can't be read.
    """
    task = ExportPoses.model_validate(payload)
    poses = table.read(Path(task.poses))
    times = Path(task.timestamps) if task.timestamps else None
    _check_size(task.format, poses)
    report("write", 0, len(poses.frames))
    write, libraries = _WRITERS[task.format]
    write(_Export(poses, table.read_times(times, poses.frames, task.fps), task), Path(task.out))
    report("write", len(poses.frames), len(poses.frames))
    return {"versions": {name: version(name) for name in libraries}}


def _check_size(format_: str, poses: PoseTable) -> None:
    """Refuse what would fill the memory before it fills it.

    Raises:
        AnalysisError: code ``too_many_poses``.
    """
    count = int(np.isfinite(poses.values[..., 0]).any(axis=-1).sum())
    if format_ in _OF_OBJECTS and count > MOST_INSTANCES:
        words = (
            f"the run has {count:,} poses of an animal, and this format's library holds each in "
            f"memory, {MOST_INSTANCES:,} at most: take nwb, nc or parquet"
        )
        raise AnalysisError(words, code="too_many_poses")


def dataset(poses: PoseTable, seconds: npt.NDArray[np.float64], fps: float) -> Any:
    """Return movement's dataset of a table: an ``xarray.Dataset``, its time in seconds.

    The frames' numbers are a further coordinate, ``frame``.
    """
    from movement.io import load_poses

    found = load_poses.from_numpy(
        position_array=poses.values[..., :2].transpose(0, 3, 2, 1),
        confidence_array=poses.values[..., 2].transpose(0, 2, 1),
        individual_names=poses.individuals,
        keypoint_names=poses.bodyparts,
        source_software="DeepLabCut",
    )
    found = found.assign_coords(time=seconds, frame=("time", poses.frames))
    found.attrs.update(time_unit="seconds", fps=fps)
    return found


def _netcdf(wanted: _Export, out: Path) -> None:
    found = dataset(wanted.poses, wanted.seconds, wanted.task.fps)
    found.attrs.update(source_file=wanted.task.video, log="", scorer=wanted.poses.scorer)
    found.to_netcdf(out, engine="h5netcdf", format="NETCDF4")


def _parquet(wanted: _Export, out: Path) -> None:
    """Write a row for each frame, animal and bodypart: what pandas, R and SQL take as it is."""
    import pandas as pd

    poses = wanted.poses
    places: Any = np.nonzero(poses.tracked)
    animals, parts = places
    count, rows = len(animals), len(poses.frames)
    values = poses.values[:, animals, parts].reshape(-1, 3)
    names: dict[str, Any] = {
        "individual": (animals, poses.individuals),
        "bodypart": (parts, poses.bodyparts),
    }
    pd.DataFrame(
        {
            "frame": np.repeat(poses.frames, count),
            "seconds": np.repeat(wanted.seconds, count),
            **{
                name: pd.Categorical.from_codes(np.tile(codes, rows), categories=known)
                for name, (codes, known) in names.items()
            },
            **dict(zip(("x", "y", "likelihood"), values.T, strict=True)),
        }
    ).to_parquet(out, engine="pyarrow", index=False)


def _viewer(wanted: _Export, out: Path) -> None:
    """Write the poses for the page of a run."""
    poses, task = wanted.poses, wanted.task
    animals, parts = np.nonzero(poses.tracked)
    unnamed = poses.individuals == [table.UNNAMED]
    lost = np.zeros(len(poses.frames), np.bool_)
    for first, last in task.missing:
        lost |= (poses.frames >= first) & (poses.frames <= last)
    viewer.write(
        viewer.View(
            frames=poses.frames,
            seconds=wanted.seconds,
            decoded=~lost,
            values=poses.values[:, animals, parts],
            columns=[
                ("" if unnamed else poses.individuals[animal], poses.bodyparts[part])
                for animal, part in zip(animals, parts, strict=True)
            ],
            size=(task.width, task.height),
            pcutoff=task.pcutoff,
            skeleton=[(bone[0], bone[1]) for bone in task.skeleton if len(bone) == 2],
        ),
        out,
    )


def _nwb(wanted: _Export, out: Path) -> None:
    """Write one NWB file: a ``PoseEstimation`` of ndx-pose for each animal, by its name."""
    import ndx_pose
    import pynwb

    poses, task = wanted.poses, wanted.task
    file = pynwb.NWBFile(
        session_description=task.description,
        identifier=task.analysis_id,
        session_start_time=datetime.fromisoformat(task.created_at),
        source_script=task.software,
        source_script_file_name="posedrop",
        # Archives take no file without. What is not known here is said as widely as it can be: an
        # age from birth on, a sex that is unknown, a species among all animals.
        subject=pynwb.file.Subject(
            subject_id=Path(task.video).stem or "unknown",
            description=f"in the video: {', '.join(poses.individuals)}",
            age="P0D/",
            sex="U",
            species=_ANY_ANIMAL,
        ),
    )
    alone = poses.individuals == [table.UNNAMED]
    animals = ["PoseEstimation"] if alone else _plain(poses.individuals)
    parts = _plain(poses.bodyparts)
    skeletons, estimations = [], []
    edges = np.array(wanted.edges, np.uint8 if len(parts) < 256 else np.uint32).reshape(-1, 2)
    for index, animal in enumerate(animals):
        skeleton = ndx_pose.Skeleton(
            name="skeleton" if alone else f"skeleton_{animal}",
            nodes=poses.bodyparts,
            edges=edges,
        )
        skeletons.append(skeleton)
        estimations.append(
            ndx_pose.PoseEstimation(
                name=animal,
                pose_estimation_series=_series(wanted, index, parts),
                description=f"Poses of {poses.individuals[index]} in {task.video}",
                # As source_video it would have to lie beside this file.
                original_videos=[task.video],
                dimensions=np.array([[task.width, task.height]], np.uint32),
                scorer=poses.scorer,
                source_software="DeepLabCut",
                source_software_version=task.software_version,
                skeleton=skeleton,
            )
        )
    behavior = file.create_processing_module("behavior", "poses, estimated from a video")
    behavior.add(ndx_pose.Skeletons(skeletons=skeletons))
    for estimation in estimations:
        behavior.add(estimation)
    with pynwb.NWBHDF5IO(out, mode="w") as io:
        io.write(file)


def _series(wanted: _Export, index: int, parts: list[str]) -> list[Any]:
    """Return a ``PoseEstimationSeries`` for each bodypart of an animal; they share the times."""
    import ndx_pose

    poses = wanted.poses
    series: list[Any] = []
    for part in np.flatnonzero(poses.tracked[index]):
        values = poses.values[:, index, part]
        series.append(
            ndx_pose.PoseEstimationSeries(
                name=parts[part],
                description=f"{poses.bodyparts[part]} of {poses.individuals[index]}",
                data=_packed(values[:, :2]),
                unit="pixels",
                reference_frame="(0, 0) is the centre of the top left pixel; y grows downwards",
                timestamps=series[0] if series else _packed(wanted.seconds),
                confidence=_packed(values[:, 2]),
                confidence_definition="DeepLabCut's likelihood",
            )
        )
    return series


def _packed(values: npt.NDArray[np.float64]) -> Any:
    from pynwb import H5DataIO

    return H5DataIO(np.ascontiguousarray(values), compression="gzip", shuffle=True)


def _plain(names: list[str]) -> list[str]:
    """Return names that HDF5 and NWB take: none has a slash or a colon, none is taken."""
    found: list[str] = []
    for name in names:
        plain = "".join("_" if c in "/:" else c for c in name).strip(".") or "_"
        number = 2
        free = plain
        while free in {*found, *_TAKEN}:
            free, number = f"{plain}_{number}", number + 1
        found.append(free)
    return found


def _labels(wanted: _Export) -> Any:
    import sleap_io

    poses, task = wanted.poses, wanted.task
    frames = int(max(poses.frames.max(initial=-1) + 1, task.frames))
    shape = [frames, task.height, task.width, 3]
    video = sleap_io.Video(
        filename=task.video, open_backend=False, backend_metadata={"shape": shape}
    )
    return labels(poses, wanted.edges, video)


def labels(
    poses: PoseTable, edges: Iterable[tuple[int, int]], video: Any, *, empty: bool = False
) -> Any:
    """Return sleap-io's labels: predicted instances of those frames in which there are any.

    Args:
        poses: of the frames.
        edges: pairs of places in ``poses.bodyparts``.
        video: sleap-io's, of the frames.
        empty: whether frames without an instance are among them, too.
    """
    import sleap_io

    nodes = [sleap_io.Node(name) for name in poses.bodyparts]
    skeleton = sleap_io.Skeleton(
        nodes, [sleap_io.Edge(nodes[a], nodes[b]) for a, b in edges], name="animal"
    )
    tracks = [sleap_io.Track(name) for name in poses.individuals]
    found: Any = np.isfinite(poses.values).all(axis=-1)
    likelihoods = np.where(found, poses.values[..., 2], 0.0)
    scores = likelihoods.sum(axis=-1) / np.maximum(found.sum(axis=-1), 1)
    labelled = [
        sleap_io.LabeledFrame(
            video=video,
            frame_idx=int(poses.frames[row]),
            instances=[
                sleap_io.PredictedInstance.from_numpy(
                    poses.values[row, animal, :, :2],
                    skeleton=skeleton,
                    point_scores=likelihoods[row, animal],
                    score=float(scores[row, animal]),
                    track=tracks[animal],
                )
                for animal in np.flatnonzero(found[row].any(axis=-1))
            ],
        )
        for row in np.flatnonzero(found.any(axis=(1, 2)) | empty)
    ]
    return sleap_io.Labels(labelled, videos=[video], skeletons=[skeleton], tracks=tracks)


def _slp(wanted: _Export, out: Path) -> None:
    import sleap_io

    sleap_io.save_slp(_labels(wanted), str(out), embed=False, verbose=False)


def _coco(wanted: _Export, out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        json.dump(coco(_labels(wanted)), file)


def coco(labelled: Any, images: list[str] | None = None) -> dict[str, Any]:
    """Return COCO's keypoints; ``keypoint_scores``, which it has no field for, are likelihoods.

    Args:
        labelled: sleap-io's labels, of predicted instances.
        images: the files of its frames; None: by the video's name.
    """
    from sleap_io.io.coco import convert_labels

    found: dict[str, Any] = convert_labels(labelled, images)
    instances = [each for frame in labelled.labeled_frames for each in frame.instances]
    for entry, instance in zip(found["annotations"], instances, strict=True):
        entry["score"] = float(instance.score)
        entry["keypoint_scores"] = instance.points["score"].tolist()
        entry["attributes"]["name"] = instance.track.name
    for image, frame in zip(found["images"], labelled.labeled_frames, strict=True):
        image["frame"] = int(frame.frame_idx)
    return found


_Writer = Callable[[_Export, Path], None]
#: Format -> who writes it, and the libraries that do.
_WRITERS: dict[str, tuple[_Writer, tuple[str, ...]]] = {
    "nwb": (_nwb, ("pynwb", "ndx-pose")),
    "slp": (_slp, ("sleap-io",)),
    "nc": (_netcdf, ("movement", "h5netcdf")),
    "parquet": (_parquet, ("pyarrow",)),
    "coco": (_coco, ("sleap-io",)),
    "viewer": (_viewer, ()),
}
