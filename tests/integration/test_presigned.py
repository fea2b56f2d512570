"""What the holder of a presigned URL can do on a real MinIO, and what not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from posedrop.buckets import layout
from posedrop.buckets.storage import Presigned, Storage
from tests.support.bootstrapped import RUN, VIDEO_ID, Store, keys_of

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
    for other in (b"", b"12345678", b"1234567890", bytes(2**20)):
        assert httpx.put(signed.parts[0], content=other).status_code == 403, len(other)
    etag = httpx.put(signed.parts[0], content=b"123456789").headers["etag"]
    body = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    )
    assert httpx.post(elsewhere(signed.complete), content=body).status_code == 403
    assert httpx.post(signed.complete, content=body).status_code == 200
    given_up = storage.presign_parts("videos", key, content_type="video/mp4", size=9, metadata={})
    assert httpx.delete(given_up.abort).status_code == 204
