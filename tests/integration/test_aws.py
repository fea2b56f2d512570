"""The AWS event path: S3 -> SQS -> handlers, against moto's server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx
import pytest
from dramatiq.brokers.stub import StubBroker
from moto.server import ThreadedMotoServer

from handlers.context import Context
from handlers.events import follow, notify, sqs
from posedrop.buckets.storage import Storage
from posedrop.index.index import Index
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.samples import REPOSITORY


class Aws(NamedTuple):
    """A bucket that notifies a queue with a dead-letter queue, and what polls it."""

    context: Context
    poller: sqs.Poller
    s3: Any
    sqs: Any
    queue_url: str
    dead_url: str


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    """AWS as moto plays it, set up as docs/deploy.md says."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    key = {
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test-secret",
    }
    s3, queues = boto3.client("s3", **key), boto3.client("sqs", **key)
    dead_url = queues.create_queue(QueueName="posedrop-dead")["QueueUrl"]
    dead_arn = arn_of(queues, dead_url)
    policy = json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": "2"})
    queue_url = queues.create_queue(
        QueueName="posedrop", Attributes={"VisibilityTimeout": "1", "RedrivePolicy": policy}
    )["QueueUrl"]
    for bucket in ("videos", "results", "models"):
        s3.create_bucket(Bucket=bucket)
    s3.put_bucket_notification_configuration(
        Bucket="videos",
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": arn_of(queues, queue_url),
                    "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
                }
            ]
        },
    )
    settings = load(
        tmp_path,
        {
            "s3_endpoint": endpoint,
            "s3_access_key": "test",
            "s3_secret_key": "test-secret",
            "sqs_queue_url": queue_url,
            "sqs_endpoint": endpoint,
        },
    )
    index = Index(tmp_path / "index.sqlite")
    context = Context(settings, Storage(settings), index, queue.connect("stub://"))
    poller = sqs.Poller(context, follow.Follower(context), queue_url)
    yield Aws(context, poller, s3, queues, queue_url, dead_url)
    index.close()
    server.stop()


def arn_of(queues: Any, url: str) -> str:
    """Return a queue's name as other services know it."""
    answer = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return str(answer["Attributes"]["QueueArn"])


def waiting(aws: Aws, url: str) -> int:
    """Return how many messages a queue holds, seen or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = aws.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
    return sum(int(answer["Attributes"][name]) for name in names)


def drain(aws: Aws) -> None:
    """Poll until the queue is empty, and follow what came."""
    while aws.poller.poll(wait_seconds=0):
        pass
    while follow.follow(aws.context):
        pass


def test_an_upload_to_s3_is_indexed_and_enqueued(aws: Aws) -> None:
    """S3's event reaches the index by SQS; the ingest is enqueued; the message is gone."""
    key = "day 1/ä+b.mp4"
    aws.s3.put_object(Bucket="videos", Key=key, Body=b"film")
    drain(aws)
    file = aws.context.index.file_by_key("videos", key)
    assert file is not None
    assert (file.state, file.size) == ("received", 4)
    assert isinstance(aws.context.broker, StubBroker)
    assert aws.context.broker.queues["cpu"].qsize() == 1
    assert waiting(aws, aws.queue_url) == 0


def test_a_removal_takes_the_file_out_of_the_index(aws: Aws) -> None:
    """S3's delete event removes the row."""
    aws.s3.put_object(Bucket="videos", Key="a.mp4", Body=b"film")
    drain(aws)
    aws.s3.delete_object(Bucket="videos", Key="a.mp4")
    drain(aws)
    assert aws.context.index.file_by_key("videos", "a.mp4") is None


def test_what_can_not_be_recorded_stays_in_the_queue(aws: Aws) -> None:
    """With the index away a message is not deleted; it comes again, and is recorded then."""
    aws.s3.put_object(Bucket="videos", Key="a.mp4", Body=b"film")
    drain(aws)
    aws.s3.put_object(Bucket="videos", Key="b.mp4", Body=b"film")
    received = aws.sqs.receive_message(QueueUrl=aws.queue_url, VisibilityTimeout=1)
    assert len(received["Messages"]) == 1, "as if handlers had died right here"
    time.sleep(1.1)
    drain(aws)
    assert aws.context.index.file_by_key("videos", "b.mp4") is not None


def test_nonsense_becomes_a_dead_letter_and_holds_up_nothing(aws: Aws) -> None:
    """A message that is no event is kept among the dead letters, and deleted from the queue."""
    aws.sqs.send_message(QueueUrl=aws.queue_url, MessageBody="not json")
    aws.s3.put_object(Bucket="videos", Key="after.mp4", Body=b"film")
    drain(aws)
    assert len(aws.context.index.dead_letters()) == 1
    assert aws.context.index.file_by_key("videos", "after.mp4") is not None


def test_no_message_ends_the_thread_that_polls(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """One nested too deeply to be written again is a dead letter; one that breaks what records is
    left to the queue. What comes after either is recorded."""
    drain(aws)
    record = notify.record

    def breaks(context: Context, body: bytes) -> int:
        if body == b"breaks":
            raise RecursionError("as a fault of ours would")
        return record(context, body)

    monkeypatch.setattr(notify, "record", breaks)
    before = len(aws.context.index.dead_letters())
    for body in ("breaks", "[" * 988 + "{}" + "]" * 988):
        aws.sqs.send_message(QueueUrl=aws.queue_url, MessageBody=body)
    aws.s3.put_object(Bucket="videos", Key="behind.mp4", Body=b"film")
    drain(aws)
    assert len(aws.context.index.dead_letters()) == before + 1
    assert aws.context.index.file_by_key("videos", "behind.mp4") is not None
    assert waiting(aws, aws.queue_url) == 1, "the one that nobody could record"
    aws.sqs.purge_queue(QueueUrl=aws.queue_url)


def test_a_message_nobody_takes_goes_to_the_dead_letter_queue(aws: Aws) -> None:
    """Received twice and never deleted, a message moves to the queue's own dead letters."""
    drain(aws)  # S3's own test message
    aws.sqs.send_message(QueueUrl=aws.queue_url, MessageBody="{}")
    for _ in range(3):
        aws.sqs.receive_message(QueueUrl=aws.queue_url, VisibilityTimeout=0)
    assert (waiting(aws, aws.queue_url), waiting(aws, aws.dead_url)) == (0, 1)


def test_the_page_may_put_into_the_bucket(aws: Aws) -> None:
    """infra/cors.json, as docs/deploy.md sets it: from the API's origin, and from no other."""
    rules = (REPOSITORY / "infra/cors.json").read_text().replace("API_HOST", "lab.example")
    aws.s3.put_bucket_cors(Bucket="videos", CORSConfiguration=json.loads(rules))
    signed = aws.context.storage.presign_put(
        "videos",
        "uploads/x/film.mp4",
        content_type="video/mp4",
        size=4,
        sha256=None,
        metadata={"analysis": "dummy"},
    )

    def asked_first(origin: str) -> httpx.Response:
        asks = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": ",".join(sorted(signed.headers)).lower(),
        }
        return httpx.options(signed.url, headers=asks)

    own = asked_first("https://lab.example")
    assert own.status_code == 200, own.text
    assert own.headers["Access-Control-Allow-Origin"] == "https://lab.example"
    assert own.headers["Access-Control-Allow-Methods"] == "GET, PUT"  # the viewer reads, too
    assert own.headers["Access-Control-Allow-Headers"] == "*"
    assert asked_first("https://evil.example").status_code == 403
