"""A folder's posedrop.json: names of fields that no rule has."""

from __future__ import annotations

import json

import pytest

from posedrop.buckets import folder_rules

RULE = {
    "analysis": "dummy",
    "args": {"seconds": 1},
    "existing": False,
    "exports": ["nwb"],
    "keep": True,
    "notify": ["lab"],
}


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("Analysis", "analysis"),
        ("analyse", "analysis"),
        (" ANALYSES", "analysis"),
        ("arg", "args"),
        ("Args", "args"),
        ("exsiting", "existing"),
        ("exist", "existing"),
        ("Keep", "keep"),
        ("keeps", "keep"),
    ],
)
def test_a_slip_of_a_fields_name_is_told_with_what_was_meant(slip: str, meant: str) -> None:
    """Else the rule would be followed, and do something else."""
    rule = {slip if name == meant else name: value for name, value in RULE.items()}
    with pytest.raises(folder_rules.WrongRuleError, match=f"did you mean '{meant}'"):
        folder_rules.parse(json.dumps(rule).encode())


@pytest.mark.parametrize("name", ["comment", "$schema", "by", "analyst", "tags", "", "a"])
def test_other_fields_are_a_persons_own(name: str) -> None:
    """A rule that an older posedrop followed is followed."""
    rules = folder_rules.parse(json.dumps({name: "x", **RULE}).encode())
    assert rules.model_dump(exclude={"schema_version"}) == RULE
