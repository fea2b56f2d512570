"""What keypoint-MoSeq finds in a folder: its ``load_keypoints``, called as its notebooks do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from keypoint_moseq import load_keypoints


def main(folder: Path) -> None:
    """Print the recordings by their names: of each bodypart, x in each frame."""
    # Recordings are called as the files, and all that match are taken: not the filtered ones too.
    coordinates, _, bodyparts = load_keypoints(str(folder / "*[0-9].h5"), "deeplabcut")
    found = {
        name: {part: positions[:, number, 0].tolist() for number, part in enumerate(bodyparts)}
        for name, positions in coordinates.items()
    }
    print(json.dumps(found))


main(Path(sys.argv[1]))
