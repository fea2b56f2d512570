"""What a terminal is shown of what comes from outside: it never steers it, and loses nothing."""

from __future__ import annotations

import functools
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posedrop import logs
from posedrop.cli import options
from posedrop.client import Client, client
from posedrop.terminal import printable
from tests.unit.test_cli import FILE_ID, POSES, RUN_ID, Api, call, file_json, run_json, run_row_json

#: A title, a colour by C1, text reversed, a second line, a line end of Unicode, what has no width.
HOSTILE = "a\x1b]0;title\x07\x9b31m\u202egpj.\u2066\nposedrop: done\u2028\r\x7f\u200b\ufeff"


#: What the command line goes by.
BOUND = {
    "sha256",
    "url",
    "created_at",
    "since",
    "file_id",
    "analysis_id",
    "stage",
    "status",
    "state",
}


def steers(text: str) -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds} - {"\n", "\u200c", "\u200d"}


def hostile(value: Any) -> Any:
    """Return an answer of the API with hostile text at the end of every string that is free."""
    if isinstance(value, dict):
        return {k: v if k in BOUND else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Api:
    """An API all of whose answers are hostile."""
    api = Api()
    transport = httpx.MockTransport(api)
    monkeypatch.setattr(options, "Client", functools.partial(Client, transport=transport))
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    wrong = {"rule": "day1/posedrop.json", "code": "x", "message": "m"}
    wrong["since"] = "2026-01-02T03:04:05Z"
    refusal = {"reason": "not_a_video", "message": "no film"}
    run = run_json("failed", error={"code": "c", "message": "m", "log_tail": "one\ntwo"})
    probe = {"width": 1, "height": 2, "frames": 3, "fps": 4.0, "codec": "h264"}
    model = {"name": "m", "digest": "d", "net_type": "n", "bodyparts": ["nose"]}
    args = {"properties": {"p": {"default": "d", "description": "s"}}}
    file = file_json(
        state="refused", probe=probe, refusal=refusal, waiting=wrong, duplicate_of="d", analyses=[]
    )
    answers: dict[str, Any] = {
        "GET /rules": {"items": [wrong]},
        "GET /files": {"items": [file], "next": None},
        f"GET /upload/{FILE_ID}": file,
        "GET /analyses": {"items": [run_row_json("failed")], "next": None},
        f"GET /results/{RUN_ID}": run,
        f"GET /upload/{RUN_ID}": None,
        "GET /models": {"items": [model]},
        "GET /analysis-types": {"items": [{"name": "a", "summary": "s", "args": args}]},
        "POST /reingest": {"items": [{"file_id": FILE_ID, "key": "k"}], "next": None},
        "POST /reconcile": {"sent_again" + HOSTILE: 1},
        "POST /analyse": {"analysis_id": RUN_ID, "file_id": FILE_ID, "status": "queued"},
    }
    for asked, answer in answers.items():
        if answer is not None:
            body = json.dumps(hostile(answer)).encode()
            api.answers[asked] = lambda _, body=body: httpx.Response(200, content=body)
    api.answers[f"GET /download/{RUN_ID}/poses.csv"] = lambda _: httpx.Response(200, content=POSES)
    return api


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    "words",
    [
        ("ls",),
        ("ls", "--analyses"),
        ("show", FILE_ID),
        ("show", RUN_ID),
        ("rm", FILE_ID),
        ("cancel", FILE_ID),
        ("models", "ls"),
        ("types",),
        ("reingest", "day1/"),
        ("reconcile",),
        ("analyse", FILE_ID, "--analysis", "dummy", "--wait"),
        ("download", RUN_ID, "--to", "there"),
    ],
    ids=" ".join,
)
def test_no_answer_steers_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """OSC, CSI, C1, bidi, ends of lines and what has no width are shown by their numbers."""
    monkeypatch.chdir(tmp_path)
    shown = call(tmp_path, *words)
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    assert shown.output.strip()
    assert steers(shown.output) == set(), shown.output
    assert "posedrop: done" not in [line[:14] for line in shown.output.splitlines()]


@pytest.mark.usefixtures("told")
def test_json_stays_json(tmp_path: Path) -> None:
    """A terminal is shown nothing that steers it, and a script reads what the API said."""
    shown = call(tmp_path, "ls", "--json").output
    assert steers(shown) == set()
    assert json.loads(shown)[0]["key"] == "day1/film.mp4" + HOSTILE


@pytest.mark.parametrize("answer", [b"<html>\x1b]0;x\x07", b'{"file_id": "\\ud800"}', b"", b"{}"])
def test_an_answer_that_is_no_posedrops_is_told_in_a_line(
    tmp_path: Path, told: Api, answer: bytes
) -> None:
    """A proxy's page, half a character: no traceback, nothing that steers."""
    told.answers[f"GET /upload/{FILE_ID}"] = lambda _: httpx.Response(200, content=answer)
    shown = call(tmp_path, "show", FILE_ID)
    assert (shown.exit_code, shown.stderr.count("\n")) == (1, 1)
    assert steers(shown.output) == set()


@pytest.mark.parametrize(
    "words",
    [
        ("show", "\udce9.mp4"),
        ("upload", "--\x1b]0;x\x07.mp4"),
        ("--\x1b]0;x\x07",),
        ("\x1b]0;x\x07",),
        ("--url", "http://\x1b]0;x\x07", "models", "ls"),
    ],
)
def test_what_a_shell_makes_of_a_folder_steers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Names of files come as words by `*.mp4`: as options, as no UTF-8."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = call(tmp_path, *words)
    assert shown.exit_code in {1, 2}
    assert shown.stderr
    assert steers(shown.output) == set()


def test_a_log_line_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Messages, ids and tracebacks quote names that would steer a terminal or forge a line."""
    try:
        int(HOSTILE)
    except ValueError:
        logging.getLogger("x").exception("about %s", f"\ud800{HOSTILE}", extra={"key": HOSTILE})
    lines = logs.Formatter().format(caplog.records[0])
    assert steers(lines) == set()
    assert not any(line.startswith("posedrop: done") for line in lines.split("\n"))
    assert all(line.startswith("  ") for line in lines.split("\n")[1:])
    assert steers(logs.ShortFormatter().format(caplog.records[0])) == set()


@given(st.text())
def test_text_that_steers_nothing_is_shown_as_it_is(text: str) -> None:
    shown = printable(text)
    assert steers(shown) == set()
    assert "\n" not in shown
    if not steers(text) and "\n" not in text:
        assert shown == text
