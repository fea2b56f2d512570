"""What is said of files before they go up, by the API's own server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from handlers.app import create_app
from posedrop.buckets.storage import ObjectInfo, Storage
from posedrop.settings import Settings
from posedrop.transport import queue
from tests.support.serving import serving

Check = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def own(settings: Settings, bucket: str) -> Settings:
    """Settings with buckets that no other test uses, and a default analysis."""
    own = settings.model_copy(
        update={
            "videos_bucket": f"{bucket}-videos",
            "results_bucket": f"{bucket}-results",
            "default_analysis": "deeplabcut_2d",
        }
    )
    for name in (own.videos_bucket, own.results_bucket):
        Storage(own).create_bucket(name)
    return own


@pytest.fixture
def check(own: Settings) -> Iterator[Check]:
    """Ask POST /uploads/check about files, by their paths: a rule's content, or None for a film."""
    with serving(create_app(own, queue.connect("stub://"))) as url:

        def ask(files: dict[str, str | None], **body: Any) -> dict[str, dict[str, Any]]:
            asked = [
                {"path": path, "size": 4 if content is None else len(content.encode())}
                | ({"content": content} if content is not None else {})
                for path, content in files.items()
            ]
            answer = httpx.post(f"{url}/uploads/check", json={"files": asked, **body}, timeout=30)
            assert answer.status_code == 200, answer.text
            return {item["path"]: item for item in answer.json()["items"]}

        yield ask


def test_films_wait_for_a_wrong_rule_that_was_dropped_with_them(check: Check) -> None:
    """Without it they would follow the next one up, or the default; those beside it go up."""
    found = check(
        {
            "day2/posedrop.json": '{"analysis": "dummy",}',
            "day2/a.mp4": None,
            "day2/deep/posedrop.json": '{"keep": true}',
            "day2/deep/b.mp4": None,
            "day2/own/posedrop.json": '{"analysis": null}',
            "day2/own/c.mp4": None,
            "day3/d.mp4": None,
        }
    )
    states = {path: (item["state"], item["runs"]) for path, item in found.items()}
    assert states == {
        "day2/posedrop.json": ("refused", None),
        "day2/a.mp4": ("refused", None),
        "day2/deep/posedrop.json": ("new", None),
        "day2/deep/b.mp4": ("refused", None),
        "day2/own/posedrop.json": ("new", None),
        "day2/own/c.mp4": ("new", None),
        "day3/d.mp4": ("new", "deeplabcut_2d"),
    }
    assert "mend day2/posedrop.json first: it is not JSON" in found["day2/a.mp4"]["why"]


def test_films_wait_for_a_rule_that_has_no_folder_to_count_for(check: Check) -> None:
    found = check({"posedrop.json": '{"analysis": "dummy"}', "a.mp4": None})
    assert {item["state"] for item in found.values()} == {"refused"}
    asked = check({"posedrop.json": "{,}", "a.mp4": None}, to="day1", analysis="dummy")["a.mp4"]
    assert (asked["state"], asked["runs"]) == ("new", "dummy")  # no rule counts for it


@pytest.mark.parametrize(
    ("dropped", "state", "why"),
    [
        ('{"analysis": "dummy"}', "refused", "is there with"),
        ('{"analysis": "superanimal", "args": {"name": "mouse2"}}', "refused", "something else"),
        ('{"analysis": "superanimal", "args": {"name": "mouse1"}}', "exists", ""),
    ],
)
def test_films_follow_the_rule_that_stands_in_the_bucket(
    check: Check, own: Settings, dropped: str, state: str, why: str
) -> None:
    """Nothing is replaced, so another one is refused, though it were as long."""
    stands = b'{"analysis": "superanimal", "args": {"name": "mouse1"}}'
    Storage(own).write(own.videos_bucket, "day1/posedrop.json", stands)
    found = check({"posedrop.json": dropped, "new.mp4": None}, to="day1")
    assert found["posedrop.json"]["state"] == state
    assert why in (found["posedrop.json"]["why"] or "")
    film = found["new.mp4"]
    assert (film["state"], film["runs"], film["rule"]) == (
        "new",
        "superanimal",
        "day1/posedrop.json",
    )


def test_what_a_folder_has_besides_films_is_passed_over_without_a_look(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stick has deleted films, a project many pictures; what is dropped may have any name."""
    asked, head = [], Storage.head

    def noted(self: Storage, bucket: str, key: str) -> ObjectInfo | None:
        asked.append(key)
        return head(self, bucket, key)

    monkeypatch.setattr(Storage, "head", noted)
    passed_over = [
        "usb/$RECYCLE.BIN/a.mp4",
        "usb/$RECYCLE.BIN/posedrop.json",
        "usb/day1/.Trash-1000/files/b.mp4",
        "usb/@eaDir/c.mp4",
        "usb/labeled-data/img001.png",
    ]
    goes = ["usb/d.mp4", "@home/e.mp4", "$loose.mp4"]
    found = check(dict.fromkeys([*passed_over, *goes]), to="day1")
    assert {path: found[path]["state"] for path in passed_over} == dict.fromkeys(
        passed_over, "passed over"
    )
    assert {path: found[path]["state"] for path in goes} == dict.fromkeys(goes, "new")
    assert "$RECYCLE.BIN" in found[passed_over[0]]["why"]
    assert not {f"day1/{path}" for path in passed_over} & set(asked)
    assert {f"day1/{path}" for path in goes} <= set(asked)
