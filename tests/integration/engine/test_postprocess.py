"""engine.postprocess: what DeepLabCut's postprocessor finds picture by picture, a batch at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deeplabcut.pose_estimation_pytorch.data import postprocessor as steps
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from worker.engine.postprocess import Raw, postprocessed

SIZE = (64, 48)
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e30, -3.5, 0.5, 1.5, 7.0, 40.0]
Case = tuple[Any, Raw]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a postprocessor of DeepLabCut's, and what a network's heads could give it."""
    individuals, bodyparts = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    unique, identity = draw(st.integers(0, 3)), draw(st.booleans())
    pictures, found = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    columns = draw(st.sampled_from([3, 4, 5])) if found else 3
    dtype = draw(st.sampled_from([np.float32, np.float64]))

    def values(*shape: int) -> Any:
        numbers = st.sampled_from(SPECIAL) | st.floats(-100, 100, width=32)
        return draw(arrays.arrays(dtype, shape, elements=numbers, fill=st.nothing()))

    raw = {"bodypart": {"poses": values(pictures, found, bodyparts, columns)}}
    if unique:
        raw["unique_bodypart"] = {"poses": values(pictures, 1, unique, 3)}
    if identity:
        raw["identity"] = {"heatmap": values(pictures, 3, 4, individuals)}
    made = steps.build_bottom_up_postprocessor(
        max_individuals=individuals,
        num_bodyparts=bodyparts,
        num_unique_bodyparts=unique,
        with_identity=identity,
    )
    if draw(st.booleans()):
        most = {name: draw(st.integers(1, 3)) for name in ("bodyparts", "unique_bodyparts")}
        made.components.append(steps.TrimOutputs({**most, "identity_scores": most["bodyparts"]}))
    return made, raw


def _deeplabcuts(made: Any, raw: Raw) -> list[dict[str, Any]]:
    found = []
    for row in range(len(raw["bodypart"]["poses"])):
        picture = {head: {name: rows[row] for name, rows in raw[head].items()} for head in raw}
        context = {"image_size": SIZE, "offsets": (0.0, 0.0), "scales": (1.0, 1.0)}
        found.append(made([picture], context)[0])
    return found


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases())
def test_a_batch_has_the_bits_of_its_pictures(case: Case) -> None:
    """NaN, no animals, too many, unique bodyparts, identities: the same arrays, or an error too."""
    made, raw = case
    try:
        expected = _deeplabcuts(made, raw)
    except ValueError as error:  # identities can't be assigned by what is no number
        with pytest.raises(type(error)):
            postprocessed(made, raw, SIZE)
        return
    found = postprocessed(made, raw, SIZE)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert (mine[name].dtype, mine[name].shape) == (value.dtype, value.shape)
            assert mine[name].tobytes() == value.tobytes()


def test_a_step_that_is_not_known_is_deeplabcuts_own() -> None:
    """Backbone features, and whatever a later DeepLabCut adds, go a picture at a time."""

    class Doubled(steps.PadOutputs):
        def __call__(self, predictions: Any, context: Any) -> Any:
            found, context = super().__call__(predictions, context)
            return {
                name: value * context["image_size"][0] for name, value in found.items()
            }, context

    made = steps.build_bottom_up_postprocessor(2, 3, 0)
    made.components[-1] = Doubled({"bodyparts": 2}, -1, {"bodyparts": (3, 3)})
    raw = {"bodypart": {"poses": np.ones((4, 1, 3, 3), np.float32)}}
    expected = _deeplabcuts(made, raw)
    found = postprocessed(made, raw, SIZE)
    assert [row["bodyparts"].tobytes() for row in found] == [
        row["bodyparts"].tobytes() for row in expected
    ]
    assert found[0]["bodyparts"][0, 0, 0] == SIZE[0]
