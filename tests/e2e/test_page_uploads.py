"""The page's uploads and videos in a browser; what the API and the store say, a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from posedrop.buckets.parts import composite, whole
from tests.support import axe
from tests.support.browser import opened
from tests.support.page_server import page_server

#: So many that going through all for each of them would be a million steps.
MANY = 1000
#: Counts what changes of the list of uploads.
COUNT_CHANGES = """() => {
    window.changes = 0;
    const all = { subtree: true, childList: true, attributes: true, characterData: true };
    new MutationObserver((some) => { window.changes += some.length; })
        .observe(document.querySelector("#sending"), all);
}"""


@pytest.fixture
def page(tmp_path: Path, browser: Browser) -> Iterator[Page]:
    """The page, where each film is new and nothing is run on it."""
    with (
        page_server(tmp_path) as server,
        server.running(),
        opened(browser, server.link) as page,
    ):
        page.route("**/uploads/check", say_new)
        yield page


def say_new(route: Route) -> None:
    """Answer that all files can go up."""
    files = route.request.post_data_json["files"]
    route.fulfill(json={"items": [checked(each["path"]) for each in files]})


def checked(path: str) -> dict[str, Any]:
    """Return what POST /uploads/check says of a new film."""
    return {"path": path, "key": path, "state": "new", "why": None, "rule": None, "runs": None}


def films(count: int) -> list[FilePayload]:
    """Return films of a byte each."""
    return [
        {"name": f"{number}.mp4", "mimeType": "video/mp4", "buffer": b"."}
        for number in range(count)
    ]


def choose(page: Page, count: int) -> None:
    """Choose films, and start their upload once the page has looked at them."""
    page.locator("#choose").set_input_files(films(count))
    expect(page.locator("#preview-words")).to_contain_text(f"{count} go up")
    page.get_by_role("button", name="upload", exact=True).click()


def test_what_changes_on_the_page_grows_with_the_films_and_no_faster(page: Page) -> None:
    """A folder of thousands does not stop the page: of each film only its own line is written."""
    gone: list[Route] = []

    def take_some(route: Route) -> None:
        gone.append(route)
        if len(gone) <= 20:
            route.fulfill(json={"state": "exists"})  # the others wait

    page.route("**/uploads/parts", take_some)
    page.evaluate(COUNT_CHANGES)
    choose(page, MANY)
    expect(page.locator("#sent-words")).to_contain_text(f"20 of {MANY} there")
    assert page.locator("#uploads li").count() == MANY
    assert page.evaluate("window.changes") < 3 * MANY


def test_a_cookie_that_ends_fails_no_film(page: Page) -> None:
    """The first one that is not let in has all wait, and says what to do; they go on from there."""
    asked: list[Route] = []

    def refuse(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=401, json={"error": {"code": "unauthorized", "message": "no token"}})

    page.route("**/uploads/parts", refuse)
    choose(page, 3)
    expect(page.locator("#sent-why")).to_contain_text("Open the link")
    expect(page.locator("#sent-words")).to_have_text("0 of 3 there, 0 bytes of 3 bytes, paused")
    assert len(asked) == 1
    axe.check(page, "uploads that are not let in")
    page.unroute("**/uploads/parts")
    page.route("**/uploads/parts", lambda route: route.fulfill(json={"state": "exists"}))
    page.get_by_role("button", name="go on", exact=True).click()
    expect(page.locator("#sent-words")).to_contain_text("3 of 3 there")
    expect(page.locator("#sent-why")).to_be_empty()


def test_all_that_failed_is_tried_again_by_one_button(page: Page) -> None:
    """Of many films that a server refused for a while, nobody presses a button for each."""
    refusal = {"error": {"code": "taken", "message": "there is another film"}}
    page.route("**/uploads/parts", lambda route: route.fulfill(status=409, json=refusal))
    choose(page, 3)
    expect(page.locator("#sent-words")).to_contain_text("3 failed")
    page.unroute("**/uploads/parts")
    page.route("**/uploads/parts", lambda route: route.fulfill(json={"state": "exists"}))
    page.get_by_role("button", name="retry all that failed").click()
    expect(page.locator("#sent-words")).to_have_text("3 of 3 there, 3 bytes of 3 bytes")


def test_films_that_are_there_are_compared_if_asked(page: Page) -> None:
    """Cameras write films as large as each other: by name and size alone, one would be lost."""
    mine, other = b"0123456789", b"9876543210"
    told = {
        "whole.mp4": whole(summed(mine)),
        "parts.mp4": composite([summed(mine[start : start + 4]) for start in (0, 4, 8)]),
        "other.mp4": whole(summed(other)),
        "others parts.mp4": composite([summed(other)] * 3),
        "cut otherwise.mp4": composite([summed(mine)] * 2),
        "untold.mp4": None,
    }
    there = [{**checked(name), "state": "exists"} for name in told]
    page.route("**/uploads/check", lambda route: route.fulfill(json={"items": there}))

    def exists(route: Route) -> None:
        path = route.request.post_data_json["path"]
        ticket = {"state": "exists", "key": path, "size": 10, "part_bytes": 4, "parts": []}
        route.fulfill(json={**ticket, "crc32": told[path]})

    page.route("**/uploads/parts", exists)
    chosen: list[FilePayload] = [
        {"name": name, "mimeType": "video/mp4", "buffer": mine} for name in told
    ]
    page.locator("#choose").set_input_files(chosen)
    expect(page.locator("#preview-words")).to_contain_text("6 of the same name and size are there")
    axe.check(page, "films that are there")
    page.get_by_role("button", name="compare those that are there").click()
    lines = page.locator("#uploads li")
    expect(page.locator("#sent-words")).to_contain_text(
        "4 of 6 there, 40 bytes of 60 bytes, 2 failed"
    )
    for line, words in enumerate(["was there", "was there", OTHER, OTHER, UNTOLD, UNTOLD]):
        expect(lines.nth(line)).to_contain_text(words)


OTHER = "as large as this one, with other content; nothing is replaced"
UNTOLD = "one as large was there, and whether it is the same can't be told"


def summed(some: bytes) -> str:
    """Return the CRC32 of bytes, hexadecimal."""
    return f"{crc32(some):08x}"


def test_many_rules_leave_room_for_films_in_what_is_asked_at_once(page: Page) -> None:
    """The API takes 500 files at once: 120 rules and 400 films are told in two turns."""
    asked: list[int] = []

    def count(route: Route) -> None:
        asked.append(len(route.request.post_data_json["files"]))
        say_new(route)

    page.route("**/uploads/check", count)
    rule: FilePayload = {"name": "posedrop.json", "mimeType": "application/json", "buffer": b"{}"}
    page.locator("#choose").set_input_files([*films(400), *[rule] * 120])
    expect(page.locator("#preview-words")).to_contain_text("go up")
    assert asked == [500, 140]


def test_a_video_plays_on_when_its_link_has_ended(page: Page, tmp_path: Path) -> None:
    """A card's video that was paused for long: the store gives no more by the link that it had."""
    film = noisy(tmp_path / "pose.mp4").read_bytes()
    asked: list[str] = []

    def give(route: Route) -> None:
        begin = int(route.request.headers.get("range", "bytes=0-")[6:].split("-")[0])
        asked.append(f"{begin}")
        if begin and asked.count("0") == 1:
            route.fulfill(status=403)
            return
        end = min(len(film), 300_000) if asked.count("0") == 1 else len(film)
        told = f"bytes {begin}-{end - 1}/{len(film)}"
        headers = {"Content-Range": told, "Accept-Ranges": "bytes", "Content-Type": "video/mp4"}
        route.fulfill(status=206, headers=headers, body=film[begin:end])

    page.route("**/download/run/pose.mp4", give)
    page.evaluate(
        """async () => {
            const { player } = await import("/page/runs.js");
            const video = player("/download/run/pose.mp4", "");
            video.muted = true;
            document.body.append(video);
            video.id = "card";
            video.onended = () => { video.title = "ended"; };
            await video.play();
        }"""
    )
    video = page.locator("#card")
    expect(video).to_have_attribute("title", "ended")
    assert asked.count("0") == 2
    assert video.evaluate("video => video.currentTime") == pytest.approx(3, abs=0.2)


def noisy(path: Path) -> Path:
    """Write three seconds of noise, of some megabytes."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(90):
            pixels = noise.integers(0, 256, (240, 320, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    return path


#: Drops a folder of which a file that vanishes, a rule and a folder without rights can't be read.
DROP_UNREADABLE = """() => {
    const denied = (name) => new DOMException(`${name} could not be found`, "NotFoundError");
    const file = (path, error) => ({
        isFile: true, isDirectory: false, fullPath: path,
        file: (done, fail) => (error ? fail(denied(path)) : done(new File(["."], path.split("/").pop()))),
    });
    const locked = (path) => ({ ...file(path), file: (done) => {
        const found = new File(["{}"], "posedrop.json");
        found.arrayBuffer = () => Promise.reject(denied(path));
        done(found);
    } });
    const folder = (path, entries) => ({
        isFile: false, isDirectory: true, fullPath: path,
        createReader: () => ({ readEntries: (done, fail) => (entries ? done(entries.splice(0)) : fail(denied(path))) }),
    });
    const mouse = folder("/mouse", [
        folder("/mouse/day1", [file("/mouse/day1/x.tmp", true), file("/mouse/day1/a.mp4")]),
        folder("/mouse/day2", [file("/mouse/day2/b.mp4"), file("/mouse/day2/posedrop.json", true)]),
        folder("/mouse/day3", null),
        folder("/mouse/day4", [locked("/mouse/day4/posedrop.json"), file("/mouse/day4/c.mp4")]),
    ]);
    const drop = new Event("drop", { cancelable: true });
    drop.dataTransfer = { items: [{ kind: "file", webkitGetAsEntry: () => mouse }] };
    document.querySelector("#drop").dispatchEvent(drop);
}"""  # noqa: E501


DROP_WITH_RULE = """() => {
    const file = (path) => ({
        isFile: true, isDirectory: false, fullPath: path,
        file: (done) => done(new File(["{}"], path.split("/").pop())),
    });
    const entries = ["/day1/a.mp4", "/day2/b.mp4", "/day2/posedrop.json"].map(file);
    const drop = new Event("drop", { cancelable: true });
    drop.dataTransfer = {
        items: entries.map((entry) => ({ kind: "file", webkitGetAsEntry: () => entry })),
    };
    document.querySelector("#drop").dispatchEvent(drop);
}"""


def test_what_can_not_be_read_of_a_drop_leaves_the_others(page: Page) -> None:
    """Each is named; films whose rule is among it wait for that."""
    page.evaluate(DROP_UNREADABLE)
    expect(page.locator("#preview-words")).to_contain_text("1 go up")
    expect(page.locator("#preview-words")).to_contain_text("6 are refused")
    told = page.locator("#preview-list")
    expect(told).to_contain_text(
        "mouse/day1/x.tmp it can't be read: /mouse/day1/x.tmp could not be"
    )
    expect(told).to_contain_text("mouse/day2/posedrop.json it can't be read")
    expect(told).to_contain_text("mouse/day2/b.mp4 mouse/day2/posedrop.json can't be read, and its")
    expect(told).to_contain_text("mouse/day3 it can't be read")
    expect(told).to_contain_text("mouse/day4/c.mp4 mouse/day4/posedrop.json can't be read, and its")


def test_films_wait_for_their_rule_that_did_not_go_up(page: Page) -> None:
    """The next rule further up is not theirs; one button sends the rule, and them behind it."""
    page.evaluate(DROP_WITH_RULE)
    expect(page.locator("#preview-words")).to_contain_text("3 go up")
    refusal = {"error": {"code": "taken", "message": "there is another one"}}

    def refuse_rule(route: Route) -> None:
        if route.request.post_data_json["path"].endswith("posedrop.json"):
            route.fulfill(status=409, json=refusal)
        else:
            route.fulfill(json={"state": "exists"})

    page.route("**/uploads/parts", refuse_rule)
    page.get_by_role("button", name="upload", exact=True).click()
    expect(page.locator("#sent-words")).to_contain_text("1 of 3 there")
    expect(page.locator("#sent-words")).to_contain_text("2 failed")
    expect(page.locator("#uploads")).to_contain_text("day2/posedrop.json did not go up")
    page.unroute("**/uploads/parts")
    page.route("**/uploads/parts", lambda route: route.fulfill(json={"state": "exists"}))
    page.get_by_role("button", name="retry all that failed").click()
    expect(page.locator("#sent-words")).to_contain_text("3 of 3 there")
