"""Events from AWS: S3 notifies an SQS queue, which a thread polls in place of POST /events.

A message is deleted once it is recorded; until then SQS shows it again after its visibility
timeout, and after the queue's own ``maxReceiveCount`` moves it to its dead-letter queue.
"""

from __future__ import annotations

import logging
import threading

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from handlers.context import Context
from handlers.events import follow, notify
from posedrop.errors import PosedropError
from posedrop.proxies import proxies_for_boto3

log = logging.getLogger(__name__)

#: Seconds that SQS holds a poll open: 20 is its most, and the fewest requests.
_WAIT_SECONDS = 20
_BATCH = 10
_PAUSE_SECONDS = 5.0


class Poller:
    """The thread that receives, records and deletes the messages of one queue."""

    def __init__(self, context: Context, follower: follow.Follower, queue_url: str) -> None:
        settings = context.settings
        secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
        self._context = context
        self._follower = follower
        self._queue_url = queue_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqs", daemon=True)
        self._client = boto3.client(
            "sqs",
            endpoint_url=settings.sqs_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=secret,
            config=Config(
                read_timeout=_WAIT_SECONDS + 10,
                retries={"mode": "standard"},
                proxies=proxies_for_boto3(settings.sqs_endpoint),
            ),
        )

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """Poll no more; a poll that is open ends by itself, and what it receives comes again."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except (ClientError, BotoCoreError, PosedropError) as error:
                log.warning("SQS is tried again: %s", error)
                self._stop.wait(_PAUSE_SECONDS)

    def poll(self, wait_seconds: int = _WAIT_SECONDS) -> int:
        """Receive and record one batch of messages; return how many.

        Raises:
            IndexBusyError: they could not be recorded, and stay in the queue.
        """
        answer = self._client.receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=_BATCH, WaitTimeSeconds=wait_seconds
        )
        messages = answer.get("Messages", [])
        for message in messages:
            if self._stop.is_set():
                break
            try:
                new = notify.record(self._context, message["Body"].encode(errors="replace"))
            except PosedropError:
                raise
            except Exception:
                # This thread is all that hears of uploads: no message may end it, or hold up those
                # behind it. The queue shows it again, and then moves it to its dead letters.
                log.exception("a message of SQS can't be recorded")
                continue
            if new:
                self._follower.wake()
            self._client.delete_message(
                QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"]
            )
        return len(messages)
