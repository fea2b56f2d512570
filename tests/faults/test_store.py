"""A store that is slow, cut off, killed or lying: jobs wait, nothing is lost, nothing is wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.faults.soak import client
from tests.support import labs
from tests.support.lab import Servers
from tests.support.proxies import Flipper, Toxiproxy
from tests.support.samples import free_box


class Bad(NamedTuple):
    """A lab whose posedrop reaches its store over a bad network."""

    lab: Servers
    toxiproxy: Toxiproxy
    flipper: Flipper


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bad]:
    """MinIO and Redis, and all that can go wrong between posedrop and MinIO."""
    folder = tmp_path_factory.mktemp("bad")
    # What is kept on the workers' disk would not be fetched again.
    lab = labs.servers(folder / "data", cache_bytes="0")
    toxiproxy = Toxiproxy(folder, lab.store.port)
    flipper = Flipper(toxiproxy.port)
    lab.s3_endpoint = f"http://127.0.0.1:{flipper.port}"
    lab.start()
    yield Bad(lab, toxiproxy, flipper)
    assert lab.stop() == 0
    flipper.stop()
    toxiproxy.stop()


@pytest.mark.parametrize(
    ("kind", "share", "stream", "attributes"),
    [
        ("latency", 1.0, "downstream", {"latency": 100, "jitter": 50}),
        ("reset_peer", 0.4, "downstream", {"timeout": 20}),
        ("limit_data", 0.3, "downstream", {"bytes": 300}),
        ("limit_data", 0.3, "upstream", {"bytes": 1500}),
    ],
    ids=["slow", "resetting", "truncated answers", "truncated requests"],
)
def test_a_bad_network_costs_time_and_nothing_else(
    bad: Bad, kind: str, share: float, stream: str, attributes: dict[str, int]
) -> None:
    """Every video still ends as succeeded, once, with the files that its result names."""
    keys = [f"{kind}-{stream}/{number}.mp4" for number in range(4)]
    with bad.toxiproxy.toxic(kind, share, stream, **attributes):
        assert kind == "latency" or bad.toxiproxy.fails() > 0
        for key in keys:
            labs.put(bad.lab, key, labs.asks())
        for key in keys:
            assert labs.result(bad.lab, key, 180)["state"] == "succeeded"
            labs.check_artefacts(bad.lab, key)


def test_a_video_damaged_on_its_way_is_fetched_again(bad: Bad) -> None:
    """Other bytes than were planned are noticed by their sha256, and not analysed."""
    mark = b"posedrop-was-here"
    film = labs.film() + free_box(64, mark)
    labs.put(bad.lab, "flipped.mp4", labs.asks("work", wall_seconds=599), film)
    bad.lab.file("flipped.mp4")
    labs.result(bad.lab, "flipped.mp4")
    file_id = bad.lab.file("flipped.mp4")["file_id"]
    bad.flipper.flip(mark, mark[::-1], 1)
    again = bad.lab.ask(file_id, "faulty", {"wall_seconds": 598}).json()["analysis_id"]
    assert bad.lab.over(again)["status"] == "succeeded"
    assert bad.flipper.flipped == 1
    bad.flipper.flip(mark, mark[::-1], 1000)
    never = bad.lab.ask(file_id, "faulty", {"wall_seconds": 597}).json()["analysis_id"]
    over = bad.lab.over(never)
    assert (over["status"], over["error"]["code"]) == ("failed", "object_changed")
    bad.flipper.flip(mark, mark, 0)


def test_a_store_killed_in_the_middle_of_a_job_and_of_an_upload(bad: Bad) -> None:
    """The job goes on with the store; the upload was not acknowledged, and is not there."""
    lab = bad.lab
    labs.put(lab, "middle.mp4", labs.asks(seconds=4))
    lab.until(lambda: labs.records(lab, "middle.mp4/", "1.json"), "the run to begin")

    def killing() -> Iterator[bytes]:
        yield bytes(5 << 20)
        lab.store.kill()
        yield bytes(5 << 20)

    class Body:
        """Ten megabytes, in the middle of which the store is killed."""

        def __init__(self) -> None:
            self._parts = killing()

        def __len__(self) -> int:
            return 10 << 20

        def read(self, _: int = -1) -> bytes:
            return next(self._parts, b"")

    s3 = client(lab.aws_environment())
    with contextlib.suppress(ClientError, BotoCoreError):
        s3.upload_fileobj(Body(), "videos", "cut.mp4")
        pytest.fail("it was acknowledged by a store that was dead")
    assert lab.http.get("/healthz").status_code == 200
    asked = lab.http.post("/upload", json={"filename": "a.mp4", "multipart": True, "size": 1})
    assert (asked.status_code, asked.json()["error"]["code"]) == (503, "storage")
    assert int(asked.headers["Retry-After"]) > 0
    lab.store.start()
    over = labs.result(lab, "middle.mp4")
    assert over["state"] == "succeeded"
    labs.check_artefacts(lab, "middle.mp4")
    assert "cut.mp4" not in {f["key"] for f in lab.get("/files", limit=1000)["items"]}


def test_events_lost_with_their_queue(bad: Bad) -> None:
    """Handlers away, store killed, its queue_dir deleted: the uploads are found in the bucket."""
    lab = bad.lab
    lab.kill("handlers")
    keys = [f"unqueued/{number}.mp4" for number in range(3)]
    for key in keys:
        labs.put(lab, key, labs.asks())
    lab.store.kill()
    shutil.rmtree(Path(lab.store.folder) / "queue")
    lab.store.start()
    lab.start_handlers()
    for key in keys:
        assert labs.result(lab, key)["state"] == "succeeded"
