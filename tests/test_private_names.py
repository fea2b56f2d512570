"""Names of outside libraries that these don't promise to keep, and on which posedrop leans.

One assertion a name; its message says what breaks here without it. `make newest` asks the newest
versions. Those of torch, torchvision, timm and DeepLabCut are marked ``torch``: they take seconds
to import.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("DLClight", "True")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

DLC = "deeplabcut.pose_estimation_pytorch"


def found(name: str) -> Any:
    """Return what is called so: ``module:attribute.attribute``."""
    module, _, path = name.partition(":")
    there = importlib.import_module(module)
    for part in path.split("."):
        there = getattr(there, part)
    return there


def is_there(name: str) -> bool:
    """Tell whether a library has something of this name."""
    try:
        found(name)
    except (ImportError, AttributeError):
        return False
    return True


def parameters(name: str) -> list[str]:
    """Return the names of a function's parameters, in their order."""
    return list(inspect.signature(found(name)).parameters)


# -- what the handlers lean on, and all that need no torch ----

LIGHT = {
    "botocore.awsrequest:AWSHTTPConnection._consume_headers": (
        "an answer that ends within its headers, after 100 Continue, hangs an upload for ever"
    ),
    "botocore.awsrequest:AWSHTTPConnection.response_class": (
        "an answer whose headers were cut is taken for a whole one"
    ),
    "botocore.awsrequest:AWSHTTPConnectionPool.ConnectionCls": (
        "an answer whose headers were cut is taken for a whole one"
    ),
    "botocore.awsrequest:AWSHTTPSConnection.response_class": (
        "an answer whose headers were cut is taken for a whole one, over TLS"
    ),
    "botocore.awsrequest:AWSHTTPSConnectionPool.ConnectionCls": (
        "an answer whose headers were cut is taken for a whole one, over TLS"
    ),
    "datasette.app:Datasette": "posedrop explore can't begin",
    "datasette.database:Database.connect": "posedrop explore opens the index as Datasette does",
    "datasette.database:Database.view_names": "posedrop explore lists no views",
    "datasette.database:Database.get_view_definition": "posedrop explore shows no views",
    "datasette.handle_exception:rich": ("posedrop explore fills the terminal where SQL is refused"),
    "dramatiq.brokers.rabbitmq:RabbitmqBroker.connection.fdel": (
        "a connection to RabbitMQ that was cut stays so when messages are counted"
    ),
    "dramatiq.brokers.rabbitmq:RabbitmqBroker.get_queue_message_counts": (
        "nobody can tell how many messages wait in RabbitMQ, and the gpu queue stops"
    ),
    "dramatiq.common:dq_name": "messages that wait for their time are not counted",
    "pika.adapters.utils.connection_workflow:AMQPConnectorException": (
        "doctor ends with a traceback where RabbitMQ can't be reached"
    ),
    "pika.adapters.utils.connection_workflow:AMQPConnectorStackTimeout": (
        "doctor does not say that what listens at the broker's port is no RabbitMQ"
    ),
    "pika.exceptions:ProbableAuthenticationError": (
        "doctor does not say that RabbitMQ's user or password is wrong"
    ),
    "pika.exceptions:ProbableAccessDeniedError": (
        "doctor does not say that RabbitMQ's virtual host is wrong"
    ),
    "pika.exceptions:ConnectionBlockedTimeout": (
        "doctor does not say that RabbitMQ is out of disk or memory"
    ),
    "minio.credentials.providers:StaticProvider": "bootstrap can't sign in at MinIO",
    "sqlite_utils:Migrations": "the index can't be migrated",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_body": (
        "a body is cut off as one without an end, since none of it counts as content"
    ),
}


@pytest.mark.parametrize("name", LIGHT)
def test_a_name_is_there(name: str) -> None:
    """A class, function or attribute is where posedrop looks for it."""
    assert is_there(name), f"{name} is gone: {LIGHT[name]}"


def test_botocore_keeps_the_classes_of_its_connections_by_scheme() -> None:
    """A client has a dictionary in which they can be replaced, and makes its pools of them."""
    import boto3

    client = boto3.client(
        "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    session = client._endpoint.http_session
    assert {"http", "https"} <= session._pool_classes_by_scheme.keys(), (
        "answers whose headers were cut are taken for whole ones: an object without its metadata, "
        "a bucket without objects"
    )
    assert session._manager.pool_classes_by_scheme is session._pool_classes_by_scheme, (
        "the classes of connections that were put in are not used"
    )


def test_botocores_answers_take_a_status() -> None:
    """An answer takes the status that came with ``100 Continue`` as an argument of its own."""
    made = inspect.getsource(found("botocore.awsrequest:AWSHTTPResponse.__init__"))
    assert "status_tuple" in made, "no answer of a store can be read: its connection fails"


def test_http_client_reads_headers_line_by_line() -> None:
    """http.client's response has the file it reads as ``fp``, and is read from by ``readline``."""
    from http.client import HTTPResponse

    class Socket:
        def makefile(self, *_: Any) -> io.BytesIO:
            return io.BytesIO(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")

    response = HTTPResponse(Socket())  # type: ignore[arg-type]
    lines: list[bytes] = []

    class Lines:
        def __init__(self, file: Any) -> None:
            self.file = file

        def readline(self, limit: int = -1) -> bytes:
            lines.append(self.file.readline(limit))
            return lines[-1]

        def close(self) -> None:
            self.file.close()

        def flush(self) -> None:
            pass

    response.fp = Lines(response.fp)  # type: ignore[assignment]
    response.begin()
    assert lines[-1] == b"\r\n", "whether an answer's headers came to their end can't be seen"


def test_redis_queues_are_lists_named_after_the_namespace() -> None:
    """Dramatiq's broker for Redis has its client and its namespace."""
    from dramatiq.brokers.redis import RedisBroker

    broker: Any = RedisBroker(url="redis://127.0.0.1:1/0")  # type: ignore[no-untyped-call]
    assert (broker.namespace, callable(broker.client.llen)) == ("dramatiq", True), (
        "nobody can tell how many messages wait in Redis, and the gpu queue stops"
    )


def test_the_stub_brokers_queues_can_be_counted() -> None:
    """Dramatiq's broker in memory has a queue by each name, and one for what waits for its time."""
    from dramatiq.brokers.stub import StubBroker

    broker = StubBroker()
    broker.declare_queue("cpu")
    assert [broker.queues[name].qsize() for name in ("cpu", "cpu.DQ")] == [0, 0], (
        "`posedrop up` can't tell how many messages wait"
    )
    assert broker.logger.name == "dramatiq.broker.StubBroker", (
        "`posedrop up` prints what concerns nobody when it stops"
    )


UVICORN = {
    "connections": "a connection that says nothing makes no room for one that asks",
    "cycle": "a slow head, body or answer is never cut off",
    "flow": "a body that posedrop itself does not read is taken for a slow one, and cut off",
    "logger": "nobody is told of a request that was cut off",
    "loop": "nobody is cut off: connections are not timed",
}


@pytest.mark.parametrize("name", UVICORN)
def test_uvicorns_connection_has(name: str) -> None:
    """What the watch over connections reads of uvicorn's own class."""
    source = inspect.getsource(found("uvicorn.protocols.http.httptools_impl:HttpToolsProtocol"))
    assert f"self.{name}" in source, f"uvicorn's connection has no {name}: {UVICORN[name]}"


@pytest.mark.parametrize("name", ["more_body", "response_complete"])
def test_uvicorns_request_has(name: str) -> None:
    """What tells a body that comes from an answer that goes."""
    source = inspect.getsource(found("uvicorn.protocols.http.httptools_impl:RequestResponseCycle"))
    assert f"self.{name}" in source, (
        f"uvicorn's request has no {name}: who waits for an answer is cut off like who is silent"
    )


SQL = {
    "SELECT * FROM sqlite_master": "the index can't be migrated",
    "CREATE VIRTUAL TABLE a USING fts5(n, detail=none, columnsize=0, "
    "tokenize='trigram case_sensitive 1')": "names can't be searched: FTS5's trigrams are missing",
    "CREATE TABLE b (n PRIMARY KEY); INSERT INTO b VALUES (1) ON CONFLICT DO UPDATE SET n = n": (
        "upserts that name no column fail, and no event is recorded"
    ),
}


@pytest.mark.parametrize("statement", SQL)
def test_sqlite_can(statement: str) -> None:
    """Python's SQLite was built with what the index asks for."""
    failed = ""
    try:
        sqlite3.connect(":memory:").executescript(statement)
    except sqlite3.Error as error:
        failed = str(error)
    assert not failed, SQL[statement]


def test_sqlite_errors_have_names() -> None:
    """An error of SQLite's says by name which it is."""
    with pytest.raises(sqlite3.OperationalError) as caught:
        sqlite3.connect("/nowhere/at/all")
    assert caught.value.sqlite_errorname == "SQLITE_CANTOPEN", (
        "a full disk and a locked index are both told as `the index failed`, and are not retried"
    )


# -- what the workers lean on ----

torch_ = pytest.mark.torch

HEAVY = {
    "torch.cpu:_is_amx_tile_supported": "a processor's AMX is not seen, and bf16 not used",
    "torch.cpu:_is_avx512_bf16_supported": "a processor's bf16 is not seen, and not used",
    "torch.nn.utils.fusion:fuse_conv_bn_eval": "no normalisation is folded: networks are slower",
    "torchvision.models:WeightsEnum.get_state_dict": (
        "a detector is downloaded when a top-down model is loaded, which has no network to ask"
    ),
    "torchvision.models.detection.image_list:ImageList": "detectors are not made faster",
    "torchvision.models.detection.transform:resize_boxes": "detectors are not made faster",
    "torchvision.ops.misc:Conv2dNormActivation": "detectors' convolutions are not fused",
    "torchvision.ops.misc:FrozenBatchNorm2d": "detectors' normalisations are not folded",
    "torchvision.ops.poolers:MultiScaleRoIAlign": "detectors are not made faster",
    "torchvision.models.resnet:BasicBlock": "a detector's blocks are not fused",
    "torchvision.models.resnet:Bottleneck": "a detector's blocks are not fused",
    "timm.models.resnet:BasicBlock": "ResNet-18 and 34 are not fused",
    "timm.models.resnet:Bottleneck": "ResNet-50 and 101 are not fused",
    "timm.models.resnet:ResNet": "a ResNet's stem is not fused",
    "deeplabcut.modelzoo.utils:get_super_animal_scorer": "SuperAnimal's tables have no scorer",
    "deeplabcut.refine_training_dataset.outlier_frames:FitSARIMAXModel": (
        "filter=arima fails: poses have no filtered table"
    ),
    **{
        f"deeplabcut.refine_training_dataset.outlier_frames:{name}": (
            "no frames are picked that are worth correcting"
        )
        for name in (
            "extract_outlier_frames",
            "compute_deviations",
            "auxiliaryfunctions.intersection_of_body_parts_and_ones_given_by_user",
            "auxiliaryfunctions.load_analyzed_data",
            "auxiliaryfunctions.load_video_metadata",
            "auxfun_multianimal.get_track_method",
            "collect_video_paths",
            "ExtractFramesbasedonPreselection",
        )
    },
    "deeplabcut.utils.frameselectiontools:KmeansbasedFrameselectioncv2": (
        "frames worth correcting all look the same"
    ),
    "deeplabcut.utils.frameselectiontools:UniformFramescv2": (
        "no frames are picked that are worth correcting"
    ),
    "deeplabcut.refine_training_dataset.stitch:TrackletStitcher.from_dict_of_dict": (
        "several animals are not stitched"
    ),
    "deeplabcut.refine_training_dataset.stitch:TrackletStitcher.concatenate_data": (
        "several animals are not stitched"
    ),
    "deeplabcut.refine_training_dataset.stitch:TrackletStitcher.calculate_edge_weight": (
        "several animals with identities are not stitched"
    ),
    "deeplabcut.refine_training_dataset.stitch:TrackletStitcher.format_df": (
        "tracks of several animals make no table"
    ),
    "deeplabcut.utils:auxiliaryfunctions.get_deeplabcut_path": (
        "a model without an inference_cfg.yaml can't be tracked"
    ),
    f"{DLC}.apis.videos:_generate_assemblies_file": "several animals are not put together",
    f"{DLC}.apis.videos:_generate_output_data": "several animals are not put together",
    f"{DLC}.apis.tracklets:build_tracklets": "several animals are not tracked",
    f"{DLC}.apis.utils:get_pose_inference_runner": "no model can be built",
    f"{DLC}.apis.utils:get_detector_inference_runner": "no top-down model can be built",
    f"{DLC}.apis.utils:get_filtered_coco_detector_inference_runner": (
        "SuperAnimal-humanbody can't be built"
    ),
    f"{DLC}.config:PoseConfig.build_for_superanimal_inference": "no SuperAnimal can be built",
    f"{DLC}.config:PoseConfig.from_any": "no model can be built",
    f"{DLC}.data:DLCLoader": "no project can be read",
    f"{DLC}.data.preprocessor:AugmentImage.get_offsets_and_scales": "crops go one by one",
    f"{DLC}.data.preprocessor:AugmentImage.update_offsets_and_scales": "crops go one by one",
    f"{DLC}.data.preprocessor:FilterInvalidBoundingBoxes": "conditional models can't be run",
    f"{DLC}.data.preprocessor:TopDownCrop": "top-down models go frame by frame",
    f"{DLC}.data.utils:out_of_bounds_keypoints": "conditional models can't be run",
    f"{DLC}.models.detectors:FasterRCNN": "detectors are not made faster",
    f"{DLC}.models.detectors:SSDLite": "detectors are not made faster",
    f"{DLC}.models.detectors.filtered_detector:FilteredDetector": (
        "SuperAnimal's detectors of people are not made faster"
    ),
    f"{DLC}.models.heads:DLCRNetHead.forward": "DLCRNet's head is not made faster",
    f"{DLC}.models.heads:HeatmapHead.forward": "heads are not made faster",
    f"{DLC}.models.modules:StackedKeypointEncoder": "conditional models are a tenth as fast",
    f"{DLC}.models.modules.csp:CSPConvModule": "CSPNeXt's convolutions are not fused",
    f"{DLC}.models.predictors:HeatmapPredictor": "no network may be computed in fewer bits",
    f"{DLC}.models.predictors:SimCCPredictor": "RTMPose may not be computed in fewer bits",
    f"{DLC}.models.predictors:PartAffinityFieldPredictor.find_local_peak_indices_maxpool_nms": (
        "peaks of several animals are looked for in every cell"
    ),
    f"{DLC}.models.predictors:PartAffinityFieldPredictor.make_2d_gaussian_kernel": (
        "networks for several animals may not be computed in fewer bits"
    ),
    f"{DLC}.modelzoo.utils:COCO_PERSON_CATEGORY_ID": "SuperAnimal-humanbody can't be built",
    f"{DLC}.post_processing.identity:assign_identity": "identities are not assigned",
    f"{DLC}.runners:CTDTrackingConfig": "conditional models are not tracked",
    f"{DLC}.runners:DynamicCropper": "`dynamic` is not known",
    f"{DLC}.task:Task.COND_TOP_DOWN": "conditional models are not known as such",
    **{
        f"{DLC}.data.postprocessor:{step}": "batches are not postprocessed at once"
        for step in (
            "AssignIndividualIdentities", "ComposePostprocessor", "ConcatenateOutputs",
            "PadOutputs", "PredictKeypointIdentities", "RescaleAndOffset.Mode.KEYPOINT",
            "TrimOutputs",
        )
    },
}  # fmt: skip


@torch_
@pytest.mark.parametrize("name", HEAVY)
def test_a_name_of_the_workers_is_there(name: str) -> None:
    """A class, function or attribute is where the workers look for it."""
    assert is_there(name), f"{name} is gone: {HEAVY[name]}"


@torch_
def test_onednns_convolution_takes_what_follows_it() -> None:
    """torch's private operators lay weights out, and convolve, add and apply a ReLU at once."""
    import torch
    from torch.nn import functional

    ops = torch.ops.mkldnn
    torch.manual_seed(0)
    x, weight, other = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3), torch.randn(1, 16, 8, 8)
    how: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)
    with torch.inference_mode():
        plain = functional.conv2d(x, weight, None, 1, 1)
        packed = ops._reorder_convolution_weight(weight, *how, [1, 16, 8, 8])
        alone = ops._convolution_pointwise(x, packed, None, *how, "relu", [], "")
        both = ops._convolution_pointwise.binary(
            x, other, packed, None, *how, "add", 1.0, "relu", [], ""
        )
        within = ops._convolution_pointwise_.binary(
            other.clone(), x, packed, None, *how, "add", 1.0, "relu", [], ""
        )
    slow = "networks are no longer fused, by which a CPU takes up to half as long again"
    torch.testing.assert_close(alone, plain.relu(), rtol=1e-4, atol=1e-4, msg=slow)
    torch.testing.assert_close(both, (plain + other).relu(), rtol=1e-4, atol=1e-4, msg=slow)
    torch.testing.assert_close(within, (plain + other).relu(), rtol=1e-4, atol=1e-4, msg=slow)


@torch_
@pytest.mark.parametrize("after", ["hardswish", "hardtanh", "swish"])
def test_onednn_knows_an_activation(after: str) -> None:
    """What CSPNeXt's and a detector's convolutions are followed by has a name of oneDNN's."""
    import torch

    x, weight = torch.ones(1, 16, 4, 4), torch.ones(16, 16, 1, 1)
    given = [0.0, 6.0] if after == "hardtanh" else []
    failed = ""
    try:
        torch.ops.mkldnn._convolution_pointwise(
            x, weight, None, [0, 0], [1, 1], [1, 1], 1, after, given, ""
        )
    except (RuntimeError, AttributeError) as error:
        failed = str(error)
    assert not failed, f"convolutions before a {after} are not fused: {failed}"


def of_torch() -> dict[str, Callable[[], Any]]:
    """Return how an object of a library is made, by what it is called below."""
    return {
        "torch's module": lambda: found("torch.nn:Identity")(),
        "timm's BasicBlock": lambda: found("timm.models.resnet:BasicBlock")(8, 8),
        "timm's Bottleneck": lambda: found("timm.models.resnet:Bottleneck")(32, 8),
        "torchvision's BasicBlock": lambda: found("torchvision.models.resnet:BasicBlock")(8, 8),
        "torchvision's Bottleneck": lambda: found("torchvision.models.resnet:Bottleneck")(32, 8),
        "torchvision's FasterRCNN": lambda: _rcnn(),
        "torchvision's rpn": lambda: _rcnn().rpn,
        "torchvision's roi_heads": lambda: _rcnn().roi_heads,
        "torchvision's box_roi_pool": lambda: _rcnn().roi_heads.box_roi_pool,
        "torchvision's SSD": lambda: _ssd(),
        "DeepLabCut's runner": lambda: _runner(),
        "DeepLabCut's Assembler": lambda: _paf().assembler,
        "DeepLabCut's predictor of part affinities": lambda: _paf(),
        "DeepLabCut's HeatmapPredictor": lambda: found(
            f"{DLC}.models.predictors:HeatmapPredictor"
        )(),
        "DeepLabCut's SimCCPredictor": lambda: found(f"{DLC}.models.predictors:SimCCPredictor")(),
        "DeepLabCut's preprocessor": lambda: found(f"{DLC}.data.preprocessor:ComposePreprocessor")(
            []
        ),
        "DeepLabCut's TopDownCrop": lambda: found(f"{DLC}.data.preprocessor:TopDownCrop")(8),
        "DeepLabCut's StackedKeypointEncoder": lambda: found(
            f"{DLC}.models.modules:StackedKeypointEncoder"
        )(num_joints=2, kernel_size=(3, 3), img_size=(8, 8)),
    }


def _rcnn() -> Any:
    return found("torchvision.models.detection:fasterrcnn_mobilenet_v3_large_fpn")(
        weights=None, weights_backbone=None
    )


def _ssd() -> Any:
    return found("torchvision.models.detection:ssdlite320_mobilenet_v3_large")(
        weights=None, weights_backbone=None
    )


def _runner() -> Any:
    return found(f"{DLC}.runners.inference:CTDInferenceRunner")(
        model=found("torch.nn:Identity")(), bu_runner=None
    )


def _paf() -> Any:
    return found(f"{DLC}.models.predictors:PartAffinityFieldPredictor")(
        num_animals=2, num_multibodyparts=2, num_uniquebodyparts=0, graph=[[0, 1]],
        edges_to_keep=[0], locref_stdev=7.0, nms_radius=5, sigma=1.0, min_affinity=0.05,
    )  # fmt: skip


UNFUSED = "such blocks are not fused, and slower"
NOT_FAST = "such detectors are not made faster"
NOT_FEWER = "networks for several animals may not be computed in fewer bits"
STALE = "what a batch that ran out of memory has left is taken for results of the next"
FORGETS = "a tracked film that was interrupted goes on as if its last frame were unknown"
OBJECTS: dict[str, tuple[str, str]] = {
    "torch's module": ("_forward_hooks", "DLCRNet's features are lost when blocks are fused"),
    "timm's BasicBlock": (
        "conv1 bn1 drop_block act1 aa conv2 bn2 se act2 downsample drop_path", UNFUSED,
    ),
    "timm's Bottleneck": (
        "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se act3 downsample drop_path",
        UNFUSED,
    ),
    "torchvision's BasicBlock": ("conv1 bn1 relu conv2 bn2 downsample", UNFUSED),
    "torchvision's Bottleneck": ("conv1 bn1 relu conv2 bn2 conv3 bn3 downsample", UNFUSED),
    "torchvision's FasterRCNN": ("transform backbone rpn roi_heads", NOT_FAST),
    "torchvision's rpn": (
        "head anchor_generator box_coder pre_nms_top_n post_nms_top_n nms_thresh score_thresh "
        "min_size",
        NOT_FAST,
    ),
    "torchvision's roi_heads": (
        "box_roi_pool box_head box_predictor box_coder score_thresh nms_thresh detections_per_img "
        "has_mask has_keypoint",
        NOT_FAST,
    ),
    "torchvision's box_roi_pool": (
        "output_size sampling_ratio canonical_scale featmap_names scales map_levels", NOT_FAST,
    ),
    "torchvision's SSD": (
        "transform backbone head anchor_generator box_coder score_thresh nms_thresh "
        "detections_per_img topk_candidates",
        NOT_FAST,
    ),
    "DeepLabCut's runner": (
        "_batch_list _model_kwargs _contexts _image_batch_sizes _predictions", STALE,
    ),
    "DeepLabCut's Assembler": (
        "_kde max_n_individuals n_multibodyparts n_keypoints greedy identity_only force_fusion "
        "add_discarded window_size safe_edge min_n_links method pcutoff min_affinity max_overlap",
        NOT_FEWER,
    ),
    "DeepLabCut's predictor of part affinities": (
        "edges_to_keep graph nms_radius sigma num_uniquebodyparts apply_sigmoid locref_stdev",
        NOT_FEWER,
    ),
    "DeepLabCut's HeatmapPredictor": (
        "apply_sigmoid location_refinement locref_std",
        "no network may be computed in fewer bits",
    ),
    "DeepLabCut's SimCCPredictor": (
        "simcc_split_ratio sigma normalize_outputs decode_beta apply_softmax",
        "RTMPose may not be computed in fewer bits",
    ),
    "DeepLabCut's preprocessor": (
        "components", "batches of crops can't be cut out, and conditional models can't be run",
    ),
    "DeepLabCut's TopDownCrop": (
        "margin with_context", "conditional models can't be run",
    ),
    "DeepLabCut's StackedKeypointEncoder": (
        "num_joints num_channels img_size kernel_size", "conditional models can't be run",
    ),
}  # fmt: skip
ATTRIBUTES = [
    *((thing, name, why) for thing, (names, why) in OBJECTS.items() for name in names.split()),
    *(
        ("DeepLabCut's runner", name, FORGETS)
        for name in ["_bu_age", "_missing_idvs", "_prev_pose", "_idx_to_id", "_ctd_track_ages"]
    ),
    ("DeepLabCut's runner", "bu_runner", "conditional models can't be run"),
    ("DeepLabCut's runner", "tracking", "conditional models are not tracked"),
    ("DeepLabCut's runner", "dynamic", "conditional models can't be run"),
]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Objects of libraries that were looked at, by what they are called."""
    return {}


@torch_
@pytest.mark.parametrize(("thing", "name", "why"), ATTRIBUTES)
def test_an_object_has(thing: str, name: str, why: str, made: dict[str, Any]) -> None:
    """An object as a library makes it has an attribute that posedrop reads or sets."""
    if thing not in made:
        made[thing] = of_torch()[thing]()
    assert hasattr(made[thing], name), f"{thing} has no {name}: {why}"


@torch_
@pytest.mark.parametrize(
    ("backbone", "name", "why"),
    [
        ("DLCRNet", "interm_features", "a copy of a DLCRNet sees the features of another"),
        ("CondPreNet", "cond_enc", "conditional models are a tenth as fast"),
    ],
)
def test_a_backbone_of_deeplabcuts_has(backbone: str, name: str, why: str) -> None:
    """A backbone keeps what posedrop reads of it under this name."""
    source = inspect.getsource(found(f"{DLC}.models.backbones:{backbone}"))
    assert f"self.{name}" in source, f"{backbone} has no {name}: {why}"


@torch_
@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (f"{DLC}.apis.videos:_generate_output_data", ["pose_config", "predictions"]),
        (
            f"{DLC}.apis.videos:_generate_assemblies_file",
            ["full_data_path", "output_path", "num_bodyparts", "num_unique_bodyparts"],
        ),
    ],
)
def test_deeplabcuts_own_helpers_take(function: str, wanted: list[str]) -> None:
    """They are called by position, in this order."""
    assert parameters(function)[: len(wanted)] == wanted, (
        "several animals are put together of the wrong things"
    )
