"""Forms of analyses on the page, in a real browser: each argument, its error, crop, rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import axe
from tests.support.browser import opened
from tests.support.every_field import HOSTILE
from tests.support.lab import Embedded
from tests.support.labs import cold
from tests.support.samples import REPOSITORY, Sample, free_box, sample

PLUGIN = REPOSITORY / "tests/support/every_field_plugin"
FILM = "cohort3/day1/m1.mp4"


@pytest.fixture(scope="module")
def forms_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A running posedrop with an analysis of each kind of argument."""
    lab = cold(Embedded(tmp_path_factory.mktemp("forms") / "data"), PLUGIN)
    lab.start()
    yield lab
    assert lab.stop() == 0


@pytest.fixture(scope="module")
def mouse(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Some frames of a mouse."""
    return sample(tmp_path_factory.mktemp("films"), 12)


@pytest.fixture(scope="module")
def film(forms_lab: Embedded, mouse: Sample) -> dict[str, Any]:
    """A film that no rule is for."""
    forms_lab.s3().upload_file(str(mouse.film), "videos", FILM)
    return forms_lab.file(FILM)


@pytest.fixture
def page(browser: Browser, forms_lab: Embedded, film: dict[str, Any]) -> Iterator[Page]:
    """The page, with the film on it."""
    with opened(browser, forms_lab.link) as page:
        expect(page.get_by_text(film["filename"]).first).to_be_visible()
        yield page


def asked(page: Page, analysis: str) -> Locator:
    """Open the dialog of the one film, choose an analysis, and return the dialog."""
    page.get_by_role("button", name="analyse", exact=True).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("analysis").select_option(analysis)
    return dialog


def sent(page: Page, dialog: Locator) -> tuple[dict[str, Any], int]:
    """Have the dialog ask; return what it sent, and the status of the answer."""

    def is_asked(answer: Any) -> bool:
        said = answer.request.post_data_json if answer.request.method == "POST" else None
        return answer.url.endswith("/analyse") and not (said or {}).get("dry_run")

    with page.expect_response(is_asked) as answer:
        dialog.get_by_role("button", name="analyse", exact=True).click()
    body: dict[str, Any] = answer.value.request.post_data_json
    return body, answer.value.status


def field(dialog: Locator, name: str) -> Locator:
    """Return the field of an argument by its label."""
    return dialog.get_by_label(name, exact=True)


def test_all_films_of_a_folder_are_analysed_stopped_and_made_anew(
    page: Page, forms_lab: Embedded, mouse: Sample
) -> None:
    """By keyboard, each after a question that says of how many."""
    films: list[str] = []
    for number in range(2):
        content = mouse.film.read_bytes() + free_box(16, bytes([number]))
        forms_lab.s3().put_object(Bucket="videos", Key=f"many/{number}.mp4", Body=content)
        films.append(forms_lab.file(f"many/{number}.mp4")["file_id"])
    page.locator("#folder").fill("many/")
    buttons = page.get_by_role("group", name="all films of the folder")

    def sure(question: str, yes: str) -> None:
        dialog = page.get_by_role("dialog", name=question)
        axe.check(page, question)
        dialog.get_by_role("button", name=yes, exact=True).press("Enter")

    buttons.get_by_role("button", name="analyse all").press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("analysis").select_option("dummy")
    field(dialog, "seconds").fill("60")
    field(dialog, "seconds").press("Enter")
    expect(page.get_by_role("dialog").last).to_contain_text("2 new")
    sure("Analyse 2 films", "analyse")
    expect(page.locator("#runs-count")).to_have_text("2")
    expect(page.locator("#batches")).to_contain_text("dummy")
    buttons.get_by_role("button", name="stop all").press("Enter")
    sure("Stop 2 runs", "stop")
    expect(page.locator("#summary")).to_contain_text("2 cancelled", timeout=30_000)
    buttons.get_by_role("button", name="retry failed").press("Enter")
    sure("Make 2 cancelled runs", "retry")
    expect(page.locator("#summary")).to_contain_text("2 running", timeout=30_000)
    buttons.get_by_role("button", name="stop all").press("Enter")
    sure("Stop 2 runs", "stop")
    expect(page.locator("#summary")).to_contain_text("4 cancelled", timeout=30_000)
    for file_id in films:
        forms_lab.http.delete(f"/upload/{file_id}")


def test_every_kind_of_argument_is_set_by_its_field(page: Page, forms_lab: Embedded) -> None:
    """A plug-in's arguments of each kind arrive as they were set; those left alone do not."""
    dialog = asked(page, "every_field")
    expect(dialog).to_contain_text(HOSTILE)
    assert field(dialog, "text").input_value() == "plain"
    assert field(dialog, "whole").input_value() == "7"
    expect(dialog).to_contain_text("a whole number, 1 or more, at most 9; default 7")
    field(dialog, "needed").fill("abc")
    body, status = sent(page, dialog)
    assert (body["args"], status) == ({"needed": "abc"}, 202)

    dialog = asked(page, "every_field")
    for name, value in {
        "needed": "all",
        "text": "",
        "maybe_text": "",
        "whole": "9",
        "share": ".5",
        "maybe_number": "-1e-3",
        "day": "2026-11-26",
        "names 1": "ONE",
        "pair 2": "-7.25",
        "mixed": "12",
        "anything": '{"deep": [1, null, {"x": "é"}]}',
    }.items():
        field(dialog, name).fill(value)
    field(dialog, "flag").uncheck()
    field(dialog, "maybe_flag").select_option("false")
    field(dialog, "word").select_option(HOSTILE)
    field(dialog, "number_word").select_option("4")
    field(dialog, "side").select_option("right")
    dialog.get_by_role("button", name="remove").nth(1).click()  # of the second name
    dialog.get_by_role("button", name="add to names").click()
    page.keyboard.type("three")
    field(dialog, "maybe_counts").check()
    for count in ("4", "5"):
        dialog.get_by_role("button", name="add to maybe_counts").click()
        page.keyboard.type(count)
    dialog.get_by_role("button", name="add to sides").click()
    field(dialog, "sides 1").select_option("right")
    point = dialog.get_by_role("group", name="point", exact=True)
    point.get_by_label("x", exact=True).fill("11")
    dialog.locator("summary").click()
    field(dialog, "zone").check()
    field(dialog, "name").fill("nest")
    dialog.get_by_role("button", name="add to corners").click()
    dialog.get_by_role("group", name="corners 1").get_by_label("x", exact=True).fill("3")
    field(dialog, "table").fill('{"a": 1}')
    body, status = sent(page, dialog)
    assert body["args"] == {
        "needed": "all",
        "text": "",
        "maybe_text": None,
        "whole": 9,
        "share": 0.5,
        "maybe_number": -0.001,
        "flag": False,
        "maybe_flag": False,
        "word": HOSTILE,
        "number_word": 4,
        "side": "right",
        "day": "2026-11-26",
        "names": ["ONE", "three"],
        "maybe_counts": [4, 5],
        "sides": ["right"],
        "pair": [1, -7.25],
        "point": {"x": 11, "y": 2},
        "zone": {"name": "nest", "corners": [{"x": 3, "y": 3.5}], "inner": None},
        "mixed": 12,
        "table": {"a": 1},
        "anything": {"deep": [1, None, {"x": "é"}]},
    }
    assert status == 202
    runs = forms_lab.get("/analyses", analysis="every_field")["items"]
    assert {json.dumps(run["args"]["zone"]) for run in runs} == {
        "null",
        json.dumps(body["args"]["zone"] | {"corners": [{"x": 3.0, "y": 3.5}]}),
    }


def test_what_the_server_refuses_is_said_at_its_field(page: Page) -> None:
    """Each wrong argument has its words beside it, in whatever part of the form; others none."""
    dialog = asked(page, "every_field")
    for name, value in {"needed": "No", "whole": "ten", "share": "1", "names 2": "x"}.items():
        field(dialog, name).fill(value)
    dialog.locator("summary").click()
    field(dialog, "zone").check()
    field(dialog, "name").fill("n")
    dialog.get_by_role("button", name="add to corners").click()
    dialog.locator("summary").click()  # closed: what is wrong there opens it
    body, status = sent(page, dialog)
    assert status == 422
    assert body["args"]["whole"] == "ten"
    wrong = {
        "needed": "String should match pattern",
        "whole": "Input should be a valid integer",
        "share": "Input should be less than 1",
        "name": "String should have at least 2 characters",
    }
    for name, words in wrong.items():
        at = field(dialog, name)
        expect(at).to_have_attribute("aria-invalid", "true")
        said = page.locator(f"#{at.get_attribute('id')}-why")
        expect(said).to_contain_text(words)
        expect(said).to_be_visible()
    corner = dialog.get_by_role("group", name="corners 1").get_by_label("x", exact=True)
    expect(corner).to_have_attribute("aria-invalid", "true")
    expect(field(dialog, "needed")).to_be_focused()
    assert field(dialog, "text").get_attribute("aria-invalid") is None
    axe.check(page, "errors at their fields")
    field(dialog, "table").fill("{oops")
    dialog.get_by_role("button", name="analyse", exact=True).click()
    expect(field(dialog, "table")).to_have_attribute("aria-invalid", "true")
    assert field(dialog, "whole").get_attribute("aria-invalid") is None


def test_a_crop_is_drawn_in_the_films_pixels(page: Page, film: dict[str, Any]) -> None:
    """Mouse and keys give columns and rows of the film, whatever the size of its picture."""
    wide, high = film["probe"]["width"], film["probe"]["height"]
    dialog = asked(page, "every_field")
    crop = dialog.get_by_role("group", name="crop", exact=True)
    crop.get_by_label("crop", exact=True).check()
    values = lambda: [int(field(crop, name).input_value()) for name in ("x1", "x2", "y1", "y2")]  # noqa: E731
    assert values() == [0, wide, 0, high]
    picture = crop.get_by_role("img")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    shown = picture.bounding_box()
    assert shown is not None
    at = lambda x, y: (shown["x"] + x * shown["width"], shown["y"] + y * shown["height"])  # noqa: E731
    page.mouse.move(*at(0.25, 0.2))
    page.mouse.down()
    page.mouse.move(*at(0.5, 0.5))
    page.mouse.move(*at(0.75, 0.8))
    page.mouse.up()
    drawn = values()
    wanted = [0.25 * wide, 0.75 * wide, 0.2 * high, 0.8 * high]
    pixel = wide / shown["width"]
    assert all(abs(a - b) <= 2 * pixel for a, b in zip(drawn, wanted, strict=True)), drawn
    page.mouse.move(*at(0.5, 0.5))
    page.mouse.down()
    page.mouse.move(*at(2, 0.5))  # far over its right side
    page.mouse.up()
    size = drawn[1] - drawn[0]
    assert values() == [wide - size, wide, *drawn[2:]]
    box = crop.get_by_role("application", name="crop")
    box.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Shift+ArrowDown")
    moved = [wide - size - 10, wide - 10, drawn[2] - 1, min(drawn[3] - 1 + 10, high)]
    assert values() == moved
    axe.check(page, "the crop")
    field(dialog, "needed").fill("crop")
    body, status = sent(page, dialog)
    assert status == 202
    assert [body["args"]["crop"][name] for name in ("x1", "x2", "y1", "y2")] == moved


def test_a_choice_is_kept_for_a_folder(
    page: Page, forms_lab: Embedded, mouse: Sample, tmp_path: Path
) -> None:
    """It says what it starts, writes posedrop.json, and overwrites none that somebody changed."""
    copy = tmp_path / "m2.mp4"
    copy.write_bytes(mouse.film.read_bytes() + b"\0\0\0\x08free")
    s3 = forms_lab.s3()
    s3.upload_file(str(copy), "videos", "cohort4/<b>/m2.mp4")
    forms_lab.file("cohort4/<b>/m2.mp4")
    forms_lab.until(lambda: forms_lab.get("/rule", folder="cohort4/")["waiting"], "it to wait")
    row = page.get_by_role("row").filter(has_text="m2.mp4")
    row.get_by_role("button", name="analyse", exact=True).click()
    choice = page.get_by_role("dialog", name="Analyse m2.mp4")
    choice.get_by_label("analysis").select_option("dummy")
    field(choice, "seconds").fill("-1")
    choice.get_by_role("button", name="keep for this folder").click()
    keep = page.get_by_role("dialog", name="Keep for a folder")
    expect(keep).to_contain_text("It is written to cohort4/<b>/posedrop.json.")
    expect(keep).to_contain_text("It starts 1 that is there:")
    expect(keep).to_contain_text("cohort4/<b>/m2.mp4")
    axe.check(page, "keep for a folder")
    keep.get_by_role("button", name="keep").click()
    expect(field(choice, "seconds")).to_have_attribute(
        "aria-invalid", "true"
    )  # a 422, at its field
    field(choice, "seconds").fill("0.1")
    choice.get_by_role("button", name="keep for this folder").click()
    expect(keep).to_contain_text("It starts 1 that is there:")
    theirs = b'{"comment": "mine", "keep": true}'  # which asks for nothing
    s3.put_object(Bucket="videos", Key="cohort4/<b>/posedrop.json", Body=theirs)
    keep.get_by_role("button", name="keep").click()
    expect(keep).to_contain_text("was written, changed or removed by somebody else")
    rule = lambda: s3.get_object(Bucket="videos", Key="cohort4/<b>/posedrop.json")["Body"].read()  # noqa: E731
    assert rule() == theirs
    expect(keep).to_contain_text("It is added to cohort4/<b>/posedrop.json.")
    keep.get_by_role("button", name="keep").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#said")).to_contain_text("cohort4/<b>/posedrop.json says so now.")
    assert json.loads(rule()) == {
        "analysis": "dummy",
        "comment": "mine",
        "keep": True,
        "args": {"seconds": 0.1},
    }
    file_id = forms_lab.file("cohort4/<b>/m2.mp4")["file_id"]
    forms_lab.over(forms_lab.run_of(file_id))


def test_models_are_shown_with_what_they_find_and_their_use(
    browser: Browser, forms_lab: Embedded, film: dict[str, Any], mouse: Sample
) -> None:
    """Without one the page says how to push it; then bodyparts, digest, and runs that used it."""
    with opened(browser, forms_lab.link) as page:
        expect(page.get_by_text("No models yet")).to_be_visible()
        command = page.get_by_label("command that pushes a model").input_value()
        assert command.startswith("posedrop models push ")
        forms_lab.posedrop("models", "push", str(mouse.model), "--name", "mouse")
        page.reload()
        models = page.get_by_role("region", name="Models")
        for words in (", ".join(mouse.bodyparts), "by no run yet", "one"):
            expect(models).to_contain_text(words)
        dialog = asked(page, "deeplabcut_2d")
        assert field(dialog, "model").locator("option").all_inner_texts() == ["choose", "mouse"]
        for group in ("network", "frames", "smoothing", "drawing", "animals"):
            dialog.locator("summary").filter(has_text=group).click()
        axe.check(page, "the form of deeplabcut_2d")
        field(dialog, "model").select_option("mouse")
        field(dialog, "snapshot").fill("none-such")
        field(dialog, "stop").fill("2")
        _, status = sent(page, dialog)
        assert status == 422  # what only the server knows, at its field
        expect(field(dialog, "snapshot")).to_be_focused()
        field(dialog, "snapshot").fill("")
        body, status = sent(page, dialog)
        assert (body["args"], status) == ({"model": "mouse", "stop": 2}, 202)
        page.reload()
        expect(models).to_contain_text("by 1 run, the last")
        axe.check(page, "models")
    forms_lab.http.delete(f"/analyse/{forms_lab.run_of(film['file_id'])}")


def test_the_keyboard_alone_asks_changes_and_deletes(
    browser: Browser, forms_lab: Embedded, mouse: Sample, tmp_path: Path
) -> None:
    """Tab, arrows, Space, Enter and Escape do what a mouse does, and the focus is never lost."""
    copy = tmp_path / "keys.mp4"
    copy.write_bytes(mouse.film.read_bytes() + b"\0\0\0\x0cfreeKEYS")
    forms_lab.s3().upload_file(str(copy), "videos", "keys/keys.mp4")
    file_id = forms_lab.file("keys/keys.mp4")["file_id"]
    with opened(browser, forms_lab.link) as page:
        row = page.get_by_role("row").filter(has_text="keys.mp4")
        expect(row).to_be_visible()

        def tab_to(wanted: Locator) -> None:
            for _ in range(200):
                page.keyboard.press("Tab")
                at = page.evaluate_handle("() => document.activeElement").as_element()
                assert at is not None
                outline = at.evaluate("(node) => getComputedStyle(node).outlineStyle")
                is_page = at.evaluate("(node) => node === document.body")  # it begins anew
                assert is_page or outline != "none", at.evaluate("(node) => node.outerHTML")
                if wanted.evaluate("(node) => node === document.activeElement"):
                    return
            raise AssertionError(f"Tab never comes to {wanted}")

        tab_to(row.get_by_role("button", name="analyse", exact=True))
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("analysis")).to_be_focused()
        page.keyboard.type("dummy")
        expect(field(dialog, "seconds")).to_have_value("5")
        tab_to(field(dialog, "seconds"))
        page.keyboard.press("Control+A")
        page.keyboard.type("0.3")
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        expect(page.locator("#said")).to_contain_text("Asked for dummy of keys.mp4.")
        first = forms_lab.run_of(file_id)
        forms_lab.over(first)
        card = page.get_by_role("article").filter(has_text=first)
        again = card.get_by_role("button", name="retry with changes")
        expect(again).to_be_visible()
        tab_to(again)
        page.keyboard.press("Space")
        expect(dialog.get_by_label("analysis")).to_have_value("dummy")
        expect(field(dialog, "seconds")).to_have_value("0.3")
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        tab_to(row.get_by_role("button", name="delete"))
        page.keyboard.press("Enter")
        asks = page.get_by_role("dialog", name="Delete keys.mp4?")
        expect(asks.get_by_role("button", name="cancel")).to_be_focused()
        axe.check(page, "a question")
        page.keyboard.press("Escape")
        expect(asks).to_have_count(0)
        tab_to(row.get_by_role("button", name="delete"))
        page.keyboard.press("Enter")
        tab_to(asks.get_by_role("button", name="delete"))
        page.keyboard.press("Enter")
        expect(row).to_have_count(0)
        expect(page.locator("main:focus, main :focus")).to_have_count(1)


def test_an_empty_page_says_the_next_step(browser: Browser, tmp_path: Path) -> None:
    """With nothing there the page says what to do first, to everybody."""
    lab = cold(Embedded(tmp_path / "data")).start()
    try:
        with opened(browser, lab.link) as page:
            expect(page.get_by_text("No models yet")).to_be_visible()
            axe.check(page, "the empty page")
            page.get_by_role("button", name="what the folder says").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("analysis").select_option("deeplabcut_2d")
            expect(dialog).to_contain_text("There is no model for it yet")
            axe.check(page, "no model")
    finally:
        assert lab.stop() == 0


def test_every_state_is_for_everybody(
    browser: Browser, forms_lab: Embedded, mouse: Sample, tmp_path: Path
) -> None:
    """Refused, failed, waiting and running: each in words, hostile names as text, for everybody."""
    s3 = forms_lab.s3()
    bad = {"analysis": "nothing-such"}
    long = {"analysis": "dummy", "args": '{"seconds": 60}'}
    for name, metadata in {f"{HOSTILE}.mp4": bad, "failed.mp4": bad, "runs.mp4": long}.items():
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(mouse.film.read_bytes() + b"\0\0\0\x10free" + name[:8].encode())
        s3.upload_file(str(copy), "videos", f"states/{name}", ExtraArgs={"Metadata": metadata})
    s3.put_object(Bucket="videos", Key="states/notes.mp4", Body=b"no film")
    s3.put_object(Bucket="videos", Key="states/<i>/posedrop.json", Body=b"{,}")
    refused = forms_lab.file("states/notes.mp4")["refusal"]["message"]
    running = forms_lab.run_of(forms_lab.file("states/runs.mp4")["file_id"])
    forms_lab.over(forms_lab.run_of(forms_lab.file("states/failed.mp4")["file_id"]))
    forms_lab.until(lambda: forms_lab.get("/rules")["items"], "the wrong rule to be told")
    with opened(browser, forms_lab.link) as page:
        for words in (refused, "there is no analysis 'nothing-such'", f"{HOSTILE}.mp4", running):
            expect(page.get_by_text(words).first).to_be_visible()
        expect(page.locator("img[src=x]")).to_have_count(0)
        axe.check(page, "every state")
    forms_lab.http.delete(f"/analyse/{running}")
    s3.delete_object(Bucket="videos", Key="states/<i>/posedrop.json")
