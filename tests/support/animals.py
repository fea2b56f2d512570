"""A film of two animals, and projects whose network sees colours.

Each bodypart is a spot of a colour of its own, its heatmap is how much of it a pixel has. So
DeepLabCut's predictors, assembler, trackers and stitcher are all there, and small films are enough.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from posedrop.analyses.superanimal import SuperAnimalArgs

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
from deeplabcut.pose_estimation_pytorch.config.pose import PoseConfig
from deeplabcut.pose_estimation_pytorch.config.pose import TestConfig as PoseTestConfig
from deeplabcut.pose_estimation_pytorch.models import DETECTORS, PoseModel
from deeplabcut.pose_estimation_pytorch.models.backbones.base import BACKBONES, BaseBackbone
from torchvision.models import get_model

BATCH = 4
WIDTH, HEIGHT = 128, 96
FRAMES = 30
#: The second animal hides in these frames, so that its track is stitched of two tracklets.
HIDDEN = range(14, 17)
#: Where a bodypart is, from an animal's centre, and its colour.
SPOTS = {
    "snout": ((12, 0), (255, 0, 0)),
    "tail": ((-12, 0), (0, 0, 255)),
    "ear": ((4, -9), (0, 255, 0)),
}
CORNER = (8, 86)
#: How DeepLabCut normalises a picture's channels, of 0 to 1.
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@BACKBONES.register_module
class Palette(BaseBackbone):
    """Passes the colours on."""

    def __init__(self, **_: Any) -> None:
        super().__init__(stride=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# -- films ----


def centres(frame: int) -> list[tuple[float, float]]:
    """Where the animals are that are seen."""
    first, second = (36 + frame, 26), (92 - frame, 66)
    return [first] if frame in HIDDEN else [first, second]


def spot(picture: npt.NDArray[np.float64], x: float, y: float, colour: Sequence[int]) -> None:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    weight = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)[..., None]
    picture += weight * np.asarray(colour)


def two_animal_film(path: Path, frames: Sequence[int], *, animals: bool = True) -> Path:
    """Write these frames of two animals and a white corner, without loss."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, frame in enumerate(frames):
            picture = np.zeros((HEIGHT, WIDTH, 3))
            for x, y in centres(frame) if animals else []:
                for (right, down), colour in SPOTS.values():
                    spot(picture, x + right, y + down, colour)
            if animals:
                spot(picture, *CORNER, (255, 255, 255))
            whole = np.clip(picture, 0, 255).astype(np.uint8)
            image = av.VideoFrame.from_ndarray(whole, format="rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


# -- models ----


def make_project(
    root: Path,
    *,
    individuals: Sequence[str] = ("ada", "bob"),
    unique: Sequence[str] = (),
    detector: str | None = None,
    **config: Any,
) -> Path:
    """Write a trained DeepLabCut project, by DeepLabCut's own config builders."""
    several = len(individuals) > 1
    parts = list(SPOTS)
    name = "herdJan1-trainset95shuffle1"
    train = root / "dlc-models-pytorch/iteration-0" / name / "train"
    train.mkdir(parents=True)
    train.with_name("test").mkdir()
    content = {
        "Task": "herd",
        "scorer": "posedrop",
        "date": "Jan1",
        "multianimalproject": several,
        "identity": False,
        "project_path": str(root),
        "engine": "pytorch",
        "video_sets": {},
        "bodyparts": "MULTI!" if several else parts,
        "multianimalbodyparts": parts if several else [],
        "uniquebodyparts": list(unique),
        "individuals": list(individuals),
        "skeleton": [["snout", "tail"]],
        "pcutoff": 0.2,
        "TrainingFraction": [0.95],
        "iteration": 0,
        "default_net_type": "resnet_50",
        "default_track_method": "ellipse",
        "snapshotindex": -1,
        "detector_snapshotindex": -1,
        "batch_size": BATCH,
        "detector_batch_size": 1,
        "cropping": False,
        **config,
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    path = train / "pytorch_config.yaml"
    built = PoseConfig.build(
        root / "config.yaml",
        path,
        top_down=detector is not None,
        net_type="resnet_50",
        detector_type="ssdlite" if detector else None,
    )
    PoseTestConfig.build(
        built, test_config_path=train.with_name("test") / "pose_cfg.yaml", save=True
    )
    built.to_yaml(path, overwrite=True)
    edited = yaml.safe_load(path.read_text())
    edited["model"]["backbone"] = {"type": "Palette"}
    edited["model"]["backbone_output_channels"] = 3
    for head in edited["model"]["heads"].values():
        head["num_stages"] = 0
        if head["type"] != "DLCRNetHead":
            del head["num_stages"]
        for layer in ("heatmap_config", "locref_config", "paf_config"):
            if layer in head:
                last = (head[layer].pop("final_conv", None) or {}).get("out_channels")
                channels = [3, last or head[layer]["channels"][-1]]
                head[layer].update(channels=channels, kernel_size=[1], strides=[1])
    if detector is not None:
        edited["detector"]["model"] = {"type": "SSDLite"}
        if detector != "ssdlite":
            edited["detector"]["model"] = {"type": "FasterRCNN", "variant": detector}
    path.write_text(yaml.safe_dump(edited, sort_keys=False))
    torch.manual_seed(1)
    torch.save({"model": colour_weights(edited["model"])}, train / "snapshot-001.pt")
    if detector is not None:
        network = DETECTORS.build(dict(edited["detector"]["model"]))
        torch.save({"model": network.state_dict()}, train / "snapshot-detector-001.pt")
    return root


def colour_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights by which each bodypart is where its colour is."""
    model = PoseModel.build(config)
    weights = model.state_dict()
    for name, value in weights.items():
        if ".locref_head." in name or ".paf_head." in name:
            value.zero_()
    for head, colours in (
        ("bodypart", [colour for _, colour in SPOTS.values()]),
        ("unique_bodypart", [(255, 255, 255)]),
    ):
        key = f"heads.{head}.heatmap_head.deconv_layers.0"
        if f"{key}.weight" not in weights:
            continue
        # Assembled from maps that go through a sigmoid; else the map is the likelihood.
        several = f"heads.{head}.paf_head.deconv_layers.0.weight" in weights
        scale, peak = (4.0, 2.0) if several else (0.125, 0.9)
        for number, colour in enumerate(colours):
            signs = torch.tensor([1.0 if part else -1.0 for part in colour])
            most = float(signs @ ((torch.tensor(colour) / 255 - MEAN) / DEVIATION))
            weights[f"{key}.weight"][:, number, 0, 0] = scale * signs
            weights[f"{key}.bias"][number] = peak - most * scale
    limbs = weights.get("heads.bodypart.paf_head.deconv_layers.0.bias")
    if limbs is not None:
        graph = config["heads"]["bodypart"]["predictor"]["graph"]
        places = [np.asarray(place, float) for place, _ in SPOTS.values()]
        for number, (start, end) in enumerate(graph):
            along = (places[end] - places[start]) / np.linalg.norm(places[end] - places[start])
            limbs[2 * number : 2 * number + 2] = torch.tensor(along)
    return weights


def add_conditional(root: Path, conditions: Any, net_type: str = "ctd_coam_w32") -> Path:
    """Add shuffle 2 to a project: a conditional top-down model, that sees colours in crops.

    What it is told of each bodypart raises its heatmap there, so that other conditions give other
    poses.
    """
    first = root / "dlc-models-pytorch/iteration-0/herdJan1-trainset95shuffle1"
    train = first.with_name("herdJan1-trainset95shuffle2") / "train"
    train.mkdir(parents=True)
    train.with_name("test").mkdir()
    path = train / "pytorch_config.yaml"
    built = PoseConfig.build(
        root / "config.yaml", path, top_down=False, net_type=net_type, ctd_conditions=1
    )
    PoseTestConfig.build(
        built, test_config_path=train.with_name("test") / "pose_cfg.yaml", save=True
    )
    built.to_yaml(path, overwrite=True)
    edited = yaml.safe_load(path.read_text())
    size = 64
    edited["data"]["inference"]["top_down_crop"].update(width=size, height=size)
    edited["inference"]["conditions"] = conditions
    model = edited["model"]
    model["backbone"] = {
        "type": "CondPreNet",
        "backbone": {"type": "Palette"},
        "kpt_encoder": {
            "type": "StackedKeypointEncoder", "num_joints": len(SPOTS), "kernel_size": [15, 15],
        },
        "img_size": [size, size],
    }  # fmt: skip
    model["backbone_output_channels"] = 3
    [head] = model["heads"].values()
    for layer in ("heatmap_config", "locref_config"):
        channels = [3, head[layer].pop("final_conv")["out_channels"]]
        head[layer].update(channels=channels, kernel_size=[1], strides=[1])
    path.write_text(yaml.safe_dump(edited, sort_keys=False))
    torch.manual_seed(3)
    weights = colour_weights(model)
    # The colours as they are, and a little of the conditions' heatmaps (up to 255).
    for name, value in weights.items():
        if name.startswith("backbone.rgb_preNet") and name.endswith(".weight") and value.dim() == 4:
            value.zero_()
            middle = value.shape[2] // 2
            for channel in range(3):
                value[channel, channel, middle, middle] = 1.0
        if (
            name.startswith("backbone.cond_preNet")
            and name.endswith(".weight")
            and value.dim() == 4
        ):
            value.zero_()
            for number, (_, colour) in enumerate(SPOTS.values()):
                for channel, part in enumerate(colour):
                    value[channel, number, 3, 3] = 0.002 if part else -0.002
    torch.save({"model": weights}, train / "snapshot-001.pt")
    return root


def zoo_weights(folder: Path, args: SuperAnimalArgs) -> Path:
    """Make weights of a SuperAnimal's networks, which find something in any picture."""
    people = args.superanimal == "superanimal_humanbody"
    config = PoseConfig.build_for_superanimal_inference(
        args.superanimal,
        model_name=args.model_name,
        detector_name=None if people else args.detector_name,
    )
    torch.manual_seed(2)
    pose, detector = (folder / file for file in args.files)
    if people:
        found = get_model(args.detector_name, weights=None).state_dict()
    else:
        assert config["detector"] is not None
        found = DETECTORS.build(dict(config["detector"]["model"])).state_dict()
    for name, value in found.items():
        if name.endswith("cls_score.bias") or (
            "classification_head" in name and name.endswith("1.bias")
        ):
            # Sure that there is an animal, or a person: the first kind of many.
            value[slice(1, 2) if people else slice(1, None, 2)] += 9 if people else 5
    folder.mkdir()
    torch.save({"model": PoseModel.build(config["model"]).state_dict()}, pose)
    torch.save(found if people else {"model": found}, detector)
    return folder
