"""`posedrop bootstrap` on a real MinIO: what it makes, and what it puts right."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

from posedrop import cli
from posedrop.buckets.storage import Storage
from posedrop.minio import notifications
from tests.support.bootstrapped import Store, Webhook, read_variables, run_bootstrap
from tests.support.minio_server import (
    EVENTS_TOKEN,
    MinioServer,
)
from tests.support.tools import find_free_port


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


def test_the_file_of_the_keys_keeps_a_persons_own_lines(store: Store, tmp_path: Path) -> None:
    """The settings of a stack may stand in the file that the keys are written to."""
    env_file = tmp_path / "posedrop.env"
    own = "# ours, for the gäste\nPOSEDROP_RETENTION_DAYS=30\n\nPOSEDROP_NOTIFY=[]\n"
    keys = (store.folder / "keys.env").read_text()
    name, _, value = keys.splitlines()[-1].partition("=")
    env_file.write_text(f"{own}export {name.lower()}={value}\n{keys.partition(name)[0]}")
    for said in ("written", "nothing to do"):
        done = run_bootstrap(store.server, store.folder, "--write-env", str(env_file))
        assert done.exit_code == 0, done.output
        assert f"{env_file}: {said}" in done.output.splitlines()
        assert env_file.read_text() == keys + own


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
    """Entries for fast and sure are replaced; of expiry, an older posedrop's own rule goes."""
    root = store.s3("ROOT")
    arn = next(
        arn
        for arn in json.loads(store.admin("ROOT").info())["sqsARN"]
        if notifications.target_of(arn) == "fast"
    )
    root.put_bucket_notification_configuration(
        Bucket="videos",
        NotificationConfiguration={
            "QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]
        },
    )
    rules = [expiry("theirs", 1, "tmp/"), expiry("posedrop-retention", 4, "")]
    root.put_bucket_lifecycle_configuration(
        Bucket="videos", LifecycleConfiguration={"Rules": rules}
    )
    env_file = str(store.folder / "keys.env")
    again = ("--write-env", env_file)
    done = run_bootstrap(store.server, store.folder, *again, POSEDROP_RETENTION_DAYS="2.5")
    assert "notifications of videos: set for fast and sure, in place of 1" in done.output
    assert "notifications of results: nothing to do" in done.output
    assert "expiry of videos: posedrop-retention taken away" in done.output
    assert days_by_rule(root) == {"theirs": 1}
    found = root.get_bucket_notification_configuration(Bucket="videos")["QueueConfigurations"]
    assert [sorted(queue["Events"]) for queue in found] == [list(notifications.EVENTS)] * 2
    done = run_bootstrap(store.server, store.folder, *again, POSEDROP_RETENTION_DAYS="2.5")
    assert "expiry of videos: nothing to do" in done.output
    root.put_bucket_lifecycle_configuration(
        Bucket="videos", LifecycleConfiguration={"Rules": rules[1:]}
    )
    run_bootstrap(store.server, store.folder, *again)
    with pytest.raises(ClientError, match="NoSuchLifecycleConfiguration"):
        root.get_bucket_lifecycle_configuration(Bucket="videos")


def expiry(name: str, days: int, prefix: str) -> dict[str, Any]:
    return {
        "ID": name,
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": days},
    }


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
