"""Notifications of object stores, read into ObjectCreated and ObjectRemoved. Pure.

Understood are the webhooks of MinIO, Ceph's RGW and SeaweedFS's filer, and the events of AWS, bare
or wrapped in SQS, SNS and EventBridge. An event is a hint and never the truth: it says which object
to look at. So whatever can't be read is handed back with its reason, what stands beside it is read
all the same, and nothing here raises.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeGuard
from urllib.parse import unquote_plus

from posedrop import bounded

_CREATED = frozenset({"Put", "Post", "Copy", "CompleteMultipartUpload"})
#: MinIO says this of a DELETE that met no object.
_REMOVED_NOTHING = "NoOP"
_EXPIRED = frozenset(
    {
        "LifecycleExpiration:Delete",
        "LifecycleExpiration:DeleteMarkerCreated",
        "ObjectLifecycle:Expiration:Current",
    }
)
#: Known, and nothing to do: reads, tags, rights, copies to elsewhere, storage classes, scanners.
_IGNORED_FAMILIES = frozenset(
    {
        "BucketCreated",
        "BucketRemoved",
        "IntelligentTiering",
        "LifecycleDelMarkerExpiration",
        "LifecycleExpiration",
        "LifecycleTransition",
        "ObjectAccessed",
        "ObjectAcl",
        "ObjectLifecycle",
        "ObjectRestore",
        "ObjectSynced",
        "ObjectTagging",
        "ObjectTransition",
        "ReducedRedundancyLostObject",
        "Replication",
        "Scanner",
    }
)
#: SNS in SQS in a Lambda's record is three; more is not an envelope but an attack.
_MAX_DEPTH = 8
#: Parts of a notification that are looked at, envelopes too: four MiB hold no more events.
MAX_PARTS = 50_000
#: Of so many unreadable parts it is said why; of the others, how many there are.
MAX_UNKNOWN = 100
#: Bytes of a name: S3's keys have 1,024 at most, other stores' somewhat more.
_MAX_NAME = 4096
#: Characters of an ETag or a sequencer.
_MAX_TAG = 1024
#: Characters of who did it, and from where.
_MAX_SAID = 200
_MAX_INTEGER = 2**63 - 1
_ETAG_ATTRIBUTE = "Seaweed-X-Amz-ETag"
_MULTIPART_FOLDER = ".uploads"


class By(NamedTuple):
    """The user behind an event, and the address, as the store says; None where it says neither."""

    who: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object was written, or written anew.

    ``etag`` is empty and ``size`` is None where the store did not say. ``sequencer`` tells two
    writes of the same bytes apart; it is an identity, not an order (Ceph's does not sort).
    """

    bucket: str
    key: str
    etag: str
    size: int | None
    sequencer: str
    time: datetime | None
    by: By = field(default=By(), compare=False)


@dataclass(frozen=True, slots=True)
class ObjectRemoved:
    """An object was removed, or an old version of it was: only the store knows what is left."""

    bucket: str
    key: str
    sequencer: str
    time: datetime | None
    by: By = field(default=By(), compare=False)


Event = ObjectCreated | ObjectRemoved


@dataclass(frozen=True, slots=True)
class Parsed:
    """The events of a notification; ``unknown`` pairs a reason with the part that it is about.

    The reason ``too_many`` is about parts that are not there: how many they are, or that there was
    no end of them.
    """

    events: list[Event] = field(default_factory=list)
    unknown: list[tuple[str, object]] = field(default_factory=list)


_END, _TOO_MANY = object(), object()


class _UnreadableError(Exception):
    """A part that is no event; its argument is the reason, for a program."""


def parse_bytes(data: bytes, *, filer_root: str = "/buckets") -> Parsed:
    """Return the events of a notification's body as it came over the wire."""
    try:
        body = bounded.loads(data)
    except bounded.TooDeepError:
        return Parsed(unknown=[("too_deep", data.decode(errors="replace"))])
    except ValueError:
        return Parsed(unknown=[("not_json", data.decode(errors="replace"))])
    return parse(body, filer_root=filer_root)


def parse(body: object, *, filer_root: str = "/buckets") -> Parsed:
    """Return the events of a notification; ``filer_root`` is where SeaweedFS has its buckets."""
    parsed = Parsed()
    unread = 0
    for part in _unwrap(body):
        if part is _TOO_MANY:
            parsed.unknown.append(("too_many", f"nothing is read after {MAX_PARTS} parts"))
            break
        try:
            parsed.events.extend(_read(part, filer_root.rstrip("/")))
        except _UnreadableError as error:
            if len(parsed.unknown) < MAX_UNKNOWN:
                parsed.unknown.append((str(error), part))
            else:
                unread += 1
    if unread:
        parsed.unknown.append(("too_many", f"{unread} more parts are no events"))
    return parsed


def _unwrap(body: object) -> Iterator[object]:
    """Yield what lies inside of envelopes: lists, JSON in strings, SQS messages, SNS messages.

    Where there is no end of it, the last is ``_TOO_MANY``.
    """
    envelopes = [iter([body])]
    looked_at = 0
    while envelopes:
        part = next(envelopes[-1], _END)
        if part is _END:
            envelopes.pop()
            continue
        looked_at += 1
        if looked_at > MAX_PARTS:
            yield _TOO_MANY
            return
        inside = _inside(part) if len(envelopes) <= _MAX_DEPTH else None
        if inside is None:
            yield part
        else:
            envelopes.append(iter(inside))


def _inside(body: object) -> list[object] | None:
    if isinstance(body, list):
        return body
    if isinstance(body, str):
        return _json_in(body)
    if not isinstance(body, dict) or "s3" in body or "detail-type" in body:
        return None
    for name in ("Records", "Messages"):
        if isinstance(body.get(name), list):
            return list(body[name])
    for name in ("Message", "Body", "body"):
        if isinstance(body.get(name), str):
            return _json_in(body[name])
    return [body["Sns"]] if isinstance(body.get("Sns"), dict) else None


def _json_in(text: str) -> list[object] | None:
    try:
        return [bounded.loads(text)]
    except ValueError:
        return None


def _read(part: object, filer_root: str) -> list[Event]:
    if not isinstance(part, dict):
        raise _UnreadableError("not_an_event")
    if "s3" in part:
        return _read_s3_record(part)
    if "detail-type" in part:
        return _read_eventbridge(part)
    if "event_type" in part and "message" in part:
        return _read_filer(part, filer_root)
    if part.get("Event") == "s3:TestEvent":
        return []
    raise _UnreadableError("not_an_event")


def _read_s3_record(record: Mapping[str, object]) -> list[Event]:
    name = _text(record, "eventName").removeprefix("s3:")
    kind = _kind(name)
    if kind is None:
        return []
    s3 = _object(record, "s3")
    described = _object(s3, "object")
    bucket = _name(_text(_object(s3, "bucket"), "name"))
    key = _name(_unescape(_text(described, "key"), record.get("eventSource")))
    moment = record.get("eventTime")
    sequencer = _sequencer(described.get("sequencer"), moment)
    by = By(
        _said(record.get("userIdentity"), "principalId"),
        _said(record.get("requestParameters"), "sourceIPAddress"),
    )
    if kind is ObjectRemoved:
        return [ObjectRemoved(bucket, key, sequencer, _time(moment), by)]
    # MinIO leaves out the size of an empty object.
    absent = 0 if record.get("eventSource") == "minio:s3" else None
    size = _size(described.get("size", absent))
    etag = _etag(described.get("eTag"))
    return [ObjectCreated(bucket, key, etag, size, sequencer, _time(moment), by)]


def _said(part: object, name: str) -> str | None:
    """Return a text for a log line; what is none says nothing."""
    value = part.get(name) if isinstance(part, dict) else None
    return value[:_MAX_SAID] if isinstance(value, str) and value else None


def _kind(name: str) -> type[ObjectCreated] | type[ObjectRemoved] | None:
    """Return what an event's name stands for, None for one that is ignored on purpose."""
    family, _, what = name.partition(":")
    if family == "ObjectCreated":
        # MinIO calls a change of tags or of a retention ObjectCreated:PutTagging and the like.
        return ObjectCreated if what in _CREATED else None
    if family == "ObjectRemoved":
        return ObjectRemoved if what != _REMOVED_NOTHING else None
    if name in _EXPIRED:
        return ObjectRemoved
    if family in _IGNORED_FAMILIES:
        return None
    raise _UnreadableError("event_name_unknown")


def _unescape(key: str, source: object) -> str:
    """Return the key as it is; AWS and MinIO escape it as a form field, Ceph does not."""
    if source == "ceph:s3":
        return key
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise _UnreadableError("name_not_utf8") from None


def _read_eventbridge(event: Mapping[str, object]) -> list[Event]:
    detail_type = _text(event, "detail-type")
    if detail_type not in {"Object Created", "Object Deleted"}:
        if event.get("source") == "aws.s3":
            return []
        raise _UnreadableError("event_name_unknown")
    detail = _object(event, "detail")
    described = _object(detail, "object")
    bucket = _name(_text(_object(detail, "bucket"), "name"))
    key = _name(_text(described, "key"))
    moment = event.get("time")
    sequencer = _sequencer(described.get("sequencer"), moment)
    by = By(_said(detail, "requester"), _said(detail, "source-ip-address"))
    if detail_type == "Object Deleted":
        return [ObjectRemoved(bucket, key, sequencer, _time(moment), by)]
    etag, size = _etag(described.get("etag")), _size(described.get("size"))
    return [ObjectCreated(bucket, key, etag, size, sequencer, _time(moment), by)]


def _read_filer(body: Mapping[str, object], filer_root: str) -> list[Event]:
    """Read a change of SeaweedFS's file tree: an entry before, an entry after, or both.

    ``event_type`` says nothing that the two entries don't: an overwrite has both under one path,
    a rename has both under two.
    """
    message = _object(body, "message")
    before, after = _entry(message, "old_entry"), _entry(message, "new_entry")
    if before is None and after is None:
        raise _UnreadableError("record_incomplete")
    path = _text(body, "key")
    path_after = _path_after(path, message, after) if before is not None else path
    events: list[Event] = []
    if before is not None and (after is None or path != path_after):
        name = _object_name(path, before, filer_root)
        if name is not None:
            moment = _filer_time(before)
            events.append(ObjectRemoved(*name, _filer_sequencer(before), moment))
    if after is not None:
        name = _object_name(path_after, after, filer_root)
        if name is not None:
            events.append(_filer_created(*name, after))
    return events


def _filer_created(bucket: str, key: str, entry: Mapping[str, object]) -> ObjectCreated:
    return ObjectCreated(
        bucket,
        key,
        _filer_etag(entry),
        _filer_size(entry),
        _filer_sequencer(entry),
        _filer_time(entry),
    )


def _entry(message: Mapping[str, object], name: str) -> Mapping[str, object] | None:
    return _object(message, name) if message.get(name) is not None else None


def _path_after(
    path: str, message: Mapping[str, object], after: Mapping[str, object] | None
) -> str:
    """Return where the entry is now; the filer names the new folder and the new name apart."""
    parent, name = message.get("new_parent_path"), (after or {}).get("name")
    if isinstance(parent, str) and parent and isinstance(name, str) and name:
        return f"{parent.rstrip('/')}/{name}"
    return path


def _object_name(path: str, entry: Mapping[str, object], filer_root: str) -> tuple[str, str] | None:
    """Return bucket and key of an entry; None for folders, parts of uploads, and other files."""
    inside = path.removeprefix(f"{filer_root}/")
    bucket, _, key = inside.partition("/")
    if (
        entry.get("is_directory") is True
        or inside == path
        or not key
        or key.split("/", 1)[0] == _MULTIPART_FOLDER
    ):
        return None
    return _name(bucket), _name(key)


def _attributes(entry: Mapping[str, object]) -> Mapping[str, object]:
    attributes = entry.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _chunks(entry: Mapping[str, object]) -> list[Mapping[str, object]]:
    chunks = entry.get("chunks")
    return [c for c in chunks if isinstance(c, dict)] if isinstance(chunks, list) else []


def _filer_etag(entry: Mapping[str, object]) -> str:
    """Return the ETag that S3 answers with; a file that came by another way has its MD5."""
    extended = entry.get("extended")
    if isinstance(extended, dict):
        stored = _from_base64(extended.get(_ETAG_ATTRIBUTE))
        if stored:
            return _etag(stored.decode(errors="replace"))
    return _from_base64(_attributes(entry).get("md5")).hex()


def _filer_size(entry: Mapping[str, object]) -> int | None:
    """Return the size; the filer leaves zeros out, and keeps small files inside of the entry."""
    attributes = _attributes(entry)
    if "file_size" in attributes:
        return _size(attributes["file_size"])
    ends = [(_size(c.get("offset", 0)) or 0) + (_size(c.get("size")) or 0) for c in _chunks(entry)]
    return _size(max(ends, default=len(_from_base64(entry.get("content")))))


def _filer_sequencer(entry: Mapping[str, object]) -> str:
    """Return a sequencer for SeaweedFS: equal whenever one write is told, another for the next."""
    written = [_size(chunk.get("modified_ts_ns")) or 0 for chunk in _chunks(entry)]
    if any(written):
        return str(max(written))
    attributes = _attributes(entry)
    parts = [attributes.get(name, 0) for name in ("inode", "mtime", "mtime_ns")]
    return "-".join(str(part) if _is_whole(part) else "0" for part in parts)


def _filer_time(entry: Mapping[str, object]) -> datetime | None:
    seconds = _size(_attributes(entry).get("mtime"))
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
    except (OverflowError, OSError, ValueError):
        return None


def _from_base64(value: object) -> bytes:
    try:
        return base64.b64decode(value) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _object(parent: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = parent.get(name)
    if not isinstance(value, dict):
        raise _UnreadableError("record_incomplete")
    return value


def _text(parent: Mapping[str, object], name: str) -> str:
    value = parent.get(name)
    if not isinstance(value, str) or not value:
        raise _UnreadableError("record_incomplete")
    return value


def _name(text: str) -> str:
    """Return a bucket's or an object's name that can be sent to a store, which means UTF-8."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise _UnreadableError("name_not_utf8") from None
    if length > _MAX_NAME:
        raise _UnreadableError("name_too_long")
    return text


def _etag(value: object) -> str:
    """Return an ETag without the quotes that it has in HTTP; empty for none or a broken one."""
    if not isinstance(value, str):
        return ""
    return value.strip('"').encode(errors="replace").decode()[:_MAX_TAG]


def _size(value: object) -> int | None:
    """Return a whole number that fits 64 bits; Ceph's documentation has sizes in quotes."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return value if _is_whole(value) and 0 <= value <= _MAX_INTEGER else None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64


def _sequencer(value: object, moment: object) -> str:
    """Return the event's own sequencer, else its time, which a second delivery has as well."""
    text = value if isinstance(value, str) and value else moment
    return text.encode(errors="replace").decode()[:_MAX_TAG] if isinstance(text, str) else ""


def _time(value: object) -> datetime | None:
    """Return an ISO 8601 time as UTC, None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
