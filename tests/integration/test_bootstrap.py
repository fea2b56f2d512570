"""bootstrap and doctor on a real MinIO: what each key may do, and what a presigned URL may not."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import httpx
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from click.testing import CliRunner, Result
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from handlers.app import create_app
from posedrop import bootstrap, cli, layout, queue
from posedrop.settings import Settings, load
from posedrop.storage import Presigned, Storage
from tests.conftest import find_free_port, tool
from tests.integration.brokers import RabbitMQ
from tests.integration.minio_server import (
    EVENTS_TOKEN,
    ROOT_ACCESS_KEY,
    ROOT_SECRET_KEY,
    MinioServer,
)
from tests.serving import serving

BUCKETS = ("videos", "results", "models")
POSEDROP = str(Path(sys.executable).with_name("posedrop"))
VIDEO_ID = "mfzgs3tfebzw63lf"
RUN = f"day1/a.mp4/dummy-{VIDEO_ID}"


# -- servers ---------------------------------------------------------------------------------------


@dataclass
class Webhook:
    """What MinIO told, and where it tells it."""

    url: str
    seen: list[tuple[str | None, dict[str, Any]]]

    def of(self, key: str) -> list[tuple[str | None, dict[str, Any]]]:
        """Return what was told of one object."""
        return [(token, body) for token, body in self.seen if body.get("Key") == key]


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    seen: list[tuple[str | None, dict[str, Any]]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if body:
                seen.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        do_HEAD = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Webhook(f"http://127.0.0.1:{server.server_port}/events", seen)
    server.shutdown()


@dataclass
class Store:
    """A MinIO after its first bootstrap, and the keys that it made."""

    server: MinioServer
    keys: Mapping[str, str]
    first: str
    folder: Path

    def environment(self, role: str = "HANDLERS", **more: str) -> dict[str, str]:
        """Return the environment of a process of posedrop."""
        return {
            "POSEDROP_S3_ENDPOINT": self.server.endpoint,
            "POSEDROP_S3_ACCESS_KEY": self.keys[f"POSEDROP_{role}_ACCESS_KEY"],
            "POSEDROP_S3_SECRET_KEY": self.keys[f"POSEDROP_{role}_SECRET_KEY"],
            "POSEDROP_PRESIGN_ACCESS_KEY": self.keys["POSEDROP_PRESIGN_ACCESS_KEY"],
            "POSEDROP_PRESIGN_SECRET_KEY": self.keys["POSEDROP_PRESIGN_SECRET_KEY"],
            **more,
        }

    def settings(self, role: str = "HANDLERS", **more: Any) -> Settings:
        """Return the settings of a process of posedrop."""
        values = {
            name.removeprefix("POSEDROP_").lower(): value
            for name, value in self.environment(role).items()
        }
        return load(self.folder, values | more)

    def s3(self, role: str) -> Any:
        """Return a boto3 client with the key of a role: a user's, ROOT or ANONYMOUS."""
        signature: Any = UNSIGNED if role == "ANONYMOUS" else "s3v4"
        access_key, secret_key = self.pair(role)
        return boto3.client(
            "s3",
            endpoint_url=self.server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                signature_version=signature,
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
            ),
        )

    def admin(self, role: str) -> MinioAdmin:
        """Return MinIO's admin client with the key of a role."""
        return MinioAdmin(
            endpoint=self.server.endpoint.removeprefix("http://"),
            credentials=StaticProvider(*self.pair(role)),
            region="us-east-1",
            secure=False,
        )

    def pair(self, role: str) -> tuple[str, str]:
        """Return access key and secret of a role."""
        if role == "ROOT":
            return ROOT_ACCESS_KEY, ROOT_SECRET_KEY
        if role == "ANONYMOUS":
            return "anonymous", "anonymous"
        return self.keys[f"POSEDROP_{role}_ACCESS_KEY"], self.keys[f"POSEDROP_{role}_SECRET_KEY"]


def run_bootstrap(server: MinioServer, folder: Path, *args: str, **environment: str) -> Result:
    """Run the command in this process, with nothing of this process's environment."""
    cleared: dict[str, str | None] = {name: None for name in os.environ if "POSEDROP" in name}
    given = {
        "POSEDROP_S3_ENDPOINT": server.endpoint,
        "POSEDROP_ROOT_ACCESS_KEY": ROOT_ACCESS_KEY,
        "POSEDROP_ROOT_SECRET_KEY": ROOT_SECRET_KEY,
    }
    return CliRunner().invoke(
        cli.main,
        ["--data-dir", str(folder / "none"), "bootstrap", *args],
        env=cleared | given | environment,
    )


def read_variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, webhook: Webhook) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("minio")
    server = MinioServer(folder, webhook.url).start()
    env_file = folder / "keys.env"
    done = run_bootstrap(server, folder, "--write-env", str(env_file))
    assert done.exit_code == 0, done.output
    store = Store(server, read_variables(env_file), done.output, folder)
    root = store.s3("ROOT")
    root.create_bucket(Bucket="other")
    for bucket, key in SEEDS:
        root.put_object(Bucket=bucket, Key=key, Body=b"a secret")
    yield store
    server.stop()


SEEDS = (
    ("videos", f"uploads/{VIDEO_ID}/seed"),
    ("videos", "day1/seed"),
    ("results", f"{RUN}/seed"),
    ("results", f"{RUN}/parts/seed"),
    ("results", "day1/parts/a.mp4/seed"),
    ("models", "openfield/digest/seed"),
    ("other", "folder/seed"),
)


# -- bootstrap -------------------------------------------------------------------------------------


def test_a_second_bootstrap_finds_nothing_to_do(store: Store) -> None:
    """Every line of the second run says so, and the keys are the ones of the first."""
    assert "created" in store.first
    env_file = store.folder / "keys.env"
    assert env_file.stat().st_mode & 0o777 == 0o600
    done = run_bootstrap(store.server, store.folder, "--write-env", str(env_file))
    assert done.exit_code == 0, done.output
    targets, *lines = done.output.splitlines()
    assert targets == "webhook targets fast and sure: there"
    assert len(lines) == 10
    assert [line for line in lines if not line.endswith(": nothing to do")] == []
    assert read_variables(env_file) == store.keys


def test_a_bucket_tells_both_targets_what_posedrop_needs_and_nothing_else(
    store: Store, webhook: Webhook
) -> None:
    """A PUT and a DELETE reach the webhook twice, with the token; a change of tags does not."""
    root = store.s3("ROOT")
    for bucket in ("videos", "results"):
        key = f"{bucket}/told.mp4"
        root.put_object(Bucket=bucket, Key="told.mp4", Body=b"1")
        root.put_object_tagging(
            Bucket=bucket, Key="told.mp4", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}
        )
        root.delete_object(Bucket=bucket, Key="told.mp4")
        end = time.monotonic() + 20
        while len(webhook.of(key)) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        told = webhook.of(key)
        assert sorted(body["EventName"] for _, body in told) == [
            "s3:ObjectCreated:Put",
            "s3:ObjectCreated:Put",
            "s3:ObjectRemoved:Delete",
            "s3:ObjectRemoved:Delete",
        ]
        assert {token for token, _ in told} == {f"Bearer {EVENTS_TOKEN}"}


def test_changes_by_others_stay_and_only_posedrops_own_are_put_right(store: Store) -> None:
    """Entries for fast and sure are replaced; other rules of expiry are kept."""
    root = store.s3("ROOT")
    arn = next(
        arn
        for arn in json.loads(store.admin("ROOT").info())["sqsARN"]
        if bootstrap.target_of(arn) == "fast"
    )
    root.put_bucket_notification_configuration(
        Bucket="videos",
        NotificationConfiguration={
            "QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]
        },
    )
    root.put_bucket_lifecycle_configuration(
        Bucket="videos",
        LifecycleConfiguration={
            "Rules": [
                {
                    "ID": "theirs",
                    "Status": "Enabled",
                    "Filter": {"Prefix": "tmp/"},
                    "Expiration": {"Days": 1},
                }
            ]
        },
    )
    env_file = str(store.folder / "keys.env")
    done = run_bootstrap(
        store.server, store.folder, "--write-env", env_file, POSEDROP_RETENTION_DAYS="2.5"
    )
    assert "notifications of videos: set for fast and sure, in place of 1" in done.output
    assert "notifications of results: nothing to do" in done.output
    assert days_by_rule(root) == {"theirs": 1, "posedrop-retention": 4}
    found = root.get_bucket_notification_configuration(Bucket="videos")["QueueConfigurations"]
    assert [sorted(queue["Events"]) for queue in found] == [list(bootstrap.EVENTS)] * 2
    run_bootstrap(store.server, store.folder, "--write-env", env_file)
    assert days_by_rule(root) == {"theirs": 1}
    root.delete_bucket_lifecycle(Bucket="videos")


def days_by_rule(root: Any) -> dict[str, int]:
    rules = root.get_bucket_lifecycle_configuration(Bucket="videos")["Rules"]
    return {rule["ID"]: rule["Expiration"]["Days"] for rule in rules}


def test_a_policy_or_a_secret_that_was_changed_is_put_right(store: Store) -> None:
    """A user who was given more loses it, and the secret that is set is the one that counts."""
    admin = store.admin("ROOT")
    admin.policy_set(policy_name="readwrite", user="posedrop-worker")
    admin.user_add(access_key="posedrop-worker", secret_key="somebody-elses")
    env_file = str(store.folder / "keys.env")
    done = run_bootstrap(store.server, store.folder, "--write-env", env_file)
    line = "user posedrop-worker (worker): given the secret that is set, policy given"
    assert line in done.output.splitlines()
    assert json.loads(admin.user_info("posedrop-worker"))["policyName"] == "posedrop-worker"
    Storage(store.settings("WORKER")).read("videos", "day1/seed")


@pytest.mark.parametrize("there", [(), ("fast",)])
def test_a_server_without_its_targets_is_refused_and_left_as_it_was(
    tmp_path: Path, webhook: Webhook, there: tuple[str, ...]
) -> None:
    """The error names the variables to set, and no bucket was made."""
    server = MinioServer(tmp_path / "minio", webhook.url, targets=there).start()
    try:
        done = run_bootstrap(server, tmp_path)
        assert done.exit_code == 1
        for name in {"fast", "sure"} - set(there):
            assert f"MINIO_NOTIFY_WEBHOOK_ENABLE_{name}=on" in done.output
            assert f'MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{name}="Bearer ' in done.output
        assert "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_sure=" in done.output
        assert ("ENABLE_fast" in done.output) == ("fast" not in there)
        bare = Store(server, {}, "", tmp_path)
        assert bare.s3("ROOT").list_buckets()["Buckets"] == []
    finally:
        server.stop()


def test_what_is_missing_or_wrong_is_said_in_a_line(store: Store, tmp_path: Path) -> None:
    """No root key, a wrong one, no endpoint, one key for two roles, a short secret."""
    worker = {"POSEDROP_WORKER_SECRET_KEY": "short"}
    shared = {"POSEDROP_WORKER_ACCESS_KEY": "posedrop-handlers"}
    for environment, expected in (
        ({"POSEDROP_ROOT_SECRET_KEY": "wrong-wrong"}, "SignatureDoesNotMatch"),
        ({"POSEDROP_S3_ENDPOINT": "minio:9000"}, "set POSEDROP_S3_ENDPOINT to MinIO's address"),
        ({"POSEDROP_S3_ENDPOINT": f"http://127.0.0.1:{find_free_port()}"}, "can't ask MinIO"),
        (worker, "POSEDROP_WORKER_SECRET_KEY is shorter than 8"),
        (shared, "four different access keys"),
    ):
        done = run_bootstrap(store.server, tmp_path, **environment)
        assert (done.exit_code, expected in done.output) == (1, True), done.output
        assert "Traceback" not in done.output
    done = CliRunner().invoke(
        cli.main,
        ["--data-dir", str(tmp_path), "bootstrap"],
        env={"POSEDROP_S3_ENDPOINT": store.server.endpoint, "POSEDROP_ROOT_ACCESS_KEY": None},
    )
    assert "set POSEDROP_ROOT_ACCESS_KEY" in done.output
    lost = tmp_path / "lost.env"
    done = run_bootstrap(store.server, tmp_path, "--write-env", str(lost))
    assert "were made before" in done.output
    assert not lost.exists()


# -- what each key may do --------------------------------------------------------------------------

PLACES = {
    "videos/uploads/": ("videos", f"uploads/{VIDEO_ID}/"),
    "videos/": ("videos", "day1/"),
    "results/": ("results", f"{RUN}/"),
    "results/.../parts/": ("results", f"{RUN}/parts/"),
    # Not checkpoints: the results of a video that somebody keeps in a folder of this name.
    "results/parts/": ("results", "day1/parts/a.mp4/"),
    "models/": ("models", "openfield/digest/"),
    "other/": ("other", "folder/"),
}
Action = Callable[[Any, str, str], object]
# To MinIO, leave to read an object or to list a bucket is leave to read and list old versions.
READS: dict[str, Action] = {
    "get": lambda s3, b, p: s3.get_object(Bucket=b, Key=f"{p}seed"),
    "head": lambda s3, b, p: s3.head_object(Bucket=b, Key=f"{p}seed"),
    "get version": lambda s3, b, p: s3.get_object(
        Bucket=b, Key=f"{p}seed", VersionId="c4e1cf7b-2a0d-4b5e-8f7a-3d6c1b9e0a11"
    ),
}
WRITES: dict[str, Action] = {
    "put": lambda s3, b, p: s3.put_object(Bucket=b, Key=f"{p}new", Body=b"1"),
    "multipart": lambda s3, b, p: s3.create_multipart_upload(Bucket=b, Key=f"{p}new"),
}
# Of an upload that isn't there: 404 once it is allowed.
ABORT: dict[str, Action] = {
    "abort": lambda s3, b, p: s3.abort_multipart_upload(Bucket=b, Key=f"{p}new", UploadId="x"),
}
# Of an object that isn't there, so that the next key finds the same.
DELETE: dict[str, Action] = {
    "delete": lambda s3, b, p: s3.delete_object(Bucket=b, Key=f"{p}gone"),
}
OTHER_OBJECT_ACTIONS: dict[str, Action] = {
    "copy from videos": lambda s3, b, p: s3.copy_object(
        Bucket=b, Key=f"{p}copy", CopySource="videos/day1/seed"
    ),
    "delete version": lambda s3, b, p: s3.delete_object(
        Bucket=b, Key=f"{p}gone", VersionId="c4e1cf7b-2a0d-4b5e-8f7a-3d6c1b9e0a11"
    ),
    "get tags": lambda s3, b, p: s3.get_object_tagging(Bucket=b, Key=f"{p}seed"),
    "put tags": lambda s3, b, p: s3.put_object_tagging(
        Bucket=b, Key=f"{p}seed", Tagging={"TagSet": []}
    ),
    "list parts": lambda s3, b, p: s3.list_parts(Bucket=b, Key=f"{p}new", UploadId="x"),
    "retention": lambda s3, b, p: s3.get_object_retention(Bucket=b, Key=f"{p}seed"),
}
OBJECT_ACTIONS = READS | WRITES | ABORT | DELETE | OTHER_OBJECT_ACTIONS
EVERYONE = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": ["s3:GetObject"],
            "Resource": ["arn:aws:s3:::videos/*"],
        }
    ],
}
BUCKET_ACTIONS: dict[str, Callable[[Any, str], object]] = {
    "list": lambda s3, b: s3.list_objects_v2(Bucket=b),
    "list versions": lambda s3, b: s3.list_object_versions(Bucket=b),
    "list uploads": lambda s3, b: s3.list_multipart_uploads(Bucket=b),
    "get notifications": lambda s3, b: s3.get_bucket_notification_configuration(Bucket=b),
    "put notifications": lambda s3, b: s3.put_bucket_notification_configuration(
        Bucket=b, NotificationConfiguration={}
    ),
    "get policy": lambda s3, b: s3.get_bucket_policy(Bucket=b),
    "put policy": lambda s3, b: s3.put_bucket_policy(Bucket=b, Policy=json.dumps(EVERYONE)),
    "delete policy": lambda s3, b: s3.delete_bucket_policy(Bucket=b),
    "get lifecycle": lambda s3, b: s3.get_bucket_lifecycle_configuration(Bucket=b),
    "delete lifecycle": lambda s3, b: s3.delete_bucket_lifecycle(Bucket=b),
    "versioning": lambda s3, b: s3.put_bucket_versioning(
        Bucket=b, VersioningConfiguration={"Status": "Suspended"}
    ),
    "bucket tags": lambda s3, b: s3.put_bucket_tagging(Bucket=b, Tagging={"TagSet": []}),
    "make": lambda s3, b: s3.create_bucket(Bucket=f"{b}-new"),
    "remove": lambda s3, b: s3.delete_bucket(Bucket=b),
}
ADMIN_ACTIONS: dict[str, Callable[[MinioAdmin, str], object]] = {
    "info": lambda a, _: a.info(),
    "users": lambda a, _: a.user_list(),
    "make user": lambda a, _: a.user_add(access_key="intruder", secret_key="intruder-secret"),
    "own secret": lambda a, me: a.user_add(access_key=me, secret_key="another-secret"),
    "remove user": lambda a, _: a.user_remove(access_key="posedrop-nobody"),
    "policies": lambda a, _: a.policy_list(),
    "put policy": lambda a, me: a.policy_add(policy_name=me, policy=EVERYONE),
    "set policy": lambda a, me: a.policy_set(policy_name="readwrite", user=me),
    "reset config": lambda a, _: a.config_reset(key="api"),
    "set config": lambda a, _: a.config_set(key="api", config={"requests_max": "0"}),
    "own account": lambda a, _: a.add_service_account(
        access_key="intruder", secret_key="intruder-secret"
    ),
    "quota": lambda a, _: a.bucket_quota_set(bucket="videos", size=1),
}
LISTS = ("list", "list versions")
#: All that is allowed; whatever else is, is a hole.
ALLOWED = {
    "PRESIGN": {f"{action} videos/uploads/" for action in (*WRITES, *ABORT)},
    "HANDLERS": {
        *(f"{action} {place}" for action in READS for place in PLACES if place != "other/"),
        *(f"{action} videos/uploads/" for action in (*WRITES, *ABORT)),
        *(f"{action} results/{part}" for action in WRITES for part in ("", "parts/", ".../parts/")),
        *(f"delete {place}" for place in PLACES if place not in {"models/", "other/"}),
        *(f"copy from videos {place}" for place in PLACES if place in {"videos/uploads/"}),
        *(f"copy from videos {place}" for place in PLACES if place.startswith("results/")),
        *(f"{action} {bucket}" for action in LISTS for bucket in BUCKETS),
        *(f"get notifications {bucket}" for bucket in ("videos", "results")),
    },
    "WORKER": {
        *(f"{action} {place}" for action in READS for place in PLACES if place != "other/"),
        *(
            f"{action} results/{part}"
            for action in (*WRITES, *ABORT, "copy from videos")
            for part in ("", "parts/", ".../parts/")
        ),
        "delete results/.../parts/",
        *(f"{action} results" for action in LISTS),
    },
    "ANONYMOUS": set(),
}


def is_allowed(call: Callable[[], object]) -> bool:
    """Tell whether the store would have done it; "there is none" is said to the allowed only."""
    code = refusal(call)
    if code is not None and code not in REFUSALS | NOTHING_THERE:
        pytest.fail(f"neither allowed nor refused: {code}")
    return code is None or code in NOTHING_THERE


def refusal(call: Callable[[], object]) -> str | None:
    """Return the code of an error, None where there was none."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except MinioAdminException as error:
        return str(json.loads(error._body)["Code"])
    return None


REFUSALS = {"AccessDenied", "403", "InvalidAccessKeyId", "MethodNotAllowed", "405"}
NOTHING_THERE = {
    "NoSuchUpload",
    "NoSuchVersion",
    "NoSuchBucketPolicy",
    "NoSuchLifecycleConfiguration",
    "InvalidRequest",
    "BucketNotEmpty",
    "404",
}


@pytest.mark.parametrize("role", ALLOWED)
def test_a_key_may_do_what_its_role_needs_and_nothing_else(store: Store, role: str) -> None:
    """Every action on every place, bucket and the server itself: none is allowed beyond need."""
    s3, admin, me = store.s3(role), store.admin(role), store.pair(role)[0]
    tried = {
        f"{name} {place}": is_allowed(lambda a=action, w=where: a(s3, *w))  # type: ignore[misc]
        for name, action in OBJECT_ACTIONS.items()
        for place, where in PLACES.items()
    }
    tried |= {
        f"{name} {bucket}": is_allowed(lambda a=action, b=bucket: a(s3, b))  # type: ignore[misc]
        for name, action in BUCKET_ACTIONS.items()
        for bucket in (*BUCKETS, "other")
    }
    tried |= {
        f"admin: {name}": is_allowed(lambda a=action: a(admin, me))  # type: ignore[misc]
        for name, action in ADMIN_ACTIONS.items()
    }
    allowed = {name for name, was in tried.items() if was}
    surplus, lacking = allowed - ALLOWED[role], ALLOWED[role] - allowed
    print(f"{role}: {len(allowed)} of {len(tried)} allowed, {len(surplus)} unexpected")
    assert surplus == set()
    assert lacking == set()


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("GET", "info"),
        ("GET", "list-users"),
        ("PUT", "add-user?accessKey=intruder"),
        ("PUT", "add-canned-policy?name=intruder"),
        ("GET", "get-config-kv?key=notify_webhook"),
        ("POST", "service?action=stop"),
    ],
)
def test_the_server_is_administered_by_nobody_without_a_signature(
    store: Store, method: str, call: str
) -> None:
    """An unsigned request to MinIO's admin API is refused."""
    answer = httpx.request(method, f"{store.server.endpoint}/minio/admin/v3/{call}")
    assert answer.status_code == 403


@pytest.mark.parametrize("role", ["PRESIGN", "WORKER", "ANONYMOUS"])
def test_other_buckets_names_are_not_told(store: Store, role: str) -> None:
    """ListBuckets tells nobody of a bucket that isn't posedrop's."""
    s3 = store.s3(role)
    if refusal(s3.list_buckets) is None:
        found = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    else:
        found = set()
    assert "other" not in found


# -- presigned uploads -----------------------------------------------------------------------------

BODY = b"the video that was announced"


def presign(store: Store, key: str, **settings: Any) -> Presigned:
    storage = Storage(store.settings(**settings))
    return storage.presign_put(
        "videos",
        key,
        content_type="video/mp4",
        size=len(BODY),
        sha256=None,
        metadata={"analysis": "dummy"},
    )


@dataclass
class Attack:
    """How a presigned request is changed before it is sent."""

    method: str = "PUT"
    url: Callable[[str], str] = str
    headers: Mapping[str, str | None] | None = None
    body: bytes = BODY

    def send(self, signed: Presigned) -> httpx.Response:
        """Send it; a header of None is left out."""
        changed = {**signed.headers, "Content-Length": str(len(self.body)), **(self.headers or {})}
        headers = {name: value for name, value in changed.items() if value is not None}
        return httpx.request(
            self.method, self.url(signed.url), headers=headers, content=self.body, timeout=30
        )


def key_replaced(new: str) -> Callable[[str], str]:
    return lambda url: url.replace(f"/videos/uploads/{VIDEO_ID}/", new, 1)


def query_replaced(old: str, new: str) -> Callable[[str], str]:
    def change(url: str) -> str:
        assert old in url
        return url.replace(old, new, 1)

    return change


ATTACKS = {
    "other key": Attack(url=key_replaced("/videos/uploads/aaaaaaaaaaaaaaaa/")),
    "other folder": Attack(url=key_replaced("/videos/day1/")),
    "dots in the key": Attack(url=key_replaced(f"/videos/uploads/{VIDEO_ID}/../")),
    "other bucket": Attack(url=key_replaced("/results/day1/")),
    "longer": Attack(body=BODY + b"!"),
    "shorter": Attack(body=BODY[:-1]),
    "empty": Attack(body=b""),
    "other type": Attack(headers={"Content-Type": "text/html"}),
    "other metadata": Attack(headers={"x-amz-meta-analysis": "superanimal"}),
    "without its metadata": Attack(headers={"x-amz-meta-analysis": None}),
    "more metadata": Attack(headers={"x-amz-meta-args": "{}"}),
    "without If-None-Match": Attack(headers={"If-None-Match": None}),
    "longer life": Attack(url=query_replaced("X-Amz-Expires=", "X-Amz-Expires=9")),
    "other date": Attack(url=query_replaced("X-Amz-Date=2", "X-Amz-Date=3")),
    "other key id": Attack(url=query_replaced("posedrop-presigner", "posedrop-handlers")),
    "fewer signed headers": Attack(
        url=query_replaced("content-length%3B", ""), headers={"X-Ignored": "1"}
    ),
    "no signature": Attack(url=lambda url: url.split("&X-Amz-Signature=")[0]),
    "no query": Attack(url=lambda url: url.split("?")[0]),
    "unsigned copy source": Attack(headers={"x-amz-copy-source": "/videos/day1/seed"}),
    "unsigned copy source, no body": Attack(
        headers={"x-amz-copy-source": "/results/" + RUN + "/seed"}, body=b""
    ),
    "unsigned trailer checksum": Attack(headers={"x-amz-trailer": "x-amz-checksum-crc32"}),
    "unsigned streaming payload": Attack(
        headers={
            "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "x-amz-decoded-content-length": str(len(BODY)),
            "x-amz-trailer": "x-amz-checksum-crc32",
            "Content-Encoding": "aws-chunked",
        }
    ),
    "as tags": Attack(url=lambda url: url + "&tagging"),
    "as rights": Attack(url=lambda url: url + "&acl"),
    "as a part": Attack(url=lambda url: url + "&partNumber=1&uploadId=x"),
    "as GET": Attack(method="GET", body=b""),
    "as HEAD": Attack(method="HEAD", body=b""),
    "as DELETE": Attack(method="DELETE", body=b""),
    "as POST": Attack(method="POST", url=lambda url: url + "&uploads", body=b""),
}


def test_a_presigned_put_puts_one_object_once(store: Store) -> None:
    """Every changed request is refused, then the honest one succeeds, and then a second one fails.

    After all of that the bucket holds what was there before, and the honest object.
    """
    root = store.s3("ROOT")
    before = set(keys_of(root))
    key = f"uploads/{VIDEO_ID}/honest.mp4"
    signed = presign(store, key)
    statuses = {name: attack.send(signed).status_code for name, attack in ATTACKS.items()}
    print(f"{len(statuses)} changed requests: {statuses}")
    assert {name: status for name, status in statuses.items() if status < 400} == {}
    assert set(keys_of(root)) == before
    assert Attack().send(signed).status_code == 200
    second = Attack(body=BODY[::-1]).send(signed)
    assert second.status_code == 412
    assert set(keys_of(root)) == before | {("videos", key)}
    assert root.get_object(Bucket="videos", Key=key)["Body"].read() == BODY


def keys_of(root: Any) -> Iterator[tuple[str, str]]:
    for bucket in (*BUCKETS, "other"):
        for found in root.list_objects_v2(Bucket=bucket).get("Contents", []):
            yield bucket, found["Key"]


def test_a_presigned_put_ends_with_its_time(store: Store) -> None:
    """Signed for a second, sent after two: refused, both kinds."""
    key = f"uploads/{VIDEO_ID}/late.mp4"
    signed = presign(store, key, presign_seconds=1)
    plain = plain_put(store, key, presign_seconds=1)
    time.sleep(2.1)
    assert [Attack().send(late).status_code for late in (signed, plain)] == [403, 403]


def test_a_presigned_hash_lets_no_other_content_in(store: Store) -> None:
    """The same length with other bytes is refused by the store itself."""
    key = layout.upload_key(VIDEO_ID, "hashed.mp4")
    signed = Storage(store.settings()).presign_put(
        "videos", key, content_type="video/mp4", size=len(BODY), sha256="00" * 32, metadata={}
    )
    assert Attack().send(signed).status_code == 400


def test_a_plain_presigned_put_still_copies_nothing_and_stays_at_its_key(store: Store) -> None:
    """The kind for `curl -T` signs the length alone; the presigner's key holds it for the rest."""
    signed = plain_put(store, f"uploads/{VIDEO_ID}/plain.mp4")
    attacks = (
        Attack(headers={"x-amz-copy-source": "/videos/day1/seed"}),
        Attack(headers={"x-amz-copy-source": "/videos/day1/seed"}, body=b""),
        Attack(url=key_replaced("/videos/day1/")),
        Attack(body=BODY + b"!"),
        Attack(body=b""),
    )
    assert {attack.send(signed).status_code for attack in attacks} == {403}
    assert Attack().send(signed).status_code == 200


def plain_put(store: Store, key: str, **settings: Any) -> Presigned:
    storage = Storage(store.settings(**settings))
    return storage.presign_plain_put("videos", key, size=len(BODY))


def test_presigned_parts_go_to_one_upload_of_one_key(store: Store) -> None:
    """Parts, completion and giving up work with the presigner's key, and for nothing else."""
    storage = Storage(store.settings())
    key = f"uploads/{VIDEO_ID}/parts.mp4"
    signed = storage.presign_parts("videos", key, content_type="video/mp4", size=9, metadata={})
    elsewhere = key_replaced("/videos/day1/")
    assert httpx.put(elsewhere(signed.parts[0]), content=b"123456789").status_code == 403
    copied = httpx.put(signed.parts[0], headers={"x-amz-copy-source": "/videos/day1/seed"})
    assert copied.status_code == 403
    etag = httpx.put(signed.parts[0], content=b"123456789").headers["etag"]
    body = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    )
    assert httpx.post(elsewhere(signed.complete), content=body).status_code == 403
    assert httpx.post(signed.complete, content=body).status_code == 200
    given_up = storage.presign_parts("videos", key, content_type="video/mp4", size=9, metadata={})
    assert httpx.delete(given_up.abort).status_code == 204


# -- doctor ----------------------------------------------------------------------------------------


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


def run_doctor(data_dir: Path, environment: Mapping[str, str]) -> tuple[int, dict[str, list[Any]]]:
    """Run `posedrop doctor --json` as a person does; return its status and findings by check."""
    kept = {name: value for name, value in os.environ.items() if "POSEDROP" not in name}
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
LOCAL = {"codecs", "device", "isolation", "scratch", "worker"}


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
    status, findings = run_doctor(tmp_path, environment)
    assert status == 0, findings
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
