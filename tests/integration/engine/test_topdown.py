"""Top-down models in batches: as many calls as batches, whatever the number of animals."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from deeplabcut.pose_estimation_pytorch.data.preprocessor import TopDownCrop
from deeplabcut.pose_estimation_pytorch.models import DETECTORS
from deeplabcut.pose_estimation_pytorch.models.backbones.base import BACKBONES
from deeplabcut.pose_estimation_pytorch.models.detectors.base import BaseDetector
from deeplabcut.pose_estimation_pytorch.models.predictors import SimCCPredictor
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models import get_model

from posedrop.analyses import Job
from posedrop.analyses.deeplabcut_2d import deeplabcut_2d
from tests.integration.engine.test_animals import analysed
from tests.support.animals import HEIGHT, SPOTS, WIDTH, Palette, make_project, spot
from worker.engine import inference, network
from worker.engine.detection import (
    SAFETY,
    Detected,
    Detections,
    Detector,
    can_be_cut,
    edges_of,
    errors_of_edges,
)
from worker.engine.quick_detector import FoundBoxes, Noise, QuickDetector, QuickRCNN, QuickSSD
from worker.engine.state import ENGINE
from worker.precision.heads import watches_of
from worker.video import decode

#: Boxes in a frame of the film: none at its beginning, in its middle and at its end, too.
BOXES = [0, 0, 1, 3, 10, 1, 0, 0, 0, 2, 3, 1, 1, 0]
INDIVIDUALS = [f"mouse{number}" for number in range(10)]


class Calls:
    """Of the two networks: how many pictures each call had."""

    detector: list[int]
    pose: list[int]
    most: int | None

    @classmethod
    def forget(cls) -> None:
        cls.detector, cls.pose, cls.most = [], [], None

    @classmethod
    def take(cls, calls: list[int], pictures: torch.Tensor) -> None:
        if cls.most is not None and len(pictures) > cls.most:
            raise torch.OutOfMemoryError("planted")
        calls.append(len(pictures))


@DETECTORS.register_module
class Bars(BaseDetector):
    """Finds as many boxes as the grey of a frame's first row tells."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, _: Any = None) -> Any:
        Calls.take(Calls.detector, x)
        found = []
        for picture in x:
            grey = float(picture[0, :4].mean()) * 0.229 + 0.485
            corners = [[3.3 * n, 2.1 * n, 60 + 6.2 * n, 50.0 + 3 * n] for n in range(10)]
            count = round(grey * 20)
            scores = torch.linspace(0.9, 0.5, 10)
            found.append({"boxes": torch.tensor(corners)[:count], "scores": scores[:count]})
        return {}, found

    def get_target(self, labels: dict[str, Any]) -> list[dict[str, Any]]:
        raise NotImplementedError


@BACKBONES.register_module
class CountedPalette(Palette):
    """Counts its calls, beside those that only try it out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if Calls.detector:
            Calls.take(Calls.pose, x)
        return x


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """No test sees another's models or calls."""
    ENGINE.models.clear()
    Calls.forget()
    yield
    ENGINE.models.clear()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames with spots of each bodypart's colour, and a grey that tells the detector how many."""
    import av

    path = tmp_path_factory.mktemp("films") / "bars.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, boxes in enumerate(BOXES):
            picture = np.zeros((HEIGHT, WIDTH, 3))
            for (right, down), colour in SPOTS.values():
                spot(picture, 50 + 2 * number + right, 40 + down, colour)
            picture[:4] = 255 * boxes / 20
            whole = np.clip(picture, 0, 255).astype(np.uint8)
            image = av.VideoFrame.from_ndarray(whole, format="rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


def project(root: Path, individuals: list[str]) -> Path:
    make_project(root, individuals=individuals, detector="ssdlite")
    [path] = root.rglob("pytorch_config.yaml")
    config = yaml.safe_load(path.read_text())
    config["model"]["backbone"] = {"type": "CountedPalette"}
    config["detector"]["model"] = {"type": "Bars"}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    torch.save({"model": Bars().state_dict()}, path.with_name("snapshot-detector-001.pt"))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("model"), INDIVIDUALS)


@pytest.fixture(scope="module")
def stock(film: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What stock DeepLabCut finds in each frame, before tracking: (frames, animals, parts, 3)."""
    Calls.forget()
    return of_stock(analysed_in(film, model, tmp_path_factory.mktemp("stock")))


def analysed_in(film: Path, model: Path, out: Path) -> Path:
    with suppress(FileNotFoundError):  # there is no table before tracking
        analysed(film, model, out, auto_track=False)
    return out


def of_stock(out: Path) -> np.ndarray:
    [path] = out.glob("*_full.pickle")
    content = pd.read_pickle(path)  # noqa: S301  # made just now
    frames = []
    for number in range(len(BOXES)):
        frame = content[f"frame{number:02}"]
        [coordinates], confidence = frame["coordinates"], frame["confidence"]
        parts = [np.c_[xy, c.reshape(-1, 1)] for xy, c in zip(coordinates, confidence, strict=True)]
        frames.append(np.stack(parts, axis=1))
    return np.stack(frames)


Run = Callable[..., tuple[dict[str, Any], np.ndarray]]


@pytest.fixture
def run(film: Path, model: Path, tmp_path: Path) -> Run:
    def runs(
        folder: Path = model, report: Any = None, parts: Path | None = None, **args: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        whole = deeplabcut_2d.normalise({"model": "bars", "precision": "fp32", **args})
        job = Job(
            film, out, whole, folder, None, report or (lambda *_: None), "cpu",
            parts=parts, part_seconds=0.0,
        )  # fmt: skip
        answer = inference.run(job)
        with np.load(out / "predictions.npz") as found:
            return answer, found["bodyparts"]

    return runs


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_as_many_calls_as_batches(run: Run, stock: np.ndarray, batch: int) -> None:
    """Frames with none, one, three and ten boxes: full batches of each network, stock's poses."""
    _, found = run(batch_size=batch)
    assert len(Calls.detector) == math.ceil(len(BOXES) / batch)
    assert len(Calls.pose) == math.ceil(sum(BOXES) / batch)
    assert set(Calls.pose) == {batch}
    compare(found, stock)


def test_no_animal_at_all(run: Run) -> None:
    """The pose network is not called, and there are rows all the same."""
    answer, found = run(batch_size=4, stop=2)
    assert (answer["rows"], Calls.detector, Calls.pose) == (2, [2], [])
    assert (found < 0).all()


def test_an_accelerator_has_the_next_frames_early(film: Path, model: Path) -> None:
    """The detector is given the next batch before the boxes of this one are; batches are full."""
    loaded = network.load(model, None, "cpu")
    detector = Detector(loaded.detector, "cpu")
    detections = Detections(detector, TopDownCrop((256, 256)), 4, None)
    detections._accelerated = True
    Calls.forget()
    found = detections.found(decode.frames(film, order="bgr"))
    next(found)
    assert Calls.detector == [4, 4]
    assert [len(boxes["bboxes"]) for _, _, boxes in found] == BOXES[1:]
    assert Calls.detector == [4] * math.ceil(len(BOXES) / 4)


def compare(found: np.ndarray, stock: np.ndarray) -> None:
    for frame, count in enumerate(BOXES):
        ours = found[frame][:count]
        assert (found[frame][count:] < 0).all()
        theirs = stock[frame][~np.isnan(stock[frame]).all(axis=(1, 2))][:count]
        assert len(theirs) == count
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)


def test_no_more_animals_than_the_model_has(run: Run, tmp_path: Path) -> None:
    """The best boxes are kept, in their order, and all keypoints that tracks go by are watched."""
    answer, whole = run(batch_size=4)
    assert answer["details"]["precision"]["pcutoff"] == 0.1  # the project's own is 0.2
    Calls.forget()
    _, found = run(project(tmp_path / "three", INDIVIDUALS[:3]), batch_size=4)
    assert len(Calls.pose) == math.ceil(sum(min(count, 3) for count in BOXES) / 4)
    np.testing.assert_array_equal(found, whole[:, :3])


def test_out_of_memory_halves_both_batches(run: Run) -> None:
    """From 8 to 4, with the same poses."""
    _, expected = run(batch_size=4)
    Calls.forget()
    Calls.most = 4
    answer, found = run(batch_size=8)
    details = answer["details"]
    assert (details["batch_size"], details["detector"]["batch_size"]) == (4, 4)
    assert set(Calls.pose) == {4}
    np.testing.assert_array_equal(found, expected)


def test_an_interrupted_run_goes_on(run: Run, tmp_path: Path) -> None:
    """At most one more call of each network a checkpoint; the same poses, bit by bit."""
    _, expected = run(batch_size=4)
    parts = tmp_path / "parts"
    parts.mkdir()

    def die(stage: str, done: int, _: int | None) -> None:
        if stage == "infer" and done == 9:
            raise KeyboardInterrupt

    Calls.forget()
    with pytest.raises(KeyboardInterrupt):
        run(report=die, parts=parts, batch_size=4)
    kept = len(list(parts.glob("*.npz")))
    assert kept
    calls = len(Calls.detector), len(Calls.pose)
    assert calls[0] <= math.ceil(9 / 4) + kept + 1
    assert calls[1] <= math.ceil(sum(BOXES[:9]) / 4) + kept + 1
    ENGINE.models.clear()
    Calls.forget()
    _, found = run(parts=parts, batch_size=4)
    assert sum(Calls.detector) < len(BOXES)
    assert found.tobytes() == expected.tobytes()


sides = st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 400))


@given(
    box=st.tuples(*[st.floats(0, 300)] * 4),
    beside=st.none() | st.floats(-2, 2),
    signs=st.tuples(*[st.sampled_from([-1, 0, 1])] * 4),
    error=st.sampled_from([1e-3, 0.03, 0.4]),
    output=st.sampled_from([(256, 256), (192, 256), (256, 100), (64, 256)]),
    context=st.booleans(),
)
def test_what_is_cut_out_moves_by_no_more_than_is_said(
    box: tuple[float, ...],
    beside: float | None,
    signs: tuple[int, ...],
    error: float,
    output: tuple[int, int],
    context: bool,
) -> None:
    """Wherever the sides of a box are, within their error."""
    crop = TopDownCrop(output, margin=5, with_context=context)
    found = np.array([box])
    if beside is not None:  # of nearly the shape of what is cut out: either side may decide
        found[:, 3] = (found[:, 2] + 10) * output[1] / output[0] - 10 + beside
    moved = found + error * np.array([signs])
    moved[:, 2:] -= error * np.array([signs[:2]])  # right and bottom are moved by themselves
    off = np.abs(edges_of(moved, crop) - edges_of(found, crop))
    assert (off <= errors_of_edges(found, crop, error) + 1e-9).all()


@given(
    places=st.tuples(st.floats(0, 127), st.floats(0, 95), sides, sides),
    margin=st.sampled_from([0, 1, 25]),
    output=st.sampled_from([(256, 256), (192, 256), (256, 100)]),
    context=st.booleans(),
)
def test_boxes_that_deeplabcut_fails_at_are_known(
    places: tuple[float, ...], margin: int, output: tuple[int, int], context: bool
) -> None:
    """A box that it makes a picture of is kept; one without a whole pixel fails no film."""
    frame, box = np.zeros((96, 128, 3), np.uint8), np.array([places], np.float32)
    crop = TopDownCrop(output, margin=margin, with_context=context)
    [possible] = can_be_cut(box, crop, frame.shape[:2])
    with np.errstate(all="ignore"):
        try:
            crop(frame, {"bboxes": box})
        except (cv2.error, ValueError, ZeroDivisionError):
            assert not possible
        else:
            assert possible


def test_a_box_without_a_pixel_is_left_out(
    run: Run, stock: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have their poses, and the film its result."""
    whole = Bars.forward

    def flat(self: Bars, x: torch.Tensor, targets: Any = None) -> Any:
        losses, found = whole(self, x, targets)
        for each in found:
            each["boxes"] = torch.cat([torch.tensor([[9.0, 9.0, 9.0, 9.0]]), each["boxes"]])[:10]
            each["scores"] = torch.cat([torch.tensor([0.95]), each["scores"]])[:10]
        return losses, found

    monkeypatch.setattr(Bars, "forward", flat)
    _, found = run(batch_size=4, stop=3)
    assert sum(Calls.pose) == 4  # one frame with one animal, in a batch that is filled
    np.testing.assert_allclose(found[2, :1], stock[2, :1], rtol=0, atol=0.01)


# -- the faster form of torchvision's detectors ----


class Hasty:
    """A faster detector that is a pixel off where there is a box, and a frame's mean says where."""

    is_tiled = True

    def untile(self) -> None:
        self.is_tiled = False

    def outputs(self, x: torch.Tensor) -> Any:
        return x

    def heard(self, predict: Any, x: torch.Tensor) -> Any:
        return predict(x), x

    def noise_of(self, exact: torch.Tensor, fast: torch.Tensor, row: int) -> Noise:
        assert torch.equal(exact[0], fast[row])
        return Noise(box=0.05 if float(exact.mean()) > 0 else 1e-6)

    def found(self, x: Any, noise: Noise) -> list[FoundBoxes]:
        sure = noise.box < SAFETY * 0.05
        return [FoundBoxes(boxes + 1.0, scores, sure) for boxes, scores in map(Hasty.boxes_of, x)]

    @staticmethod
    def boxes_of(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = int(float(picture.mean()) > 0)
        return torch.tensor([[10.0, 10, 40, 50]])[:count], torch.tensor([0.9])[:count]


def hasty() -> tuple[Any, Hasty]:
    """Return a detector of a model, and its faster form."""

    def predict(x: torch.Tensor) -> list[dict[str, Any]]:
        found = [Hasty.boxes_of(picture) for picture in x]
        return [
            {"detection": {"bboxes": boxes.numpy(), "scores": scores.numpy()}}
            for boxes, scores in found
        ]

    def context_of(found: list[dict[str, Any]], context: dict[str, Any]) -> Any:
        [one] = found
        return {**context, **one["detection"]}, None

    quick = Hasty()
    runner = SimpleNamespace(
        predict=predict,
        postprocessor=context_of,
        preprocessor=lambda frame, context: (
            torch.from_numpy(frame).permute(2, 0, 1)[None] - 100.0,
            context,
        ),
    )
    detector = SimpleNamespace(
        runner=runner, device=torch.device("cpu"), padding=None, batches={},
        make_quick=lambda: quick, forget_quick=lambda: None,
    )  # fmt: skip
    return detector, quick


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_no_box_is_certain_by_the_noise_of_empty_frames(batch: int) -> None:
    """Where animals come into a film's frames, all of them are judged by the noise of boxes."""
    detector, _ = hasty()
    frames = [np.full((96, 128, 3), 50 if n < 2 else 150, np.uint8) for n in range(12)]
    found = Detections(detector, TopDownCrop((256, 256)), batch, None).found(
        iter(enumerate(frames))
    )
    boxes = [context["bboxes"].tolist() for _, _, context in found]
    assert boxes == [[]] * 2 + [[[10, 10, 40, 50]]] * 10


def test_memory_that_is_short_for_a_moment_leaves_no_box_to_the_noise_of_empty_frames() -> None:
    """The frame with the first box is measured when it is launched again."""
    detector, quick = hasty()
    heard, times = quick.heard, 0

    def short(predict: Any, x: torch.Tensor) -> Any:
        nonlocal times
        if float(x.mean()) > 0:
            times += 1
            if times == 1:
                raise MemoryError
        return heard(predict, x)

    quick.heard = short  # type: ignore[method-assign]
    frames = [np.full((96, 128, 3), 50 if n < 2 else 150, np.uint8) for n in range(12)]
    found = Detections(detector, TopDownCrop((256, 256)), 8, None).found(iter(enumerate(frames)))
    boxes = [context["bboxes"].tolist() for _, _, context in found]
    assert boxes == [[]] * 2 + [[[10, 10, 40, 50]]] * 10
    assert times == 2


def test_the_first_call_of_a_faster_detector_tells_nothing_of_its_speed() -> None:
    """It lays out weights: an attempt that goes on with a film keeps the faster form."""
    detector, quick = hasty()
    frames = [(n, np.full((96, 128, 3), 150, np.uint8)) for n in range(10)]
    plain, calls = detector.runner.predict, 0

    def predict(x: torch.Tensor) -> Any:
        time.sleep(0.05)
        return plain(x)

    def found(x: Any, noise: Noise) -> list[FoundBoxes]:  # noqa: ARG001
        nonlocal calls
        calls += 1
        time.sleep(0.5 if calls == 1 else 0)
        return [FoundBoxes(*Hasty.boxes_of(one), certain=calls > 1) for one in x]

    detector.runner.predict = predict
    quick.found = found  # type: ignore[method-assign]
    later = Detections(detector, TopDownCrop((256, 256)), 1, None)
    before = Detected(Noise(), frames=20, seen=True)
    later.resume({"known": asdict(before), "batch": 1})
    list(later.found(iter(frames)))
    assert later.known.again == 1
    assert later.known.quick


def test_a_faster_detector_that_is_wrong_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video begins again without it; the precision of poses stays what was asked for."""

    class Wrong(Hasty):
        def modules(self) -> list[Any]:
            return []

        def found(self, x: Any, noise: Noise) -> list[FoundBoxes]:  # noqa: ARG002
            return [FoundBoxes(torch.ones(1, 4), torch.ones(1), certain=True) for _ in x]

    monkeypatch.setattr(Detector, "_made", lambda _: Wrong())
    answer, found = run(batch_size=4, precision="bf16")
    assert answer["details"]["detector"]["used"] == "as it is"
    assert answer["details"]["precision"]["used"] == "bf16"
    assert [(frame >= 0).any(axis=(1, 2)).sum() for frame in found] == BOXES


def test_what_a_detector_errs_goes_with_how_it_is_computed() -> None:
    """An attempt that goes on with less noise multiplies as often as the one that measured it."""
    detector, quick = hasty()
    first = Detections(detector, TopDownCrop((256, 256)), 1, None)
    quick.untile()
    list(first.found(iter([(0, np.full((96, 128, 3), 150, np.uint8))])))
    other, fresh = hasty()
    Detections(other, TopDownCrop((256, 256)), 1, None).resume(first.state())
    assert not fresh.is_tiled


def settled(name: str) -> Any:
    """Return a detector of random weights whose numbers are spread like a trained one's."""
    torch.manual_seed(3)
    least = "score_thresh" if name.startswith("ssd") else "box_score_thresh"
    network = get_model(name, weights=None, weights_backbone=None, num_classes=2, **{least: 0.01})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        network.backbone.train()
        for seed in range(4):
            network.backbone(network.transform(list(pictures(2, seed)))[0].tensors)
        network.eval()
        if name.startswith("ssd"):
            for block in network.head.classification_head.module_list:
                block[1].weight *= 6
        else:
            network.rpn.head.cls_logits.weight *= 4
            network.roi_heads.box_predictor.cls_score.weight *= 8
    return network


def pictures(count: int, seed: int) -> torch.Tensor:
    """Return coarse noise, (count, 3, 96, 128)."""
    some = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 12, 16), generator=some) * 4 - 2
    return torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")


def noise_of(quick: QuickDetector, x: torch.Tensor) -> Noise:
    """Return the noise of a faster detector on one picture."""
    _, exact = quick.heard(lambda one: quick.plain(list(one)), x)
    return quick.noise_of(exact, quick.outputs(x), 0)


@pytest.mark.parametrize(
    ("name", "kind", "most", "twins"),
    [
        ("ssdlite320_mobilenet_v3_large", QuickSSD, 10, False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", QuickRCNN, 3, False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", QuickRCNN, 10, True),
    ],
)
@torch.inference_mode()
def test_boxes_that_are_certain_are_those_of_torchvision(
    name: str, kind: type[QuickDetector], most: int, twins: bool
) -> None:
    """Whatever the faster detector is certain of is what torchvision's finds, in its order.

    Nor do boxes make it uncertain that lie in one place, so that it is all the same which is best.
    """
    plain = settled(name)
    if twins:  # anchors stay where they are, of which several levels have the same
        torch.nn.init.zeros_(plain.rpn.head.bbox_pred.weight)
        torch.nn.init.zeros_(plain.rpn.head.bbox_pred.bias)
    quick = kind(plain, 1, most)
    noise = Noise()
    for seed in range(2):
        noise.grow(noise_of(quick, pictures(1, seed)))
    assert 0 < noise.box < 0.05
    noise = Noise(4 * noise.objectness, 4 * noise.proposal, 4 * noise.merit, 4 * noise.box)
    crop = TopDownCrop((256, 256))
    x = pictures(12, 9)
    certain = 0
    for one, true in zip(quick.found(quick.outputs(x), noise), plain(list(x)), strict=True):
        if not one.certain:
            continue
        certain += 1
        expected = true["boxes"][:most]
        assert len(one.boxes) == len(expected)
        torch.testing.assert_close(one.boxes, expected, rtol=0, atol=max(one.error, 1e-3))
        torch.testing.assert_close(one.scores, true["scores"][:most], rtol=0, atol=1e-3)
        assert edges_of(one.boxes.double().numpy(), crop).shape == (len(expected), 4)
    assert certain > 0


@torch.inference_mode()
def test_likelihoods_that_are_the_same_in_fp32_make_no_box_certain() -> None:
    """Of a well trained detector many are 1.0: which proposal comes first decides, not its odds."""
    plain = settled("fasterrcnn_mobilenet_v3_large_320_fpn")
    plain.roi_heads.box_predictor.cls_score.bias[1] += 25
    quick = QuickRCNN(plain, 1, 1)
    noise = Noise(*(4 * value for value in asdict(noise_of(quick, pictures(1, 0))).values()))
    x = pictures(24, 9)
    true = plain(list(x))
    assert sum(float(one["scores"][0]) == 1.0 for one in true) > 12
    for one, expected in zip(quick.found(quick.outputs(x), noise), true, strict=True):
        if one.certain:
            torch.testing.assert_close(one.boxes, expected["boxes"][:1], rtol=0, atol=0.01)


@torch.inference_mode()
def test_a_first_look_that_errs_more_than_was_known_makes_no_box_certain() -> None:
    """What it put behind the others might be the best: the frame is detected again."""
    plain = settled("fasterrcnn_mobilenet_v3_large_320_fpn")
    quick = QuickRCNN(plain, 1, 3)
    noise = noise_of(quick, pictures(1, 0))
    noise = Noise(4 * noise.objectness, 4 * noise.proposal, 4 * noise.merit, 4 * noise.box, 0.05)
    heads = plain.roi_heads
    quick._rough = torch.nn.ModuleDict(
        {"box_head": heads.box_head, "box_predictor": copy.deepcopy(heads.box_predictor)}
    )
    seen = quick.outputs(pictures(12, 9))
    assert any(one.certain for one in quick.found(seen, noise))
    quick._rough["box_predictor"].cls_score.weight.mul_(-1)
    assert not any(one.certain for one in quick.found(seen, noise))


# -- RTMPose's heads ----


@pytest.mark.parametrize("softmax", [False, True])
def test_noise_moves_no_keypoint_that_is_sure(softmax: bool) -> None:
    """SimCC: whatever noise of that size, keypoints of pictures that are sure stay within reach."""
    predictor = SimCCPredictor(apply_softmax=softmax, sigma=(5.66, 5.66))
    head = SimpleNamespace(predictor=predictor)
    model: Any = SimpleNamespace(heads={"bodypart": head}, get_stride=lambda _: 1)
    watches = watches_of(model, 0.3)
    assert watches is not None
    height = 0.03 if softmax else 1e-3
    watch, spread, noise = watches["bodypart"], 0.4, 1e-3 * height
    some = torch.Generator().manual_seed(5)
    cells = torch.arange(512.0)
    lines = {}
    for axis in ("x", "y"):
        places = torch.rand((400, 5, 2, 1), generator=some) * 512
        heights = height * (torch.rand((400, 5, 2, 1), generator=some) + 0.5)
        peaks = heights * torch.exp(-((cells - places) ** 2) / 60)
        lines[axis] = peaks.sum(dim=2)
    unsure = watch.unsure(lines, noise, spread)
    true = predictor(1.0, lines)
    assert 0 < int(unsure.sum()) < len(unsure)
    assert bool(watch.shown(true).any())
    for _ in range(8):
        off = {
            axis: line + noise * (torch.rand(line.shape, generator=some) - 0.5)
            for axis, line in lines.items()
        }
        moved = watch.moved(true, predictor(1.0, off))
        assert float(moved[~unsure].max()) <= spread
        assert 0 < watch.noise(lines, off) <= noise
