"""The way of a video, on the embedded stack, through the doors that people use."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from posedrop.client import Client
from tests.support.lab import POSEDROP, Lab, clean_environment
from tests.support.samples import Sample, free_box
from tests.support.tools import tool


def put(lab: Lab, film: Path, **asked: Any) -> str:
    """Upload through POST /upload and its presigned PUT; return the file_id."""
    body = {"filename": film.name, "size": film.stat().st_size, **asked}
    answer = lab.http.post("/upload", json=body)
    assert answer.status_code == 201, answer.text
    upload = answer.json()["upload"]
    sent = httpx.request(
        upload["method"], upload["url"], headers=upload["headers"], content=film.read_bytes()
    )
    assert sent.status_code == 200, sent.text
    return str(answer.json()["file_id"])


def probe(path: Path) -> dict[str, Any]:
    """Return what ffprobe says of a video."""
    command = [tool("ffprobe"), "-v", "error", "-show_streams", "-count_frames", "-of", "json"]
    answer = subprocess.run([*command, str(path)], capture_output=True, check=True)
    stream: dict[str, Any] = json.loads(answer.stdout)["streams"][0]
    return stream


@pytest.mark.parametrize("lab", ["embedded", "minio-redis", "minio-rabbitmq"], indirect=True)
def test_a_presigned_put_ends_in_poses_plots_and_a_labelled_video(
    lab: Lab, mouse: Sample, model: str, tmp_path: Path
) -> None:
    """PUT a film with a presigned URL; its results hold all that a biologist needs."""
    args = {"model": model, "filter": "median"}
    file_id = put(lab, mouse.film, analysis="deeplabcut_2d", args=args)
    analysis_id = lab.run_of(file_id)
    answer = lab.over(analysis_id, seconds=400)
    assert answer["status"] == "succeeded", answer["error"]
    result = answer["result"]
    assert (result["frames_decoded"], result["rows"]) == (60, 60)
    assert {"deeplabcut", "torch", "av"} <= set(result["versions"])
    walls = result["details"]["walls"]
    assert walls == result["details"]["render_walls"]
    # What a kernel of 2023 gives to anybody.
    assert {"capabilities", "privileges", "files", "syscalls"} <= set(walls)
    scorer = result["details"]["scorer"]
    named = f"{mouse.film.stem}{scorer}"
    labelled_video = f"{named}_p{int(100 * result['details']['pcutoff'])}_labeled.mp4"
    assert {file["name"] for file in answer["files"]} == {
        f"{named}.h5",
        f"{named}.csv",
        f"{named}_filtered.h5",
        f"{named}_filtered.csv",
        f"{named}_meta.pickle",
        labelled_video,
        "trajectory.png",
        "likelihood.png",
        "predictions.npz",
        "timestamps.csv",
        "viewer.bin",
        "run.log",
    }
    lab.posedrop("download", analysis_id, "--to", str(tmp_path))
    for file in answer["files"]:
        data = next(tmp_path.rglob(file["name"])).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    poses = pd.read_hdf(tmp_path / f"{named}.h5")
    assert list(poses.columns.get_level_values("bodyparts").unique()) == mouse.bodyparts
    assert poses.shape == (60, 3 * len(mouse.bodyparts))
    assert np.isfinite(poses.to_numpy()).all()
    labelled = probe(tmp_path / labelled_video)
    source = probe(mouse.film)
    for what in ("width", "height", "avg_frame_rate", "nb_read_frames"):
        assert labelled[what] == source[what], what
    assert (labelled["codec_name"], labelled["pix_fmt"]) == ("h264", "yuv420p")
    restyled = lab.ask(file_id, "deeplabcut_2d", {**args, "style": {"dotsize": 9}}).json()
    drawn = lab.over(restyled["analysis_id"], seconds=400)
    assert drawn["result"]["details"]["poses_of"] == analysis_id
    before, after = (
        {(file["role"], file["name"]): file["sha256"] for file in one["result"]["artefacts"]}
        for one in (answer, drawn)
    )
    # Drawn anew, not found anew.
    assert before.keys() == after.keys()
    changed = {role for role, name in before if before[role, name] != after[role, name]}
    assert {"labelled_video"} <= changed <= {"labelled_video", "log"}


def test_a_range_of_a_result_can_be_downloaded(lab: Lab, mouse: Sample, model: str) -> None:
    """GET /download redirects to the store, which answers ranges: a page can seek in the video."""
    del model
    file_id = next(
        f["file_id"]
        for f in lab.get("/files", state="ready")["items"]
        if f["filename"] == mouse.film.name
    )
    url = f"/download/{lab.run_of(file_id)}/pose.mp4"
    answer = lab.http.get(url, headers={"Range": "bytes=4-7"}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, b"ftyp")
    assert answer.headers["content-type"] == "video/mp4"


def test_poses_come_in_other_formats(lab: Lab, mouse: Sample, model: str, tmp_path: Path) -> None:
    """Asked for by curl or by command, a format is made; the client gives pandas and xarray."""
    del model
    file_id = next(
        f["file_id"]
        for f in lab.get("/files", state="ready")["items"]
        if f["filename"] == mouse.film.name
    )
    run = lab.run_of(file_id)
    words = ["-sSL", "--fail", "--retry", "30", "-H", lab.header, "-o", str(tmp_path / "a.nwb")]
    command = [tool("curl"), *words, f"{lab.url}/download/{run}/poses.nwb"]
    subprocess.run(command, check=True, capture_output=True)
    lab.posedrop("export", run, "nwb", "--to", str(tmp_path))
    lab.posedrop("export", run, "--to", str(tmp_path / "deep" / "b.NWB"), "--again")
    for path in (tmp_path / "poses.nwb", tmp_path / "deep" / "b.NWB"):
        assert (tmp_path / "a.nwb").read_bytes() == path.read_bytes()
    assert "DeepLabCut 3.0.2" in lab.posedrop("methods", run).stdout
    with Client(lab.url, lab.api_token) as client:
        table, poses = client.table(run), client.poses(run)
        listed = {file.name for file in client.run(run).files}
    assert {"poses.nwb", "poses.nc"} <= listed
    assert len(table) == poses.sizes["time"] == 60
    part = str(poses.keypoints.values[0])
    x = poses.position.sel(space="x", keypoints=part).squeeze().values
    scorer = table.columns.get_level_values(0)[0]
    np.testing.assert_array_equal(x, table[scorer][part]["x"].to_numpy())


def test_two_runs_are_compared(lab: Lab, mouse: Sample, model: str) -> None:
    """By curl, by command, and model by model for a folder: the same poses are 0 pixels apart."""
    file = next(
        f for f in lab.get("/files", state="ready")["items"] if f["filename"] == mouse.film.name
    )
    run = lab.run_of(file["file_id"])
    with Client(lab.url, lab.api_token) as client:
        # A higher cutoff is made of the same predictions, whichever way the network was computed.
        args = {**(client.run(run).result or {})["args"], "pcutoff": 0.9, "style": {"video": False}}
        other = client.analyse(file["file_id"], "deeplabcut_2d", args).analysis_id
        assert client.wait(other, seconds=120).has_results
    words = ["-sSL", "--fail", "--retry", "30", "-H", lab.header]
    command = [tool("curl"), *words, f"{lab.url}/compare?a={run}&b={other}"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (found["a"]["analysis_id"], found["b"]["pcutoff"]) == (run, 0.9)
    assert (found["frames"], found["total"]["most"], found["worst"]) == (60, 0, [])
    assert "60 frames in both" in lab.posedrop("compare", run, other).stdout
    folder = ["--prefix", file["key"].rpartition("/")[0], "--model-a", model, "--model-b", model]
    table = lab.posedrop("compare", *folder).stdout
    assert [line.split()[0] for line in table.splitlines()] == ["video", file["key"], "total"]
    told = json.loads(lab.posedrop("compare", *folder, "--json").stdout)
    assert told["total"]["within_1"] == 1


def test_curl_uploads_with_one_line(lab: Lab, clip: Path) -> None:
    """`curl -H @file -LT film.mp4 URL/upload/` is all it takes."""
    file = lab.data_dir / "auth.header"  # of `posedrop up`
    header = f"@{file}" if file.is_file() else lab.header
    words = ["-H", header, "-LT", str(clip), f"{lab.url}/upload/"]
    command = [tool("curl"), "-sS", "--fail", *words]
    subprocess.run(command, check=True, capture_output=True)
    found = lab.until(
        lambda: [f for f in lab.get("/files", q=clip.stem)["items"] if f["state"] == "ready"],
        "curl's file to be ready",
    )
    assert found[0]["probe"]["frames"] == 12


def test_a_form_upload_carries_its_analysis(lab: Lab, clip: Path) -> None:
    """A multipart/form-data POST is passed on to the bucket and analysed as it asks."""
    fields = {"analysis": "dummy", "args": '{"seconds": 0.1}'}
    with clip.open("rb") as file:
        answer = lab.http.post("/upload", data=fields, files={"file": ("form.mp4", file)})
    assert answer.status_code == 201, answer.text
    over = lab.over(lab.run_of(answer.json()["file_id"]))
    assert over["status"] == "succeeded"
    assert over["result"]["args"] == {"seconds": 0.1}


def test_a_form_without_a_file_is_told_so(lab: Lab) -> None:
    """A form that has no file, or asks for nonsense, gets 422 and leaves nothing behind."""
    assert lab.http.post("/upload", files={"x": (None, "1")}).status_code == 422
    files = {"analysis": (None, "nonsense"), "file": ("a.mp4", b"123")}
    answer = lab.http.post("/upload", files=files)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "analysis")


def test_the_aws_cli_uploads_in_parts_and_syncs_the_results(
    lab: Lab, mouse: Sample, tmp_path: Path
) -> None:
    """`aws s3 cp` (multipart, metadata) starts a run; `aws s3 sync` of the folder fetches it."""
    big = tmp_path / "big.mp4"
    big.write_bytes(mouse.film.read_bytes() + free_box(9 * 2**20))
    aws = [str(Path(sys.executable).with_name("aws"))]
    env = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(tmp_path),
        **lab.aws_environment(),
    }
    metadata = json.dumps({"analysis": "dummy", "args": '{"seconds": 0.1}'})
    key = "day 1/ä+b/big.mp4"
    subprocess.run(
        [*aws, "s3", "cp", str(big), f"s3://videos/{key}", "--metadata", metadata],
        env=env,
        check=True,
        capture_output=True,
    )
    file = lab.file(key)
    assert "-" in file["etag"], "the upload was to go in parts"
    assert lab.over(lab.run_of(file["file_id"]))["status"] == "succeeded"
    subprocess.run(
        [*aws, "s3", "sync", "s3://results/day 1/", str(tmp_path / "day1")],
        env=env,
        check=True,
        capture_output=True,
    )
    folder = tmp_path / "day1/ä+b/big.mp4"
    video = json.loads((folder / "video.json").read_text())
    assert video["sha256"] == hashlib.sha256(big.read_bytes()).hexdigest()
    assert len(list(folder.glob("dummy-*/result.json"))) == 1
    assert (folder / "thumbnail.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_an_analysis_can_be_asked_for_before_the_upload(lab: Lab, clip: Path) -> None:
    """POST /analyse before the PUT answers `waiting`; its id later leads to the run."""
    asked = lab.http.post("/upload", json={"filename": "later.mp4"}).json()
    answer = lab.ask(asked["file_id"], "dummy", {"seconds": 0.2})
    assert (answer.status_code, answer.json()["status"]) == (202, "waiting")
    pending = answer.json()["analysis_id"]
    assert lab.get(f"/results/{pending}")["status"] == "waiting"
    upload = asked["upload"]
    httpx.put(
        upload["url"], headers=upload["headers"], content=clip.read_bytes()
    ).raise_for_status()
    over = lab.over(pending)
    assert over["status"] == "succeeded"
    assert over["analysis_id"] != pending


def test_folder_rules_choose_the_analysis(lab: Lab, clip: Path) -> None:
    """A posedrop.json rules the videos below it; the nearest one wins."""
    s3 = lab.s3()
    far = {"analysis": "dummy", "args": {"seconds": 0.1}}
    near = {"analysis": "dummy", "args": {"seconds": 0.2}}
    s3.put_object(Bucket="videos", Key="ruled/posedrop.json", Body=json.dumps(far))
    s3.put_object(Bucket="videos", Key="ruled/b/posedrop.json", Body=json.dumps(near))
    for key, seconds in (("ruled/a/x.mp4", 0.1), ("ruled/b/c/x.mp4", 0.2)):
        s3.put_object(Bucket="videos", Key=key, Body=clip.read_bytes() + free_box(len(key) + 8))
        run = lab.over(lab.run_of(lab.file(key)["file_id"]))
        assert run["result"]["args"] == {"seconds": seconds}


def test_a_duplicate_answers_with_the_results_that_exist(lab: Lab, clip: Path) -> None:
    """The same content under another name is named as such, and is not analysed again."""
    lab.s3().upload_file(str(clip), "videos", "twins/first.mp4")
    first = lab.file("twins/first.mp4")
    lab.s3().upload_file(str(clip), "videos", "twins/second.mp4")
    second = lab.file("twins/second.mp4")
    assert second["duplicate_of"] is not None
    asked = lab.ask(first["file_id"], "dummy", {"seconds": 0.31})
    assert asked.status_code < 300, asked.text
    analysis_id = asked.json()["analysis_id"]
    lab.over(analysis_id)

    def again() -> Any:
        """Ask again; the index learns by an event, after the bucket, that the run is over."""
        answer = lab.ask(second["file_id"], "dummy", {"seconds": 0.31})
        assert answer.json()["analysis_id"] == analysis_id
        return answer.status_code == 200

    lab.until(again, "the duplicate to have the results that exist")

    def beside(name: str) -> set[str]:
        """Return what `aws s3 sync` of a film's folder brings of the run, but for its attempts."""
        run = f"twins/{name}.mp4/dummy-{analysis_id}/"
        found = lab.s3().list_objects_v2(Bucket="results", Prefix=run).get("Contents", [])
        return {each["Key"].removeprefix(run).split("attempts/")[0] for each in found} - {""}

    # Either folder may have been made by the worker, and the other be filled from it.
    for name in ("first", "second"):
        lab.until(lambda n=name: "result.json" in beside(n), f"the results beside {name}.mp4")
    assert beside("second") == beside("first")
    forced = lab.ask(second["file_id"], "dummy", {"seconds": 0.31}, force=True)
    assert (forced.status_code, forced.json()["analysis_id"] != analysis_id) == (202, True)
    assert lab.http.delete(f"/upload/{first['file_id']}").status_code == 204
    assert lab.over(analysis_id)["file_id"] == second["file_id"]
    assert beside("first") == set() < beside("second")


def test_a_running_analysis_is_cancelled(lab: Lab, clip: Path) -> None:
    """DELETE /analyse stops a run within seconds, and one that waits; they end as cancelled."""
    lab.s3().upload_file(str(clip), "videos", "cancel.mp4")
    file_id = lab.file("cancel.mp4")["file_id"]
    analysis_id = lab.ask(file_id, "dummy", {"seconds": 600}).json()["analysis_id"]
    lab.until(lambda: lab.get(f"/results/{analysis_id}")["status"] == "running", "the run to begin")
    # The next one is made ready while it waits, the one after that is queued.
    ready, queued = (
        lab.ask(file_id, "dummy", {"seconds": seconds}).json()["analysis_id"]
        for seconds in (601, 602)
    )
    lab.until(
        lambda: (lab.get(f"/results/{ready}").get("progress") or {}).get("stage") == "wait",
        "the next one to be ready",
    )
    assert lab.get(f"/results/{queued}")["status"] == "queued"
    for waiting in (ready, queued):
        assert lab.http.delete(f"/analyse/{waiting}").status_code == 202
        assert lab.over(waiting, seconds=20)["status"] == "cancelled"
    assert lab.http.delete(f"/analyse/{analysis_id}").status_code == 202
    assert lab.over(analysis_id, seconds=20)["status"] == "cancelled"


def test_delete_leaves_nothing_behind(lab: Lab, clip: Path) -> None:
    """DELETE removes results (then 410) and files; both buckets are empty of them."""
    s3 = lab.s3()
    s3.upload_file(str(clip), "videos", "gone/away.mp4")
    file_id = lab.file("gone/away.mp4")["file_id"]
    analysis_id = lab.ask(file_id, "dummy", {"seconds": 0.17}).json()["analysis_id"]
    lab.over(analysis_id)
    too_late = lab.http.delete(f"/analyse/{analysis_id}", params={"only": "cancel"})
    assert (too_late.status_code, too_late.json()["error"]["code"]) == (409, "over")
    assert lab.get(f"/results/{analysis_id}")["status"] == "succeeded"
    assert lab.http.delete(f"/analyse/{analysis_id}").status_code == 204
    assert lab.http.get(f"/results/{analysis_id}").status_code == 410
    assert lab.http.delete(f"/upload/{file_id}").status_code == 204
    assert lab.http.get(f"/upload/{file_id}").status_code == 404
    for bucket in ("videos", "results"):
        assert s3.list_objects_v2(Bucket=bucket, Prefix="gone/").get("Contents", []) == []


def test_reindex_makes_the_same_rows_from_the_buckets(lab: Lab, clip: Path) -> None:
    """What the index says is in the buckets: emptied and made anew, it says the same."""
    lab.s3().upload_file(str(clip), "videos", "reindexed.mp4")
    lab.file("reindexed.mp4")
    lab.until(lambda: not unfinished(lab), "everything to be over", 120)
    before = rows(lab)
    lab.posedrop("reindex")
    lab.until(lambda: not unfinished(lab), "the index to settle", 120)
    after = rows(lab)
    assert [
        (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    ] == []


def rows(lab: Lab) -> dict[str, Any]:
    """Return all files (but those only expected) and runs by their ids."""
    files = lab.get("/files", limit=1000)["items"]
    runs = lab.get("/analyses", limit=1000)["items"]
    kept = {f["file_id"]: f for f in files if f["state"] != "expected"}
    for file in kept.values():
        file.pop("created_at")
    return kept | {run["analysis_id"]: run for run in runs}


def unfinished(lab: Lab) -> list[Any]:
    """Return what still goes on."""
    return [
        item
        for path, state in (
            ("/files", "received"),
            ("/analyses", "queued"),
            ("/analyses", "running"),
        )
        for item in lab.get(path, state=state)["items"]
    ]


def test_lists_page_and_search(lab: Lab, clip: Path) -> None:
    """GET /files pages by cursor without gaps or repeats, and finds names by their words."""
    s3 = lab.s3()
    for number in range(7):
        s3.upload_file(str(clip), "videos", f"paging/ferret_{number}-cam.mp4")
    lab.until(lambda: len(lab.get("/files", q="ferret")["items"]) == 7, "seven ferrets")
    seen, cursor = [], None
    while True:
        extra = {"cursor": cursor} if cursor else {}
        page = lab.get("/files", q="ferret", limit=3, **extra)
        seen += [f["key"] for f in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == [f"paging/ferret_{number}-cam.mp4" for number in range(7)]


def test_metrics_count_what_is_there_and_what_was_done(lab: Lab) -> None:
    """The handlers' GET /metrics, and each worker's own, tell of a film that was refused."""
    lab.s3().put_object(Bucket="videos", Key="metrics/none.mp4", Body=b"no film at all")
    lab.file("metrics/none.mp4", "refused")

    def ready() -> str:
        """Return the metrics, once no part is late with its answer."""
        text = lab.metrics()
        return "" if re.search(r'^posedrop_ready\{part="(.*)"\} 0', text, re.MULTILINE) else text

    text = lab.until(ready, "all parts to be ready")
    assert 'posedrop_index_rows{state="refused",table="files"}' in text
    assert 'posedrop_ingests_total{outcome="not_a_video"}' in text
    assert 'posedrop_job_seconds_count{outcome="ended",task="ingest"}' in text
    assert 'posedrop_store_seconds_count{operation="HeadObject"}' in text
    assert set(re.findall(r'^posedrop_workers\{queue="(.*)"\} [1-9]', text, re.MULTILINE)) == {
        "cpu",
        "gpu",
    }


def test_events_need_their_token(lab: Lab) -> None:
    """POST /events without the bearer token is refused; nonsense with it becomes a dead letter."""
    assert lab.http.post("/events", json={"Records": []}).status_code == 401
    answer = lab.http.post(
        "/events", content=b"\xff not json", headers={"Authorization": f"Bearer {lab.events_token}"}
    )
    assert answer.status_code == 204
    assert "dead_letters" in lab.http.get("/metrics").text


def test_the_command_line_works_from_any_folder(lab: Lab, tmp_path: Path) -> None:
    """It finds the server that was started last, and its token."""
    done = subprocess.run(
        [POSEDROP, "ls", "--json"],
        env=clean_environment() | lab.home | lab.settings,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert isinstance(json.loads(done.stdout), list)


def test_another_sites_page_may_not_write(lab: Lab) -> None:
    """A request with a foreign Origin or Host is refused: no page of the internet drives a lab."""
    foreign = lab.http.post("/reconcile", headers={"Origin": "https://evil.example"})
    rebound = httpx.get(f"{lab.url}/files", headers={"Host": "evil.example"})
    assert foreign.status_code == 403
    assert rebound.status_code in {401, 403}  # by the name, or as it has no token for it


def test_nobody_else_gets_in(lab: Lab) -> None:
    """Who has no token gets 401, from loopback too: every user of the machine has that."""
    paths = ("", "files", "openapi.json", "metrics", "page/page.js", "download/a/b", "nosuch")
    answers = {path: httpx.get(f"{lab.url}/{path}").status_code for path in paths}
    assert set(answers.values()) == {401}, answers
    assert httpx.post(f"{lab.url}/reindex").status_code == 401
    assert httpx.get(f"{lab.url}/files", auth=("me", "guess")).status_code == 401
    assert httpx.get(f"{lab.url}/files", auth=("me", lab.api_token)).status_code == 200
    assert httpx.get(f"{lab.url}/session").status_code == 200
    assert httpx.get(f"{lab.url}/healthz").status_code == 200


def test_uploads_to_the_start_of_ingest(lab: Lab, clip: Path) -> None:
    """Fifty PUTs in a row are all ingested."""
    s3 = lab.s3()
    started = time.monotonic()
    for number in range(50):
        s3.upload_file(str(clip), "videos", f"fifty/{number}.mp4")
    lab.until(
        lambda: len(lab.get("/files", prefix="fifty/", state="ready", limit=100)["items"]) == 50,
        "fifty files to be ready",
    )
    print(f"50 PUTs to the last video.json: {time.monotonic() - started:.1f} s")
