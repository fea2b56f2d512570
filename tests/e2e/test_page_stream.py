"""The page's lists while the server is started anew, and with more runs than a page can hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from posedrop.buckets.records.batches import BatchFilm, BatchFilms, BatchRequest
from posedrop.index.index import Index
from tests.support import axe
from tests.support.browser import opened
from tests.support.index_rows import ERROR, NOW, request_of, result_of, run_of
from tests.support.page_server import PageServer, page_server

#: Rows on the page at a time, of a window as here: those that are seen, and some on each side.
MOST_ROWS = 40
#: Too many for a page; each takes a millisecond to tell.
RUNS = 2500


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    """The page's server, before its start."""
    with page_server(tmp_path) as server:
        yield server


def fill(index: Index, runs: int, waiting: Container[int] = ()) -> None:
    """Tell an index of runs, over but for some that wait: the handlers leave those alone."""
    with index.together():
        for number in range(runs):
            if number in waiting:
                index.analysis_requested(request_of(number), run_of(number))
            else:
                finish(index, number)


def finish(index: Index, number: int) -> None:
    """Tell an index that a run is over."""
    index.analysis_finished(result_of(number), run_of(number))


def row(number: int) -> str:
    """Return how the row of a run is found."""
    return f"#runs-rows tr[data-name={request_of(number).analysis_id}]"


def scroll_on(page: Page) -> None:
    """Scroll to the end of what was read, as the End key does."""
    page.locator("#runs-box").evaluate("box => { box.scrollTop = box.scrollHeight; }")


def settle(server: PageServer) -> None:
    """Wait until pages that were opened have read all they want, and count anew from then on."""
    while server.asked:
        server.asked.clear()
        time.sleep(2)


def test_open_pages_are_right_again_after_a_restart(server: PageServer, browser: Browser) -> None:
    """What was told, and what was missed, is shown in each tab, and few requests are made for it.

    Also where that lies behind the first page of a list, and without a word by a person.
    """
    with ExitStack() as closing:
        up = closing.enter_context(ExitStack())
        index = up.enter_context(server.running())
        fill(index, 230, waiting={0, 1, 2, 227, 228, 229})
        first = closing.enter_context(opened(browser, server.link))
        expect(first.locator("#runs article").first).to_be_visible()
        first.get_by_role("button", name="table").click()
        expect(first.locator(row(229))).to_be_visible()
        scroll_on(first)
        expect(first.locator("#runs-count")).to_have_text("230")
        scroll_on(first)
        expect(first.locator(row(0))).to_contain_text("queued")
        second = first.context.new_page()
        second.goto(server.url)
        expect(second.locator(row(229))).to_contain_text("queued")

        settle(server)
        for tab, number in ((second, 229), (first, 0)):
            finish(index, number)
            expect(tab.locator(row(number))).to_contain_text("succeeded")
        # The stream told it: nothing was read for it, and both tabs have one stream.
        assert server.asked["/stream"] + server.asked["/analyses"] == 0, server.asked

        up.close()
        for number in (228, 1):
            finish(index, number)  # nobody is told
        server.asked.clear()
        index = closing.enter_context(server.running())
        for tab, number in ((second, 228), (first, 1)):
            expect(tab.locator(row(number))).to_contain_text("succeeded")
        for tab, number in ((second, 227), (first, 2)):
            finish(index, number)
            expect(tab.locator(row(number))).to_contain_text("succeeded")
            expect(tab.locator("#connection")).to_be_empty()
        # Of the first tab two pages, of the second one; a try to connect may have come too early.
        assert server.asked["/stream"] <= 3, server.asked
        assert server.asked["/analyses"] <= 5, server.asked


def test_thousands_of_runs_are_scrolled_sorted_and_searched(
    server: PageServer, browser: Browser
) -> None:
    """Only what can be seen is on the page; the end is reached; the server sorts and finds."""
    with server.running() as index:
        fill(index, RUNS)
        with opened(browser, server.link) as page:
            page.get_by_role("button", name="table").click()
            rows = page.locator("#runs-rows tr[data-name]")
            expect(page.locator(row(RUNS - 1))).to_be_visible()
            deadline = time.monotonic() + 120
            while page.locator("#runs-count").inner_text() != f"{RUNS:,}":
                assert time.monotonic() < deadline, "the end of the list is not reached"
                scroll_on(page)
                assert rows.count() <= MOST_ROWS
            scroll_on(page)
            expect(page.locator(row(0))).to_be_visible()
            assert page.locator(row(RUNS - 1)).count() == 0
            assert rows.count() <= MOST_ROWS
            page.locator("#order").select_option("name")
            expect(rows.first).to_contain_text("mouse_0.mp4")
            page.locator("#query").fill("mouse_1531")
            expect(rows).to_have_count(1)
            expect(page.locator(row(1531))).to_be_visible()
            page.get_by_role("button", name="show all").click()
            page.get_by_role("button", name="cards").click()
            expect(page.locator("#runs article").first).to_be_visible()
            assert page.locator("#runs article").count() <= 3 * MOST_ROWS


def test_whoever_waits_at_the_end_of_a_list_gets_more(server: PageServer, browser: Browser) -> None:
    """Though its beginning was being read anew when the end was reached, and a page failed."""
    held: list[Route] = []
    asked = {"first": 0, "more": 0}

    def answer(route: Route) -> None:
        which = "more" if "cursor=" in route.request.url else "first"
        asked[which] += 1
        if (which, asked[which]) == ("first", 2):
            held.append(route)
        elif (which, asked[which]) == ("more", 1):
            busy = {"error": {"code": "busy", "message": "too much is asked at once"}}
            route.fulfill(status=503, json=busy)
        else:
            route.continue_()

    with server.running() as index, browser.new_context() as context:
        fill(index, 250)
        page = context.new_page()
        page.route("**/analyses?*", answer)
        page.goto(server.link)
        page.wait_for_url(server.url)
        expect(page.locator("#runs article").first).to_be_visible()
        deadline = time.monotonic() + 60
        while not held:  # the stream has said that something may have been missed
            assert time.monotonic() < deadline
            page.wait_for_timeout(50)
        scroll_on(page)
        page.wait_for_timeout(500)
        assert asked["more"] == 0
        held[0].continue_()
        expect(page.locator("#runs-count")).to_have_text("250")
        assert asked["more"] == 2


def test_a_batch_is_a_line_that_leads_to_its_runs(server: PageServer, browser: Browser) -> None:
    """What became of its films is said with the reason; each number shows those runs alone."""
    films = [
        BatchFilm(file_id="f", key="k", run_id=request_of(number).analysis_id)
        for number in range(5)
    ]
    films.append(BatchFilm(file_id="f", key="k", run_id=None, error=ERROR))
    asked = BatchRequest(
        batch_id="ofbatch",
        kind="analyse",
        prefix="day1/\u202e<b>/",
        analysis="dummy",
        films_until=NOW,
        created_at=NOW,
    )
    with server.running() as index:
        index.batch_added(asked)
        index.batch_films_added("ofbatch", 1, BatchFilms(films=films, after=None))
        fill(index, 9, waiting={4})
        with opened(browser, server.link) as page:
            line = page.locator("#batches li")
            expect(line).to_contain_text("4 done, 1 failed, 1 wait: The GPU is full")
            expect(line).to_contain_text("<b>")
            expect(page.locator("#runs-count")).to_have_text("9")
            axe.check(page, "a batch's line")
            line.get_by_role("link", name="4 done").press("Enter")
            expect(page.locator("#runs-count")).to_have_text("4")
            finish(index, 4)
            expect(page.locator("#runs-count")).to_have_text("5")
            page.reload()
            expect(page.locator("#runs-count")).to_have_text("5")
            assert page.locator("#batch").input_value() == "ofbatch"
            page.get_by_role("button", name="show all").click()
            expect(page.locator("#runs-count")).to_have_text("9")
            page.context.clear_cookies()
            page.locator("#folder").fill("day1/")
            expect(page.locator("#connection")).to_contain_text("Open the link")


def test_the_filter_of_models_says_what_the_list_is_narrowed_to(
    server: PageServer, browser: Browser
) -> None:
    """Also where that model was removed; one that is there is offered once."""
    with server.running() as index:
        fill(index, 3)
        with opened(browser, server.link) as page:
            models = {"items": [{"name": "mouse"}, {"name": "rat"}], "next": None}
            page.route("**/models", lambda route: route.fulfill(json=models))
            page.route("**/page/models.js", given(""))
            for name, offered in (
                ("gone", ["", "mouse", "rat", "gone"]),
                ("rat", ["", "mouse", "rat"]),
            ):
                with page.expect_response("**/models"):
                    page.goto(f"{server.url}?model={name}")
                expect(page.locator("#model option[value=mouse]")).to_have_count(1)
                values = "all => all.map((each) => each.value)"
                assert page.locator("#model option").evaluate_all(values) == offered
                assert page.locator("#model").input_value() == name
                expect(page.locator("#clear")).to_be_visible()


def given(body: str) -> Callable[[Route], None]:
    """Return what answers with a script; with none if it is empty."""
    if not body:
        return lambda route: route.abort()
    return lambda route: route.fulfill(body=body, content_type="text/javascript")


def test_a_part_that_can_not_be_had_leaves_the_others(server: PageServer, browser: Browser) -> None:
    """A script is blocked, or of no use in this browser: its place says so, the rest is there."""
    shown = {
        "lists": "#runs article",
        "upload": "#preview:visible, #said .why",
        "batches": "#batches li",
        "many": "#many button",
        "models": "#models .push",
    }
    film: FilePayload = {"name": "a.exe", "mimeType": "video/mp4", "buffer": b"no film"}
    # Not opened(): what a script throws is what this is about.
    with server.running() as index, browser.new_context() as context:
        page = context.new_page()
        page.goto(server.link)
        page.wait_for_url(server.url)
        fill(index, 3)
        index.batch_added(
            BatchRequest(batch_id="b", kind="cancel", prefix="", films_until=NOW, created_at=NOW)
        )
        too_old = "throw new Error('too old')"
        for broken, body, lost in (
            ("lists", too_old, {"lists"}),
            ("form", "export {}", set()),
            ("upload_queue", "", {"upload"}),
            ("many", too_old, {"batches", "many"}),
        ):
            page.route(f"**/page/{broken}.js", given(body))
            page.reload()
            page.locator("#choose").set_input_files(film)
            expect(page.get_by_role("alert").filter(has_text="can't be had").first).to_be_visible()
            for part in shown.keys() - lost:
                expect(page.locator(shown[part]).first).to_be_visible()
            page.unroute(f"**/page/{broken}.js")
