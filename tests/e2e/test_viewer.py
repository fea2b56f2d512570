"""The page of a run, in a browser: each frame that it shows is the one whose number it says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route

from posedrop.buckets.records.runs import RunError
from tests.support import axe, viewing
from tests.support.browser import opened
from tests.support.lab import Embedded, Lab
from tests.support.viewing import Seen, Viewer, made, pose, publish, seen, upload, walk
from worker.poses import viewer as binary

#: A film that is played as it is, one of uneven times, and one that has to be copied.
KINDS = ("b-frames", "variable", "edit list")
#: Of an answer that a page of another origin may read.
CORS = {"Access-Control-Allow-Origin": "*"}
#: For what is the same on every stack.
once = pytest.mark.parametrize("lab", ["embedded"], indirect=True)


@pytest.mark.parametrize(
    ("lab", "kind"),
    [*(("embedded", kind) for kind in KINDS), ("minio-redis", KINDS[0])],
    indirect=["lab"],
)
def test_the_frame_its_number_and_its_pose_are_of_one_frame(
    lab: Lab, browser: Browser, films: Path, kind: str
) -> None:
    """Wherever a person seeks to or steps to; of a film that is played as it is, or as a copy."""
    path, shown = made(kind, films)
    key = f"viewer/{kind}{path.suffix}"
    upload(lab, path, key)
    run = publish(lab, key, shown)
    with opened(browser, lab.link, width=760) as page:  # of few pixels: a picture is taken sooner
        viewer = Viewer(page, lab, run, shown)
        walk(viewer, seeks=8 if isinstance(lab, Embedded) else 3, steps=4)
        assert lab.get(f"/view/{run}")["film"]["is_copy"] == (kind == "edit list")
        _check_controls(page, viewer)


def _check_controls(page: Page, viewer: Viewer) -> None:
    """Toggles, cutoff, plots and the address, by the keyboard alone where that can be."""
    viewer.go(50)
    assert "<b>tail</b>" in page.inner_text("#parts")
    assert page.locator("b", has_text="tail").count() == 0
    page.get_by_label("dot").focus()
    page.keyboard.press(" ")
    assert viewer.drawn() is None
    page.keyboard.press(" ")
    assert viewer.drawn() is not None
    page.locator("#pcutoff").fill("1")
    assert viewer.drawn() is None
    page.locator("#pcutoff").fill("0.5")
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    last = len(viewer.seen.codes) - 1
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + 10)
    viewer.until(f"Math.abs(document.querySelector('#viewer').dataset.frame - {last / 4}) < 2")
    cursor = page.locator(".cursor").first.bounding_box()
    assert cursor is not None
    assert abs(cursor["x"] - box["x"] - box["width"] * 0.25) < 2 * box["width"] / last + 1
    viewer.until(f"location.hash === '#frame={viewer.shown()}'")
    page.locator("#scrub").focus()
    frame = viewer.shown()
    viewer.press("Shift+ArrowRight", frame + 10)
    viewer.press("ArrowLeft", frame + 9)
    page.keyboard.press(" ")
    viewer.until("document.querySelector('#play').textContent === 'pause'")
    axe.check(page, "playing")
    page.keyboard.press(" ")
    viewer.until("document.querySelector('#play').textContent === 'play'")
    viewer.until("!document.querySelector('#stage video').seeking")
    viewer.check(viewer.shown())


@once
def test_two_runs_lie_above_each_other(lab: Lab, browser: Browser, films: Path) -> None:
    """Both runs' poses are drawn, and the frames in which they differ most are there to click."""
    path, shown = made("b-frames", films)
    key = "viewer/two.mp4"
    upload(lab, path, key)
    one, other = publish(lab, key, shown), publish(lab, key, shown, offset=30, number=1)
    with opened(browser, lab.link) as page:
        viewer = Viewer(page, lab, one, shown, **{"with": other})
        viewer.go(10)
        drawn = viewer.drawn()
        assert drawn is not None
        assert pose(10)[0] + 5 < drawn[0] < pose(10, 30)[0]
        button = page.locator("#differences button").first
        button.wait_for(timeout=60_000)
        page.locator("#worst button").first.wait_for()
        axe.check(page, "two runs compared, with the frames to look at")
        frame = int(button.inner_text().split()[1].rstrip(":"))
        button.click()
        viewer.until_shown(frame)


@once
def test_a_run_with_nothing_to_show_says_why(lab: Lab, browser: Browser, films: Path) -> None:
    """A run without poses, one that never was, and one whose film was removed, in words."""
    path = viewing.film(films / "gone.mp4", viewing.regular(30))
    key = "viewer/<i>gone.mp4"
    file_id = upload(lab, path, key)
    run = publish(lab, key, seen(path))
    dummy = lab.ask(file_id, "dummy", {"seconds": 0.1}).json()["analysis_id"]
    lab.over(dummy)
    with opened(browser, lab.link) as page:
        for what, words in ((dummy, "dummy looks for none"), ("a" * 16, "there is no analysis")):
            page.goto(f"{lab.url}/run/{what}")
            page.locator("#message", has_text=words).wait_for()
            axe.check(page, words)
        viewer = Viewer(page, lab, run, seen(path))
        assert page.title() == "<i>gone.mp4: posedrop"
        lab.s3().delete_object(Bucket="videos", Key=key)
        lab.file(key, "film gone")
        page.reload()
        page.locator("#note", has_text="film of this run was removed").wait_for()
        axe.check(page, "the film is gone")
        viewer.go(20)  # the poses are there
        drawn = viewer.drawn()
        assert drawn is not None
        assert abs(drawn[0] - pose(20)[0]) < 1.5


@once
def test_a_film_goes_on_when_its_url_has_ended(lab: Lab, browser: Browser, films: Path) -> None:
    """Where the store no longer takes the URL, another one is asked for; the frame stays."""
    path, shown = made("b-frames", films)
    key = "viewer/long.mp4"
    upload(lab, path, key)
    run = publish(lab, key, shown)
    with opened(browser, lab.link) as page:
        viewer = Viewer(page, lab, run, shown)
        viewer.go(123)
        page.evaluate(
            "delete document.querySelector('#viewer').dataset.frame;"
            "document.querySelector('#stage video').src = '/download/none/none'"  # as of a 403
        )
        viewer.until(
            "document.querySelector('#stage video').readyState >= 2 &&"
            " document.querySelector('#stage video').src.startsWith('http') &&"
            " !document.querySelector('#stage video').src.includes('/download/none')"
        )
        viewer.until_shown(123)
        viewer.check(123)
        viewer.press("ArrowRight", 124)
        viewer.check(124)


#: Names that are no names: markup, from the right to the left, one that turns the text, long ones.
HOSTILE = ("<img src=x onerror=alert(1)>", "זנב العنق", "\u202egpj.liat", "n" * 300, "")


def _binary(
    rows: int = 60,
    columns: list[tuple[str, str]] | None = None,
    likelihood: float = 0.9,
    pcutoff: float = 0.6,
) -> bytes:
    """Return a viewer.bin of the dot; a likelihood of NaN: of nothing."""
    columns = columns if columns is not None else [("", "dot"), ("", "tail")]
    values = np.full((rows, len(columns), 3), likelihood)
    for column in range(len(columns)):
        places = [pose(frame, 3 * column) for frame in range(rows)]
        values[:, column, :2] = np.array(places).reshape(-1, 2) + (0 * likelihood)
        values[rows // 2 : rows // 2 + 2, column, 0] += 300  # a frame to look at
    view = binary.View(
        frames=np.arange(rows),
        seconds=np.arange(rows) / 25,
        decoded=np.ones(rows, np.bool_),
        values=values,
        columns=columns,
        size=(viewing.WIDTH, viewing.HEIGHT),
        pcutoff=pcutoff,
        skeleton=[("dot", "tail"), ("dot", "nobody's"), ("tail", "dot")],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "viewer.bin"
        binary.write(view, path)
        return path.read_bytes()


@pytest.fixture(scope="module")
def dots(lab: Lab, films: Path) -> tuple[str, Seen]:
    """A film of 60 frames in the bucket: its key, and how it is decoded."""
    path = viewing.film(films / "dots.mp4", viewing.regular(60))
    key = "viewer/dots.mp4"
    upload(lab, path, key)
    return key, seen(path)


@once
def test_poses_that_can_not_be_read_say_what_to_do(
    lab: Lab, browser: Browser, dots: tuple[str, Seen]
) -> None:
    """Of a viewer.bin that is cut short, damaged, empty, or of another posedrop, at any byte."""
    key, shown = dots
    whole = _binary()
    at = whole.index(b'"rows": 60')
    kinds = {
        "cut short": whole[:-7],
        "damaged": whole[:40],
        "is damaged": b"",
        "of another posedrop": whole.replace(b"PDVIEW1", b"PDVIEW2", 1),
        "viewer.bin is damaged": whole[:at] + b'"rows": -1' + whole[at + 10 :],
        "no frames to show": _binary(0),
    }
    with opened(browser, lab.link) as page:
        for number, (words, data) in enumerate(kinds.items()):
            run = publish(lab, key, shown, view=data, number=10 + number)
            page.goto(f"{lab.url}/run/{run}")
            page.locator("#message", has_text=words).wait_for()
            assert not page.locator("#viewer").is_visible()
        axe.check(page, "a viewer.bin that can't be read")


@once
def test_what_a_moment_mends_needs_no_person(
    lab: Lab, browser: Browser, dots: tuple[str, Seen]
) -> None:
    """A script and a store that are away at first are asked again; one that says no is not."""
    key, shown = dots
    run = publish(lab, key, shown, view=_binary(), number=18)
    asked: list[str] = []

    def first(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) in {1, 2}:
            route.abort()
        elif len(asked) == 4:
            route.fulfill(status=503, headers=CORS)
        else:
            route.continue_()

    def never(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    with opened(browser, lab.link) as page:
        page.route("**/page/viewer_plot.js", first)
        page.route("**/viewer.bin?*", first)
        Viewer(page, lab, run, shown)
        assert ["viewer_plot" in url for url in asked] == [True] * 3 + [False] * 2
        page.unroute_all()
        page.route("**/viewer.bin?*", lambda route: route.fulfill(status=403, headers=CORS))
        page.reload()
        page.locator("#message", has_text="The store said 403 where the poses are").wait_for()
        page.unroute_all()
        asked.clear()
        page.route("**/viewer.bin?*", never)
        page.reload()
        page.locator("#message", has_text="The store can't be reached").wait_for()
        assert len(asked) == 4
        asked.clear()
        page.route("**/page/viewer_plot.js", never)
        page.reload()
        page.locator("#message", has_text="can't be shown in this browser").wait_for()
        assert len(asked) == 4


@once
def test_odd_poses_are_shown_as_they_are(
    lab: Lab, browser: Browser, dots: tuple[str, Seen]
) -> None:
    """None at all, none that is sure, those of 200 animals, of names that are hostile."""
    key, shown = dots
    many = [(f"mouse {number}", part) for number in range(200) for part in ("dot", "tail")]
    kinds = {
        "no bodyparts": (_binary(columns=[]), False),
        "nothing found": (_binary(likelihood=float("nan")), False),
        "nothing sure": (_binary(likelihood=0.3), False),
        "one frame": (_binary(1), True),
        "many": (_binary(columns=many), True),
        "hostile": (_binary(columns=[(a, b) for a in HOSTILE for b in HOSTILE]), True),
    }
    with opened(browser, lab.link) as page:
        for number, (what, (data, is_drawn)) in enumerate(kinds.items()):
            run = publish(lab, key, shown, view=data, number=20 + number)
            rows = range(1) if what == "one frame" else None
            viewer = Viewer(page, lab, run, shown, rows=rows)
            viewer.go(viewer.rows[-1])
            assert (viewer.drawn() is not None) == is_drawn, what
            page.keyboard.press("Home")
            viewer.until_shown(0)
            page.keyboard.press(" ")  # it plays to its end, and no further
            page.keyboard.press("End")
            viewer.until_shown(viewer.rows[-1])
        page.locator("#worst button").first.wait_for()
        axe.check(page, "names that are hostile")
        assert page.locator("img").count() == 0
        other = publish(lab, key, shown, view=_binary(columns=[("", "nose")]), number=29)
        viewer = Viewer(page, lab, run, shown, **{"with": other})
        assert "nose" in page.inner_text("#parts")
        page.locator("#colour").select_option("bodyparts")
        painted = (
            "[...document.querySelectorAll('#parts .swatch')].map((each) => each.style.background)"
        )
        colours = page.evaluate(painted)
        assert len(set(colours)) == len(HOSTILE) + 1
        page.locator("#apart-said", has_text="could not be compared").wait_for()


@once
def test_a_run_that_failed_and_one_with_lost_frames_say_so(
    lab: Lab, browser: Browser, dots: tuple[str, Seen]
) -> None:
    """Each shows its poses; the one says why, the other which frame's picture is not there."""
    key, shown = dots
    error = RunError(code="no_frames", message="It has <b>none</b>.", stage="infer")
    failed = publish(lab, key, shown, number=30, status="failed", error=error)
    lost = publish(lab, key, shown, number=31, missing=(20, 21))
    with opened(browser, lab.link) as page:
        page.goto(f"{lab.url}/run/{failed}")
        page.locator("#message", has_text="It has <b>none</b>.").wait_for()
        page.wait_for_selector("#viewer:not([hidden])")
        axe.check(page, "a run that failed")
        page.goto(f"{lab.url}/run/{lost}#frame=21")
        page.locator("#note", has_text="a copy of it is being made").wait_for()
        axe.check(page, "a copy is being made")
        viewer = Viewer(page, lab, lost, shown)
        viewer.go(21)
        page.locator("#time", has_text="can't be read").wait_for()


@once
def test_a_film_that_goes_while_it_is_watched_leaves_the_poses(
    lab: Lab, browser: Browser, films: Path
) -> None:
    """In words, and without a wait: the poses go on, at any frame."""
    path = viewing.film(films / "going.mp4", viewing.regular(60))
    key = "viewer/going.mp4"
    upload(lab, path, key)
    shown = seen(path)
    run = publish(lab, key, shown)
    with opened(browser, lab.link) as page:
        viewer = Viewer(page, lab, run, shown)
        viewer.go(30)
        lab.s3().delete_object(Bucket="videos", Key=key)
        lab.file(key, "film gone")
        page.evaluate("document.querySelector('#stage video').src = '/download/none/none'")
        page.locator("#note", has_text="film of this run was removed").wait_for()
        assert page.locator("#stage video").count() == 0
        for frame in range(31, 36):
            viewer.press("ArrowRight", frame)
        drawn = viewer.drawn()
        assert drawn is not None
        assert abs(drawn[0] - pose(35)[0]) < 1.5


#: Has a page be one that nobody looks at for its first second, with what browsers then do not do.
NOT_LOOKED_AT = """let hidden = true;
Object.defineProperty(document, "hidden", { get: () => hidden });
const tells = HTMLVideoElement.prototype.requestVideoFrameCallback;
HTMLVideoElement.prototype.requestVideoFrameCallback = function ask(call) {
  return tells.call(this, (...told) => (hidden ? ask.call(this, call) : call(...told)));
};
setTimeout(() => {
  hidden = false;
  document.dispatchEvent(new Event("visibilitychange"));
}, 1000);"""


@once
@pytest.mark.parametrize("is_refused", [False, True])
def test_a_page_that_is_not_looked_at_asks_for_no_copy(
    lab: Lab, browser: Browser, dots: tuple[str, Seen], is_refused: bool
) -> None:
    """A browser presents no frames in a tab behind others: that is no reason to doubt the film.

    Nor is a first URL that the store refuses. One is asked for when the page is looked at.
    """
    key, shown = dots
    run = publish(lab, key, shown, number=40 + is_refused, view=_binary(columns=[("", "dot")]))
    with opened(browser, lab.link) as page:
        page.add_init_script(NOT_LOOKED_AT)
        views: list[str] = []
        refused: list[str] = []
        page.on("request", lambda each: views.append(each.url) if "/view/" in each.url else None)

        def refuse_first(route: Route) -> None:
            if refused:
                route.continue_()
            else:
                refused.append(route.request.url)
                route.fulfill(status=403)

        if is_refused:
            page.route("**/dots.mp4?*", refuse_first)
        viewer = Viewer(page, lab, run, shown)
        viewer.go(40)
        viewer.check(40)
        assert not any("copy=" in url for url in views)
        # One more where the page was hidden until the URL that came with the poses was old.
        assert len(refused) == is_refused
        assert len(views) - is_refused in {1, 2}
