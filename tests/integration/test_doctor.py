"""`posedrop doctor` on real servers: what it finds, and what it says to do."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from handlers.app import create_app
from posedrop import cli
from posedrop.doctor import api as doctor_of_api
from posedrop.transport import queue
from tests.support.bootstrapped import BUCKETS, POSEDROP, Store, Webhook, keys_of
from tests.support.brokers import RabbitMQ
from tests.support.minio_server import (
    EVENTS_TOKEN,
    ROOT_ACCESS_KEY,
    ROOT_SECRET_KEY,
    MinioServer,
)
from tests.support.receivers import receiver
from tests.support.serving import serving
from tests.support.tools import find_free_port, tool

REDIS = ("--bind", "127.0.0.1", "--appendonly", "yes", "--maxmemory-policy", "noeviction")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    port = find_free_port()
    program = tool("redis-server")
    process = subprocess.Popen(
        [program, "--port", str(port), *REDIS, "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture
def api(store: Store, tmp_path: Path) -> Iterator[str]:
    """The handlers, in a thread, with their own key."""
    settings = store.settings(data_dir=tmp_path, events_token=EVENTS_TOKEN)
    app = create_app(settings, queue.connect("stub://"))
    with serving(app) as url:
        yield url


#: With it, the doctor looks at nothing of the machine itself, which takes it seconds.
NO_MACHINE = Path(__file__).parents[1] / "support" / "no_machine"


def run_doctor(
    data_dir: Path, environment: Mapping[str, str], *, machine: bool = False
) -> tuple[int, dict[str, list[Any]]]:
    """Run `posedrop doctor --json` as a person does; return its status and findings by check.

    Args:
        machine: whether it is to look at the machine's card, codecs and walls, too.
    """
    kept = {name: value for name, value in os.environ.items() if "POSEDROP" not in name}
    if not machine:
        kept["PYTHONPATH"] = os.pathsep.join([str(NO_MACHINE), kept.get("PYTHONPATH", "")])
    done = subprocess.run(
        [POSEDROP, "--data-dir", str(data_dir), "doctor", "--json"],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    findings: dict[str, list[Any]] = {}
    for finding in json.loads(done.stdout):
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


#: What depends on the machine that the tests run on.
LOCAL = {"card", "codecs", "device", "isolation", "scratch", "worker"}


def states(findings: Mapping[str, list[Any]]) -> dict[str, set[str]]:
    return {
        check: {finding["state"] for finding in found}
        for check, found in findings.items()
        if check not in LOCAL
    }


def test_doctor_finds_a_healthy_stack_healthy(
    store: Store, api: str, redis_url: str, tmp_path: Path
) -> None:
    """Every check is ok beside the handlers; it leaves nothing in the store."""
    before = set(keys_of(store.s3("ROOT")))
    environment = store.environment(
        POSEDROP_URL=api, POSEDROP_EVENTS_TOKEN=EVENTS_TOKEN, POSEDROP_BROKER_URL=redis_url
    )
    status, findings = run_doctor(tmp_path, environment, machine=True)
    assert status == 0, findings
    assert set(findings) >= {"device", "codecs", "isolation"}
    assert set().union(*states(findings).values()) == {"ok"}, findings
    assert {
        "store",
        "clock",
        "buckets",
        "conditional writes",
        "presigner",
        "nothing public",
    } <= set(findings)
    assert {"notifications", "API", "events token", "broker", "broker's memory"} <= set(findings)
    assert "follower, reconciler, store, broker, disk" in findings["API's parts"][0]["message"]
    assert "is whole" in findings["index"][0]["message"]
    assert set(keys_of(store.s3("ROOT"))) == before


def test_doctor_beside_a_worker_has_no_failures(
    store: Store, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    """What only the handlers' machine has is a warning there. RabbitMQ is tried with a message."""
    environment = store.environment("WORKER", POSEDROP_BROKER_URL=rabbitmq.url)
    status, findings = run_doctor(tmp_path, environment)
    assert status == 0, findings
    assert findings["broker"][0]["message"] == "RabbitMQ takes messages"
    assert states(findings)["conditional writes"] == {"ok"}
    assert states(findings)["notifications"] == {"warn"}


def test_doctor_says_what_is_broken_and_what_to_do(store: Store, api: str, tmp_path: Path) -> None:
    """A bucket that lacks, wrong tokens and keys, no broker, a damaged index: each is named."""
    index = tmp_path / "damaged.sqlite"
    index.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    broken = store.environment(
        POSEDROP_URL=api,
        POSEDROP_EVENTS_TOKEN="another",
        POSEDROP_BROKER_URL=f"redis://127.0.0.1:{find_free_port()}/0",
        POSEDROP_INDEX_PATH=str(index),
        POSEDROP_DEVICE="cuda:9",
    )
    status, findings = run_doctor(tmp_path, broken | {"POSEDROP_S3_SECRET_KEY": "wrong"})
    failed = {
        check
        for check, found in findings.items()
        if any(finding["state"] == "fail" for finding in found)
    }
    assert status == 1
    assert failed - LOCAL == {"buckets", "events token", "broker", "index"}
    assert "POSEDROP_S3_SECRET_KEY" in findings["buckets"][0]["todo"]
    assert "POSEDROP_EVENTS_TOKEN" in findings["events token"][0]["todo"]
    assert "comes back from the buckets" in findings["index"][0]["todo"]


def test_doctor_finds_a_minio_without_bootstrap_and_a_missing_one(
    webhook: Webhook, tmp_path: Path
) -> None:
    """No buckets, then notifications that are off, then no server at all."""
    server = MinioServer(tmp_path / "minio", webhook.url).start()
    try:
        environment = {
            "POSEDROP_S3_ENDPOINT": server.endpoint,
            "POSEDROP_S3_ACCESS_KEY": ROOT_ACCESS_KEY,
            "POSEDROP_S3_SECRET_KEY": ROOT_SECRET_KEY,
            "POSEDROP_BROKER_URL": "redis://127.0.0.1:1/0",
        }
        status, findings = run_doctor(tmp_path, environment)
        assert status == 1
        assert [found["state"] for found in findings["buckets"]] == ["fail"] * 3
        assert "posedrop bootstrap" in findings["buckets"][0]["todo"]
        root = Store(server, {}, "", tmp_path).s3("ROOT")
        for bucket in BUCKETS:
            root.create_bucket(Bucket=bucket)
        root.put_bucket_policy(Bucket="videos", Policy=json.dumps(LISTED))
        status, findings = run_doctor(tmp_path, environment)
        assert status == 1
        assert states(findings)["notifications"] == {"fail"}
        assert states(findings)["presigner"] == {"warn"}
        assert states(findings)["nothing public"] == {"fail"}
    finally:
        server.stop()
    status, findings = run_doctor(tmp_path, environment)
    assert status == 1
    assert states(findings)["store"] == {"fail"}


def test_doctor_where_no_posedrop_is_says_how_to_get_one(tmp_path: Path) -> None:
    """Not a word of AWS's store, which nobody spoke of."""
    status, findings = run_doctor(tmp_path, {}, machine=True)
    assert status == 1
    (stack,) = findings["stack"]
    assert f"{tmp_path} has none" in stack["message"]
    assert "posedrop up" in stack["todo"]
    assert "amazonaws" not in json.dumps(findings)
    assert not {"store", "API", "events token", "broker"} & set(findings)


class FullRabbitMQ(RabbitMQ):
    """One that finds too little room on its disk."""

    def _environment(self) -> dict[str, str]:
        environment = super()._environment()
        with (self.folder / "rabbitmq.conf").open("a") as file:
            file.write("disk_free_limit.absolute = 1000000GB\n")
        return environment


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.stop()


def test_doctor_sees_a_rabbitmq_that_takes_no_messages(tmp_path: Path) -> None:
    """It answers, and would keep whoever sends waiting: its disk is full."""
    server = FullRabbitMQ(tmp_path / "rabbitmq")
    server.start()
    try:
        environment = {
            "POSEDROP_S3_ENDPOINT": "http://127.0.0.1:9",
            "POSEDROP_BROKER_URL": server.url,
        }
        found = run_doctor(tmp_path, environment)[1]["broker"]
    finally:
        server.stop()
    assert [one["state"] for one in found] == ["fail"]
    assert "out of disk or memory" in found[0]["todo"]


class OtherTime:
    """A relay before a store that tells another time in each answer, as a wrong clock would."""

    def __init__(self, upstream_port: int, change: Callable[[datetime], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=30)
                # With the Host that the client signed.
                upstream.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                content = answer.read()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"date", "transfer-encoding", "content-length"}:
                        self.send_header(name, value)
                self.send_header("Date", change(datetime.now(UTC)))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_DELETE = pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Take no more requests."""
        self._server.shutdown()
        self._server.server_close()


def wrong_password(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.url.replace(":guest@", ":wrong@")


def wrong_host(rabbitmq: RabbitMQ) -> str:
    return f"{rabbitmq.url}/nosuch"


def no_tls(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.url.replace("amqp:", "amqps:")


def silent(rabbitmq: RabbitMQ) -> str:
    """Return a port that takes connections and never answers."""
    del rabbitmq
    return f"amqp://127.0.0.1:{SILENT.getsockname()[1]}"


SILENT = socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("seconds", "clock", "broker", "says", "todo"),
    [
        (-3600, "ahead of the store", wrong_password, "ACCESS_REFUSED", "the user and password"),
        (45, "behind the store", wrong_host, "nosuch not found", "the virtual host"),
        (5, "of the store's", no_tls, "WRONG_VERSION", "say amqp://"),
        (None, "tells no time ('noon')", silent, "no AMQP", "the port"),
    ],
)
def test_doctor_tells_apart_what_is_wrong_with_the_clock_and_the_broker(
    store: Store,
    rabbitmq: RabbitMQ,
    tmp_path: Path,
    seconds: int | None,
    clock: str,
    broker: Callable[[RabbitMQ], str],
    says: str,
    todo: str,
) -> None:
    """Each with what to do about it, and neither hides the other or the store's own checks.

    Half of the minute that curl's redirect lasts is too far off. No password is shown.
    """

    def told(now: datetime) -> str:
        if seconds is None:
            return "noon"
        return format_datetime(now + timedelta(seconds=seconds), usegmt=True)

    relay = OtherTime(store.server.port, told)
    try:
        environment = store.environment(
            POSEDROP_S3_ENDPOINT=relay.endpoint, POSEDROP_BROKER_URL=broker(rabbitmq)
        )
        status, findings = run_doctor(tmp_path, environment)
    finally:
        relay.stop()
    (time_found,), (broker_found,) = findings["clock"], findings["broker"]
    assert status == 1
    assert clock in time_found["message"]
    wanted = "warn" if seconds is None else "ok" if seconds == 5 else "fail"
    assert (time_found["state"], bool(time_found["todo"])) == (wanted, wanted != "ok")
    assert broker_found["state"] == "fail"
    assert says in broker_found["message"]
    assert todo in broker_found["todo"]
    assert states(findings)["conditional writes"] == {"ok"}, findings
    assert ":wrong" not in json.dumps(findings)


LISTED = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": ["s3:ListBucket"],
            "Resource": ["arn:aws:s3:::videos"],
        }
    ],
}


def test_aliases_are_tried_and_the_doctor_names_those_that_nobody_is_told_by(
    store: Store, tmp_path: Path
) -> None:
    """`posedrop notify ls` and `test`, and no word of theirs or the doctor's has a secret."""
    store.s3("ROOT").put_object(
        Bucket="videos",
        Key="told/posedrop.json",
        Body=b'{"analysis": "dummy", "notify": ["lims", "gone"]}',
    )
    with receiver([204, 500]) as server:
        urls = {
            "lims": f"http://{server.address}/T0KEN#whsec_{'S3CRET00' * 4}",
            "typo": "mailtoo://user:S3CRET@example.org/T0KEN",
        }
        settings = store.settings(
            data_dir=tmp_path,
            events_token=EVENTS_TOKEN,
            api_token="t",
            notify_urls=urls,
            notify_allow_private=True,
        )
        with serving(create_app(settings, queue.connect("stub://"))) as url:
            environment = store.environment(POSEDROP_URL=url, POSEDROP_API_TOKEN="t")
            runner = CliRunner()
            tried = [
                runner.invoke(cli.main, ["notify", *words.split()], env=environment)
                for words in ("test lims", "test lims", "test nobody", "ls", "again lims")
            ]
            headers = {"Authorization": "Bearer t"}
            end = time.monotonic() + 30
            while not httpx.get(f"{url}/notify/check", headers=headers).json()["rules"]:
                assert time.monotonic() < end, "the rule was not seen"
                time.sleep(0.1)
            found = list(doctor_of_api.notices(store.settings(url=url, api_token="t")))
    assert [each.exit_code for each in tried] == [0, 1, 1, 0, 0]
    assert "lims has taken it" in tried[0].output
    assert "lims was not reached: it answered 500" in tried[1].output
    assert "POSEDROP_NOTIFY_URLS has: lims, typo" in tried[2].output
    assert json.loads(server.got[0][1])["type"] == "test"
    said = {each.state: each.message for each in found}
    assert said == {
        "fail": "typo: its URL is none that apprise knows: correct it in POSEDROP_NOTIFY_URLS",
        "warn": "told/posedrop.json names 'gone', of whom the server does not know",
    }
    words = "".join(each.output for each in tried) + repr(found)
    assert not any(secret in words for secret in ("S3CRET", "T0KEN", "whsec"))


def test_a_check_of_notices_that_takes_too_long_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has time of its own, as it starts a process for each alias; after that there is a word."""
    monkeypatch.setattr(doctor_of_api, "_NOTICES_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (found,) = doctor_of_api.notices(store.settings(url=url, api_token="t"))
    assert (found.check, found.state) == ("notices", "warn")
    assert "not found out within 0.3 s" in found.message
    assert "posedrop notify test" in found.todo
