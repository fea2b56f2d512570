"""What VAME finds in a folder: the sessions of a new project of its tables."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import vame
import xarray


def main(folder: Path) -> None:
    """Print the sessions by their names: of each bodypart, x in each frame."""
    tables = sorted(str(path) for path in folder.glob("*[0-9].h5"))
    found = {}
    with tempfile.TemporaryDirectory() as working:
        _, config = vame.init_new_project(
            project_name="flat",
            poses_estimations=tables,
            source_software="DeepLabCut",
            working_directory=working,
            fps=30,
        )
        for name in config["session_names"]:
            session = xarray.load_dataset(Path(working, "flat", "data", "raw", f"{name}.nc"))
            x = session.position.isel(individuals=0).sel(space="x")
            found[name] = {
                part: x.sel(keypoints=part).values.tolist() for part in config["keypoints"]
            }
    print(json.dumps(found))


main(Path(sys.argv[1]))
