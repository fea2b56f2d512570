"""The command line against an API that answers what it is told to."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from posedrop import analyses, cli
from posedrop.address import is_loopback, listen
from posedrop.cli import options
from posedrop.cli.demo import mean_error
from posedrop.client import Client, client, tokens
from posedrop.doctor import machine
from posedrop.embedded.keyring import Secrets
from posedrop.embedded.stack import Stack, log_to
from posedrop.errors import BadRequestError, ConfigurationError
from posedrop.folders import FolderLock
from posedrop.index.index import Index
from posedrop.settings import load

FILE_ID = "mfzgs3tfebzw63lf"
RUN_ID = "k5x2wq7mfzgs3tfe"
POSES = b"scorer,x\n1,2\n"


def file_json(**more: Any) -> dict[str, Any]:
    return {
        "file_id": FILE_ID,
        "bucket": "videos",
        "key": "day1/film.mp4",
        "filename": "film.mp4",
        "state": "ready",
        "size": 12,
        "etag": "e",
        "sha256": None,
        "sha1": None,
        "probe": None,
        "duplicate_of": None,
        "refusal": None,
        "created_at": "2026-01-02T03:04:05Z",
        **more,
    }


def run_row_json(status: str = "succeeded") -> dict[str, Any]:
    return {
        "analysis_id": RUN_ID,
        "file_id": FILE_ID,
        "key": "day1/film.mp4",
        "analysis": "dummy",
        "args": {},
        "status": status,
        "error": None,
        "files": ["poses.csv"],
        "retry_of": None,
        "created_at": "2026-01-02T03:04:05Z",
        "finished_at": None,
    }


def run_json(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "analysis_id": RUN_ID,
        "file_id": FILE_ID,
        "analysis": "dummy",
        "status": status,
        "result": {"state": status},
        "files": [
            {
                "name": "poses.csv",
                "url": f"/download/{RUN_ID}/poses.csv",
                "size": len(POSES),
                "sha256": hashlib.sha256(POSES).hexdigest(),
                "content_type": "text/csv",
            }
        ],
        **more,
    }


class Api:
    """Answers by method and path; keeps what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response] | Any] = {
            "GET /rules": {"items": []}
        }
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self.answers.get(f"{request.method} {request.url.path}")
        if answer is None:
            missing = {"code": "not_found", "message": f"there is no {request.url.path}"}
            return httpx.Response(404, json={"error": missing})
        return answer(request) if callable(answer) else httpx.Response(200, json=answer)

    def bodies(self, method: str, path: str) -> list[Any]:
        return [
            json.loads(request.content)
            for request in self.asked
            if request.method == method and request.url.path == path
        ]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    api = Api()
    transport = httpx.MockTransport(api)
    monkeypatch.setattr(options, "Client", functools.partial(Client, transport=transport))
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    return api


def call(tmp_path: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.main, ["--data-dir", str(tmp_path), *words])


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize("words", [(), *commands(cli.main)], ids=" ".join)
def test_every_command_has_help_with_an_example(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = call(tmp_path, *words, "--help")
    assert result.exit_code == 0
    if words not in {("models",), ("notify",)}:
        assert f"  posedrop {' '.join(words)}" in result.output


@pytest.mark.parametrize("words", [(), *commands(cli.main)], ids=" ".join)
def test_the_examples_of_a_help_text_are_true(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parses, and the arguments of its analysis are taken by that analysis."""
    monkeypatch.chdir(tmp_path)
    for film in ("film.mp4", "mouse.mp4"):
        (tmp_path / film).touch()
    for folder in (
        "my-project",
        "~/dlc/openfield-2026",
        "~/zoo",
        "~/recordings/day1",
        "recordings",
    ):
        (tmp_path / folder).mkdir(parents=True)
    lines = call(tmp_path, *words, "--help").output.splitlines()
    for line in (line.strip() for line in lines if line.startswith("  posedrop ")):
        said = line.partition("  ")[0].replace("*.mp4", "film.mp4 mouse.mp4")
        group: click.Command = cli.main
        rest, context = shlex.split(said)[1:], None
        while True:
            context = group.make_context("posedrop", list(rest), parent=context)
            if not isinstance(group, click.Group):
                break
            _, found, rest = group.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            assert found is not None, line
            group = found
        if context.params.get("analysis"):
            analyses.get(context.params["analysis"]).normalise(context.params["args"])


def test_version(tmp_path: Path) -> None:
    assert "posedrop, version 0." in call(tmp_path, "--version").output


def test_unreachable_api_says_what_to_start(tmp_path: Path) -> None:
    result = call(tmp_path, "--url", "http://127.0.0.1:9", "ls")
    assert result.exit_code == 1
    assert result.stderr.startswith("posedrop: nothing answers at http://127.0.0.1:9")
    assert "posedrop up" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("api")
def test_errors_of_the_api_are_one_line(tmp_path: Path) -> None:
    result = call(tmp_path, "ls")
    assert (result.exit_code, result.stderr) == (1, "posedrop: there is no /files\n")


@pytest.mark.parametrize("command", ["download", "cancel", "show"])
def test_a_run_that_is_not_there_is_told_with_what_is(
    tmp_path: Path, api: Api, command: str
) -> None:
    """Who names a video in place of its run, by key, name or id, is told the ids of its runs."""
    api.answers["GET /files"] = {"items": [], "next": None}
    for nothing in ("", RUN_ID, "day2/nowhere.mp4"):
        told = call(tmp_path, command, nothing)
        assert (told.exit_code, told.stderr.count("\n")) == (1, 1)
        assert "`posedrop ls" in told.stderr
    run = {"analysis_id": RUN_ID, "analysis": "dummy", "status": "succeeded"}
    api.answers["GET /files"] = {"items": [file_json()], "next": None}
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(analyses=[run])
    for video in () if command == "show" else ("day1/film.mp4", "film.mp4", FILE_ID):
        told = call(tmp_path, command, video)
        assert (told.exit_code, told.stderr) == (
            1,
            "posedrop: day1/film.mp4 is a video; name one of its runs: "
            f"{RUN_ID} (dummy, succeeded)\n",
        )
    assert "no video" in call(tmp_path, "analyse", RUN_ID, "--analysis", "dummy").stderr


def test_wrong_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEDROP_MAX_ATTEMPTS", "0")
    result = call(tmp_path, "ls")
    assert result.exit_code == 1
    assert "POSEDROP_MAX_ATTEMPTS" in result.stderr


def test_url_and_token_come_from_the_data_directory(tmp_path: Path, api: Api) -> None:
    (tmp_path / "posedrop.env").write_text(
        "POSEDROP_URL=http://127.0.0.1:4321\nPOSEDROP_API_TOKEN=tok\n"
    )
    api.answers["GET /files"] = {"items": [file_json()], "next": None}
    assert call(tmp_path, "ls").exit_code == 0
    assert api.asked[0].url.port == 4321
    assert api.asked[0].headers["Authorization"] == "Bearer tok"


def test_a_token_goes_to_its_own_server_alone(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a data directory, that kept for a URL, and that of the environment, for any."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("POSEDROP_API_TOKEN", raising=False)
    api.answers["GET /files"] = {"items": [], "next": None}
    here = tmp_path / "here"
    here.mkdir()
    (here / "posedrop.env").write_text("POSEDROP_URL=http://127.0.0.1:1\nPOSEDROP_API_TOKEN=here\n")

    def sent(folder: Path, *words: str) -> tuple[int | None, str | None]:
        api.asked.clear()
        assert call(folder, *words, "ls").exit_code == 0
        return api.asked[0].url.port, api.asked[0].headers.get("Authorization")

    assert sent(here) == (1, "Bearer here")
    assert sent(here, "--url", "http://127.0.0.1:1/") == (1, "Bearer here")
    assert sent(here, "--url", "http://127.0.0.1:2") == (2, None)
    assert sent(tmp_path) == (8080, None)
    tokens.keep("http://127.0.0.1:2", "two")
    assert sent(tmp_path) == (2, "Bearer two")
    assert sent(here, "--url", "http://127.0.0.1:2") == (2, "Bearer two")
    tokens.keep("http://127.0.0.1:8080", "usual")
    tokens.keep("http://127.0.0.1:3", "three")
    assert sent(tmp_path) == (8080, "Bearer usual")
    monkeypatch.setenv("POSEDROP_API_TOKEN", "told")
    assert sent(here, "--url", "http://127.0.0.1:2") == (2, "Bearer told")
    monkeypatch.setenv("POSEDROP_URL", "http://127.0.0.1:4")
    assert sent(tmp_path) == (4, "Bearer told")


def test_ls_follows_the_pages_up_to_the_limit(tmp_path: Path, api: Api) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        assert request.url.params["state"] == "ready"
        number = int(request.url.params.get("cursor", "0"))
        items = [file_json(key=f"{number}-{n}.mp4") for n in range(2)]
        return httpx.Response(200, json={"items": items, "next": str(number + 1)})

    api.answers["GET /files"] = page
    result = call(tmp_path, "ls", "--state", "ready", "--limit", "3", "--json")
    assert [item["key"] for item in json.loads(result.output)] == ["0-0.mp4", "0-1.mp4", "1-0.mp4"]


def test_files_are_listed_by_name(tmp_path: Path, api: Api) -> None:
    api.answers["GET /files"] = {"items": [file_json()], "next": None}
    assert call(tmp_path, "ls", "--order", "name").exit_code == 0
    assert api.asked[-2].url.params["order"] == "name"
    refused = call(tmp_path, "ls", "--order", "quality")
    assert (refused.exit_code, "add --analyses" in refused.stderr) == (2, True)


def test_ls_tells_which_rules_are_wrong(tmp_path: Path, api: Api) -> None:
    """Below the videos, of which those that wait say so."""
    rule = {"rule": "day1/posedrop.json", "code": "bad_rules", "message": "line 3, column 1"}
    rule["since"] = "2026-01-02T03:04:05Z"
    api.answers["GET /files"] = {"items": [file_json(waiting=rule)], "next": None}
    api.answers["GET /rules"] = {"items": [rule]}
    video, told = call(tmp_path, "ls").output.splitlines()
    assert video.split()[1] == "waits"
    assert "day1/posedrop.json is wrong" in told
    assert "line 3, column 1" in told
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(waiting=rule)
    assert "waits, day1/posedrop.json is wrong: line 3" in call(tmp_path, "show", FILE_ID).output


def test_an_empty_list_says_so_beside_the_output(tmp_path: Path, api: Api) -> None:
    """And what to do, where there is nothing at all; a script's JSON stays what it was."""
    api.answers["GET /files"] = api.answers["GET /analyses"] = {"items": [], "next": None}
    api.answers["GET /models"] = {"items": []}
    for words, said in (
        (("ls", "zzz"), "nothing matches"),
        (("ls",), "`posedrop upload FILE`"),
        (("ls", "--analyses"), "`posedrop analyse "),
        (("models", "ls"), "`posedrop models push`"),
    ):
        told = call(tmp_path, *words)
        assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (0, "", 1)
        assert said in told.stderr
        told = call(tmp_path, *words, "--json")
        assert (told.stdout, told.stderr) == ("[]\n", "")


def test_ls_analyses(tmp_path: Path, api: Api) -> None:
    row = run_row_json()
    api.answers["GET /analyses"] = {"items": [row], "next": None}
    assert call(tmp_path, "ls", "--analyses").output == (
        f"{RUN_ID}  succeeded  -  dummy  2026-01-02T03:04:05Z  day1/film.mp4\n"
    )


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (999_499, "999 KB"),
        (999_600, "1 MB"),
        (1_500_000_000_000, "1.5 TB"),
    ],
)
def test_a_size_is_shown_in_the_unit_in_which_it_is_short(
    tmp_path: Path, api: Api, size: int, shown: str
) -> None:
    """Also where rounding makes a thousand of it."""
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(size=size)
    first = call(tmp_path, "show", FILE_ID).output.splitlines()[0]
    assert first == f"day1/film.mp4: ready, {shown}"


def test_quality_is_shown_and_asked_for(tmp_path: Path, api: Api) -> None:
    """A list has the score; a run the reasons, too. Videos have none."""
    row = run_row_json() | {"quality": 61.3}
    api.answers["GET /analyses"] = {"items": [row], "next": None}
    told = call(tmp_path, "ls", "--analyses", "--order", "quality").output
    assert told.split()[1:3] == ["succeeded", "61"]
    assert api.asked[-1].url.params["order"] == "quality"
    assert "--analyses" in call(tmp_path, "ls", "--order", "quality").output
    quality = {"score": 61.3, "reasons": ["the film is \x1b[2Jdark"]}
    result = {"state": "succeeded", "quality": quality}
    api.answers[f"GET /results/{RUN_ID}"] = run_json(result=result)
    told = call(tmp_path, "show", RUN_ID).output
    assert "quality 61 of 100\n    the film is " in told
    assert "\x1b" not in told


def test_a_dry_run_says_what_it_would_cost(tmp_path: Path, api: Api) -> None:
    """In words, or as the API says it; and it goes to the server as one, so that nothing starts."""
    started = {"analysis_id": RUN_ID, "file_id": FILE_ID, "status": "new"}
    asked = ("analyse", FILE_ID, "--analysis", "dummy", "--dry-run", "--wait")
    for cost, words in (
        ({"network": False, "seconds": 4.2}, "new without the network, about 4 s of work"),
        ({"network": True, "seconds": None}, "new with the network"),
        (None, "new"),
    ):
        api.answers["POST /analyse"] = {**started, "cost": cost}
        assert call(tmp_path, *asked).output == f"{RUN_ID} {words}\n"
        assert json.loads(call(tmp_path, *asked, "--json").output)["cost"] == cost
    assert all(body["dry_run"] for body in api.bodies("POST", "/analyse"))


def test_analyse_reads_args_as_json_or_text_and_names_a_video_by_key(
    tmp_path: Path, api: Api
) -> None:
    api.answers["GET /files"] = {"items": [file_json()], "next": None}
    api.answers["POST /analyse"] = {"analysis_id": RUN_ID, "file_id": FILE_ID, "status": "queued"}
    words = ("--arg", "seconds=2", "--arg", "model=mouse@12", "--arg", "crop=[1,2]", "--arg", "a=")
    result = call(tmp_path, "analyse", "day1/film.mp4", "--analysis", "dummy", *words)
    assert result.output == f"{RUN_ID} queued\n"
    (body,) = api.bodies("POST", "/analyse")
    assert body["file_id"] == FILE_ID
    assert body["args"] == {"seconds": 2, "model": "mouse@12", "crop": [1, 2], "a": ""}
    assert call(tmp_path, "analyse", "x", "--analysis", "dummy", "--arg", "2").exit_code == 2
    assert "no video 'nowhere.mp4'" in call(tmp_path, "show", "nowhere.mp4").stderr


def upload_answers(api: Api, put: Callable[[httpx.Request], httpx.Response]) -> None:
    api.answers["POST /upload"] = {
        "file_id": FILE_ID,
        "bucket": "videos",
        "key": f"uploads/{FILE_ID}/film.mp4",
        "upload": {"method": "PUT", "url": "http://store/put?sig=1", "headers": {"x-signed": "1"}},
        "expires_at": "2026-01-02T03:04:05Z",
    }
    api.answers["PUT /put"] = put


def test_upload_binds_the_hash_and_keeps_the_token_from_the_store(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEDROP_API_TOKEN", "tok")
    film = tmp_path / "film.mp4"
    film.write_bytes(b"moving mouse")
    tries = iter([503, 200])
    upload_answers(api, lambda _: httpx.Response(next(tries)))
    result = call(tmp_path, "upload", str(film), "--analysis", "dummy", "--arg", "seconds=1")
    assert result.exit_code == 0, result.output
    (body,) = api.bodies("POST", "/upload")
    assert body["sha256"] == hashlib.sha256(b"moving mouse").hexdigest()
    assert (body["size"], body["analysis"], body["args"]) == (12, "dummy", {"seconds": 1})
    puts = [request for request in api.asked if request.method == "PUT"]
    assert [put.content for put in puts] == [b"moving mouse"] * 2
    assert puts[0].headers["Content-Length"] == "12"
    assert puts[0].headers["x-signed"] == "1"
    assert "Authorization" not in puts[0].headers


def test_upload_whose_answer_was_lost_counts_as_done(tmp_path: Path, api: Api) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    tries = iter([None, 412])

    def put(_: httpx.Request) -> httpx.Response:
        status = next(tries)
        if status is None:
            raise httpx.ReadError("the line was cut after the last byte")
        return httpx.Response(status)

    upload_answers(api, put)
    assert call(tmp_path, "upload", str(film)).exit_code == 0


def test_upload_that_the_store_refuses_says_why(tmp_path: Path, api: Api) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    refusal = "<Error><Code>AccessDenied</Code><Message>expired</Message></Error>"
    upload_answers(api, lambda _: httpx.Response(403, text=refusal))
    result = call(tmp_path, "upload", str(film))
    assert result.exit_code == 1
    assert "refused film.mp4: status 403, AccessDenied, expired" in result.stderr


def parts_answers(api: Api, refused: Mapping[str, str] | None = None) -> None:
    """Take uploads in parts, but for the films of some names: those with an error of this code."""

    def check(request: httpx.Request) -> httpx.Response:
        files = json.loads(request.content)["files"]
        items = [{"path": each["path"], "state": "new"} for each in files]
        return httpx.Response(200, json={"items": items})

    def begin(request: httpx.Request) -> httpx.Response:
        wanted = json.loads(request.content)
        code = (refused or {}).get(wanted["path"])
        if code is not None:
            return httpx.Response(409, json={"error": {"code": code, "message": "it is so"}})
        ticket = {
            "file_id": FILE_ID,
            "bucket": "videos",
            "key": f"{wanted.get('to') or 'uploads'}/{wanted['path']}",
            "size": wanted["size"],
            "state": "new",
            "upload_id": "u",
            "part_bytes": 5 << 20,
        }
        return httpx.Response(200, json=ticket)

    def sign(request: httpx.Request) -> httpx.Response:
        parts = json.loads(request.content)["parts"]
        items = [
            {"number": n, "url": f"http://store/part{n}", "headers": {}}
            for n in (part["number"] for part in parts)
        ]
        return httpx.Response(200, json={"items": items})

    api.answers["POST /uploads/check"] = check
    api.answers["POST /uploads/parts"] = begin
    api.answers["POST /uploads/parts/sign"] = sign
    api.answers["PUT /part1"] = api.answers["PUT /part2"] = lambda _: httpx.Response(200)
    api.answers["POST /uploads/parts/complete"] = {"file_id": FILE_ID, "key": "k", "size": 1}
    api.answers["POST /uploads/parts/abort"] = lambda _: httpx.Response(204)


def large_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a film of two parts."""
    monkeypatch.setenv("POSEDROP_MULTIPART_BYTES", str(5 << 20))
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a" * (5 << 20) + b"end")
    return film


def test_large_upload_goes_in_parts_that_are_checked(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes no other bytes; a part that it does not take goes once more."""
    film = large_film(tmp_path, monkeypatch)
    parts_answers(api)
    tries = iter([500, 200])
    api.answers["PUT /part2"] = lambda _: httpx.Response(next(tries))
    result = call(tmp_path, "upload", str(film), "--analysis", "dummy")
    assert (result.exit_code, FILE_ID in result.stdout) == (0, True), result.output
    (begun,) = api.bodies("POST", "/uploads/parts")
    assert (begun["path"], begun["analysis"], "to" in begun) == ("film.mp4", "dummy", False)
    puts = [request.content for request in api.asked if request.url.path == "/part2"]
    assert puts == [b"end", b"end"]
    (completed,) = api.bodies("POST", "/uploads/parts/complete")
    assert completed["crc32"] == [f"{crc32(b'a' * (5 << 20)):08x}", f"{crc32(b'end'):08x}"]


def test_large_upload_of_a_film_that_changes_is_given_up(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would go on with it: its parts would lie in the store unseen."""
    film = large_film(tmp_path, monkeypatch)
    parts_answers(api)

    def put(_: httpx.Request) -> httpx.Response:
        with film.open("ab") as file:
            file.write(b"more")
        return httpx.Response(200)

    api.answers["PUT /part2"] = put
    result = call(tmp_path, "upload", str(film))
    assert (result.exit_code, "is it still being recorded?" in result.stderr) == (1, True)
    assert not api.bodies("POST", "/uploads/parts/complete")
    (given_up,) = api.bodies("POST", "/uploads/parts/abort")
    assert given_up == {"key": "uploads/film.mp4", "upload_id": "u"}


def test_one_film_that_does_not_go_up_holds_up_no_other(tmp_path: Path, api: Api) -> None:
    """One is refused, one is gone by then; with a folder and without. A script has the rest."""
    films = [tmp_path / "films" / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    films[0].parent.mkdir()
    parts_answers(api, {"a.mp4": "taken"})
    begins = api.answers["POST /uploads/parts"]

    def begin(request: httpx.Request) -> httpx.Response:
        films[1].unlink(missing_ok=True)
        return begins(request)

    api.answers["POST /uploads/parts"] = begin
    ready = dict.fromkeys(("store", "disk"), "ok")
    api.answers["GET /readyz"] = {"status": "ready", "parts": ready}
    upload_answers(api, lambda _: httpx.Response(200))
    takes = api.answers["POST /upload"]

    def ask(request: httpx.Request) -> httpx.Response:
        films[1].unlink(missing_ok=True)
        if json.loads(request.content)["filename"] == "a.mp4":
            no = {"code": "storage", "message": "it is so"}
            return httpx.Response(503, json={"error": no})
        return httpx.Response(200, json=takes)

    api.answers["POST /upload"] = ask
    for words in (["--to", "day1"], []):
        for film in films:
            film.write_bytes(b"film")
        result = call(tmp_path, "upload", *map(str, films), *words, "--json")
        assert result.exit_code == 1
        assert [each["path"] for each in json.loads(result.stdout)] == [str(films[2])]
        assert f"{films[0]}: it is so" in result.stderr
        assert f"{films[1]} can't be read: No such file" in result.stderr
    api.answers["GET /readyz"] = {"status": "not ready", "parts": ready | {"store": "storage"}}
    films[1].write_bytes(b"film")
    asked = len(api.asked)
    assert call(tmp_path, "upload", *map(str, films)).exit_code == 1
    assert [each.url.path for each in api.asked[asked:]] == ["/upload", "/readyz"]


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_what_of_a_folder_does_not_go_up_is_counted(
    tmp_path: Path, api: Api, dry_run: tuple[str, ...]
) -> None:
    """But for what a system has left there; the film of a high-speed camera goes."""
    folder = tmp_path / "films"
    (folder / "@eaDir").mkdir(parents=True)
    for name in ("a.CINE", "b.raw", "c.csv", ".DS_Store", "@eaDir/d.jpg"):
        (folder / name).write_bytes(b"film")
    parts_answers(api)
    result = call(tmp_path, "upload", str(folder), "--to", "day1", *dry_run)
    assert result.exit_code == 0
    assert "no films by their names: 2 (.csv, .raw)" in result.stderr
    (asked,) = api.bodies("POST", "/uploads/check")
    assert [each["path"] for each in asked["files"]] == ["a.CINE"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such name")
def test_a_name_that_is_no_text_is_refused_in_words(tmp_path: Path, api: Api) -> None:
    """The other films go up; looked at beforehand, it is not called new."""
    folder = tmp_path / "films"
    folder.mkdir()
    for name in (b"caf\xe9.mp4", b"b.mp4"):
        (folder / os.fsdecode(name)).write_bytes(b"film")
    parts_answers(api)
    seen = call(tmp_path, "upload", str(folder), "--to", "day1", "--dry-run", "--json")
    states = {each["path"]: each["state"] for each in json.loads(seen.stdout)}
    assert states == {"b.mp4": "new", "caf\\udce9.mp4": "refused"}
    result = call(tmp_path, "upload", str(folder), "--to", "day1")
    assert (result.exit_code, "rename it" in result.stderr) == (1, True)
    assert [each["path"] for each in api.bodies("POST", "/uploads/parts")] == ["b.mp4"]
    with Client("http://api", transport=httpx.MockTransport(api)) as asking:
        for wrong in ("caf\udce9.mp4", "a/" * 600 + "b.mp4"):
            with pytest.raises(BadRequestError):
                asking.upload_into(folder / "b.mp4", "day1", wrong)
        (folder / "b.mp4").write_bytes(b"")
        with pytest.raises(BadRequestError, match="size"):
            asking.upload_into(folder / "b.mp4", "day1")


@pytest.mark.parametrize("analysis", [(), ("--analysis", "dummy")])
def test_films_wait_for_their_rule_that_did_not_go_up(
    tmp_path: Path, api: Api, analysis: tuple[str, ...]
) -> None:
    """The next rule further up is not theirs; where an analysis is asked for, no rule counts."""
    folder = tmp_path / "films"
    for name in ("day1/a.mp4", "day2/b.mp4", "day2/deep/c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"film")
    (folder / "day2/posedrop.json").write_text("{}")
    parts_answers(api, {"day2/posedrop.json": "taken"})
    result = call(tmp_path, "upload", str(folder), "--to", "mouse", *analysis)
    sent = [each["path"] for each in api.bodies("POST", "/uploads/parts")]
    films = ["day1/a.mp4"] if not analysis else ["day1/a.mp4", "day2/b.mp4", "day2/deep/c.mp4"]
    assert [path for path in sent if path.endswith(".mp4")] == films
    assert result.exit_code == 1
    assert ("day2/posedrop.json did not go up: mend that first" in result.stderr) != bool(analysis)


def test_upload_waits_for_its_run(tmp_path: Path, api: Api) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    upload_answers(api, lambda _: httpx.Response(200))
    states = iter(["received", "ready"])
    api.answers[f"GET /upload/{FILE_ID}"] = lambda _: httpx.Response(
        200, json=file_json(state=next(states))
    )
    api.answers["POST /analyse"] = {"analysis_id": RUN_ID, "file_id": FILE_ID, "status": "queued"}
    runs = iter([run_json("queued"), run_json("failed")])
    api.answers[f"GET /results/{RUN_ID}"] = lambda _: httpx.Response(200, json=next(runs))
    result = call(tmp_path, "upload", str(film), "--analysis", "dummy", "--wait", "--json")
    assert result.exit_code == 1  # a script must not take a failed run for a good one
    (outcome,) = json.loads(result.stdout)
    assert outcome["run"]["status"] == "failed"


def test_upload_waits_until_it_is_known_what_is_run(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule is followed a little later than a film is ready; for what never comes, a minute."""
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    upload_answers(api, lambda _: httpx.Response(200))
    run = {"analysis_id": RUN_ID, "analysis": "dummy", "status": "queued"}
    seen = [file_json(planned=False)] * 2 + [file_json(planned=True, analyses=[run])]
    files = iter(seen)
    api.answers[f"GET /upload/{FILE_ID}"] = lambda _: httpx.Response(200, json=next(files))
    api.answers[f"GET /results/{RUN_ID}"] = run_json("failed")
    result = call(tmp_path, "upload", str(film), "--wait", "--json")
    (outcome,) = json.loads(result.stdout)
    assert (outcome["run"]["status"], result.exit_code) == ("failed", 1)
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(planned=True)
    result = call(tmp_path, "upload", str(film), "--wait")
    assert ("no analysis was asked for" in result.stdout, result.exit_code) == (True, 0)
    monkeypatch.setattr(client, "_PLAN_SECONDS", 0)
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(planned=False)
    result = call(tmp_path, "upload", str(film), "--wait")
    assert ("is not known yet" in result.stdout, result.exit_code) == (True, 1)


@pytest.mark.parametrize(
    ("status", "code"), [("succeeded", 0), ("partial", 0), ("failed", 1), ("cancelled", 1)]
)
def test_waiting_ends_with_0_only_where_there_are_results(
    tmp_path: Path, api: Api, status: str, code: int
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    upload_answers(api, lambda _: httpx.Response(200))
    api.answers[f"GET /upload/{FILE_ID}"] = file_json()
    api.answers["POST /analyse"] = {"analysis_id": RUN_ID, "file_id": FILE_ID, "status": "queued"}
    api.answers[f"GET /results/{RUN_ID}"] = run_json(status)
    asked = ("--analysis", "dummy", "--wait")
    assert call(tmp_path, "upload", str(film), *asked).exit_code == code
    assert call(tmp_path, "analyse", FILE_ID, *asked).exit_code == code


def test_upload_tells_of_a_refused_video(tmp_path: Path, api: Api) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"1")
    upload_answers(api, lambda _: httpx.Response(200))
    refusal = {"reason": "not_a_video", "message": "it is text"}
    api.answers[f"GET /upload/{FILE_ID}"] = file_json(state="refused", refusal=refusal)
    result = call(tmp_path, "upload", str(film), "--wait")
    assert result.exit_code == 1
    assert "refused, not_a_video: it is text" in result.stdout


def download_answers(api: Api) -> list[str | None]:
    ranges: list[str | None] = []

    def store(request: httpx.Request) -> httpx.Response:
        assert "Authorization" not in request.headers
        asked = request.headers.get("Range")
        ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        return httpx.Response(206 if asked else 200, content=POSES[start:])

    api.answers[f"GET /results/{RUN_ID}"] = run_json()
    api.answers[f"GET /download/{RUN_ID}/poses.csv"] = lambda _: httpx.Response(
        307, headers={"Location": "http://store/get?sig=1"}
    )
    api.answers["GET /get"] = store
    return ranges


@pytest.mark.parametrize(
    ("part", "expected"),
    [(None, [None]), (POSES[:4], ["bytes=4-"]), (b"of another run", [None])],
    ids=["afresh", "goes on", "a part of something else"],
)
def test_download(tmp_path: Path, api: Api, part: bytes | None, expected: list[str | None]) -> None:
    ranges = download_answers(api)
    folder = tmp_path / "out"
    folder.mkdir()
    if part is not None:
        (folder / "poses.csv.part").write_bytes(part)
    for _ in range(2):  # the second time, all is there
        result = call(tmp_path, "download", RUN_ID, "--to", str(folder))
        assert result.exit_code == 0, result.output
    assert (folder / "poses.csv").read_bytes() == POSES
    assert json.loads((folder / "result.json").read_text()) == {"state": "succeeded"}
    assert sorted(path.name for path in folder.iterdir()) == ["poses.csv", "result.json"]
    assert ranges == expected


def test_download_never_leaves_its_folder(tmp_path: Path, api: Api) -> None:
    download_answers(api)
    run = run_json()
    run["files"][0]["name"] = "../../poses.csv"
    api.answers[f"GET /results/{RUN_ID}"] = run
    assert call(tmp_path, "download", RUN_ID, "--to", str(tmp_path / "a" / "b")).exit_code == 0
    assert (tmp_path / "a" / "b" / "poses.csv").is_file()


def in_turn(*answers: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    """Answer by one after the other, and by the last for ever."""
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now

    return answer


@pytest.mark.parametrize(
    "away",
    [
        httpx.ConnectError("refused"),
        httpx.Response(502, text="<html>Bad Gateway</html>"),
        httpx.Response(503, json={"error": {"code": "storage", "message": "the store is away"}}),
    ],
    ids=["no answer", "a proxy's answer", "no store"],
)
def test_an_api_that_starts_anew_ends_no_download_and_no_wait(
    tmp_path: Path, api: Api, away: httpx.Response | Exception
) -> None:
    download_answers(api)
    there = httpx.Response(307, headers={"Location": "http://store/get?sig=1"})
    url, run = f"GET /download/{RUN_ID}/poses.csv", f"GET /results/{RUN_ID}"
    batch = {
        "batch_id": "b",
        "kind": "cancel",
        "status": "over",
        "films": 0,
        "counts": {},
        "line": "nothing",
        "created_at": "2026-01-02T03:04:05Z",
    }
    api.answers[url] = in_turn(away, there)
    assert call(tmp_path, "download", RUN_ID, "--to", str(tmp_path / "out")).exit_code == 0
    api.answers[run] = in_turn(away, httpx.Response(200, json=run_json()))
    api.answers[f"GET /upload/{FILE_ID}"] = in_turn(away, httpx.Response(200, json=file_json()))
    api.answers["GET /batches/b"] = in_turn(away, httpx.Response(200, json=batch))
    with Client("http://api", transport=httpx.MockTransport(api)) as asking:
        assert asking.wait(RUN_ID).over
        assert asking.wait_for_file(FILE_ID).state == "ready"
        assert asking.wait_for_batch("b").over
        api.answers[url] = in_turn(away, there)
        assert asking.export(RUN_ID, "poses.csv", tmp_path / "exported").is_file()


def test_a_download_that_is_refused_ends_at_once(tmp_path: Path, api: Api) -> None:
    """As one whose files are gone."""
    download_answers(api)
    url = f"GET /download/{RUN_ID}/poses.csv"
    gone = {"code": "gone", "message": "its files were removed"}
    api.answers[url] = in_turn(httpx.Response(410, json={"error": gone}))
    result = call(tmp_path, "download", RUN_ID, "--to", str(tmp_path / "out"))
    assert (result.exit_code, "its files were removed" in result.stderr) == (1, True)
    assert sum(f"{each.method} {each.url.path}" == url for each in api.asked) == 1


def test_cancel_does_not_delete_what_is_over(tmp_path: Path, api: Api) -> None:
    api.answers[f"GET /results/{RUN_ID}"] = run_json()
    assert "is over" in call(tmp_path, "cancel", RUN_ID).stderr
    api.answers[f"GET /results/{RUN_ID}"] = run_json("running")
    api.answers[f"DELETE /analyse/{RUN_ID}"] = {"status": "cancelling"}
    assert call(tmp_path, "cancel", RUN_ID).output == f"{RUN_ID} cancelling\n"
    # It may end between the two requests.
    assert api.asked[-1].url.query == b"only=cancel"
    assert "posedrop cancel" in call(tmp_path, "rm", RUN_ID).stderr


def test_rm_takes_files_and_runs(tmp_path: Path, api: Api) -> None:
    api.answers[f"GET /upload/{FILE_ID}"] = file_json()
    api.answers[f"DELETE /upload/{FILE_ID}"] = lambda _: httpx.Response(204)
    assert "day1/film.mp4 deleted" in call(tmp_path, "rm", FILE_ID).output
    api.answers[f"GET /results/{RUN_ID}"] = run_json()
    api.answers[f"DELETE /analyse/{RUN_ID}"] = lambda _: httpx.Response(204)
    assert call(tmp_path, "rm", RUN_ID).output == f"{RUN_ID} deleted\n"
    assert api.asked[-1].url.query == b""


def test_show(tmp_path: Path, api: Api) -> None:
    progress = {"stage": "infer", "done": 3, "total": 9, "frames_per_second": 1.5}
    api.answers[f"GET /results/{RUN_ID}"] = run_json("running", progress=progress, files=[])
    assert call(tmp_path, "show", RUN_ID).output == (
        f"{RUN_ID} dummy: running, infer 3/9 frames, 1.5 frames/s\n"
    )


@pytest.mark.parametrize("command", ["reconcile", "reindex"])
def test_counts(tmp_path: Path, api: Api, command: str) -> None:
    api.answers[f"POST /{command}"] = {"videos_seen": 12}
    assert call(tmp_path, command).output == "12  videos seen\n"
    assert json.loads(call(tmp_path, command, "--json").output) == {"videos_seen": 12}


def test_reingest_tells_what_comes_of_each(tmp_path: Path, api: Api) -> None:
    """Page by page, then each video as it is looked at; or only what was sent."""

    def page(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        assert asked["prefix"] == "day1/"
        first = {"items": [{"file_id": FILE_ID, "key": "day1/film.mp4"}], "next": "c"}
        rest = {"items": [{"file_id": RUN_ID, "key": "day1/text.mp4"}], "next": None}
        return httpx.Response(200, json=rest if asked.get("cursor") == "c" else first)

    refusal = {"reason": "not_a_video", "message": "it is text"}
    api.answers["POST /reingest"] = page
    api.answers[f"GET /upload/{FILE_ID}"] = file_json()
    api.answers[f"GET /upload/{RUN_ID}"] = file_json(state="refused", refusal=refusal)
    assert call(tmp_path, "reingest", "day1/").output == (
        "looked at anew: 2\n"
        "1/2 day1/film.mp4: ready\n"
        "2/2 day1/text.mp4: refused, not_a_video: it is text\n"
    )
    told = json.loads(call(tmp_path, "reingest", "day1/", "--json").output)
    assert [file["state"] for file in told] == ["ready", "refused"]
    api.answers["POST /reingest"] = {"items": [], "next": None}
    assert "no refused video" in call(tmp_path, "reingest", "day1/").output
    assert json.loads(call(tmp_path, "reingest", "", "--no-wait", "--json").output) == []


def test_models_push_without_a_store_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POSEDROP_S3_ENDPOINT", "POSEDROP_S3_ACCESS_KEY", "POSEDROP_S3_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = call(tmp_path, "models", "push", str(tmp_path), "--name", "x")
    assert result.exit_code == 1
    assert "holds no posedrop" in result.stderr


# -- what `up` and `demo` are made of --------------------------------------------------------------


def test_up_on_a_taken_port_is_one_line_and_gives_the_folder_back(tmp_path: Path) -> None:
    taken = listen("127.0.0.1", 0, "the API", "--port")
    port = taken.getsockname()[1]
    try:
        stack = Stack(tmp_path / "data", port=port)
        with pytest.raises(ConfigurationError, match=rf"port {port} .* --port"):
            stack.start()
    finally:
        taken.close()
    lock = FolderLock(tmp_path / "data")
    lock.acquire()
    with pytest.raises(ConfigurationError, match="in use by process"):
        Stack(tmp_path / "data", port=0).start()
    lock.release()


def test_a_folder_that_can_not_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--data-dir"):
        Stack(tmp_path / "file" / "data", port=0).start()
    result = CliRunner().invoke(cli.main, ["--data-dir", str(tmp_path / "file" / "data"), "up"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "--data-dir" in result.stderr


@pytest.mark.parametrize(("name", "folder_mode"), [("posedrop-data", 0o700), ("lab", 0o755)])
def test_what_a_stack_writes_is_its_owners_alone(
    tmp_path: Path, name: str, folder_mode: int
) -> None:
    """Closed where an older posedrop left it open, but for a folder that a lab has made."""
    before = os.umask(0o022)
    try:
        for data_dir in (tmp_path / name, tmp_path / "parent" / name):
            log_to(data_dir)
            Index(data_dir / "index.sqlite", timeout=5).close()
            assert {stat.S_IMODE(path.stat().st_mode) for path in all_of(data_dir)} <= {
                0o600,
                0o700,
            }
        data_dir = tmp_path / name
        data_dir.chmod(0o755)
        for path in all_of(data_dir):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (data_dir / "of a person.txt").touch(0o644)
        (data_dir / "of a person.txt").chmod(0o644)
        log_to(data_dir)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in all_of(data_dir)}
    assert modes == {
        name: folder_mode,
        "logs": 0o755,
        "posedrop.log": 0o600,
        "index.sqlite": 0o600,
        "of a person.txt": 0o644,
    }


def all_of(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def test_doctor_looks_at_the_scratch_folder_that_the_stack_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSEDROP_SCRATCH_DIR", raising=False)
    (tmp_path / "posedrop.env").touch()
    (found,) = machine.disk(load(tmp_path))
    assert str(tmp_path / "scratch") in found.message
    monkeypatch.setenv("POSEDROP_SCRATCH_DIR", str(tmp_path / "large"))
    (found,) = machine.disk(load(tmp_path))
    assert str(tmp_path / "large") in found.message


def test_keys_are_private_and_kept(tmp_path: Path) -> None:
    first = Secrets.of(tmp_path)
    assert len(first.api_token) == 40
    assert Secrets.of(tmp_path) == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    older = json.loads((tmp_path / "secrets.json").read_text()) | {"api_token": None}
    (tmp_path / "secrets.json").write_text(json.dumps(older))
    assert Secrets.of(tmp_path).api_token == Secrets.of(tmp_path).api_token
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"secrets\.json is damaged"):
        Secrets.of(tmp_path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104
        ("192.168.1.5", False),
        ("lab.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_explore_without_its_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasette is no part of a plain installation: its command says so, without a traceback."""
    monkeypatch.setitem(sys.modules, "datasette", None)
    told = call(tmp_path, "explore")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "pip install 'posedrop[explore]'" in told.stderr
    assert "Traceback" not in told.stderr


def test_mean_error_of_the_demo(tmp_path: Path) -> None:
    poses = tmp_path / "poses.csv"
    poses.write_text(
        "scorer,S,S,S,S,S,S\n"
        "bodyparts,tail,tail,tail,nose,nose,nose\n"
        "coords,x,y,likelihood,x,y,likelihood\n"
        "0,10,10,0.9,0,0,0.9\n"
        "1,10,10,0.9,3,4,0.9\n"
    )
    known = [[(0.0, 0.0), (10.0, 10.0)], [(0.0, 0.0), (10.0, 10.0)]]
    assert mean_error(poses, ["nose", "tail"], known) == (5 / 4, 4)


def test_expire_removes_what_was_seen_and_agreed_to(tmp_path: Path, api: Api) -> None:
    """A dry run lists what would go and why; without a yes nothing is removed."""
    due = {"kind": "age", "id": FILE_ID, "key": "old.mp4", "size": 2_000_000, "why": "too old"}
    found = {"due": 3, "size": 7, "films": 4, "kept": 1, "held": True, "items": [due]}
    api.answers |= {"GET /expire": found, "POST /expire": {"expired": 2, "undeletable": 1}}
    dry = call(tmp_path, "expire", "--dry-run").output.splitlines()
    assert dry[0].split("  ") == ["old.mp4", "2 MB", "film and results", "too old"]
    assert dry[1:3] == ["... and 2 more", "due: 3 (7 B) of 4 films; kept: 1"]
    assert "POSEDROP_EXPIRE_SHARE" in dry[3]
    assert json.loads(call(tmp_path, "expire", "--dry-run", "--json").output) == found
    assert call(tmp_path, "expire").exit_code == 1  # nobody answers
    assert api.bodies("POST", "/expire") == []
    done = call(tmp_path, "expire", "--yes", "--json")
    assert json.loads(done.output) == {"expired": 2, "undeletable": 1}
    assert api.bodies("POST", "/expire") == [{"due": 3}]
