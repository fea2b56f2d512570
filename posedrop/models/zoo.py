"""DeepLabCut's model zoo: which SuperAnimals there are, and how their weights get here. No torch.

Their networks are described in DeepLabCut itself; the weights are files on Hugging Face, which
neither a worker's child nor many a laboratory's server can reach. So somebody downloads them once
and pushes them into the models bucket, one model a SuperAnimal, with as many networks as are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HUB = "https://huggingface.co"
#: Where torchvision's weights are; what it downloaded is in ~/.cache/torch/hub/checkpoints.
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class SuperAnimal:
    """A SuperAnimal, its networks (the first of each is the default), and where they are."""

    name: str
    repository: str
    """On Hugging Face."""
    pose_models: tuple[str, ...]
    detectors: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Files by network, where the repository's are not called as elsewhere."""
    torchvision: Mapping[str, str] = field(default_factory=dict)
    """Files by network, of detectors that are torchvision's own."""

    def file(self, network: str) -> str:
        """Return the name of the file with a network's weights."""
        known = {**self.renamed, **self.torchvision}
        return known.get(network, f"{self.name}_{network}.pt")

    @property
    def files(self) -> list[str]:
        """The names of all files of weights that there are."""
        return [self.file(network) for network in (*self.pose_models, *self.detectors)]

    def how_to_get(self, files: Sequence[str]) -> str:
        """Return what to do for these files of weights to be there."""
        others = set(self.torchvision.values())
        places = (
            ([file for file in files if file not in others], f"{HUB}/{self.repository}"),
            ([file for file in files if file in others], TORCHVISION),
        )
        where = " and ".join(
            f"{' and '.join(names)} from {place}" for names, place in places if names
        )
        return (
            f"download {where} into a folder (of those that are to be kept, too), then: "
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
        SuperAnimal(
            "superanimal_humanbody",
            "DeepLabCut/HumanBody",
            ("rtmpose_x",),
            ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn_v2"),
            {"rtmpose_x": "rtmpose-x_simcc-body7.pt"},
            {
                "fasterrcnn_mobilenet_v3_large_fpn": (
                    "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth"
                ),
                "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
            },
        ),
    )
}


def weights_in(folder: Path, name: str) -> list[Path]:
    """Return the files of a SuperAnimal's weights that are in a folder, by name."""
    return [file for one in sorted(ZOO[name].files) if (file := folder / one).is_file()]


def kind_of(folder: Path) -> str | None:
    """Return the SuperAnimal of which a folder holds weights."""
    return next((name for name in ZOO if weights_in(folder, name)), None)
