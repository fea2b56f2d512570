"""What is written for people holds: commands, calls of the API, paths, and the list of modules."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from starlette.routing import Match

from handlers.app import create_app
from posedrop import analyses
from posedrop.buckets import folder_rules
from posedrop.cli import main
from posedrop.settings import load
from posedrop.transport import queue
from tests.support.filled_api import TOKEN, filled_api
from tests.support.samples import REPOSITORY
from tests.support.tools import tool

#: What people make themselves where they deploy posedrop.
DEPLOYED = {
    "infra/.env",
    "infra/docker-compose.override.yml",
    "infra/posedrop.env",
    "infra/secrets",
}
PACKAGES = ("posedrop", "handlers", "worker")
#: All that people read; the changelog tells of what was, too.
PAGES = sorted(
    {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")} - {REPOSITORY / "CHANGELOG.md"}
)
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text() for page in PAGES}


def blocks(text: str) -> list[str]:
    """Return the blocks of code of a page."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return what stands between backticks in the prose of a page, each on one line."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def statements(block: str) -> Iterator[tuple[str, str]]:
    """Yield a block's statements of shell, each with the comment that follows it."""
    statement = ""
    for line in [*block.splitlines(), ""]:
        if not statement.strip() or not _is_whole(statement):
            statement += f"{line}\n"
        elif line.startswith("#"):
            yield statement, line
            statement = ""
        else:
            yield statement, ""
            statement = f"{line}\n"


def _is_whole(statement: str) -> bool:
    try:
        shlex.split(statement)
    except ValueError:
        return False
    return not statement.endswith("\\\n")


# -- modules ---------------------------------------------------------------------------------------


def test_every_module_is_named_in_the_architecture() -> None:
    """Each folder has its table, with its modules and no others."""
    told: dict[str, list[str]] = {}
    parts = re.split(r"^### (\S+)/\n", TEXTS["ARCHITECTURE.md"], flags=re.MULTILINE)
    for folder, section in zip(parts[1::2], parts[2::2], strict=True):
        table = section.partition("\n#")[0]
        told[folder] = sorted(re.findall(r"^\| `(\w+\.py)` \| \S", table, re.MULTILINE))
    there: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            if not path.name.startswith("__"):
                folder = path.parent.relative_to(REPOSITORY).as_posix()
                there.setdefault(folder, []).append(path.name)
    assert told == {folder: sorted(names) for folder, names in there.items()}


@pytest.mark.parametrize("page", TEXTS)
def test_paths_and_links_lead_somewhere(page: str) -> None:
    """A path of the repository in backticks is there, and so is what a link leads to."""
    roots = "posedrop|handlers|worker|tests|infra|docs|benchmarks|demo"
    named = [span for span in spans(TEXTS[page]) if re.fullmatch(rf"(?:{roots})/[\w./-]+", span)]
    missing = [
        path
        for path in named
        if not (REPOSITORY / path).exists() and path.rstrip("/") not in DEPLOYED
    ]
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            missing.append(link)
    assert missing == []


def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# -- commands --------------------------------------------------------------------------------------


def leaves(command: click.Command) -> Iterator[click.Command]:
    """Yield a command, or all that a group has."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from leaves(each)
    else:
        yield command


def helped() -> Iterator[str]:
    """Yield the examples of all help texts."""
    for command in [main, *leaves(main), *main.commands.values()]:
        _, _, examples = (command.help or "").partition("\b\n")
        for line in examples.splitlines():
            if line.strip().startswith("posedrop "):
                yield re.split(r"\s{2,}", line.strip())[0]


def shown(text: str) -> Iterator[str]:
    """Yield the commands in a page's blocks."""
    for block in blocks(text):
        for statement, _ in statements(block):
            words = statement.replace("\\\n", " ")
            found = re.search(r"^\s*(?:\w+=\S+\s+)*(posedrop .*)$", words, re.MULTILINE)
            if found:
                yield found[1]


HELPED = list(helped())
EXAMPLES = sorted({*HELPED, *(each for text in TEXTS.values() for each in shown(text))})
MENTIONS = sorted(
    {span for text in TEXTS.values() for span in spans(text) if span.startswith("posedrop ")}
)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], tuple[str, Any]]:
    """Say a command where its files are: what click answers, and what the command would be told."""
    told: list[dict[str, Any]] = []
    for command in leaves(main):
        monkeypatch.setattr(command, "callback", lambda **given: told.append(given))
    monkeypatch.chdir(tmp_path)

    def said(example: str) -> tuple[str, Any]:
        words = shlex.split(example.replace("*.mp4", "film.mp4"), comments=True)[1:]
        for word in words:
            if not word.startswith(("-", "/")) and "=" not in word:
                path = tmp_path / word
                (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
                if path.suffix:
                    path.touch()
        done = CliRunner().invoke(main, words)
        return done.output if done.exit_code else "", told[-1] if told else None

    return said


def test_every_command_has_an_example() -> None:
    """Help shows how a command is said."""
    assert {example.split()[1] for example in HELPED} >= main.commands.keys()


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_command(say: Callable[[str], tuple[str, Any]], example: str) -> None:
    """Each example of a help text or a page is parsed, and its analysis takes its arguments."""
    error, given = say(example)
    assert error == ""
    assert given is not None
    if given.get("analysis"):
        analyses.get(given["analysis"]).normalise(given["args"])


@pytest.mark.parametrize("mention", MENTIONS)
def test_a_command_that_is_mentioned_exists(
    say: Callable[[str], tuple[str, Any]], mention: str
) -> None:
    """In prose a command may stand without what it needs, but under its name, with its options."""
    error, _ = say(mention)
    assert error == "" or "Error: Missing" in error


def test_programs_that_are_mentioned_exist() -> None:
    """``python -m`` and ``make`` are followed by what there is."""
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    for text in [*TEXTS.values(), makefile]:
        code = "\n".join([*blocks(text), *spans(text)]) if text is not makefile else text
        for name in re.findall(r"python -m ([\w.]+)", code):
            assert find_spec(name) is not None, name
        for target in re.findall(r"^make (\w+)", code, re.MULTILINE):
            assert target in targets


def test_a_rule_that_is_shown_is_a_rule() -> None:
    """Each posedrop.json in the prose is understood, and its analysis takes its arguments."""
    spans_of_all = [span for text in TEXTS.values() for span in spans(text)]
    rules = [span for span in spans_of_all if re.match(r'\{"(analysis|keep)":', span)]
    assert len(rules) > 3
    for rule in rules:
        asked = json.loads(rule)
        folder_rules.parse(rule.encode())
        if "analysis" in asked:
            analyses.get(asked["analysis"]).normalise(asked["args"])


# -- the API ---------------------------------------------------------------------------------------


def test_a_call_that_is_mentioned_exists(tmp_path: Path) -> None:
    """Each method and path of the pages is one of the API's."""
    app = create_app(load(tmp_path, {}), queue.connect("stub://"))
    calls = {
        (method, path)
        for text in TEXTS.values()
        for span in spans(text)
        for method, path in re.findall(r"^(GET|PUT|POST|DELETE) (/[^\s?]*)", span)
    }
    # Taken before all that the app is made of: handlers/events/webhook.py.
    calls.discard(("POST", "/events"))
    assert len(calls) > 20
    for method, path in sorted(calls):
        # DELETE /analyse stands for all below it.
        assert any(_is_taken(app, method, each) for each in (path, f"{path}/x")), (method, path)


def _is_taken(app: FastAPI, method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path.replace("...", "a/b"), "headers": []}
    return any(route.matches(scope)[0] == Match.FULL for route in app.routes)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The API on buckets with films, a model and runs."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        filled_api(tmp_path_factory.mktemp("api")) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        while not client.get("/files", params={"state": "ready", "q": "plain"}).json()["items"]:
            time.sleep(0.1)
        yield client


def test_json_that_is_shown_is_taken(api: httpx.Client) -> None:
    """Each call with JSON in the prose is made, and answered as done."""
    called = 0
    for text in TEXTS.values():
        for span in spans(text):
            found = re.fullmatch(r"(POST) (/\S+) (\{.*\})", span)
            if found:
                answer = api.request(found[1], found[2], json=json.loads(found[3]))
                assert answer.is_success, (span, answer.text)
                called += 1
    assert called > 1


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/deploy.md"])
def test_lines_for_curl_do_what_they_say(api: httpx.Client, tmp_path: Path, page: str) -> None:
    """As they stand, in a folder with the films: the status and the fields are those shown."""
    tool("curl")
    url = str(api.base_url).rstrip("/")
    for name in ("mouse.mp4", "mouse2.mp4", "film.mp4"):
        (tmp_path / name).write_bytes(os.urandom(1000))
    (tmp_path / "posedrop-data").mkdir()
    (tmp_path / "posedrop-data/auth.header").write_text(f"Authorization: Bearer {TOKEN}\n")
    (tmp_path / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n')
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "URL": url,
        "AUTH": "@posedrop-data/auth.header",
        "POSEDROP_URL": url,
        "POSEDROP_API_TOKEN": TOKEN,
    }
    asked = {"state": "ready", "q": "plain", "limit": 1}
    (ready,) = api.get("/files", params=asked).json()["items"]
    lines = [each for block in blocks(TEXTS[page]) for each in statements(block)]
    lines += [(span, "") for span in spans(TEXTS[page]) if span.startswith("curl -H $AUTH")]
    lines = [(line, said) for line, said in lines if line.startswith("curl -H")]
    assert lines
    for line, said in lines:
        script = line.replace("http://127.0.0.1:8080", url).replace("openfield", "mouse")
        script = script.replace("…", ready["file_id"])
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        body, _, status = done.stdout.rpartition("\n")
        expected = re.match(r"# (\d+) (\{.*?\})(?:$|  )", said)
        if expected is None:
            assert status.startswith("2"), (line, done)
        else:
            assert status == expected[1], (line, done)
            assert json.loads(body).keys() == json.loads(re.sub("(, )?…", "", expected[2])).keys()
