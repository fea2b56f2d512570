"""Videos replaced and deleted while their jobs wait or run, results deleted by S3 tools."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.faults.test_claims import storage_of
from tests.support import labs
from tests.support.lab import Lab


def occupy(lab: Lab, name: str) -> None:
    """Give all that take work for a gpu something to do for some seconds.

    That is two workers, or a worker with the next video ready.
    """
    workers = 2
    for number in range(workers):
        labs.put(lab, f"{name}/busy{number}.mp4", labs.asks(seconds=4))
    lab.until(lambda: len(labs.records(lab, f"{name}/busy", "1.json")) == workers, "all to be busy")


def results(lab: Lab, key: str, count: int) -> dict[str, str]:
    """Wait for so many results of a key; return how each content's ended."""
    found = lab.until(
        lambda: len(all_ := labs.records(lab, f"{key}/", "result.json")) == count and all_,
        f"{count} results of {key}",
    )
    return {over["sha256"]: over["state"] for over in found.values()}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_video_replaced_while_it_waits_is_not_taken_for_the_new_one(lab: Lab) -> None:
    """The old run fails and says why, the new one is made, and the index has the new one."""
    occupy(lab, "replaced")
    old, new = labs.film(), labs.film()
    labs.put(lab, "replaced/a.mp4", labs.asks(), old)
    lab.until(lambda: labs.records(lab, "replaced/a.mp4/", "request.json"), "it to be planned")
    labs.put(lab, "replaced/a.mp4", labs.asks(), new)
    ends = results(lab, "replaced/a.mp4", 2)
    assert ends == {sha256(old): "failed", sha256(new): "succeeded"}
    codes = {
        (over["error"] or {}).get("code")
        for over in labs.records(lab, "replaced/a.mp4/", "result.json").values()
    }
    assert codes == {None, "object_changed"}
    lab.until(lambda: lab.file("replaced/a.mp4")["sha256"] == sha256(new), "the index to follow")


def test_a_video_replaced_while_it_runs_ends_as_what_it_was(lab: Lab) -> None:
    """Each result is of the bytes that it names."""
    old, new = labs.film(), labs.film()
    labs.put(lab, "running/a.mp4", labs.asks(seconds=2), old)
    lab.until(lambda: labs.records(lab, "running/a.mp4/", "1.json"), "the run to begin")
    lab.until(lambda: labs.stage(lab, "running/a.mp4") == "infer", "the video to be fetched")
    labs.put(lab, "running/a.mp4", labs.asks(), new)
    ends = results(lab, "running/a.mp4", 2)
    assert ends == {sha256(old): "succeeded", sha256(new): "succeeded"}
    lab.until(lambda: lab.file("running/a.mp4")["sha256"] == sha256(new), "the index to follow")


def test_a_video_deleted_while_it_waits_or_runs(lab: Lab) -> None:
    """The film is listed as gone; the run that has the bytes ends well, one that waits fails."""
    occupy(lab, "deleted")
    labs.put(lab, "deleted/a.mp4", labs.asks())
    lab.until(lambda: labs.records(lab, "deleted/a.mp4/", "request.json"), "it to be planned")
    lab.until(lambda: labs.stage(lab, "deleted/busy0.mp4") == "infer", "the video to be fetched")
    for key in ("deleted/a.mp4", "deleted/busy0.mp4"):
        lab.s3().delete_object(Bucket="videos", Key=key)
    assert labs.result(lab, "deleted/a.mp4")["error"]["code"] == "object_changed"
    assert labs.result(lab, "deleted/busy0.mp4")["state"] == "succeeded"
    gone = {"deleted/a.mp4", "deleted/busy0.mp4"}
    lab.until(
        lambda: gone <= {f["key"] for f in lab.get("/files", state="film gone")["items"]},
        "the films to be listed as gone",
    )


def test_results_deleted_by_an_s3_tool_are_gone_from_the_index(lab: Lab, tmp_path: Path) -> None:
    """410 afterwards; asked for anew, they are made anew."""
    labs.put(lab, "unmade.mp4", labs.asks())
    labs.result(lab, "unmade.mp4")
    file_id = lab.file("unmade.mp4")["file_id"]
    analysis_id = lab.run_of(file_id)
    storage = storage_of(lab, tmp_path)
    run = f"unmade.mp4/faulty-{analysis_id}"
    storage.delete("results", [found.key for found in storage.objects("results", f"{run}/")])
    lab.until(lambda: lab.http.get(f"/results/{analysis_id}").status_code == 410, "the row to go")
    again = lab.ask(file_id, "faulty", {"how": "work"}).json()["analysis_id"]
    assert again == analysis_id
    assert lab.over(again)["status"] == "succeeded"
