"""`posedrop methods`: what a run's result.json says, as a paragraph for a paper."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from posedrop.client import methods

RESULT: dict[str, Any] = {
    "analysis_id": "k5x2wq7mfzgs3tfe",
    "analysis": "deeplabcut_2d",
    "analysis_version": "7",
    "args": {"filter": "median", "filter_window": 5, "stride": 2, "track_method": "ellipse"},
    "model": {"name": "mice", "digest": "ab" * 32},
    "rows": 1200,
    "missing": [{"first": 10, "last": 14}],
    "versions": {"deeplabcut": "3.0.2", "torch": "2.9"},
    "details": {
        "net_type": "resnet_50",
        "snapshot": "snapshot-best-200",
        "individuals": ["a", "b"],
    },
}


def test_a_paragraph_has_versions_parameters_and_what_to_cite() -> None:
    """What decided the poses stands in it, and the papers of what was used."""
    text = methods.paragraph(RESULT)
    for words in (
        "DeepLabCut 3.0.2 (model mice, digest abababababab)",
        "network resnet_50, snapshot snapshot-best-200",
        "1,200 frames were analysed (one in 2); 3 could not be decoded",
        "2 animals were followed with DeepLabCut's ellipse tracker",
        "a median over 5 frames",
        "torch 2.9",
        "k5x2wq7mfzgs3tfe",
        "Nat. Neurosci. 21",
        "Nat. Methods 19",
    ):
        assert words in text
    assert "SuperAnimal" not in text


def test_as_many_animals_were_followed_as_were_asked_for() -> None:
    """Two of a project's three, though an older result names all three."""
    result = {
        **RESULT,
        "args": {**RESULT["args"], "animals": 2},
        "details": {"individuals": ["a", "b", "c"], "track_method": "box"},
    }
    assert "2 animals were followed with DeepLabCut's box tracker." in methods.paragraph(result)


def test_animals_of_a_superanimal_are_not_followed() -> None:
    """They are found in each frame anew; the paper of DeepLabCut's trackers is not cited."""
    result = {
        **RESULT,
        "analysis": "superanimal",
        "args": {"superanimal": "superanimal_quadruped", "max_individuals": 10},
        "details": {"individuals": [f"animal{n}" for n in range(10)]},
    }
    text = methods.paragraph(result)
    assert "Up to 10 animals were found in each frame" in text
    assert "followed" not in text
    assert "Lauer" not in text


TREES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*RESULT, "first", "last", "x1", "stride"]), inner)
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(RESULT)), TREES))
def test_whatever_a_result_says_there_is_a_paragraph(changes: dict[str, Any]) -> None:
    """A result of another version, with fields that lack or are of another kind, has one too."""
    assert methods.paragraph({**RESULT, **changes})
    assert methods.paragraph(changes)
