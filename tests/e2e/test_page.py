"""The page, in a real browser."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.lab import Lab
from tests.support.tools import tool

_QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def browse(lab: Lab, profile: Path, *options: str) -> str:
    """Open the link to the page in headless Chromium; return what it printed."""
    command = [
        tool("chromium"),
        *_QUIET,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=8000",
        *options,
        lab.link,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def test_the_page_shows_files_and_runs_as_text(lab: Lab, clip: Path, tmp_path: Path) -> None:
    """Names appear as they are, never as markup; runs have links, refusals and rules a reason."""
    key = "page/<b id=hostile>bold.mp4"
    metadata = {"analysis": "dummy", "args": '{"seconds": 0.19}'}
    lab.s3().upload_file(str(clip), "videos", key, ExtraArgs={"Metadata": metadata})
    lab.s3().put_object(Bucket="videos", Key="page/notes.mp4", Body=b"no film")
    lab.s3().put_object(Bucket="videos", Key="page/<b>/posedrop.json", Body=b"{,}")
    analysis_id = lab.run_of(lab.file(key)["file_id"])
    lab.over(analysis_id)
    lab.until(lambda: lab.get("/rules")["items"], "the wrong rule to be told")
    lab.file("page/notes.mp4")
    page = browse(lab, tmp_path / "profile", "--dump-dom")
    assert "&lt;b id=hostile&gt;bold.mp4" in page
    assert "<b id=" not in page
    assert f"/download/{analysis_id}/result.json" in page
    assert ">analyse</button>" in page
    assert "page/&lt;b&gt;/posedrop.json is wrong, the videos below it wait: it is not JSON" in page
    assert "the file is not a video" in page.lower() or "not a video" in page
    shot = tmp_path / "page.png"
    browse(lab, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1200,1400")
    assert shot.read_bytes()[:4] == b"\x89PNG"
