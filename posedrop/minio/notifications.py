"""Which events MinIO sends posedrop, and by which of its webhook targets."""

from __future__ import annotations

from minio.notificationconfig import QueueConfig

from posedrop.minio.sdk import connect, translated
from posedrop.settings import Settings

#: The webhook without a queue delivers at once and forgets; the one with a queue is slow and sure.
FAST = "fast"
SURE = "sure"
TARGETS = (FAST, SURE)
#: Never ``s3:ObjectCreated:*``: that family also holds changes of tags, rights and retention.
EVENTS = (
    "s3:ObjectCreated:CompleteMultipartUpload",
    "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:Post",
    "s3:ObjectCreated:Put",
    "s3:ObjectRemoved:Delete",
)
_WEBHOOK = ["arn", "minio", "sqs", "webhook"]


def target_of(arn: str | None) -> str | None:
    """Return ``fast`` of ``arn:minio:sqs:<region>:fast:webhook``, None for other kinds."""
    parts = (arn or "").split(":")
    return parts[4] if len(parts) == 6 and parts[:3] + parts[5:] == _WEBHOOK else None


def notified(settings: Settings, access_key: str, secret_key: str, bucket: str) -> set[str]:
    """Return which of the targets a bucket tells everything that posedrop needs.

    Raises:
        StorageError: the key may not ask, or the store did not answer.
    """
    with translated(f"read the notifications of {bucket}"):
        config = connect(settings, access_key, secret_key).get_bucket_notification(bucket)
    return {
        name
        for queue in config.queue_config_list
        if (name := target_of(queue.queue)) in TARGETS
        and name is not None
        and set(EVENTS) <= _expanded(queue.events)
        and not queue.prefix_filter_rule
        and not queue.suffix_filter_rule
    }


def _expanded(events: list[str]) -> set[str]:
    """Return the events with what a ``*`` stands for."""
    return {
        known
        for known in EVENTS
        for event in events
        if event == known or (event.endswith("*") and known.startswith(event[:-1]))
    }


def plain(queue: QueueConfig) -> tuple[object, ...]:
    """Return all that a bucket was told of a target, to be compared."""
    return (
        queue.queue,
        tuple(sorted(queue.events)),
        queue.prefix_filter_rule,
        queue.suffix_filter_rule,
    )


def how_to_set(missing: list[str]) -> str:
    """Return what to put into MinIO's environment for the targets that it lacks."""
    lines = [f"MinIO has no webhook target {' and no '.join(missing)}. In its environment, set"]
    for name in missing:
        lines += [
            f"  MINIO_NOTIFY_WEBHOOK_ENABLE_{name}=on",
            f"  MINIO_NOTIFY_WEBHOOK_ENDPOINT_{name}=http://<handlers>:8080/events",
            f'  MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{name}="Bearer <POSEDROP_EVENTS_TOKEN>"',
        ]
        if name == SURE:
            lines += [
                f"  MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_{name}=<a folder on a disk that stays>",
                f"  MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_{name}=1000000",
            ]
    lines.append(
        "and start it again. MinIO says nothing of a variable that is misspelt or malformed: it "
        "only leaves the target out. Nothing was changed."
    )
    return "\n".join(lines)
