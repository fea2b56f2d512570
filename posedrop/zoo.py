"""DeepLabCut's model zoo: which SuperAnimals there are, and how their weights get here. No torch.

Their networks are described in DeepLabCut itself; the weights are files on Hugging Face, which
neither a worker's child nor many a laboratory's server can reach. So somebody downloads them once
and pushes them into the models bucket, one model a SuperAnimal, with as many networks as are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SuperAnimal:
    """A SuperAnimal, its networks (the first of each is the default), and where they are."""

    name: str
    repository: str
    """On Hugging Face."""
    pose_models: tuple[str, ...]
    detectors: tuple[str, ...]

    def file(self, network: str) -> str:
        """Return the name of the file with a network's weights."""
        return f"{self.name}_{network}.pt"

    @property
    def files(self) -> list[str]:
        """The names of all files of weights that there are."""
        return [self.file(network) for network in (*self.pose_models, *self.detectors)]

    def how_to_get(self, files: Sequence[str]) -> str:
        """Return what to do for these files of weights to be there."""
        return (
            f"download {' and '.join(files)} from https://huggingface.co/{self.repository} into a "
            "folder (of those that are to be kept, too), then: "
            f"posedrop models push FOLDER --name {self.name}"
        )


ZOO = {
    animal.name: animal
    for animal in (
        SuperAnimal(
            "superanimal_quadruped",
            "mwmathis/DeepLabCutModelZoo-SuperAnimal-Quadruped",
            ("hrnet_w32", "resnet_50", "rtmpose_s"),
            ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn", "ssdlite"),
        ),
        SuperAnimal(
            "superanimal_topviewmouse",
            "mwmathis/DeepLabCutModelZoo-SuperAnimal-TopViewMouse",
            ("hrnet_w32", "resnet_50"),
            ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"),
        ),
        SuperAnimal(
            "superanimal_bird",
            "DeepLabCut/DeepLabCutModelZoo-SuperAnimal-Bird",
            ("resnet_50",),
            ("fasterrcnn_mobilenet_v3_large_fpn", "ssdlite"),
        ),
    )
}


def weights_in(folder: Path, name: str) -> list[Path]:
    """Return the files of a SuperAnimal's weights that are in a folder, by name."""
    return [file for one in sorted(ZOO[name].files) if (file := folder / one).is_file()]


def kind_of(folder: Path) -> str | None:
    """Return the SuperAnimal of which a folder holds weights."""
    return next((name for name in ZOO if weights_in(folder, name)), None)
