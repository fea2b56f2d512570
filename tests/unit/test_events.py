"""Notifications of each store are read as what happened; nothing that is sent makes it stumble."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posedrop.transport.events import (
    Event,
    ObjectCreated,
    ObjectRemoved,
    Parsed,
    parse,
    parse_bytes,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "events"
HELLO = "5d41402abc4b2a76b9719d911017c592"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
HELLO_AGAIN = "44997f87b891f89472b7f2bbe4e000c3"

_FOLDER = "ä" * 120
CREATED = {
    "minio/put": ("videos", "day1/a.mp4", HELLO, 5),
    "minio/put_again_same_bytes": ("videos", "day1/a.mp4", HELLO, 5),
    "minio/put_empty": ("videos", "empty.mp4", EMPTY, 0),
    "minio/put_odd_key": ("videos", "day 1/a+b é%2F日本.mp4", HELLO, 5),
    "minio/put_long_key": ("videos", f"{'/'.join([_FOLDER] * 4)}/x.mp4", HELLO, 5),
    "minio/multipart": ("videos", "mp.mp4", "298c9a5c8205ea8eeef29652993678aa-2", 5242890),
    "minio/copy": ("videos", "copy of.mp4", HELLO, 5),
    "minio/post": ("videos", "posted.mp4", HELLO, 5),
    "minio/versioned_put": ("versioned", "v.mp4", HELLO, 5),
    "aws/put_documented": ("amzn-s3-demo-bucket", "HappyFace.jpg", EMPTY, 1024),
    "aws/eventbridge_created_documented": (
        "amzn-s3-demo-bucket1",
        "example-key",
        "b1946ac92492d2347c6235b4d2611184",
        5,
    ),
    "aws/eventbridge_odd_key": (
        "amzn-s3-demo-bucket1",
        "day 1/a+b é%2F.mp4",
        "b1946ac92492d2347c6235b4d2611184",
        5,
    ),
    "aws/moto_sns_sqs": ("videos", "day 1/a+b é%2F.mp4", HELLO, 5),
    "ceph/put_documented": ("mybucket1", "myimage1.jpg", "37b51d194a7513e45b56f6524f2d51f2", 1024),
    "ceph/put_documented_v4": (
        "mybucket1",
        "myimage1.jpg",
        "37b51d194a7513e45b56f6524f2d51f2",
        1024,
    ),
    "ceph/put_odd_key": (
        "mybucket1",
        "day 1/a+b é%2F.mp4",
        "37b51d194a7513e45b56f6524f2d51f2",
        5,
    ),
    "seaweedfs/put_odd_key": ("videos", "day 1/a+b é%2F.mp4", HELLO, 5),
    "seaweedfs/put_empty": ("videos", "e.mp4", EMPTY, 0),
    "seaweedfs/put_long_key": ("videos", f"ü/{'y' * 200}.mp4", HELLO, 5),
    "seaweedfs/multipart": ("videos", "mp.mp4", "d316408c159ea701ab954894bd3a92c2-2", 10485760),
    "seaweedfs/copy": ("videos", "copy.mp4", "d316408c159ea701ab954894bd3a92c2-2", 10485760),
    "seaweedfs/overwrite": ("videos", "day1/a.mp4", HELLO_AGAIN, 11),
    "seaweedfs/overwrite_same_bytes": ("videos", "day1/a.mp4", HELLO_AGAIN, 11),
    "seaweedfs/overwrite_empty": ("videos", "e.mp4", EMPTY, 0),
    "seaweedfs/tags": ("videos", "day1/a.mp4", HELLO_AGAIN, 11),
    "seaweedfs/filer_put": ("videos", "raw.mp4", "bdd166af3a63f7be696dd17a218a6ffb", 3),
}
REMOVED = {
    "minio/delete": ("videos", "day1/a.mp4"),
    "minio/delete_odd_key": ("videos", "day 1/a+b é%2F日本.mp4"),
    "minio/delete_many": ("videos", "copy of.mp4"),
    "minio/versioned_delete_marker": ("versioned", "v.mp4"),
    "minio/versioned_delete_version": ("versioned", "v.mp4"),
    "aws/eventbridge_deleted_documented": ("amzn-s3-demo-bucket1", "example-key"),
    "seaweedfs/delete": ("videos", "e.mp4"),
}
NOTHING = [
    "minio/tagging",
    "minio/get",
    "minio/head",
    "minio/delete_absent",
    "aws/test_event_documented",
    "seaweedfs/folder",
    "seaweedfs/folder_with_content",
    "seaweedfs/rename_folder",
    "seaweedfs/upload_folder",
    "seaweedfs/upload_part",
    "seaweedfs/upload_part_delete",
]
OTHERS = ["aws/moto_sqs", "seaweedfs/rename", "seaweedfs/rename_in_folder"]


def _body(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def _parsed(name: str) -> Parsed:
    return parse_bytes((FIXTURES / f"{name}.json").read_bytes())


def _only(parsed: Parsed) -> Event:
    assert parsed.unknown == []
    assert len(parsed.events) == 1
    return parsed.events[0]


def test_every_fixture_is_used() -> None:
    """No captured body lies about without a test that reads it."""
    found = {str(p.relative_to(FIXTURES).with_suffix("")) for p in FIXTURES.rglob("*.json")}
    assert {*CREATED, *REMOVED, *NOTHING, *OTHERS} == found


@pytest.mark.parametrize("name", CREATED)
def test_created(name: str) -> None:
    """A written object is told with its name, ETag and size, whatever the store."""
    event = _only(_parsed(name))
    assert isinstance(event, ObjectCreated)
    assert CREATED[name] == (event.bucket, event.key, event.etag, event.size)
    assert event.sequencer
    assert event.time is not None


@pytest.mark.parametrize("name", REMOVED)
def test_removed(name: str) -> None:
    """A removed object is told with its name."""
    event = _only(_parsed(name))
    assert isinstance(event, ObjectRemoved)
    assert REMOVED[name] == (event.bucket, event.key)
    assert event.sequencer


@pytest.mark.parametrize("name", NOTHING)
def test_ignored_on_purpose(name: str) -> None:
    """Reads, tags, test events, folders and parts of uploads are neither events nor unknown."""
    assert Parsed() == _parsed(name)


def test_time_and_sequencer_of_minio() -> None:
    """The event's own time and sequencer are kept."""
    event = _only(_parsed("minio/put"))
    assert event.sequencer == "18EAC8E4ABACA42F"
    assert datetime(2026, 11, 23, 21, 11, 25, 921000, UTC) == event.time


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("minio/put", "minio/put_again_same_bytes"),
        ("seaweedfs/overwrite", "seaweedfs/overwrite_same_bytes"),
        ("seaweedfs/put_empty", "seaweedfs/overwrite_empty"),
    ],
)
def test_same_bytes_written_again_is_another_event(one: str, other: str) -> None:
    """Two writes of the same bytes to the same key are told apart by the sequencer."""
    first, second = _only(_parsed(one)), _only(_parsed(other))
    assert first.sequencer != second.sequencer


def test_seaweedfs_change_of_tags_is_the_write_again() -> None:
    """A change that wrote no data has the identity of the write before, so it is known already."""
    assert _only(_parsed("seaweedfs/overwrite_same_bytes")) == _only(_parsed("seaweedfs/tags"))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("seaweedfs/rename", "day1/a.mp4", "day2/b.mp4"),
        ("seaweedfs/rename_in_folder", "day2/b.mp4", "day3/b.mp4"),
    ],
)
def test_seaweedfs_rename(name: str, old: str, new: str) -> None:
    """A rename removes the old name and creates the new one."""
    removed, created = _parsed(name).events
    assert isinstance(removed, ObjectRemoved)
    assert isinstance(created, ObjectCreated)
    assert (old, new, HELLO_AGAIN) == (removed.key, created.key, created.etag)


def test_seaweedfs_without_s3_metadata() -> None:
    """Small files kept inside of their entry have their size; a file without MD5 has no ETag."""
    body = _body("seaweedfs/filer_put")
    entry = body["message"]["new_entry"]
    del entry["chunks"], entry["attributes"]["file_size"], entry["attributes"]["md5"]
    entry["content"] = "aGVsbG8="
    event = _only(parse(body))
    assert isinstance(event, ObjectCreated)
    assert (event.etag, event.size) == ("", 5)


def test_seaweedfs_inode_above_63_bits() -> None:
    """An inode that needs all 64 bits still tells two empty files apart."""
    body = _body("seaweedfs/put_empty")
    body["message"]["new_entry"]["attributes"]["inode"] = 2**64 - 1
    assert "18446744073709551615-" in _only(parse(body)).sequencer


def test_seaweedfs_other_filer_root() -> None:
    """The folder of the buckets is a setting; what lies outside of it is ignored."""
    body = _body("seaweedfs/delete")
    assert parse(body, filer_root="/s3").events == []
    body["key"] = "/s3/videos/e.mp4"
    assert _only(parse(body, filer_root="/s3/")).key == "e.mp4"


def test_sqs_answer_with_several_messages() -> None:
    """All messages of an SQS answer are read, S3's test event among them."""
    created, removed = _parsed("aws/moto_sqs").events
    assert isinstance(created, ObjectCreated)
    assert isinstance(removed, ObjectRemoved)
    assert "day 1/a+b é%2F.mp4" == created.key == removed.key


def _sqs(body: object) -> object:
    return {"MessageId": "1", "Body": json.dumps(body)}


def _sns(body: object) -> object:
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": json.dumps(body)}


def _lambda_sqs(body: object) -> object:
    return {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(body)}]}


def _lambda_sns(body: object) -> object:
    return {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": json.dumps(body)}}]}


@pytest.mark.parametrize("name", ["aws/put_documented", "aws/eventbridge_created_documented"])
@pytest.mark.parametrize("wrap", [_sqs, _sns, _lambda_sqs, _lambda_sns, json.dumps, lambda b: [b]])
@pytest.mark.parametrize("outer", [_sqs, lambda b: b])
def test_envelopes(name: str, wrap: Any, outer: Any) -> None:
    """SQS, SNS, SNS in SQS, and what a Lambda gets of them, say the same as what is inside."""
    assert _parsed(name) == parse(outer(wrap(_body(name))))


@pytest.mark.parametrize(
    ("event_name", "expected"),
    [
        ("ObjectCreated:Put", ObjectCreated),
        ("s3:ObjectCreated:Post", ObjectCreated),
        ("ObjectCreated:Copy", ObjectCreated),
        ("ObjectCreated:CompleteMultipartUpload", ObjectCreated),
        ("s3:ObjectCreated:PutRetention", None),
        ("ObjectRemoved:Delete", ObjectRemoved),
        ("s3:ObjectRemoved:DeleteMarkerCreated", ObjectRemoved),
        ("s3:ObjectRemoved:DeleteAllVersions", ObjectRemoved),
        ("LifecycleExpiration:Delete", ObjectRemoved),
        ("ObjectLifecycle:Expiration:Current", ObjectRemoved),
        ("ObjectLifecycle:Expiration:NonCurrent", None),
        ("ObjectTagging:Put", None),
        ("s3:ObjectAcl:Put", None),
        ("s3:Replication:OperationFailedReplication", None),
    ],
)
def test_names_of_events(event_name: str, expected: type | None) -> None:
    """Only what puts other bytes under a key creates, only what takes them away removes."""
    body = _body("aws/put_documented")
    body["Records"][0]["eventName"] = event_name
    parsed = parse(body)
    assert parsed.unknown == []
    assert ([expected] if expected else []) == [type(e) for e in parsed.events]


def test_one_bad_record_does_not_lose_the_others() -> None:
    """What can't be read is handed back with its reason; its neighbours are read."""
    good = _body("aws/put_documented")["Records"][0]
    strange = {**good, "eventName": "ObjectCelebrated:Loudly"}
    torn = {**good, "s3": {"bucket": {"name": "b"}}}
    latin = json.loads(json.dumps(good).replace("HappyFace.jpg", "%FF.jpg"))
    surrogate = json.loads(json.dumps(good).replace("HappyFace.jpg", "\\ud800.jpg"))
    parsed = parse({"Records": [strange, good, torn, latin, 7, surrogate, good]})
    assert len(parsed.events) == 2
    assert [reason for reason, _ in parsed.unknown] == [
        "event_name_unknown",
        "record_incomplete",
        "name_not_utf8",
        "not_an_event",
        "name_not_utf8",
    ]
    assert torn == parsed.unknown[1][1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 2**64), ("size", -1), ("size", True), ("size", "many"), ("size", 1.5), ("size", [])],
)
def test_a_size_that_is_none_is_unknown(field: str, value: object) -> None:
    """A size that no object can have is taken as not told; the event is good all the same."""
    body = _body("minio/put")
    body["Records"][0]["s3"]["object"][field] = value
    event = _only(parse(body))
    assert isinstance(event, ObjectCreated)
    assert event.size is None


def test_unreadable_time_and_missing_sequencer() -> None:
    """Without a sequencer the event's time stands for it; a broken time loses nothing."""
    body = _body("minio/put")
    record = body["Records"][0]
    del record["s3"]["object"]["sequencer"]
    assert record["eventTime"] == _only(parse(body)).sequencer
    record["eventTime"] = "9999-12-31T23:59:59-23:00"
    assert _only(parse(body)).time is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"1" * 10_000, b'{"a": NaN}', b"null", b"{}"]
)
def test_what_is_no_notification(data: bytes) -> None:
    """Anything else ends among the unknown and does not raise."""
    parsed = parse_bytes(data)
    assert parsed.events == []
    assert len(parsed.unknown) == 1


def test_envelopes_without_end() -> None:
    """Envelopes in envelopes are opened a few deep only."""
    body: object = _body("aws/put_documented")
    for _ in range(12):
        body = [body]
    parsed = parse(body)
    assert (parsed.events, len(parsed.unknown)) == ([], 1)


_LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["ObjectCreated:Put", "ObjectRemoved:Delete", "Object Created", "ceph:s3"])
)
_NAMES = st.sampled_from(
    [
        "Records",
        "Messages",
        "Message",
        "Body",
        "body",
        "Sns",
        "s3",
        "object",
        "bucket",
        "name",
        "key",
        "size",
        "eTag",
        "etag",
        "sequencer",
        "eventName",
        "eventTime",
        "eventSource",
        "detail",
        "detail-type",
        "time",
        "event_type",
        "message",
        "old_entry",
        "new_entry",
        "chunks",
        "attributes",
        "file_size",
        "inode",
        "mtime",
        "extended",
        "Seaweed-X-Amz-ETag",
        "md5",
        "content",
        "is_directory",
        "modified_ts_ns",
        "new_parent_path",
        "offset",
        "Event",
    ]
)
_JSON = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(), inner, max_size=6)
    ),
    max_leaves=25,
)


def _assert_sound(parsed: Parsed) -> None:
    for event in parsed.events:
        assert event.bucket.encode()
        assert event.key.encode()
        event.sequencer.encode()
        if isinstance(event, ObjectCreated):
            event.etag.encode()
            assert event.size is None or 0 <= event.size < 2**63


@example(body={"detail-type": []})
@given(_JSON)
def test_any_json(body: object) -> None:
    """No JSON makes it raise, and what comes out of it can be stored."""
    _assert_sound(parse(body))


@given(st.sampled_from([*CREATED, *REMOVED, *OTHERS]), st.data())
def test_any_part_replaced(name: str, data: st.DataObject) -> None:
    """A real notification with any of its parts replaced by anything does not raise either."""
    body = _body(name)
    place: Any = body
    while True:
        spots = list(place) if isinstance(place, dict) else list(range(len(place)))
        spot = data.draw(st.sampled_from(spots))
        inside = place[spot]
        if isinstance(inside, dict | list) and inside and data.draw(st.booleans()):
            place = inside
            continue
        place[spot] = data.draw(_JSON)
        break
    _assert_sound(parse(body))


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    """No bytes make it raise."""
    _assert_sound(parse_bytes(data))
