"""What a child says: any bytes are one of its messages, or an error, and never more than that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posedrop import errors
from posedrop.bounded import MAX_DEPTH, MAX_VALUES, bounded
from posedrop.buckets.records.inference import Inference
from posedrop.errors import AnalysisError, PosedropError
from worker.child import messages
from worker.child.messages import (
    AnalysisOutput,
    Failure,
    Line,
    ProbeVideo,
    RenderVideo,
    RunAnalysis,
)

HOSTILE = st.one_of(
    st.sampled_from(
        [10**30, -(10**30), 2**63, -1, True, 1e308, float("nan"), float("inf"), "\ud800", "\0"]
    ),
    st.sampled_from([None, "", "x" * 100_000, [], {}, [[[]]], {"": {"": {}}}]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)
TREES = st.recursive(
    HOSTILE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
WORDS = ("hello", "progress", "permit", "result", "error", "fresh", "done", "class", "code")
NAMES = st.one_of(st.sampled_from(WORDS), st.text(max_size=3))

COUNTS = {"frames_expected": 2, "frames_decoded": 2, "rows": 2, "timings": {}}


def deep(levels: int) -> bytes:
    return b'{"result": {"x": ' + b"[" * levels + b"]" * levels + b"}}"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe{}",
        b'{"result": 1}',
        b'{"result": null}',
        b'{"result": {}, "permit": "over"}',
        b'{"hello": -1}',
        b'{"permit": "mine"}',
        b'{"error": {}}',
        b'{"error": {"class": "AnalysisError", "code": 1, "message": "x"}}',
        b'{"progress": {"stage": 1}}',
        b'{"progress": {"stage": "infer", "total": 1' + b"0" * 30 + b"}}",
        b'{"progress": {"stage": "infer", "frames_per_second": NaN}}',
        b'{"result": {"rows": 1' + b"0" * 30 + b"}}",
        b'{"result": {"rows": 1' + b"0" * 5000 + b"}}",
        b'{"result": {"x": "\\ud800"}}',
        b'{"result": {"x": 1}} {"result": {}}',
        b'{"result": {"x": [' + b"0," * MAX_VALUES + b"0]}}",
        deep(MAX_DEPTH + 1),
        deep(990),
        deep(100_000),
    ],
)
def test_what_is_no_message_is_told_as_that(line: bytes) -> None:
    """One kind of error, whatever it is: nothing that a parent would not foresee."""
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own
        messages.parse(line)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.dictionaries(NAMES, TREES, max_size=3)))
def test_any_line_is_a_message_or_no_message(said: bytes | dict[str, Any]) -> None:
    """Nothing else comes of it, and what does can be written and read again."""
    line = said if isinstance(said, bytes) else json.dumps(said).encode()
    try:
        message = messages.parse(line)
    except ValueError:
        return
    assert Line.model_validate_json(message.model_dump_json(by_alias=True)) == message
    assert message.progress is None or len(message.progress.stage) <= messages.MAX_NAME


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [
            RunAnalysis(analysis="dummy", out="out", args={}, video="video"),
            ProbeVideo(video="video", thumbnail="t.jpg", max_pixels=100, max_frames=100),
            RenderVideo(
                video="video", frame_size=(64, 48), poses="poses.h5", out="out", pcutoff=0.6
            ),
        ]
    ),
    st.dictionaries(
        st.sampled_from([*AnalysisOutput.model_fields, "probe", "encode", "other"]),
        TREES,
        max_size=3,
    ),
)
def test_any_answer_is_an_output_or_a_bad_answer(
    task: messages.Task[Any], answer: dict[str, Any]
) -> None:
    """What is taken for an output can be kept: as JSON that is read again, in 64 bits."""
    raised: AnalysisError | None = None
    try:
        output = task.output({**COUNTS, **answer})
    except AnalysisError as error:
        raised = error
    if raised is not None:
        assert raised.code == "bad_answer"
        assert raised.message.encode()
        return
    kept = output.model_dump_json()
    assert type(output).model_validate_json(kept) == output
    if isinstance(output, AnalysisOutput):
        told = output.model_dump(exclude={"tuning"})
        record = Inference.model_validate({**told, "analysis_id": "a" * 16})
        assert Inference.model_validate_json(record.to_json()) == record


@given(TREES, st.booleans())
def test_a_bounded_tree_is_one_that_json_keeps(tree: Any, is_finite: bool) -> None:
    """It is bounded once and for all, and the same after it was written and read."""
    try:
        kept = bounded(tree, is_finite=is_finite)
    except ValueError:
        return
    assert json.loads(json.dumps(kept, allow_nan=False).encode()) == kept
    assert bounded(kept) == kept


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        ("ModelError", errors.ModelError),
        ("RefusedVideoError", errors.RefusedVideoError),
        ("StorageError", AnalysisError),
        ("CancelledRunError", AnalysisError),
        ("ChildDiedError", AnalysisError),
        ("PosedropError", AnalysisError),
        ("annotations", AnalysisError),
        ("__class__", AnalysisError),
    ],
)
def test_a_child_speaks_for_itself_alone(kind: str, becomes: type[PosedropError]) -> None:
    """It can't say that the store is away, or that it never started; what it says is cut short."""
    said = {"class": kind, "code": "No Code!", "message": "x" * 10**6, "field": "y" * 10**6}
    error = Failure.model_validate(said).as_error()
    assert (type(error), error.code) == (becomes, "internal")
    assert len(error.message) == messages.MAX_WORDS
    assert error.field is not None
    assert len(error.field) == messages.MAX_NAME
