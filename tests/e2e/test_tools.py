"""S3 tools as people have them, with their default options, on each stack.

They upload, choose the analysis, and fetch the results.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from botocore.exceptions import ClientError
from minio import Minio

from tests.support.lab import BIN, Lab, clean_environment
from tests.support.tools import tool

ASKED = {"analysis": "dummy", "args": '{"seconds":0.1}'}
NAME = "Käfig 1+2 50%.mp4"


def run(*command: str, **more: Any) -> None:
    """Run a tool; what it says is shown when it fails."""
    given = {"env": clean_environment(), **more}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **given
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def minio_py(lab: Lab, film: Path, key: str) -> None:
    """Upload with MinIO's Python SDK."""
    env = lab.aws_environment()
    client = Minio(
        urlsplit(env["AWS_ENDPOINT_URL"]).netloc,
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
        secure=False,
    )
    client.fput_object("videos", key, str(film), content_type="video/mp4", metadata=dict(ASKED))


def run_rclone(lab: Lab, home: Path, *words: str) -> None:
    """Run rclone with a remote ``pd``, configured as its manual does it for a store like MinIO."""
    env = lab.aws_environment()
    config = home / "rclone.conf"
    config.write_text(
        "[pd]\ntype = s3\nprovider = Minio\n"
        f"endpoint = {env['AWS_ENDPOINT_URL']}\n"
        f"access_key_id = {env['AWS_ACCESS_KEY_ID']}\n"
        f"secret_access_key = {env['AWS_SECRET_ACCESS_KEY']}\n"
    )
    run(tool("rclone"), f"--config={config}", *words)


def rclone(lab: Lab, film: Path, key: str) -> None:
    """Upload with rclone."""
    metadata = [
        part for n, v in ASKED.items() for part in ("--header-upload", f"x-amz-meta-{n}: {v}")
    ]
    run_rclone(lab, film.parent, *metadata, "copyto", str(film), f"pd:videos/{key}")


def run_s3cmd(lab: Lab, home: Path, *words: str) -> None:
    """Run s3cmd with the file that its --configure writes."""
    env = lab.aws_environment()
    host = urlsplit(env["AWS_ENDPOINT_URL"]).netloc
    config = home / "s3cfg"
    config.write_text(
        f"[default]\naccess_key = {env['AWS_ACCESS_KEY_ID']}\n"
        f"secret_key = {env['AWS_SECRET_ACCESS_KEY']}\n"
        f"host_base = {host}\nhost_bucket = {host}\nuse_https = False\n"
    )
    run(
        tool("s3cmd"),
        f"--config={config}",
        *words,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(home)},
    )


def s3cmd(lab: Lab, film: Path, key: str) -> None:
    """Upload with s3cmd."""
    metadata = [f"--add-header=x-amz-meta-{name}:{value}" for name, value in ASKED.items()]
    run_s3cmd(lab, film.parent, *metadata, "put", str(film), f"s3://videos/{key}")


def mc(lab: Lab, film: Path, key: str) -> None:
    """Upload with MinIO's client, whose --attr takes no quotes and so no args."""
    env = lab.aws_environment()
    endpoint = urlsplit(env["AWS_ENDPOINT_URL"])
    host = f"http://{env['AWS_ACCESS_KEY_ID']}:{env['AWS_SECRET_ACCESS_KEY']}@{endpoint.netloc}"
    run(
        tool("mc"),
        "--config-dir",
        str(film.parent / "mc"),
        "cp",
        "--attr",
        f"analysis={ASKED['analysis']}",
        str(film),
        f"lab/videos/{key}",
        env={"MC_HOST_lab": host, "HOME": str(film.parent), "PATH": "/usr/bin:/bin"},
    )


def curl_put(lab: Lab, film: Path, key: str) -> None:
    """Upload with curl and a presigned PUT that a person's own boto3 made."""
    url = lab.s3().generate_presigned_url(
        "put_object", Params={"Bucket": "videos", "Key": key, "Metadata": ASKED}
    )
    headers = [part for n, v in ASKED.items() for part in ("-H", f"x-amz-meta-{n}: {v}")]
    run(tool("curl"), "-sS", "--fail", *headers, "-T", str(film), url)


def curl_post(lab: Lab, film: Path, key: str) -> None:
    """Upload with curl and a presigned POST form."""
    fields = {f"x-amz-meta-{name}": value for name, value in ASKED.items()}
    post = lab.s3().generate_presigned_post(
        "videos", key, Fields=fields, Conditions=[{n: v} for n, v in fields.items()]
    )
    form = [part for n, v in post["fields"].items() for part in ("--form-string", f"{n}={v}")]
    run(tool("curl"), "-sS", "--fail", *form, "-F", f"file=@{film}", post["url"])


def aws(lab: Lab, film: Path, key: str) -> None:
    """Upload with the AWS CLI."""
    run_aws(lab, "s3", "cp", "--metadata", json.dumps(ASKED), str(film), f"s3://videos/{key}")


def run_aws(lab: Lab, *words: str, **more: Any) -> None:
    """Run the AWS CLI with what aws.env sets."""
    run(str(BIN / "aws"), *words, env=clean_environment() | lab.aws_environment(), **more)


def boto3(lab: Lab, film: Path, key: str) -> None:
    """Upload with boto3."""
    lab.s3().upload_file(str(film), "videos", key, ExtraArgs={"Metadata": ASKED})


@pytest.mark.parametrize(
    "upload",
    [aws, boto3, minio_py, rclone, s3cmd, mc, curl_put, curl_post],
    ids=lambda f: f.__name__,
)
def test_a_tools_upload_is_analysed_as_its_metadata_asks(
    lab: Lab, clip: Path, upload: Callable[[Lab, Path, str], None]
) -> None:
    """Whatever tool puts a film, under an awkward name, its own metadata chooses the analysis."""
    key = f"tools/{upload.__name__}/{NAME}"
    upload(lab, clip, key)
    over = lab.over(lab.run_of(lab.file(key)["file_id"]))
    seconds = 5.0 if upload is mc else 0.1
    assert (over["status"], over["result"]["args"]) == ("succeeded", {"seconds": seconds})
    assert over["result"]["video"]["key"] == key


def rclone_sync(lab: Lab, home: Path, source: str, target: str) -> None:
    """Make ``target`` like ``source`` with rclone; buckets are ``bucket/key``."""
    ends = [end if end.startswith("/") else f"pd:{end}" for end in (source, target)]
    run_rclone(lab, home, "sync", *ends)


def s3cmd_sync(lab: Lab, home: Path, source: str, target: str) -> None:
    """The same with s3cmd."""
    ends = [end if end.startswith("/") else f"s3://{end}" for end in (source, target)]
    run_s3cmd(lab, home, "sync", *ends)


def aws_sync(lab: Lab, home: Path, source: str, target: str) -> None:
    """The same with the AWS CLI."""
    del home
    ends = [end if end.startswith("/") else f"s3://{end}" for end in (source, target)]
    run_aws(lab, "s3", "sync", *ends)


@pytest.mark.parametrize("sync", [rclone_sync, s3cmd_sync, aws_sync], ids=lambda f: f.__name__)
def test_a_days_folder_goes_up_with_its_rule_and_its_results_come_down(
    lab: Lab, clip: Path, tmp_path: Path, sync: Callable[[Lab, Path, str, str], None]
) -> None:
    """Up comes a folder with films and a posedrop.json, down come the results, by one tool."""
    day = tmp_path / "up"
    (day / "cam 2").mkdir(parents=True)
    (day / "posedrop.json").write_text(json.dumps({"analysis": "dummy", "args": {"seconds": 0.2}}))
    where = f"{sync.__name__} day"
    sync(lab, tmp_path, f"{day}/", f"videos/{where}/")
    (day / "cam 2" / NAME).write_bytes(clip.read_bytes())
    sync(lab, tmp_path, f"{day}/", f"videos/{where}/")
    lab.over(lab.run_of(lab.file(f"{where}/cam 2/{NAME}")["file_id"]))
    target = tmp_path / "down"
    target.mkdir()
    sync(lab, tmp_path, f"results/{where}/", f"{target}/")
    found = [json.loads(path.read_text()) for path in target.rglob("result.json")]
    assert [(one["state"], one["args"]) for one in found] == [("succeeded", {"seconds": 0.2})]


def test_the_readmes_lines_for_the_aws_cli_run_where_the_films_are(
    lab: Lab, clip: Path, tmp_path: Path
) -> None:
    """As they stand, in a folder with the films below day1/, each with one film more."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = next(b for b in readme.split("```") if "aws s3 sync" in b)
    lines = block.replace("\\\n", " ").splitlines()
    copy, fetch = (
        next(line for line in lines if f"aws s3 {verb}" in line) for verb in ("cp", "sync")
    )
    (tmp_path / "day1").mkdir()
    name = copy.split()[3]
    for film in (tmp_path / name, tmp_path / "day1" / name):
        film.write_bytes(clip.read_bytes())
    asked = copy.replace("deeplabcut_2d", "dummy").replace(
        r'"{\"model\": \"openfield\"}"', r'"{\"seconds\": 0.1}"'
    )
    assert asked.count("dummy") == asked.count("seconds") == 1
    environment = clean_environment() | lab.aws_environment()
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    run("sh", "-ec", asked, env=environment, cwd=tmp_path)
    over = lab.over(lab.run_of(lab.file(f"cohort3/day1/{name}")["file_id"]))
    run("sh", "-ec", fetch, env=environment, cwd=tmp_path)
    assert (tmp_path / "day1" / name).read_bytes() == clip.read_bytes()
    assert list(tmp_path.glob(f"results/day1/{name}/*/result.json")), over


@pytest.mark.parametrize("lab", ["embedded"], indirect=True)
def test_a_person_may_make_no_other_bucket_and_change_none(lab: Lab) -> None:
    """On the embedded stack alone: on MinIO a lab makes its people's keys itself."""
    s3 = lab.s3()
    for bucket in ("results", "models", "another"):
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.create_bucket(Bucket=bucket)
    with pytest.raises(ClientError, match="BucketAlreadyOwnedByYou"):
        s3.create_bucket(Bucket="videos")
    for name, given in CONFIGURATIONS.items():
        for bucket in ("videos", "results"):
            with pytest.raises(ClientError, match="AccessDenied"):
                getattr(s3, name)(Bucket=bucket, **given)
    assert {b["Name"] for b in s3.list_buckets()["Buckets"]} == {"videos", "results"}
    s3.put_object(Bucket="videos", Key="mine.txt", Body=b"1", ACL="public-read")
    s3.put_object_acl(Bucket="videos", Key="mine.txt", ACL="public-read")
    url = f"{lab.aws_environment()['AWS_ENDPOINT_URL']}/videos/mine.txt"
    assert httpx.get(url, trust_env=False).status_code == 403
    form = s3.generate_presigned_post("results", "forged")
    posted = httpx.post(form["url"], data=form["fields"], files={"file": b"1"}, trust_env=False)
    assert posted.status_code == 403


ANYBODY = {
    "Effect": "Allow",
    "Principal": "*",
    "Action": "s3:*",
    "Resource": "arn:aws:s3:::videos/*",
}
#: All that changes a bucket, by boto3's names; what the stores know of.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "delete_bucket": {},
    "put_bucket_policy": {"Policy": json.dumps({"Version": "2012-10-17", "Statement": [ANYBODY]})},
    "delete_bucket_policy": {},
    "put_bucket_acl": {"ACL": "public-read"},
    "put_bucket_lifecycle_configuration": {
        "LifecycleConfiguration": {
            "Rules": [
                {"Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}},
            ]
        }
    },
    "delete_bucket_lifecycle": {},
    "put_bucket_cors": {
        "CORSConfiguration": {"CORSRules": [{"AllowedMethods": ["PUT"], "AllowedOrigins": ["*"]}]}
    },
    "delete_bucket_cors": {},
    "put_bucket_versioning": {"VersioningConfiguration": {"Status": "Enabled"}},
    "put_bucket_tagging": {"Tagging": {"TagSet": [{"Key": "a", "Value": "b"}]}},
    "delete_bucket_tagging": {},
    "put_bucket_encryption": {
        "ServerSideEncryptionConfiguration": {
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        }
    },
    "delete_bucket_encryption": {},
    "put_bucket_ownership_controls": {
        "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]}
    },
    "delete_bucket_ownership_controls": {},
    "put_public_access_block": {"PublicAccessBlockConfiguration": {"BlockPublicAcls": False}},
    "delete_public_access_block": {},
    "put_object_lock_configuration": {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}},
    "put_bucket_request_payment": {"RequestPaymentConfiguration": {"Payer": "Requester"}},
    "put_bucket_notification_configuration": {"NotificationConfiguration": {}},
}
