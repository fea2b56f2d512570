"""A folder's results in one directory, and DeepLabCut's own tools and movement on them."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from sleap_io import load_slp

from tests.support.analysed import copied
from tests.support.lab import Lab
from tests.support.samples import Sample, free_box, sample

#: Of one folder, and of a script and signs that names of DeepLabCut's seldom have.
FILMS = ("mouse 1.mp4", "Mäuse.2.mp4", "-50%.mov")
#: Other names of the second one's content, of one stem.
AGAIN = ("again/deep/copy.mp4", "again/copy.avi")


@pytest.fixture
def flat(lab: Lab, films: Path, model: str, tmp_path: Path) -> Path:
    """The directory that ``download --flat`` has made of three films' results, the films beside."""
    plain = sample(films, 12).film.read_bytes()
    asked = {"analysis": "deeplabcut_2d", "args": json.dumps({"model": model})}
    for number, name in enumerate(FILMS):
        body = plain + free_box(64, os.urandom(56))
        (tmp_path / name).write_bytes(body)
        for key in (f"flat/{name}", *(AGAIN if number == 1 else ())):
            lab.s3().put_object(Bucket="videos", Key=key, Body=body, Metadata=asked)
    for key in (*(f"flat/{name}" for name in FILMS), *AGAIN):
        assert lab.over(lab.run_of(lab.file(key)["file_id"]))["status"] == "succeeded"
    out = tmp_path / "results"
    lab.posedrop("download", "flat/", "--flat", str(out))
    for name in FILMS:
        shutil.move(tmp_path / name, out / name)
    return out


@pytest.mark.parametrize("lab", ["embedded"], indirect=True)
def test_deeplabcuts_own_tools_take_a_folders_results(
    lab: Lab, flat: Path, mouse: Sample, tmp_path: Path
) -> None:
    """Filter, plots, labelled video, outliers, skeleton: each writes files of its own, for three.

    Nothing is renamed. Run again, the download leaves all as it is; a clash of names is said.
    """
    lab.posedrop("download", "flat", "--flat", str(flat))
    tables = sorted(path for path in flat.glob("*.h5") if "_filtered" not in path.name)
    assert len(tables) == 3
    run = lab.get("/analyses", prefix=f"flat/{FILMS[1]}")["items"]
    assert [row["key"] for row in run] == [f"flat/{FILMS[1]}"]
    (name,) = (each for each in run[0]["files"] if each.endswith(".h5") and "_filt" not in each)
    assert (flat / name).is_file()
    for asked in (name, "poses.h5"):
        answer = lab.http.get(f"/download/{run[0]['analysis_id']}/{asked}", follow_redirects=True)
        assert answer.content == (flat / name).read_bytes()
        assert "filename*=UTF-8''M%C3%A4use.2DLC" in answer.headers["Content-Disposition"]
    twice = lab.posedrop("download", "again/", "--flat", str(tmp_path / "again"), check=False)
    assert twice.returncode == 1
    assert f"{AGAIN[1]} and {AGAIN[0]}" in twice.stderr
    assert not list((tmp_path / "again").iterdir())
    copied_as = name.replace("Mäuse.2", "copy")  # by its own film's name
    lab.until(lambda: all(copied_as in _names(lab, key) for key in AGAIN), "copies")
    _use_deeplabcut(flat, copied(mouse.model, tmp_path / "project"), mouse.bodyparts)
    _correct(lab, f"flat/{FILMS[1]}", copied(mouse.model, tmp_path / "corrected"), tmp_path)
    spoiled = lab.posedrop("download", "flat/", "--flat", str(flat), check=False)
    assert (spoiled.returncode, spoiled.stderr.count("is another file")) == (1, 6)


def _correct(lab: Lab, key: str, project: Path, folder: Path) -> None:
    """Correct frames of a film as napari-deeplabcut does, and begin to train the project again."""
    import deeplabcut

    asked = {"analysis": "outliers", "args": {"by": "list", "frames": [2, 5, 9]}}
    answer = lab.http.post("/analyse", json={"file_id": lab.file(key)["file_id"], **asked})
    over = lab.over(answer.json()["analysis_id"])
    assert over["status"] == "succeeded", over
    assert over["result"]["details"]["frames"] == [2, 5, 9]
    lab.posedrop("download", over["analysis_id"], "--to", str(folder / "frames"))
    assert [f.frame_idx for f in load_slp(str(folder / "frames" / "frames.pkg.slp"))] == [2, 5, 9]
    with zipfile.ZipFile(folder / "frames" / "labeled-data.zip") as archive:
        archive.extractall(project)
    config = project / "config.yaml"
    known = yaml.safe_load(config.read_text())
    (below,) = (project / "labeled-data").iterdir()
    assert below.name == Path(key).stem
    labels = pd.read_hdf(below / "machinelabels-iter0.h5")
    assert isinstance(labels, pd.DataFrame)
    labels = labels.drop("likelihood", axis=1, level="coords")
    labels.columns = labels.columns.set_levels([known["scorer"]], level="scorer")
    labels.to_hdf(below / f"CollectedData_{known['scorer']}.h5", key="df_with_missing", mode="w")
    film = str(project / "videos" / Path(key).name)
    known |= {"project_path": str(project), "video_sets": {film: {"crop": "0, 320, 0, 240"}}}
    config.write_text(yaml.safe_dump(known))
    deeplabcut.merge_datasets(str(config))
    assert yaml.safe_load(config.read_text())["iteration"] == 1
    (split,) = deeplabcut.create_training_dataset(str(config), userfeedback=False)
    assert sum(map(len, split[2])) == 3


def _names(lab: Lab, video: str) -> set[str]:
    found = lab.s3().list_objects_v2(Bucket="results", Prefix=f"{video}/").get("Contents", [])
    return {each["Key"].rpartition("/")[2] for each in found}


def _use_deeplabcut(flat: Path, project: Path, bodyparts: list[str]) -> None:
    os.environ.setdefault("DLClight", "True")
    import deeplabcut
    from movement.io import load_poses

    config = project / "config.yaml"
    known = yaml.safe_load(config.read_text())
    changed = {"skeleton": [bodyparts[:2]], "project_path": str(project), "numframes2pick": 2}
    config.write_text(yaml.safe_dump({**known, **changed}))
    films = [str(flat / name) for name in FILMS]
    for ours in flat.glob("*_filtered*"):
        ours.unlink()

    def writes(pattern: str, number: int, call: Callable[[], object], where: Path = flat) -> None:
        before = {path: path.stat().st_mtime_ns for path in where.rglob(pattern)}
        call()
        after = {path: path.stat().st_mtime_ns for path in where.rglob(pattern)}
        assert len(after.items() - before.items()) >= number, pattern

    path = str(config)
    writes("*_filtered.h5", 3, lambda: deeplabcut.filterpredictions(path, films))
    writes("*.png", 3, lambda: deeplabcut.plot_trajectories(path, films, filtered=True))
    writes("*_labeled.mp4", 3, lambda: deeplabcut.create_labeled_video(path, films, overwrite=True))
    writes("*_skeleton.h5", 3, lambda: deeplabcut.analyzeskeleton(path, films))
    writes(
        "machinelabels*.h5",
        3,
        lambda: deeplabcut.extract_outlier_frames(
            path,
            films,
            outlieralgorithm="list",
            frames2use=[2, 5, 9],
            extractionalgorithm="uniform",
            automatic=True,
        ),
        project,
    )
    for film in FILMS:
        (table,) = (
            each
            for each in flat.glob("*.h5")
            if each.name.startswith(f"{Path(film).stem}DLC")
            and not each.stem.endswith(("_filtered", "_skeleton"))
        )
        assert load_poses.from_dlc_file(table, fps=30).sizes["time"] == 12
        meta = pd.read_pickle(table.with_name(f"{table.stem}_meta.pickle"))  # noqa: S301
        assert meta["data"]["Scorer"] == table.stem.removeprefix(Path(film).stem)
        assert meta["data"]["nframes"] == 12
