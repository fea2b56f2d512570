"""Several gpu workers, as processes, on one Redis."""

from __future__ import annotations

from pathlib import Path

from tests.support.brokers import Redis
from tests.support.full_size import size
from tests.support.lab import Servers
from tests.support.labs import cold
from tests.support.samples import free_box, sample

DUMMIES, REAL = size((80, 2), (200, 6))


def test_three_workers_share_the_runs_and_make_each_result_once(tmp_path: Path) -> None:
    """Each idle and each real run has one result, from one attempt of each of its halves."""
    lab = cold(Servers(tmp_path / "data", Redis(tmp_path / "redis")))
    lab.several_gpus = True
    lab.start()
    try:
        mouse = sample(tmp_path, 8)
        lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
        for _ in range(2):
            lab.start_worker("worker-gpu")
        s3 = lab.s3()
        ids = []
        for number in range(REAL):
            key = f"real/{number}.mp4"
            s3.put_object(
                Bucket="videos", Key=key, Body=mouse.film.read_bytes() + free_box(8 + number)
            )
            file_id = lab.file(key)["file_id"]
            ids.append(lab.ask(file_id, "deeplabcut_2d", {"model": "mouse"}).json()["analysis_id"])
        ids += [
            lab.ask(file_id, "dummy", {"seconds": number / 10_000}).json()["analysis_id"]
            for number in range(DUMMIES)
        ]
        results = [lab.over(analysis_id, seconds=400)["result"] for analysis_id in ids]
        assert {result["state"] for result in results} == {"succeeded"}
        # A real run has one attempt to infer and one to render.
        assert [result["attempts"] for result in results] == [2] * REAL + [1] * DUMMIES
        listed = s3.get_paginator("list_objects_v2").paginate(Bucket="results")
        keys = [found["Key"] for page in listed for found in page["Contents"]]
        assert sum(key.endswith("/result.json") for key in keys) == REAL + DUMMIES
        workers = {
            s3.get_object(Bucket="results", Key=key)["Body"]
            .read()
            .decode()
            .split('"worker": "')[1][:60]
            for key in keys
            if key.endswith("/attempts/1.json")
        }
        assert len({worker.split('"')[0] for worker in workers}) == 3
    finally:
        assert lab.stop() == 0
