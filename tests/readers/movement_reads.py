"""What movement reads of each table in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from movement.io import load_poses


def main(folder: Path) -> None:
    """Print the tables by their names: of each bodypart, x in each frame."""
    found = {}
    for path in sorted(folder.glob("*[0-9].h5")):
        read = load_poses.from_dlc_file(path, fps=30)
        x = read.position.isel(individuals=0).sel(space="x")
        parts = read.keypoints.values.tolist()
        found[path.stem] = {part: x.sel(keypoints=part).values.tolist() for part in parts}
    print(json.dumps(found))


main(Path(sys.argv[1]))
