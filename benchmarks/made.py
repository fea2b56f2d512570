"""Films, labels and networks that the figures are made on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import pandas as pd

from tests.support.samples import Sample


def labels_of(folder: Path) -> pd.DataFrame:
    """Return a project's human labels: a row a picture by its name, x and y in pixels."""
    table = pd.read_csv(next(folder.glob("CollectedData_*.csv")), header=[0, 1, 2])
    table.index = pd.Index([str(name).rsplit("/", 1)[-1] for name in table.iloc[:, -9]])
    return table.iloc[:, -8:].astype(float)


def filmed(path: Path, pictures: list[Path]) -> None:
    """Write pictures as a film, without loss."""
    import av
    import cv2

    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.pix_fmt = "bgr0"
        for number, picture in enumerate(pictures):
            pixels = cv2.imread(str(picture))
            if number == 0:
                stream.width, stream.height = pixels.shape[1], pixels.shape[0]
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(format="bgr0")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def distance(poses: Any, human: pd.DataFrame) -> float:
    """Return the mean distance in pixels of what is above pcutoff to the labels."""
    found = poses.to_numpy().reshape(len(human), -1, 3)
    away = np.linalg.norm(found[..., :2] - human.to_numpy().reshape(len(human), -1, 2), axis=-1)
    return float(np.nanmean(away[found[..., 2] >= 0.4]))


def made_resnet50(folder: Path, mouse: Sample, backbone: str = "resnet50") -> Path:
    """Return the project with a ResNet-50 of made weights, sure of what it finds on this film.

    ``backbone`` is timm's name of it: ``resnet50`` has BatchNorms, ``resnet50_gn`` GroupNorms.

    Its peaks stand out as trained ones do in all but a few frames. How many frames ``auto``
    computes again is a trained model's to tell: see ``faithful``.
    """
    import torch
    import yaml
    from deeplabcut.pose_estimation_pytorch.models.model import PoseModel

    from worker.gpu.staging import normalised
    from worker.video import containers, decode

    target = folder / backbone
    if target.exists():
        return target
    shutil.copytree(mouse.model, target, copy_function=shutil.copyfile)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    [config] = target.rglob("pytorch_config.yaml")
    described = yaml.safe_load(config.read_text())
    wanted = described["model"]
    wanted["backbone"]["model_name"] = backbone
    wanted["backbone_output_channels"] = 2048
    head = wanted["heads"]["bodypart"]
    for part in ("heatmap_config", "locref_config"):
        head[part]["channels"][0] = 2048
    config.write_text(yaml.safe_dump(described, sort_keys=False))
    torch.manual_seed(0)
    made = PoseModel.build(wanted).eval()
    stride = max(1, containers.count(mouse.film) // 8)
    with torch.no_grad():
        seen = [
            made.backbone(normalised(torch.from_numpy(frame[None])))
            for _, frame in decode.frames(mouse.film, order="bgr", stride=stride)
        ]
        let_peaks_stand_out(made.heads["bodypart"].heatmap_head.deconv_layers[0], seen)
    [snapshot] = target.rglob("snapshot-*.pt")
    torch.save({"model": made.state_dict(), "metadata": {"epoch": 1}}, snapshot)
    return target


def let_peaks_stand_out(layer: Any, seen: list[Any], tried: int = 256) -> None:
    """Give a head's last layer, of many random weights, those whose heatmaps have one clear peak.

    Args:
        layer: a transposed convolution, a channel a keypoint.
        seen: what the backbone makes of some frames, each (1, channels, rows, columns).
        tried: how many channels to choose from.
    """
    import torch

    many = torch.randn(layer.weight.shape[0], tried, *layer.kernel_size)
    maps = torch.cat(
        [
            torch.nn.functional.conv_transpose2d(
                features, many, None, layer.stride, layer.padding, layer.output_padding
            )
            for features in seen
        ]
    )
    highest = maps.flatten(2).topk(2).values
    # By how much of its height a peak is above all the rest, in the frame where that is least.
    clear = ((highest[..., 0] - highest[..., 1]) / highest[..., 0]).amin(dim=0)
    clear[highest[..., 0].amin(dim=0) <= 0] = 0
    chosen = clear.topk(layer.weight.shape[1]).indices
    heights = highest[:, chosen, 0].amin(dim=0)
    layer.weight.copy_(many[:, chosen] * (0.8 / heights)[None, :, None, None])
    layer.bias.zero_()
