"""Whatever the API is asked, it answers as its OpenAPI document says."""

from __future__ import annotations

from pathlib import Path

from tests.faults import api_calls


def test_every_answer_is_one_of_the_document(tmp_path: Path) -> None:
    """Hundreds of calls, right and wrong: no server error, no status or body that is not written.

    `make soak` makes more of them, and some that follow from others.
    """
    with api_calls.filled_api(tmp_path / "data") as url:
        calls = api_calls.call(
            url, tmp_path, examples=4, seed=1, phases="examples,coverage,fuzzing"
        )
    assert not calls.failed, calls.report
    assert calls.made > 300, calls.report
