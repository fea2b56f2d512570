"""Which two runs share what a network found: by their content, model, and the args that it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posedrop import analyses
from posedrop.analyses import Analysis, is_covered, predictions_id
from posedrop.buckets.records.models import ModelRef
from posedrop.buckets.records.requests import Request
from tests.support.index_rows import request_of

#: Arguments with two values of each; those that the network goes by, and those that it does not.
SEEN = {
    "batch_size": (None, 4),
    "precision": ("auto", "fp32"),
    "crop": (None, {"x1": 0, "x2": 5, "y1": 0, "y2": 5}),
    "start": (0, 3),
    "stop": (None, 9),
    "stride": (1, 2),
}
UNSEEN = {
    "model": ("mouse", "mouse@abcdef"),
    "pcutoff": (None, 0.3),
    "filter": ("median", "arima"),
    "filter_window": (5, 7),
    "arima_p_bound": (0.001, 0.2),
    "arima_ar_degree": (3, 4),
    "arima_ma_degree": (1, 2),
    "arima_alpha": (0.01, 0.02),
    "style": ({}, {"video": False, "trail": 3}),
}
TRACKS = {
    "track_method": (None, "box"),
    "animals": (None, 3),
    "identity_only": (False, True),
    "min_tracklet": (10, 4),
}
OF = {
    "deeplabcut_2d": (
        {**SEEN, "snapshot": (None, "200"), "dynamic": (None, {"margin": 3})},
        {**UNSEEN, **TRACKS},
    ),
    "superanimal": (
        {
            **SEEN,
            "model_name": ("hrnet_w32", "resnet_50"),
            "detector_name": ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"),
            "max_individuals": (10, 2),
        },
        {
            **UNSEEN,
            "model": ("superanimal_topviewmouse", "superanimal_topviewmouse@abcdef"),
        },
    ),
}


def request(analysis: str, args: dict[str, Any], **changes: Any) -> Request:
    whole = analyses.get(analysis).normalise(args)
    model = ModelRef(name="mouse", digest="d" * 64)
    update = {"analysis": analysis, "args": whole, "model": model, **changes}
    return request_of().model_copy(update=update)


@pytest.mark.parametrize("name", list(OF))
@given(data=st.data())
def test_two_runs_share_predictions_if_the_network_sees_the_same(
    name: str, data: st.DataObject
) -> None:
    """All arguments there are, in any combination, against which of them matter."""
    seen, unseen = OF[name]
    assert seen.keys() | unseen.keys() == analyses.get(name).args.model_fields.keys()
    assert not seen.keys() & unseen.keys()
    choice = st.fixed_dictionaries({arg: st.sampled_from((0, 0, 0, 1)) for arg in (*seen, *unseen)})
    one, other = data.draw(choice), data.draw(choice)
    values = {**seen, **unseen}
    first, second = (
        request(name, {arg: values[arg][which] for arg, which in chosen.items()})
        for chosen in (one, other)
    )
    same = all(one[arg] == other[arg] for arg in seen)
    assert (predictions_id(first) == predictions_id(second)) == same
    for changes in (
        {"sha256": "e" * 64},
        {"analysis_version": "99"},
        {"model": ModelRef(name="mouse", digest="e" * 64)},
    ):
        assert predictions_id(first.model_copy(update=changes)) != predictions_id(first)
    others = {"model": ModelRef(name="rat", digest="d" * 64), "force": "f", "analysis_id": "x"}
    assert predictions_id(first.model_copy(update=others)) == predictions_id(first)


def test_what_the_network_tracks_itself_is_its_own() -> None:
    """A conditional top-down model that follows the animals: no tracker comes after it."""
    ctd = request("deeplabcut_2d", {"model": "m", "track_method": "ctd"})
    for args in ({}, {"track_method": "box"}, {"track_method": "ctd", "animals": 2}):
        other = request("deeplabcut_2d", {"model": "m", **args})
        assert predictions_id(other) != predictions_id(ctd)
    args = {"track_method": "ctd", "filter": "none"}
    assert predictions_id(request("deeplabcut_2d", {"model": "m", **args})) == predictions_id(ctd)


@given(
    args=st.dictionaries(st.sampled_from(["filter", "pcutoff", "style", "odd"]), st.integers()),
    other=st.dictionaries(st.sampled_from(["filter", "pcutoff", "style", "odd"]), st.integers()),
)
def test_an_argument_of_a_plug_in_matters_unless_it_says_otherwise(
    args: dict[str, int], other: dict[str, int]
) -> None:
    """Also one by a name that an analysis of ours has."""
    plug_in: Analysis = replace(analyses.get("dummy"), finish="x:y", drawn=frozenset({"style"}))

    def without(values: dict[str, int], *names: str) -> dict[str, int]:
        return {name: value for name, value in values.items() if name not in names}

    same = plug_in.network_args(args) == plug_in.network_args(other)
    assert same == (without(args, "style") == without(other, "style"))
    told = replace(plug_in, for_network=lambda values: without(dict(values), "odd"))
    same = told.network_args(args) == told.network_args(other)
    assert same == (without(args, "style", "odd") == without(other, "style", "odd"))
    fails = replace(plug_in, for_network=lambda values: {"x": values["x"]})
    assert fails.network_args(args) == without(args, "style")


cutoffs = st.floats(0, 1)


@given(watched=cutoffs, wanted=st.none() | cutoffs, model=cutoffs)
def test_fewer_bits_are_good_for_the_cutoffs_that_were_watched(
    watched: float, wanted: float | None, model: float
) -> None:
    """At least down to the model's own: what is asked for above that makes no difference."""
    asked = model if wanted is None else wanted
    told = {"precision": {"used": "bf16", "pcutoff": min(watched, model)}, "pcutoff": 1.0}
    assert is_covered(told, wanted, model) == (min(watched, model) <= min(asked, model))
    # What an older posedrop wrote has the run's cutoff alone.
    old = {"precision": {"used": "bf16"}, "pcutoff": watched}
    assert is_covered(old, wanted, model) == (min(watched, model) <= min(asked, model))
    assert is_covered({"precision": {"used": "fp32"}}, wanted, model)
    assert not is_covered({"precision": ["fp32"]}, wanted, model)


def test_the_default_of_style_video_changes_no_id() -> None:
    """Args are what an older posedrop made them, so that its runs are found again."""
    normalise = analyses.get("deeplabcut_2d").normalise
    assert "video" not in normalise({"model": "m", "style": {"video": True}})["style"]
    assert normalise({"model": "m", "style": {"video": False}})["style"]["video"] is False
