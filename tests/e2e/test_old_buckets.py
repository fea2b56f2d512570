"""Buckets as cf9bc21 left them, killed in mid-work: today's code lists, serves and finishes them.

Its buckets lie in tests/fixtures/buckets, where make.py says what each video is there for. One
stack for all tests, which go from looking to asking; each waits for what it asserts alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from posedrop.buckets.layout import file_id_of
from tests.support.lab import Embedded
from tests.support.old_buckets import OldBuckets

OLD = OldBuckets("cf9bc21")
OVER = {run: result for run, result in OLD.runs.items() if result is not None}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Today's posedrop on the old buckets."""
    data_dir = tmp_path_factory.mktemp("old") / "data"
    OLD.restore(data_dir)
    lab = Embedded(data_dir).start()
    yield lab
    assert lab.stop() == 0


def run_below(key: str) -> str:
    """Return the folder of the one run that a video had."""
    (run,) = [run for run in OLD.runs if run.startswith(f"{key}/")]
    return run


def id_of(run: str) -> str:
    return run[-16:]


def file_of(lab: Embedded, key: str) -> Any:
    """Return GET /upload of a video."""
    return lab.get(f"/upload/{file_id_of('videos', key)}")


def fetched(lab: Embedded, analysis_id: str, name: str) -> bytes:
    """Return a file of a run as GET /download gives it to anybody."""
    answer = lab.http.get(f"/download/{analysis_id}/{name}", follow_redirects=True)
    assert answer.status_code == 200, answer.text
    return answer.content


def poses(lab: Embedded, analysis_id: str, folder: Path) -> pd.DataFrame:
    """Return a run's table."""
    path = folder / "poses.h5"
    path.write_bytes(fetched(lab, analysis_id, "poses.h5"))
    table = pd.read_hdf(path)
    assert isinstance(table, pd.DataFrame)
    return table


def everything(lab: Embedded) -> dict[str, Any]:
    """Return what the lists say of each video and each run."""
    files = {f["key"]: (f["file_id"], f["state"]) for f in lab.get("/files", limit=1000)["items"]}
    runs = lab.get("/analyses", limit=1000)["items"]
    return files | {run["analysis_id"]: (run["key"], run["status"]) for run in runs}


def ask(lab: Embedded, key: str, **args: Any) -> httpx.Response:
    """Ask for the poses in a video."""
    return lab.ask(file_id_of("videos", key), "deeplabcut_2d", {"model": "mouse", **args})


def test_each_video_and_each_run_is_listed(lab: Embedded) -> None:
    """GET /files, GET /analyses and `posedrop ls` name all of them, the runs that were over too."""
    wanted = {id_of(run) for run in OLD.runs} | set(OLD.films)
    lab.until(lambda: wanted <= everything(lab).keys(), "all to be listed")
    for run, result in OVER.items():
        key = result["video"]["key"]
        assert everything(lab)[id_of(run)] == (key, result["state"])
    shown = lab.posedrop("ls").stdout + lab.posedrop("ls", "--analyses").stdout
    assert [name for name in wanted if name not in shown] == []


def test_the_files_of_a_run_that_was_over_are_served(lab: Embedded) -> None:
    """GET /results answers with the result of then, GET /download with the bytes of then."""
    served = 0
    for run, result in OVER.items():
        answer = lab.get(f"/results/{id_of(run)}")
        assert answer["status"] == result["state"]
        assert answer["error"] == result["error"]
        assert {file["name"] for file in answer["files"]} == {
            a["name"] for a in result["artefacts"]
        }
        for artefact in result["artefacts"]:
            data = fetched(lab, id_of(run), artefact["name"])
            assert hashlib.sha256(data).hexdigest() == artefact["sha256"], artefact["name"]
            served += 1
    assert served >= 20


def test_an_interrupted_inference_ends_with_its_rows(lab: Embedded, tmp_path: Path) -> None:
    """One with parts of an earlier engine has a row a frame in the end, and no parts."""
    run = run_below("day5/killed.mp4")
    over = lab.over(id_of(run))
    assert (over["status"], over["result"]["attempts"]) == ("succeeded", 3)
    table = poses(lab, id_of(run), tmp_path)
    assert table.index.tolist() == list(range(240))
    assert not table.isna().to_numpy().any()
    left = lab.s3().list_objects_v2(Bucket="results", Prefix=f"{run}/parts/")
    assert left["KeyCount"] == 0


def test_poses_that_were_not_drawn_are_drawn(lab: Embedded) -> None:
    """One with inference.json is not computed again: its tables are those of then."""
    run = run_below("day5/undrawn.mp4")
    over = lab.over(id_of(run))
    assert (over["status"], over["result"]["attempts"]) == ("succeeded", 3)
    for name in ("poses.h5", "poses.csv", "poses_filtered.h5"):
        assert fetched(lab, id_of(run), name) == OLD.read("results", f"{run}/{name}")
    assert fetched(lab, id_of(run), "pose.mp4")


def test_a_run_that_waited_in_the_queue_is_run(lab: Embedded) -> None:
    """A request.json alone is enough, though no message and no index came along."""
    assert lab.over(id_of(run_below("day5/queued.mp4")))["status"] == "succeeded"


def test_a_question_that_waited_is_answered(lab: Embedded) -> None:
    """A video that was asked about and never ingested is ingested, and the question's run runs."""
    (pending,) = [
        OLD.record(key)["pending_id"]
        for bucket, key in OLD.objects
        if bucket == "results" and key.startswith("day6/waits.mp4/asked/")
    ]
    assert lab.over(pending)["status"] == "succeeded"
    assert file_of(lab, "day6/waits.mp4")["state"] == "ready"


def test_a_question_that_was_answered_is_not_asked_again(lab: Embedded) -> None:
    """Its id still leads to its run, the only one of its video."""
    (pending,) = [
        OLD.record(key)["pending_id"]
        for bucket, key in OLD.objects
        if key.startswith("day6/asked.mp4/asked/") and "planned" not in key
    ]
    run = run_below("day6/asked.mp4")
    assert lab.get(f"/results/{pending}")["analysis_id"] == id_of(run)
    assert [one["analysis_id"] for one in file_of(lab, "day6/asked.mp4")["analyses"]] == [
        id_of(run)
    ]


def test_what_was_ingested_for_ever_ends(lab: Embedded) -> None:
    """A film that no attempt at ingest came to an end with has one now."""
    assert lab.file("day6/tall.mp4")["state"] == "ready"


def test_results_come_under_the_names_that_deeplabcut_gives(lab: Embedded, tmp_path: Path) -> None:
    """Those of then, called poses.h5 in the bucket, are found by it and are named in one folder."""
    run = run_below("day1/mouse.mp4")
    lab.posedrop("download", "day1/mouse.mp4", "--flat", str(tmp_path))
    scorer = lab.get(f"/results/{id_of(run)}")["result"]["details"]["scorer"]
    for name, own in (("poses.h5", ".h5"), ("poses_filtered.csv", "_filtered.csv")):
        assert (tmp_path / f"mouse{scorer}{own}").read_bytes() == OLD.read(
            "results", f"{run}/{name}"
        )
    assert len(list(tmp_path.glob(f"mouse{scorer}_p*_labeled.mp4"))) == 1


def test_poses_are_drawn_in_another_style(lab: Embedded, tmp_path: Path) -> None:
    """Asked for again with another style, a run of then has a drawn video, and keeps its own."""
    asked = ask(lab, "day1/mouse.mp4", style={"colormap": "viridis"})
    over = lab.over(asked.json()["analysis_id"])
    assert over["status"] == "succeeded"
    assert poses(lab, over["analysis_id"], tmp_path).index.tolist() == list(range(60))
    old = run_below("day1/mouse.mp4")
    drawn = [fetched(lab, id_, "pose.mp4") for id_ in (id_of(old), over["analysis_id"])]
    assert drawn[0] == OLD.read("results", f"{old}/pose.mp4") != drawn[1]


def test_a_duplicate_has_the_runs_of_its_first(lab: Embedded) -> None:
    """The same bytes under a second name, asked the same, are the same run."""
    names = ("day1/mouse.mp4", "day1/copy.mp4")
    answers = [ask(lab, key, stop=10).json()["analysis_id"] for key in names]
    assert answers[0] == answers[1]
    # Either may be what is computed; the other is filled from it.
    assert lab.over(answers[0])["result"]["video"]["key"] in names
    assert file_of(lab, "day1/copy.mp4")["duplicate_of"] == file_id_of("videos", "day1/mouse.mp4")


@pytest.mark.parametrize("key", ["day5/failed.mp4", "day5/cancelled.mp4"])
def test_what_did_not_succeed_can_be_asked_for_again(lab: Embedded, key: str) -> None:
    """The same question starts it anew; how it ended then is still told."""
    answer = ask(lab, key)
    assert answer.status_code == 202
    assert lab.over(answer.json()["analysis_id"])["status"] == "succeeded"
    old = run_below(key)
    assert lab.get(f"/results/{id_of(old)}")["status"] == OVER[old]["state"]


def test_a_film_that_was_refused_and_is_fine_is_looked_at_again(lab: Embedded) -> None:
    """What that version's decoder refused becomes ready, and what its metadata ask for runs."""
    lab.posedrop("reingest", "broken/")
    for key in ("broken/camera.y4m", "broken/cut.mp4"):
        lab.file(key, "ready")
    over = lab.over(lab.run_of(file_id_of("videos", "broken/camera.y4m")))
    assert (over["status"], over["result"]["rows"]) == ("succeeded", 15)
    asked = ask(lab, "broken/cut.mp4")
    assert lab.over(asked.json()["analysis_id"])["status"] == "partial"


def test_what_is_no_film_stays_refused(lab: Embedded) -> None:
    """Looked at again, a letter is a letter, and has no run."""
    file = file_of(lab, "broken/text.mp4")
    assert (file["state"], file["analyses"]) == ("refused", [])


@pytest.mark.parametrize("folder", ["day3", "day4"])
def test_a_film_below_a_wrong_rule_runs_once_it_is_mended(lab: Embedded, folder: str) -> None:
    """What was rejected then stays to be read; the rule put right reaches the film."""
    (film,) = [key for key in OLD.films if key.startswith(folder)]
    (rejected,) = [run for run in OLD.runs if run.startswith(folder)]
    rule = {"analysis": "dummy", "args": {"seconds": 0.4}}
    lab.s3().put_object(
        Bucket="videos", Key=f"{folder}/posedrop.json", Body=json.dumps(rule).encode()
    )

    def ended() -> set[str]:
        return {one["status"] for one in file_of(lab, film)["analyses"]}

    lab.until(lambda: ended() == {"failed", "succeeded"}, f"a run of {film}")
    error = lab.get(f"/results/{id_of(rejected)}")["error"]
    assert error == OVER[rejected]["error"]


def test_a_reindex_gives_the_same(lab: Embedded) -> None:
    """The index made anew from the buckets says of each video and run what it said before."""
    before = everything(lab)
    lab.posedrop("reindex")
    lab.until(lambda: everything(lab) == before, "the index to come back")


def test_nothing_that_was_over_ran_again(lab: Embedded) -> None:
    """Of each run that was over the bucket has the objects that it had, to the byte, and no more.

    A video whose run was not asked for anew has that one.
    """
    client = lab.s3()
    for run in OVER:
        now = {
            entry["Key"]: entry["ETag"].strip('"')
            for entry in client.list_objects_v2(Bucket="results", Prefix=f"{run}/")["Contents"]
        }
        then = {key for bucket, key in OLD.objects if key.startswith(f"{run}/")}
        assert now == {
            key: hashlib.md5(OLD.read("results", key), usedforsecurity=False).hexdigest()
            for key in then
        }
    for key in ("_posedrop/plain.mp4", "asked/odd.mp4", "day1/holes.ts", "day6/asked.mp4"):
        assert len(file_of(lab, key)["analyses"]) == 1, key
    assert file_of(lab, "day2/nothing.mp4")["analyses"] == []
