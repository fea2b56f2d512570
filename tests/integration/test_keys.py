"""What each of the three keys, and nobody, may do on a real MinIO."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from minio import MinioAdmin
from minio.error import MinioAdminException

from tests.support.bootstrapped import BUCKETS, RUN, VIDEO_ID, Store

PLACES = {
    "videos/uploads/": ("videos", f"uploads/{VIDEO_ID}/"),
    "videos/": ("videos", "day1/"),
    "results/": ("results", f"{RUN}/"),
    "results/.../parts/": ("results", f"{RUN}/parts/"),
    "results/.../derived/": ("results", f"{RUN}/derived/"),
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
PARTS = ("", "parts/", ".../parts/", ".../derived/")
#: All that is allowed; whatever else is, is a hole.
ALLOWED = {
    "PRESIGN": {
        f"{action} {place}"
        for action in (*WRITES, *ABORT)
        for place in ("videos/", "videos/uploads/")
    },
    "HANDLERS": {
        *(f"{action} {place}" for action in READS for place in PLACES if place != "other/"),
        *(f"{action} videos/uploads/" for action in WRITES),
        *(f"{action} results/{part}" for action in WRITES for part in PARTS),
        *(f"abort {place}" for place in PLACES if place.startswith(("videos/", "results/"))),
        *(f"list uploads {bucket}" for bucket in ("videos", "results")),
        *(f"list parts {place}" for place in PLACES if place.startswith("videos/")),
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
            for part in PARTS
        ),
        *(f"delete results/{part}" for part in PARTS if part != "parts/"),
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
