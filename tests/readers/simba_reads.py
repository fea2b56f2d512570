"""What SimBA finds in a folder: the tables that its importer puts into a new project."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path

from simba.pose_importers.dlc_importer_csv import import_dlc_csv
from simba.utils.config_creator import ProjectConfigCreator


def main(folder: Path) -> None:
    """Print the videos by their names: of each bodypart, x in each frame."""
    with tempfile.TemporaryDirectory() as working:
        ProjectConfigCreator(
            project_path=working,
            project_name="flat",
            target_list=["Rearing"],
            pose_estimation_bp_cnt="4",
            body_part_config_idx=0,
            animal_cnt=1,
        )
        config = next(Path(working).rglob("project_config.ini"))
        imported = import_dlc_csv(str(config), str(folder))
        # Plain and filtered table of a film are one video to it: the one that it read last stays.
        print(json.dumps({Path(path).stem: _read(Path(path)) for path in imported}))


def _read(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    bodyparts = next(row for row in rows if row[0] == "bodyparts")
    coords = next(row for row in rows if row[0] == "coords")
    frames = [row for row in rows if row[0].isdigit()]
    return {
        part: [float(row[column]) for row in frames]
        for column, (part, coord) in enumerate(zip(bodyparts, coords, strict=True))
        if coord == "x"
    }


main(Path(sys.argv[1]))
