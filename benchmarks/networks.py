"""One network computed by several engines, in a process of one engine's own: see rivals.py.

An engine is a function of a loaded model and an example of its pictures that returns a function of
pictures. Pictures are (n, 3, height, width), fp32, normalised; outcomes are heatmaps and offsets
(``locref``), both fp32. What is not installed or can't be done raises :class:`ImpossibleError`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

Outcome = tuple[Any, Any]
Compute = Callable[[Any], Outcome]
#: Seconds that one measurement takes at least; its first call is not counted.
LEAST_SECONDS = 0.5


class ImpossibleError(Exception):
    """An engine can't compute this here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """One way to compute a network."""

    title: str
    numbers: str
    """fp32 or bf16."""
    package: str
    """Whose version is told."""
    make: Callable[[Any, Any, int], Compute]
    """Of a model, an example of the pictures, and how many threads to use."""


# -- torch, as it comes and as posedrop has it ----


def _stock(model: Any, _: Any, __: int) -> Compute:
    return lambda x: _both(model(x))


def _channels_last(model: Any, _: Any, __: int) -> Compute:
    import torch

    plain = _variants(model).plain
    return lambda x: _both(plain(x.to(memory_format=torch.channels_last)))


def _ours(numbers: Any, kind: Any) -> Callable[[Any, Any, int], Compute]:
    def make(model: Any, _: Any, __: int) -> Compute:
        import torch

        variants = _variants(model)
        if kind not in variants.kinds(numbers):
            raise ImpossibleError(
                f"posedrop has no {kind} convolutions in {numbers} for this model"
            )
        form = variants.form(numbers, kind)
        return lambda x: _both(form(x.to(memory_format=torch.channels_last)))

    return make


def _narrow(model: Any, _: Any, __: int) -> Compute:
    import torch

    plain = _in_bf16(model)
    return lambda x: _both(plain(x.to(memory_format=torch.channels_last)))


def _compiled(numbers: str) -> Callable[[Any, Any, int], Compute]:
    def make(model: Any, _: Any, __: int) -> Compute:
        if shutil.which("g++") is None:
            raise ImpossibleError("torch.compile needs a C++ compiler")
        import torch
        from torch._inductor import config

        config.freezing = True
        plain = _variants(model).plain if numbers == "fp32" else _in_bf16(model)
        compiled = torch.compile(plain, dynamic=False)
        return lambda x: _both(compiled(x.to(memory_format=torch.channels_last)))

    return make


def _variants(model: Any) -> Any:
    from worker.precision.variants import ModelVariants

    return ModelVariants(model, "cpu")


def _in_bf16(model: Any) -> Any:
    """Return the network with its backbone in bf16, by torch's own operators alone."""
    import torch

    plain = _variants(model).plain
    backbone = plain.backbone.to(torch.bfloat16)

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: Any) -> Any:
            return self.backbone(x.to(torch.bfloat16)).float()

    plain.backbone = Narrow()
    return plain


# -- the rivals ----


def _openvino(numbers: str, streams: int = 1) -> Callable[[Any, Any, int], Compute]:
    def make(model: Any, example: Any, threads: int) -> Compute:
        ov = _installed("openvino")
        core = ov.Core()
        if numbers == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise ImpossibleError("OpenVINO has no bf16 on this processor")
        share = max(1, len(example) // streams)
        graph = ov.convert_model(_flat(model), example_input=example[:share])
        graph.reshape({0: list(example[:share].shape)})
        compiled = core.compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[numbers],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,
            },
        )
        requests = [compiled.create_infer_request() for _ in range(len(example) // share)]

        def compute(x: Any) -> Outcome:
            import torch

            for part, request in zip(
                x.numpy().reshape(-1, share, *x.shape[1:]), requests, strict=True
            ):
                request.start_async([ov.Tensor(part, shared_memory=True)])
            for request in requests:
                request.wait()
            heatmaps, offsets = (
                torch.cat([torch.from_numpy(one.get_output_tensor(place).data) for one in requests])
                for place in range(2)
            )
            return heatmaps, offsets

        return compute

    return make


def _onnxruntime(numbers: str) -> Callable[[Any, Any, int], Compute]:
    def make(model: Any, example: Any, threads: int) -> Compute:
        import torch

        ort = _installed("onnxruntime")
        flat = _flat(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _installed("onnxscript")
            if numbers == "bf16":
                # With norms folded: the exporter would fold them to fp32.
                flat = _flat(_variants(model).plain).to(torch.bfloat16)
                example = example.to(torch.bfloat16)
            # Opset 22 is the first whose convolutions may be in bf16.
            torch.onnx.export(flat, (example,), path, dynamo=True, opset_version=22, verbose=False)
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            try:
                session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # of many types; NotImplemented is not public
                words = str(error).splitlines()[0].replace(str(path), path.name)[:200]
                raise ImpossibleError(f"ONNX Runtime's CPU provider can't: {words}") from error
        name = session.get_inputs()[0].name

        def compute(x: Any) -> Outcome:
            heatmaps, offsets = session.run(None, {name: x.numpy()})
            return torch.from_numpy(heatmaps), torch.from_numpy(offsets)

        return compute

    return make


def _ncnn(numbers: str) -> Callable[[Any, Any, int], Compute]:
    def make(model: Any, example: Any, threads: int) -> Compute:
        import torch

        ncnn, pnnx = _installed("ncnn"), _installed("pnnx")
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = numbers == "bf16"
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # pnnx leaves files beside it
            try:
                pnnx.export(_flat(model), f"{folder}/model.pt", (example[:1],), fp16=False)
                if net.load_param("model.ncnn.param") or net.load_model("model.ncnn.bin"):
                    raise ImpossibleError("ncnn can't load what pnnx has made of the model")
            finally:
                os.chdir(here)

        def compute(x: Any) -> Outcome:
            found: list[list[Any]] = [[], []]
            for picture in x.numpy():  # it takes one at a time
                with net.create_extractor() as extractor:
                    extractor.input("in0", ncnn.Mat(picture))
                    for place, kept in enumerate(found):
                        _, made = extractor.extract(f"out{place}")
                        kept.append(torch.from_numpy(made.numpy().copy()))
            return torch.stack(found[0]), torch.stack(found[1])

        return compute

    return make


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImpossibleError(f"{module} is not installed: pip install -e '.[rivals]'") from error


def _flat(model: Any) -> Any:
    """Return the network as a module whose outcome is a tuple, which all converters take."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Any) -> Outcome:
            return _both(self.inner(x))

    return Flat().eval()


def _both(outputs: Any) -> Outcome:
    return outputs["bodypart"]["heatmap"], outputs["bodypart"]["locref"]


ENGINES = {
    "stock": Engine("torch, as DeepLabCut runs it", "fp32", "torch", _stock),
    "channels_last": Engine("torch, channels last, norms folded", "fp32", "torch", _channels_last),
    "direct": Engine("posedrop, fused", "fp32", "torch", _ours("fp32", "direct")),
    "winograd": Engine("posedrop, fused, Winograd", "fp32", "torch", _ours("fp32", "winograd")),
    "compiled": Engine("torch.compile, freezing", "fp32", "torch", _compiled("fp32")),
    "openvino": Engine("OpenVINO", "fp32", "openvino", _openvino("fp32")),
    "openvino_2": Engine("OpenVINO, two streams", "fp32", "openvino", _openvino("fp32", 2)),
    "onnxruntime": Engine("ONNX Runtime", "fp32", "onnxruntime", _onnxruntime("fp32")),
    "ncnn": Engine("ncnn", "fp32", "ncnn", _ncnn("fp32")),
    "channels_last_bf16": Engine("torch, channels last, norms folded", "bf16", "torch", _narrow),
    "direct_bf16": Engine("posedrop, fused", "bf16", "torch", _ours("bf16", "direct")),
    "winograd_bf16": Engine(
        "posedrop, fused, Winograd", "bf16", "torch", _ours("bf16", "winograd")
    ),
    "compiled_bf16": Engine("torch.compile, freezing", "bf16", "torch", _compiled("bf16")),
    "openvino_bf16": Engine("OpenVINO", "bf16", "openvino", _openvino("bf16")),
    "openvino_2_bf16": Engine("OpenVINO, two streams", "bf16", "openvino", _openvino("bf16", 2)),
    "onnxruntime_bf16": Engine("ONNX Runtime", "bf16", "onnxruntime", _onnxruntime("bf16")),
    "ncnn_bf16": Engine("ncnn", "bf16", "ncnn", _ncnn("bf16")),
}

#: What this process has made: by batch.
_made: dict[int, Compute] = {}
_pictures: list[Any] = []


def network_by_engine(
    engine: str, model: str, film: str, frames: int, threads: int, batch: int, out: str | None
) -> dict[str, Any]:
    """Time an engine on batches of a film's frames; the first call of a batch's size prepares it.

    Args:
        engine: one of ENGINES, always the same in one process; so are the other arguments but
            ``batch`` and ``out``.
        model: a project's folder.
        frames: so many of the film, spread over it; a multiple of ``batch``.
        threads: that the network may use.
        batch: frames at once.
        out: a file (.npz) for what it finds in all frames, ``heatmap``, ``locref`` and the
            ``poses`` that DeepLabCut's predictor reads from them; then nothing is timed.

    Returns:
        ``seconds`` a frame of each call; the ``version`` of the engine's package; seconds to
        ``prepare``. Or ``impossible``: why.
    """
    known = ENGINES[engine]
    if engine not in {"stock", "compiled", "compiled_bf16"}:
        be_a_worker()
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    started = time.perf_counter()
    with torch.inference_mode():
        if not _pictures:
            _pictures.extend(_read(Path(film), frames))
        batches = list(torch.stack(_pictures).split(batch))
        if batch not in _made:
            try:
                made = known.make(_load(Path(model)), batches[0].clone(), threads)
                made(batches[0])
            except ImpossibleError as why:
                return {"impossible": str(why)}
            _made[batch] = made
        compute = _made[batch]
        answer: dict[str, Any] = {"version": version(known.package)}
        answer["prepare"] = time.perf_counter() - started
        if out is not None:
            found = [[part.clone() for part in compute(one)] for one in batches]
            heatmap, locref = (torch.cat(parts) for parts in zip(*found, strict=True))
            read = _reader(Path(model)).get_predictions(
                {"bodypart": {"heatmap": heatmap, "locref": locref}}
            )
            poses = torch.as_tensor(read["bodypart"]["poses"]).numpy()
            np.savez(out, heatmap=heatmap.numpy(), locref=locref.numpy(), poses=poses)
            return answer
        seconds: list[float] = []
        compute(batches[0])
        begun = time.perf_counter()
        while len(seconds) < 2 or time.perf_counter() - begun < LEAST_SECONDS:
            x = batches[len(seconds) % len(batches)]
            before = time.perf_counter()
            compute(x)
            seconds.append((time.perf_counter() - before) / batch)
    return {**answer, "seconds": seconds}


def be_a_worker() -> None:
    """Have the environment of a worker's child; torch reads it when it is imported."""
    from worker.child.child import FIXED

    os.environ.update(FIXED)


def _load(model: Path) -> Any:
    from worker.engine import network

    return network.load(model, None, "cpu").pose.model.eval()


@cache
def _reader(model: Path) -> Any:
    """Return the network again, to read poses from heatmaps: engines may change theirs."""
    return _load(model)


def _read(film: Path, frames: int) -> list[Any]:
    """Return frames spread over a film, as a network wants them."""
    import torch

    from worker.gpu.staging import normalised
    from worker.video import containers, decode

    stride = max(1, containers.count(film) // frames)
    found = []
    for _, frame in decode.frames(film, order="bgr", stride=stride):
        found.append(normalised(torch.from_numpy(frame[None]))[0].contiguous())
        if len(found) == frames:
            break
    return found
