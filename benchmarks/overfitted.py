"""DeepLabCut projects whose weights are overfitted on a few frames of the mouse.

A network that sees nothing never has to repeat a frame, so what is timed with random weights says
little. These find the mouse in the film that they were made on: most peaks are clear, a few nearly
tie. Nothing is downloaded; the truth is what the trained model of tests/support/samples.py finds.

    python -m benchmarks.overfitted resnet50 DIR                      # for films of 640x480
    python -m benchmarks.overfitted hrnet_w32 DIR --size 320x256 --bodyparts 16
    python -m benchmarks.overfitted top_down_hrnet_w32_3 DIR          # three boxes a frame
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from posedrop.demo import MODEL
from tests.support.samples import REPOSITORY, SHARED, Sample, has_real_mouse, sample

BUILD = REPOSITORY / "build"
#: Films, and models by what they are made of.
FOLDER = BUILD / "overfitted"
PCUTOFF = 0.6
#: Frames that are learnt: spread over a film, but denser at its beginning, where short runs are.
LEARNT = 24
#: Largest side of what is cut out of a frame to learn from, in pixels.
CUT = 128
#: What the sides of an HRNet's pictures have to be multiples of.
EVEN = 32
#: A network that has learnt too little takes keypoints that lie far apart for nearly equal.
STEPS = 1000
#: After this share of the steps batch normalisations keep their statistics.
SETTLED = 0.35

Size = tuple[int, int]
#: Other sizes are learnt from what was learnt at this one.
FIRST: Size = (320, 256)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """What a project is of."""

    net_type: str
    """DeepLabCut's name; ``demo``: the demo's own project, made for films of this size."""
    animals: int = 1
    detector: str | None = None
    norm: str | None = None
    """Another timm name of the backbone."""
    channels: int | None = None
    """Of the backbone that ``norm`` names."""


MOBILENET = "fasterrcnn_mobilenet_v3_large_fpn"
RESNET = "fasterrcnn_resnet50_fpn_v2"
RECIPES = {
    "cspnext": Recipe("demo"),
    "resnet18": Recipe("resnet_50", norm="resnet18", channels=512),
    "resnet50": Recipe("resnet_50", norm="resnet50"),
    "resnet50_gn": Recipe("resnet_50"),
    "resnet101": Recipe("resnet_101"),
    "hrnet_w18": Recipe("hrnet_w18"),
    "hrnet_w32": Recipe("hrnet_w32"),
    "cspnext_m": Recipe("cspnext_m"),
    "rtmpose_s": Recipe("rtmpose_s", detector=MOBILENET),
    "rtmpose_m": Recipe("rtmpose_m", detector=MOBILENET),
    "top_down_resnet50": Recipe("resnet_50", detector=MOBILENET, norm="resnet50"),
    "top_down_hrnet_w32": Recipe("hrnet_w32", detector=MOBILENET),
    "top_down_hrnet_w32_3": Recipe("hrnet_w32", detector=MOBILENET, animals=3),
    "top_down_hrnet_w32_10": Recipe("hrnet_w32", detector=MOBILENET, animals=10),
    "superanimal": Recipe("hrnet_w32", detector=RESNET),
    "paf_resnet50": Recipe("resnet_50", animals=2),
    "dlcrnet": Recipe("dlcrnet_stride16_ms5", animals=2),
}


# -- films, and what is in them ----


def mouse() -> Sample:
    """Return the whole film of the mouse, and the model that knows it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if has_real_mouse():
        film = SHARED / "data/openfield/m3v1.mp4"
        return Sample(film, SHARED / "models/openfield-resnet18", [])
    return sample(FOLDER, 900)


def _ffmpeg() -> str:
    """Return the machine's ffmpeg, or the one that DeepLabCut's requirements bring."""
    there = shutil.which("ffmpeg")
    if there is not None:
        return there
    from imageio_ffmpeg import get_ffmpeg_exe

    return str(get_ffmpeg_exe())


def grid_of(animals: int) -> Size:
    """Return in how many columns and rows so many animals are put side by side."""
    columns = math.ceil(math.sqrt(animals))
    return columns, math.ceil(animals / columns)


def film_of(size: Size, frames: int, animals: int = 1, source: Path | None = None) -> Path:
    """Return a film of the mouse scaled to a size; others of it are beside it, later in its day.

    Frames reference earlier ones alone, so that a film may be cut off after any.
    """
    source = source or mouse().film
    width, height = size
    target = FOLDER / f"{source.stem}_{width}x{height}_{animals}_{frames}.mp4"
    if target.exists():
        return target
    columns, rows = grid_of(animals)
    cell = f"scale={max(2, width // columns)}:{max(2, height // rows)}"
    inputs: list[str] = []
    for number in range(animals):
        inputs += ["-stream_loop", "-1", "-ss", str(number * APART), "-i", str(source)]
    parts = [f"[{number}:v]{cell},setpts=N/30/TB[v{number}]" for number in range(animals)]
    black = f"color=black:s={max(2, width // columns)}x{max(2, height // rows)}:r=30"
    empty = range(animals, columns * rows)
    parts += [f"{black}[v{number}]" for number in empty]
    names = "".join(f"[v{number}]" for number in range(columns * rows))
    layout = "|".join(
        f"{column * max(2, width // columns)}_{row * max(2, height // rows)}"
        for row in range(rows)
        for column in range(columns)
    )
    if columns * rows > 1:
        parts.append(f"{names}xstack=inputs={columns * rows}:layout={layout}[all]")
    last = "[all]" if columns * rows > 1 else "[v0]"
    parts.append(f"{last}scale={width}:{height},setsar=1,format=yuv420p[out]")
    part = target.with_suffix(".part.mp4")
    subprocess.run(
        [_ffmpeg(), "-v", "error", "-y", *inputs, "-filter_complex", ";".join(parts),
         "-map", "[out]", "-frames:v", str(frames), "-r", "30", "-c:v", "libx264", "-bf", "0",
         "-preset", "veryfast", "-crf", "16", str(part)],
        check=True,
    )  # fmt: skip
    part.rename(target)
    return target


def placed_film_of(size: Size, frames: int, animals: int = 1) -> Path:
    """Return a film of a size whose animals are as large as in one of ``FIRST``.

    So one network knows them in films of all sizes: where such a film is smaller it follows the
    first animal, where it is larger the other is in its middle.
    """
    target = FOLDER / f"placed_{size[0]}x{size[1]}_{animals}_{frames}.mp4"
    if target.exists():
        return target
    source = film_of(FIRST, frames, animals)
    _, poses = truth_of(FIRST, list(range(frames)), animals, None)
    middles = poses[:, 0, :, :2].mean(axis=1)
    part = target.with_suffix(".part.mp4")
    command = [
        _ffmpeg(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24",
        "-s", f"{size[0]}x{size[1]}", "-r", "30", "-i", "-", "-pix_fmt", "yuv420p",
        "-c:v", "libx264", "-bf", "0", "-preset", "veryfast", "-crf", "16", str(part),
    ]  # fmt: skip
    reader = cv2.VideoCapture(str(source))
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None  # it was asked for
        for middle in middles:
            ok, frame = reader.read()
            if not ok:
                break
            encoder.stdin.write(_placed(np.asarray(frame), middle, size).tobytes())
    if encoder.returncode:
        raise SystemExit(f"ffmpeg failed at {target}")
    part.rename(target)
    return target


def _placed(frame: npt.NDArray[np.uint8], middle: Floats, size: Size) -> npt.NDArray[np.uint8]:
    """Cut a frame of a size out around a place, or put it into the middle of a larger one."""
    rows, columns = (
        slice(begin := int(np.clip(at - wanted / 2, 0, max(0, there - wanted))), begin + wanted)
        for at, wanted, there in zip(middle[::-1], size[::-1], frame.shape[:2], strict=True)
    )
    cut = frame[rows, columns]
    down, across = size[1] - cut.shape[0], size[0] - cut.shape[1]
    sides = down // 2, down - down // 2, across // 2, across - across // 2
    return np.asarray(cv2.copyMakeBorder(cut, *sides, cv2.BORDER_REPLICATE), np.uint8)


#: Seconds of the film by which one animal is ahead of the one beside it.
APART = 3


def cut_film(film: Path, frames: int, target: Path) -> Path:
    """Write a film's first frames, as they are."""
    subprocess.run(
        [_ffmpeg(), "-v", "error", "-y", "-i", str(film), "-c", "copy", "-frames:v", str(frames),
         str(target)],
        check=True,
    )  # fmt: skip
    return target


def learnt_frames(frames: int) -> list[int]:
    """Return the numbers of the frames to learn of a film."""
    last = max(1, frames - 1)
    spread = {round(last * (place / (LEARNT - 1)) ** 3) for place in range(LEARNT)}
    return sorted(spread | set(range(0, min(frames, 40), 4)))


def read(film: Path, numbers: list[int]) -> list[npt.NDArray[np.uint8]]:
    """Return frames of a film, BGR, by their numbers (which ascend)."""
    wanted, found = set(numbers), []
    reader = cv2.VideoCapture(str(film))
    for number in range(max(numbers) + 1):
        ok, frame = reader.read()
        if not ok:
            break
        if number in wanted:
            found.append(np.asarray(frame))
    return found


def bodyparts_of(known: list[str], wanted: int | None) -> tuple[list[str], Floats]:
    """Return names of so many bodyparts, and each as a mixture of the known ones.

    Returns:
        names (n), and weights (n, known): what is more than known is between two of these.
    """
    wanted = wanted or len(known)
    names, mixed = list(known), [list(row) for row in np.eye(len(known))]
    step = 1
    while len(names) < wanted:
        for first in range(len(known)):
            second = (first + step) % len(known)
            share = (step // len(known) + 1) / (step // len(known) + 2)
            row = np.zeros(len(known))
            row[first] += share
            row[second] += 1 - share
            names.append(f"between{len(names)}")
            mixed.append(list(row))
        step += 1
    return names[:wanted], np.array(mixed[:wanted])


def truth_of(size: Size, numbers: list[int], animals: int, bodyparts: int | None) -> Any:
    """Return bodyparts' names, and where they are in frames of ``film_of``.

    Returns:
        names, and poses (frames, animals, bodyparts, 3): x and y in pixels, 1 where it is known.
    """
    known, every = _poses_of_the_mouse()
    names, mixed = bodyparts_of(known, bodyparts)
    width, height = size
    columns, rows = grid_of(animals)
    poses = np.zeros((len(numbers), animals, len(names), 3))
    for animal in range(animals):
        cell = np.array([max(2, width // columns), max(2, height // rows)])
        at = np.array([animal % columns, animal // columns])
        seen = every[(np.array(numbers) + round(animal * APART * 30)) % len(every)]
        place = np.einsum("bk,fkc->fbc", mixed, seen[..., :2])
        sure = np.einsum("bk,fk->fb", mixed > 0, seen[..., 2] < 0.5) == 0
        whole = cell * np.array([columns, rows])
        poses[:, animal, :, :2] = (place + at) * cell * (np.array(size) / whole)
        poses[:, animal, :, 2] = sure
    return names, poses


def _poses_of_the_mouse() -> tuple[list[str], Floats]:
    """Return the known bodyparts, and poses of the film's frames: x and y as shares of its size."""
    from worker.engine import network

    film, model, _ = mouse()
    cache = FOLDER / f"{film.stem}.npz"
    if not cache.exists():
        loaded = network.load(model, None, "cpu")
        reader = cv2.VideoCapture(str(film))

        def frames() -> Iterator[Any]:
            # Not all: an animal moves little from one to the next.
            number = 0
            while (read := reader.read())[0]:
                if number % EVERY == 0:
                    yield np.ascontiguousarray(read[1][..., ::-1])  # RGB
                number += 1
            count.append(number)

        count: list[int] = []
        found = loaded.pose.inference(frames())
        poses = np.stack([one["bodyparts"][0] for one in found])
        size = [reader.get(cv2.CAP_PROP_FRAME_WIDTH), reader.get(cv2.CAP_PROP_FRAME_HEIGHT)]
        at = np.arange(count[0]) / EVERY
        whole = np.empty((count[0], *poses.shape[1:]))
        for place in np.ndindex(poses.shape[1:]):
            whole[(slice(None), *place)] = np.interp(at, np.arange(len(poses)), poses[:, *place])
        whole[..., :2] /= size
        np.savez(cache, poses=whole, names=np.array(loaded.bodyparts))
    kept = np.load(cache)
    return [str(name) for name in kept["names"]], kept["poses"]


EVERY = 4


# -- projects ----


def made(name: str, size: Size, bodyparts: int | None = None, steps: int = STEPS) -> Path:
    """Return the folder of a project, as it is pushed; made if it is not there.

    Args:
        name: one of RECIPES.
        size: width and height of the films that it is for, in pixels.
        bodyparts: how many; None: as many as the sample's model has.
        steps: of learning. Fewer will do where all is computed in fp32, in which no frame is
            computed again, whatever is seen in it.
    """
    many = f"_{bodyparts}" if bodyparts else ""
    if RECIPES[name].detector is not None:
        size = FIRST  # a detector scales what it gets, and so does what cuts out its boxes
    target = FOLDER / f"{name}_{size[0]}x{size[1]}{many}"
    if (target / "made.json").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    make(name, target, size, bodyparts, steps)
    return target


def make(
    name: str, target: Path, size: Size, bodyparts: int | None = None, steps: int = STEPS
) -> None:
    """Make a project, and write into its made.json how well it finds the mouse."""
    import torch

    torch.manual_seed(0)
    recipe = RECIPES[name]
    started = time.perf_counter()
    numbers = learnt_frames(900)
    film = film_of(size, 900, recipe.animals)
    frames = read(film, numbers)
    names, poses = truth_of(size, numbers, recipe.animals, bodyparts)
    config = _project(target, recipe, names)
    training = copy.deepcopy(config["model"])
    if training["backbone"]["type"] == "CSPNeXt":
        training["backbone"]["norm_layer"] = "BN"  # the template's SyncBN can't learn on a CPU
    pictures = Pictures(frames, poses)
    if recipe.detector is not None:
        crop = config["data"]["inference"]["top_down_crop"]
        pictures = pictures.cropped((crop["width"], crop["height"]))
    trained = None
    if size != FIRST and recipe.detector is None:
        trained = next(made(name, FIRST, bodyparts, steps).rglob("snapshot-*.pt"))
    elif recipe.net_type == "demo":
        trained = next(MODEL.rglob("snapshot-*.pt"))
    model = learnt(training, pictures, trained, steps)
    stood = stand_out(model, pictures)
    train = next(target.rglob("train"))
    torch.save({"model": model.state_dict(), "metadata": {"epoch": 1}}, train / "snapshot-001.pt")
    told: dict[str, Any] = {"recipe": asdict(recipe), "steps": steps, "over_pcutoff": stood}
    if recipe.detector is not None:
        weights, told["boxes_found"] = detector_that_knows(
            config["detector"]["model"], Pictures(frames, poses)
        )
        torch.save({"model": weights}, train / "snapshot-detector-001.pt")
    told["seconds"] = round(time.perf_counter() - started, 1)
    (target / "made.json").write_text(json.dumps(told, indent=1))


def _project(target: Path, recipe: Recipe, bodyparts: list[str]) -> dict[str, Any]:
    """Write a project without weights, by DeepLabCut's own builders; return the model's config."""
    from deeplabcut.pose_estimation_pytorch.config.pose import PoseConfig, TestConfig

    several = recipe.animals > 1
    individuals = [f"mouse{number + 1}" for number in range(recipe.animals)]
    train = target / "dlc-models-pytorch/iteration-0/mouseJan1-trainset95shuffle1/train"
    train.mkdir(parents=True)
    train.with_name("test").mkdir()
    bones = [list(bone) for bone in pairwise(bodyparts)]
    content = {
        "Task": "mouse", "scorer": "posedrop", "date": "Jan1", "engine": "pytorch",
        "multianimalproject": several, "identity": False, "project_path": str(target),
        "video_sets": {}, "bodyparts": "MULTI!" if several else bodyparts,
        "multianimalbodyparts": bodyparts if several else [], "uniquebodyparts": [],
        "individuals": individuals, "skeleton": bones, "pcutoff": PCUTOFF,
        "TrainingFraction": [0.95], "iteration": 0, "default_net_type": recipe.net_type,
        "default_track_method": "ellipse", "snapshotindex": -1, "detector_snapshotindex": -1,
        # What DeepLabCut writes into a new project.
        "batch_size": 8, "detector_batch_size": 1, "cropping": False,
    }  # fmt: skip
    (target / "config.yaml").write_text(yaml.safe_dump(content))
    path = train / "pytorch_config.yaml"
    if recipe.net_type == "demo":
        [own] = MODEL.rglob("pytorch_config.yaml")
        config: dict[str, Any] = yaml.safe_load(own.read_text())
        head = config["model"]["heads"]["bodypart"]
        head["target_generator"]["num_heatmaps"] = len(bodyparts)
        head["heatmap_config"]["channels"][-1] = len(bodyparts)
        head["locref_config"]["channels"][-1] = 2 * len(bodyparts)
        config["metadata"].update(
            bodyparts=bodyparts, individuals=individuals, project_path=str(target),
            pose_config_path=str(path),
        )  # fmt: skip
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        shutil.copytree(own.parent.with_name("test"), train.with_name("test"), dirs_exist_ok=True)
    else:
        built = PoseConfig.build(
            target / "config.yaml",
            path,
            top_down=recipe.detector is not None,
            net_type=recipe.net_type,
            detector_type=recipe.detector,
        )
        TestConfig.build(
            built, test_config_path=train.with_name("test") / "pose_cfg.yaml", save=True
        )
        built.to_yaml(path, overwrite=True)
        config = yaml.safe_load(path.read_text())
        if recipe.norm is not None:
            model = config["model"]
            model["backbone"]["model_name"] = recipe.norm
            if recipe.channels is not None:
                model["backbone_output_channels"] = recipe.channels
                for head in model["heads"].values():
                    for part in ("heatmap_config", "locref_config", "paf_config"):
                        if part in head:
                            head[part]["channels"][0] = recipe.channels
    if padding := config["data"]["inference"].get("auto_padding"):
        padding["position"] = "top_left"  # else stock draws by lot for each frame
    for part in (config, config.get("detector")):
        if part:
            part["model"] = {
                key: False if key.startswith("pretrained") else value
                for key, value in part["model"].items()
            }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return config


# -- learning ----


class Pictures(NamedTuple):
    """Frames, BGR, and the poses in them: (frames, animals, bodyparts, 3)."""

    frames: list[npt.NDArray[np.uint8]]
    poses: Floats

    def cropped(self, size: Size) -> Pictures:
        """Return each animal by itself, as a top-down model gets it."""
        from deeplabcut.pose_estimation_pytorch.data.image import top_down_crop

        frames, poses = [], []
        for frame, animals in zip(self.frames, self.poses, strict=True):
            for pose, box in zip(animals, boxes_of(animals), strict=True):
                crop, offsets, scales = top_down_crop(frame, box, size, margin=0)
                moved = pose.copy()
                moved[:, :2] = (pose[:, :2] - np.array(offsets)) / np.array(scales)
                frames.append(crop)
                poses.append(moved[None])
        # As many as without animals beside each other, of all.
        step = max(1, len(frames) // LEARNT)
        return Pictures(frames[::step], np.stack(poses[::step]))


def boxes_of(animals: Floats) -> Floats:
    """Return a box around each animal (n, bodyparts, 3): (n, 4), x, y, width, height in pixels."""
    low, high = animals[..., :2].min(axis=1), animals[..., :2].max(axis=1)
    # The bodyparts are not its outline.
    about = np.maximum(4.0, 0.25 * (high - low).max(axis=1, keepdims=True))
    return np.concatenate([low - about, high - low + 2 * about], axis=1)


def learnt(
    config: dict[str, Any], pictures: Pictures, trained: Path | None = None, steps: int = STEPS
) -> Any:
    """Return a model that has learnt pictures well enough.

    Pieces of the frames are learnt, so that it takes a minute whatever their size.

    Args:
        config: DeepLabCut's of the model.
        pictures: what to learn.
        trained: a snapshot to begin with, and a third of the steps; None: random weights.
        steps: of learning.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.models.model import PoseModel

    from worker.gpu.staging import normalised

    config = copy.deepcopy(config)
    for head in config["heads"].values():
        # Its tiny weights are for a pretrained backbone.
        if head.get("weight_init") == "normal":
            head["weight_init"] = None
    if config["backbone"].get("freeze_bn_stats"):
        config["backbone"]["freeze_bn_stats"] = False
    model = PoseModel.build(config).train()
    if trained is not None:
        same = {
            name: value
            for name, value in torch.load(trained, weights_only=True)["model"].items()
            if model.state_dict()[name].shape == value.shape
        }
        model.load_state_dict(same, strict=False)
    rng = np.random.default_rng(0)
    fixed = any("input_size" in head for head in config["heads"].values())
    whole = pictures.frames[0].shape[:2]
    side = [size if fixed else min(CUT, size // EVEN * EVEN) for size in whole]

    def batch() -> tuple[Any, Any]:
        chosen = rng.integers(len(pictures.frames), size=8)
        pieces = [piece(pictures.frames[one], pictures.poses[one], side, rng) for one in chosen]
        pixels, poses = zip(*pieces, strict=True)
        x = normalised(torch.from_numpy(np.stack(pixels)))
        return x, {"keypoints": torch.from_numpy(np.stack(poses))}

    steps, rate = (steps, 2e-3) if trained is None else (steps // 3, 5e-4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    has_bf16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere it is slower than fp32
    for step in range(steps):
        if step == int(SETTLED * steps):
            settle(model, [batch()[0] for _ in range(6)])
        x, labels = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
            features = model.backbone(x)
        outputs = {name: head(features.float()) for name, head in model.heads.items()}
        targets = model.get_target(outputs, labels)
        loss = model.get_loss(outputs, targets)["total_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"  step {step}: {loss.item():.5f}", round(time.perf_counter(), 1), flush=True)
    print(f"{steps} steps, loss {loss.item():.5f}", flush=True)
    return model.eval()


def settle(model: Any, batches: list[Any]) -> None:
    """Give batch normalisations the statistics of some batches, and keep them.

    What is learnt of the statistics of single batches is worth little without them.
    """
    import torch

    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm in norms:
        norm.eval()


def piece(frame: Any, poses: Floats, side: list[int], rng: np.random.Generator) -> Any:
    """Cut a piece out of a frame, mostly one with an animal in it."""
    height, width = frame.shape[:2]
    rows, columns = side
    if rng.random() < 0.75:
        x, y = poses[rng.integers(len(poses)), rng.integers(poses.shape[1]), :2]
        left = int(x - columns * rng.uniform(0.2, 0.8))
        top = int(y - rows * rng.uniform(0.2, 0.8))
    else:
        left, top = rng.integers(width - columns + 1), rng.integers(height - rows + 1)
    left, top = min(max(0, left), width - columns), min(max(0, top), height - rows)
    moved = poses.copy()
    moved[..., :2] -= (left, top)
    x, y = moved[..., 0], moved[..., 1]
    moved[..., 2] *= (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    return frame[top : top + rows, left : left + columns], moved


def stand_out(model: Any, pictures: Pictures) -> float:
    """Scale the heatmaps of keypoints that stay low in whole frames, so that they are over pcutoff.

    Returns:
        the share of keypoints that are then above it.
    """
    import torch

    from worker.gpu.staging import normalised

    def found(read: Any) -> Any:
        with torch.no_grad():
            return torch.cat(
                [read(model(normalised(torch.from_numpy(frame[None])))) for frame in some]
            )

    height, width = (side // EVEN * EVEN for side in pictures.frames[0].shape[:2])
    some = [np.ascontiguousarray(one[:height, :width]) for one in pictures.frames[::3]]
    head = model.heads["bodypart"]
    if not getattr(head.predictor, "apply_sigmoid", True):
        highest = found(lambda outputs: outputs["bodypart"]["heatmap"].flatten(2).amax(dim=2))
        factor = 0.85 / highest.median(dim=0).values.clamp(min=0.05)
        last = next(
            part
            for part in reversed(list(head.heatmap_head.modules()))
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        )
        outputs = 0 if isinstance(last, torch.nn.Conv2d) else 1
        with torch.no_grad():
            last.weight.mul_(factor.reshape([-1 if axis == outputs else 1 for axis in range(4)]))
            last.bias.mul_(factor)
    likelihood = found(lambda outputs: model.get_predictions(outputs)["bodypart"]["poses"][..., 2])
    return float((likelihood > PCUTOFF).float().mean())


# -- detectors ----


def detector_that_knows(config: dict[str, Any], pictures: Pictures) -> tuple[dict[str, Any], float]:
    """Return a Faster R-CNN's weights, random but for its last layers, which are solved for.

    Random features tell a mouse from a floor well enough: what is an object, what is a mouse and
    how its box is placed are least squares on those of a few frames.

    Args:
        config: the detector's model, as DeepLabCut's config has it.
        pictures: with all animals.

    Returns:
        weights, and the share of animals that a box of the best ones overlaps by half.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.models import DETECTORS
    from torchvision.ops import box_iou

    from worker.engine.detectors import nothing_downloaded
    from worker.gpu.staging import normalised

    with nothing_downloaded():
        adaptor = DETECTORS.build(dict(config))
    adaptor.eval()
    network = adaptor.model
    few = range(0, len(pictures.frames), max(1, len(pictures.frames) // 5))
    images = [normalised(torch.from_numpy(pictures.frames[one][None]))[0] for one in few]
    truths = []
    for one in few:
        corner = torch.from_numpy(boxes_of(pictures.poses[one])).float()
        truths.append(torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:]], dim=1))
    with torch.no_grad():
        with settling(network):
            network(images[:2])
        views = [
            network.transform([image], [{"boxes": box, "labels": torch.ones(len(box)).long()}])
            for image, box in zip(images, truths, strict=True)
        ]
        features = [network.backbone(view.tensors) for view, _ in views]
        rpn, roi = network.rpn, network.roi_heads
        # What is an object: of each kind of anchor by itself.
        rows, wanted = [], []
        for (view, targets), levels in zip(views, features, strict=True):
            maps = list(levels.values())
            [anchors] = rpn.anchor_generator(view, maps)
            overlap = box_iou(anchors, targets[0]["boxes"]).amax(dim=1)
            seen = torch.cat([rpn.head.conv(level).flatten(2)[0].T for level in maps])
            kinds = rpn.head.cls_logits.out_channels
            rows.append(seen)
            wanted.append(overlap.reshape(len(seen), kinds))
        x, y = torch.cat(rows), torch.cat(wanted)
        solved = least_squares(x, 12 * y - 6, (y.amax(dim=1) > 0.3).float() * 50 + 1)
        rpn.head.cls_logits.weight.copy_(solved[:-1].T[..., None, None])
        rpn.head.cls_logits.bias.copy_(solved[-1])
        torch.nn.init.zeros_(rpn.head.bbox_pred.weight)
        # What is a mouse, and where.
        rows, wanted, moves = [], [], []
        for (view, targets), levels in zip(views, features, strict=True):
            boxes = targets[0]["boxes"]
            [proposals], _ = rpn(view, levels)
            size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            near = [boxes + 0.15 * size * torch.randn_like(boxes) for _ in range(20)]
            proposals = torch.cat([proposals[:: max(1, len(proposals) // 400)], *near])
            pooled = roi.box_roi_pool(levels, [proposals], view.image_sizes)
            rows.append(roi.box_head(pooled))
            overlaps, which = box_iou(proposals, boxes).max(dim=1)
            wanted.append(overlaps)
            moves.append(roi.box_coder.encode_single(boxes[which], proposals))
        x, y, moved = torch.cat(rows), torch.cat(wanted), torch.cat(moves)
        predictor = roi.box_predictor
        solved = least_squares(x, (16 * y - 8)[:, None].clamp(-5, 5))
        for number, sign in ((0, -0.5), (1, 0.5)):
            predictor.cls_score.weight[number] = sign * solved[:-1, 0]
            predictor.cls_score.bias[number] = sign * solved[-1, 0]
        solved = least_squares(x[y > 0.4], moved[y > 0.4])
        predictor.bbox_pred.weight[4:] = solved[:-1].T
        predictor.bbox_pred.bias[4:] = solved[-1]
        shares = []
        for found, boxes in zip((network([image])[1][0] for image in images), truths, strict=True):
            best = found["boxes"][: len(boxes)]
            shares.append((box_iou(boxes, best).amax(dim=1) > 0.5).float().mean())
    return adaptor.state_dict(), float(torch.stack(shares).mean())


def least_squares(x: Any, y: Any, weight: Any = None) -> Any:
    """Solve (n, features) and a one for (n, outputs); the ones' row is the last."""
    import torch

    x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    weighed = x if weight is None else x * weight[:, None]
    squares = weighed.T @ x
    few = 1e-3 * squares.diagonal().mean()
    return torch.linalg.solve(
        squares + few * torch.eye(len(squares)).double(), weighed.T @ y.double()
    ).float()


@contextmanager
def settling(network: Any) -> Iterator[None]:
    """Let each batch normalisation take the statistics of what comes to it first."""
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    def take(norm: Any, given: Any) -> None:
        [x] = given
        if x.shape[0] * x.shape[2] * x.shape[3] > 1:
            norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
            norm.running_var.copy_(x.var(dim=(0, 2, 3)) + 1e-3)

    norms = [
        part
        for part in network.modules()
        if isinstance(part, FrozenBatchNorm2d | torch.nn.BatchNorm2d)
    ]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    """Make a project in a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bodyparts", type=int)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of learning ({STEPS})")
    parser.add_argument("--size", default="640x480", help="of the films it is for (640x480)")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    given.folder.parent.mkdir(parents=True, exist_ok=True)
    make(given.name, given.folder, (width, height), given.bodyparts, given.steps)
    print((given.folder / "made.json").read_text())


if __name__ == "__main__":
    main()
