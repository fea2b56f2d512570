"""Uploads in parts on a real MinIO: by a browser, the command line, a watched folder."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
import psutil
import pytest
from boto3.s3.transfer import TransferConfig
from playwright.sync_api import Browser, Page, expect

from posedrop.buckets import layout
from tests.support import axe
from tests.support.bootstrapped import Store, Webhook
from tests.support.browser import opened
from tests.support.no_unix import NO_UNIX
from tests.support.tools import tool
from tests.support.uploads import (
    FILES,
    FILM_BYTES,
    PART,
    UploadLab,
    make_film,
    make_tree,
    upload_lab,
)

#: Has the page wait before it reads a part of a film, until ``window.release()``.
HOLD_READING = """() => {
    const stream = Blob.prototype.stream;
    const released = new Promise((resolve) => { window.release = resolve; });
    window.held = 0;
    Blob.prototype.stream = function () {
        const reader = stream.call(this).getReader();
        const read = async () => { window.held++; await released; return reader.read(); };
        return { getReader: () => ({ read }) };
    };
}"""


#: The standard's Blob.text(); Chromium's looks for a byte order mark, that of others does not.
TEXT_IS_UTF8 = """() => {
    Blob.prototype.text = async function () {
        return new TextDecoder().decode(await this.arrayBuffer());
    };
}"""


@pytest.fixture(scope="module")
def lab(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadLab]:
    with upload_lab(store, tmp_path_factory.mktemp("uploads")) as lab:
        yield lab


@pytest.fixture
def slowly(lab: UploadLab) -> Iterator[UploadLab]:
    """The lab, with time to be interrupted in."""
    lab.watched.seconds = 0.2
    lab.watched.signed.clear()
    yield lab
    lab.watched.seconds = 0.0


def until(is_so: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.05)
    return found


def post(lab: UploadLab, where: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{lab.url}{where}", json=body, timeout=30)


def created(webhook: Webhook, key: str) -> int:
    """Return how many creations of an object the fast target was told of; both are told."""
    return len({body["Records"][0]["s3"]["object"]["sequencer"] for _, body in webhook.of(key)})


def interrupted(lab: UploadLab, restarts: int) -> threading.Thread:
    """Kill the store, and start it again, while an upload goes on."""

    def kill() -> None:
        for _ in range(restarts):
            before = len(lab.watched.signed)
            until(lambda before=before: len(lab.watched.signed) > before + 1)
            lab.store.server.kill()
            time.sleep(0.5)
            lab.store.server.start()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_the_command_line_goes_on_after_a_kill_and_a_store_that_was_killed(
    slowly: UploadLab, webhook: Webhook, tmp_path: Path
) -> None:
    """What is sent again is what was under way; said once more, it sends nothing."""
    root, lab = tmp_path / "films", slowly
    sha256 = make_film(root / "day1" / "-mäuse+%.avi", FILM_BYTES)
    (root / "day1" / "posedrop.json").write_text('{"analysis": "dummy"}')
    key = "cohort3/day1/-mäuse+%.avi"
    command = lab.command("upload", str(root), "--to", "cohort3")
    count = -(-FILM_BYTES // PART)
    with subprocess.Popen(command, env=lab.environment) as first:
        until(lambda: lab.parts_of(key) >= 0.6 * count)
        first.kill()
    assert not lab.keys(key)
    there = lab.parts_of(key)
    assert there >= 0.6 * count
    lab.watched.signed.clear()
    killer = interrupted(lab, 1)
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    killer.join(60)
    assert done.returncode == 0, done.stderr
    assert set(lab.watched.signed) <= set(range(1, count + 1))
    assert len(set(lab.watched.signed)) == count - there
    assert lab.sha256(key) == sha256
    until(lambda: created(webhook, f"videos/{key}") == 1)
    lab.watched.signed.clear()
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, lab.watched.signed) == (0, [])
    with (root / "day1" / "-mäuse+%.avi").open("r+b") as file:
        file.seek(FILM_BYTES // 2)
        file.write(b"another")
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, lab.watched.signed) == (1, [])
    assert "with other content; nothing is replaced" in done.stderr
    assert lab.unfinished(key) == 0


def test_a_large_film_without_a_folder_goes_up_in_parts(lab: UploadLab, tmp_path: Path) -> None:
    """Beside others of its name, and whole."""
    sha256 = make_film(tmp_path / "large.mp4", 2 * PART + 3)
    command = lab.command("upload", str(tmp_path / "large.mp4"))
    environment = {**lab.environment, "POSEDROP_MULTIPART_BYTES": str(PART)}
    lab.watched.signed.clear()
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert sorted(lab.watched.signed) == [1, 1, 2, 2, 3, 3]
    keys = {key for key in lab.keys("uploads/") if key.endswith("/large.mp4")}
    assert [lab.sha256(key) for key in keys] == [sha256] * 2
    assert lab.unfinished(*keys) == 0


def test_a_rule_goes_up_in_the_encoding_that_an_editor_gave_it(
    lab: UploadLab, tmp_path: Path
) -> None:
    """PowerShell 5's ``>`` and Notepad's "Unicode" write UTF-16; its film follows it."""
    rule = '{"analysis": "dummy"}\r\n'.encode("utf-16")
    (tmp_path / "posedrop.json").write_bytes(rule)
    make_film(tmp_path / "a.mp4", 100)
    command = lab.command("upload", str(tmp_path), "--to", "utf16")
    for state in ("new", "exists"):
        asked = [*command, "--dry-run", "--json"]
        said = subprocess.run(asked, env=lab.environment, check=True, capture_output=True).stdout
        assert [item["state"] for item in json.loads(said)] == [state, state]
        subprocess.run(command, env=lab.environment, check=True, capture_output=True)
    sent = lab.store.s3("ROOT").get_object(Bucket="videos", Key="utf16/posedrop.json")
    assert sent["Body"].read() == rule


def test_a_watched_folder_sends_each_film_once(
    lab: UploadLab, webhook: Webhook, tmp_path: Path
) -> None:
    """Not while it is written; over a kill, a store that is away, and a memory that is lost."""
    root = tmp_path / "recordings"
    command = lab.command("watch", str(root), "--to", "watched", "--settle", "1", "--every", "0.2")
    (root / "Tag 1").mkdir(parents=True)
    growing = root / "Tag 1" / "growing.avi"
    keys = [f"watched/Tag 1/{name}.avi" for name in ("growing", "later", "third")]

    def start(*before: str) -> subprocess.Popen[bytes]:
        words = [command[0], *before, *command[1:]]
        return subprocess.Popen(words, env=lab.environment, stdout=subprocess.DEVNULL)

    with start() as first:
        with growing.open("wb") as file:
            for _ in range(20):
                file.write(os.urandom(50_000))
                file.flush()
                time.sleep(0.1)
                assert not lab.keys("watched/")
        until(lambda: lab.keys("watched/") == {keys[0]})
        assert (
            lab.store.s3("ROOT").head_object(Bucket="videos", Key=keys[0])["ContentLength"]
            == growing.stat().st_size
        )
        lab.store.server.kill()
        later = make_film(root / "Tag 1" / "later.avi", PART + 3)
        time.sleep(2)
        lab.store.server.start()
        until(lambda: lab.keys("watched/") == set(keys[:2]))
        first.kill()
    third = make_film(root / "Tag 1" / "third.avi", 100)
    for memory in (Path(lab.environment["XDG_CONFIG_HOME"]) / "posedrop" / "watched").iterdir():
        memory.unlink()
    lab.watched.signed.clear()
    with start(NO_UNIX) as second:  # a recorder's PC may have Windows
        until(lambda: lab.keys("watched/") == set(keys))
        time.sleep(1)
        second.kill()
    assert lab.watched.signed == [1]
    assert [lab.sha256(key) for key in keys[1:]] == [later, third]
    until(lambda: all(created(webhook, f"videos/{key}") == 1 for key in keys))
    assert len(list((root / "Tag 1").iterdir())) == 3


def test_a_film_that_another_program_has_sent_is_there_if_it_is_known_to_be_the_same(
    lab: UploadLab, tmp_path: Path
) -> None:
    """By what the store tells of it. Whoever is told so may delete their own."""
    root, s3 = tmp_path / "recordings", lab.store.s3("ROOT")
    names = ("put", "signed", "small parts", "odd parts")
    whole, signed, usual, odd = (root / f"{name}.avi" for name in names)
    for path in (whole, signed):
        make_film(path, 100)
    for path in (usual, odd):
        make_film(path, 17 * 2**20 + 3)

    def key_of(path: Path) -> str:
        return f"theirs/{path.name}"

    s3.put_object(Bucket="videos", Key=key_of(whole), Body=whole.read_bytes())
    asked = {"Bucket": "videos", "Key": key_of(signed)}  # of this the store has its ETag alone
    httpx.put(s3.generate_presigned_url("put_object", asked), content=signed.read_bytes())
    for path, part in ((usual, 8 * 2**20), (odd, 7 * 2**20 + 1)):
        cut = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
        s3.upload_file(str(path), "videos", key_of(path), Config=cut)
    lab.watched.signed.clear()
    command = lab.command("upload", str(root), "--to", "theirs")
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if " was there " in line]
    assert {line.rpartition("/")[2] for line in told} == {whole.name, signed.name, usual.name}
    assert (done.stderr.count("can't be told"), odd.name in done.stderr) == (1, True)
    for path in root.iterdir():
        with path.open("r+b") as file:
            file.write(b"another")
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, " was there " in done.stdout) == (1, False)
    assert all(f"{path}: " in done.stderr for path in root.iterdir())
    watching = lab.command("watch", str(root), "--to", "theirs", "--settle", "0", "--every", "0.2")
    environment = {**lab.environment, "PYTHONUNBUFFERED": "1"}
    for _ in range(2):  # none is remembered
        with subprocess.Popen(watching, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = [line.decode() for line in islice(process.stdout, 1 + len(names))]
            process.kill()
        assert sum("is not taken" in line for line in said) == len(names)
    assert lab.watched.signed == []


def drop(page: Page, *paths: Path) -> None:
    """Drop files or folders on the page, as a person's hand does."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        x, y = box["x"] + 10, box["y"] + 10
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})


def begin(page: Page, to: str, *paths: Path) -> str:
    """Drop paths into a folder, and start; return what the preview said."""
    page.get_by_label("folder of the bucket").fill(to)
    drop(page, *paths)
    words = page.locator("#preview-words")
    expect(words).to_contain_text("go up", timeout=60_000)
    said = words.inner_text()
    start = page.get_by_role("button", name="upload", exact=True)
    if start.is_visible():
        start.click()
    return said


def test_a_browser_goes_on_after_a_kill_and_a_store_that_was_killed_twice(
    slowly: UploadLab, browser: Browser, webhook: Webhook, tmp_path: Path
) -> None:
    """At most what was under way is sent again; the content is the file's, and told of once."""
    lab, film = slowly, tmp_path / "mouse.mp4"
    sha256 = make_film(film, FILM_BYTES)
    count = -(-FILM_BYTES // max(PART, -(-FILM_BYTES // 100)))
    key = "browser/mouse.mp4"
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    other = browser.browser_type.launch(
        executable_path=tool("chromium"), args=["--no-sandbox", "--disable-quic"]
    )
    page = other.new_page()
    page.goto(lab.url)
    begin(page, "browser", film)
    until(lambda: lab.parts_of(key) >= 0.6 * count, 300)
    for each in psutil.Process().children(recursive=True):
        if each.pid not in before:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    there = lab.parts_of(key)
    lab.watched.signed.clear()
    killer = interrupted(lab, 2)
    with opened(browser, lab.url) as page:
        begin(page, "browser", film)
        expect(page.locator("#sent-words")).to_contain_text("1 of 1 there", timeout=300_000)
        killer.join(60)
        # Those that the store did not take in time go once more.
        again = len(set(lab.watched.signed)) / count
        print(f"\n  {count} parts, {there} there at the kill, {again:.0%} sent after it")
        assert again <= 0.45
        assert lab.sha256(key) == sha256
        lab.watched.signed.clear()
        assert begin(page, "browser", film).startswith("0 go up")
        assert lab.watched.signed == []
    until(lambda: created(webhook, f"videos/{key}") == 1)
    assert lab.unfinished(key) == 0


def test_a_tree_of_hostile_names_keeps_its_form(
    lab: UploadLab, browser: Browser, webhook: Webhook, tmp_path: Path
) -> None:
    """Its rule goes up first; what is no film stays; dropped a second time, nothing starts."""
    root = tmp_path / "Kohorte 3 +%"
    made = make_tree(root, FILES)
    to = "labs/tree"
    with opened(browser, lab.url, width=360) as page:
        said = begin(page, to, root)
        below = sum(name.startswith("Tag 1/") for name in made)
        assert said.startswith(f"{FILES + 1} go up")
        assert f"an analysis runs on {below};" in said
        assert "1 are passed over" in said
        expect(page.locator("#sent-words")).to_contain_text(
            f"{FILES + 1} of {FILES + 1} there", timeout=300_000
        )
        keys = {f"{to}/{root.name}/{name}": sha256 for name, sha256 in made.items()}
        rule = f"{to}/{root.name}/Tag 1/posedrop.json"
        assert lab.keys(f"{to}/") == {*keys, rule}
        assert {key: lab.sha256(key) for key in keys} == keys
        lab.watched.signed.clear()
        said = begin(page, to, root)
        assert said.startswith("0 go up (0 bytes), an analysis runs on 0;")
        assert f"; {FILES + 1} of the same name and size are there" in said
        assert lab.watched.signed == []
    root_s3 = lab.store.s3("ROOT")
    modified = {
        each["Key"]: each["LastModified"]
        for each in root_s3.list_objects_v2(Bucket="videos", Prefix=f"{to}/")["Contents"]
    }
    assert modified[rule] == min(modified.values())
    until(lambda: all(created(webhook, f"videos/{key}") == 1 for key in keys))


def test_what_is_paused_stays_paused_and_a_reload_goes_on(
    slowly: UploadLab, browser: Browser, tmp_path: Path
) -> None:
    """By the keyboard, without a folder: the same film has the same file_id after a reload."""
    lab, film = slowly, tmp_path / "alone.mp4"
    sha256 = make_film(film, 6 * PART)
    with opened(browser, lab.url) as page:
        page.locator("#choose").set_input_files(film)
        start = page.get_by_role("button", name="upload", exact=True)
        expect(start).to_be_focused()
        axe.check(page, "a preview")
        lab.watched.seconds = 3.0  # time to press a button in, on a busy machine
        start.press("Enter")
        until(lambda: len(lab.watched.signed) >= 2)
        page.get_by_role("button", name="pause", exact=True).press("Enter")
        expect(page.locator("#sent-words")).to_contain_text("paused")
        lab.watched.seconds = 0.2
        axe.check(page, "a paused upload")
        time.sleep(1)
        signed = len(lab.watched.signed)
        time.sleep(1)
        assert len(lab.watched.signed) == signed < 6
        asked: list[str] = []
        page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        page.reload()
        assert asked == ["beforeunload"]
        page.evaluate(HOLD_READING)
        page.locator("#choose").set_input_files(film)
        page.get_by_role("button", name="upload", exact=True).press("Enter")
        until(lambda: page.evaluate("window.held"))
        for name in ("pause", "go on"):  # while the parts that are there are compared
            page.get_by_role("button", name=name, exact=True).press("Enter")
        page.evaluate("window.release()")
        until(lambda: len(lab.watched.signed) > signed)
        axe.check(page, "an upload that goes on")
        expect(page.locator("#sent-words")).to_contain_text("1 of 1 there", timeout=60_000)
        check_what_fails(page, lab, tmp_path)
    (key,) = (key for key in lab.keys("uploads/") if key.endswith("/alone.mp4"))
    assert lab.sha256(key) == sha256
    assert layout.is_upload(key, layout.file_id_of("videos", key))
    assert lab.unfinished(key) == 0


def check_what_fails(page: Page, lab: UploadLab, folder: Path) -> None:
    """Have an upload refused when its turn comes, see that it says why, and try it again."""
    make_film(folder / "late.mp4", 100)
    page.locator("#choose").set_input_files(folder / "late.mp4")
    start = page.get_by_role("button", name="upload", exact=True)
    expect(start).to_be_focused()
    refusal = {"error": {"code": "taken", "message": "there is another film"}}
    page.route("**/uploads/parts", lambda route: route.fulfill(status=409, json=refusal))
    start.press("Enter")
    expect(page.locator("#uploads")).to_contain_text("there is another film")
    expect(page.locator("#sent-words")).to_contain_text("1 failed")
    axe.check(page, "an upload that failed")
    page.unroute("**/uploads/parts")
    page.get_by_role("button", name="retry", exact=True).press("Enter")
    expect(page.locator("#sent-words")).to_contain_text("2 of 2 there", timeout=60_000)
    assert any(key.endswith("/late.mp4") for key in lab.keys("uploads/"))


def test_a_browser_sends_a_rule_in_any_encoding_that_is_read(
    lab: UploadLab, browser: Browser, tmp_path: Path
) -> None:
    """PowerShell and old editors write UTF-16, or the code page of the machine."""
    root, rule = tmp_path / "rules", '{"analysis": "dummy", "keep": ["mäuse"]}'
    encodings = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "cp1252")
    for encoding in encodings:
        make_film(root / encoding / "a.mp4", 100)
        (root / encoding / "posedrop.json").write_bytes(rule.encode(encoding))
    with opened(browser, lab.url) as page:
        page.evaluate(TEXT_IS_UTF8)
        said = begin(page, "encodings", root)
        assert said.startswith("10 go up"), said
        assert "runs on 5;" in said
        expect(page.locator("#sent-words")).to_contain_text("10 of 10 there", timeout=60_000)
    keys = {f"encodings/rules/{encoding}/posedrop.json" for encoding in encodings}
    assert keys <= lab.keys("encodings/")


def test_what_can_not_go_up_is_said_before_it_does(lab: UploadLab) -> None:
    """Each file has a state and a reason; what is there is never replaced."""
    lab.store.s3("ROOT").put_object(Bucket="videos", Key="seen/a.mp4", Body=b"film")
    files = {
        "a.mp4": (4, "exists", None),
        "b.mp4": (0, "refused", "empty"),
        "c.mp4": (10**15, "refused", "more than"),
        "x/notes.txt": (4, "passed over", "no film"),
        "x/._a.mp4": (4, "passed over", "no film"),
        "x/../a.mp4": (4, "refused", "no name of a folder"),
        "/a.mp4": (4, "refused", "no name"),
        "x/" + "n" * 256 + ".mp4": (4, "refused", "255 bytes"),
        "/".join(["long" * 60] * 5) + "/a.mp4": (4, "refused", "1,024 bytes"),
        "x/tab\t.mp4": (4, "refused", "character"),
        "new.mp4": (4, "new", None),
    }
    asked = [{"path": path, "size": size} for path, (size, _, _) in files.items()]
    answer = post(lab, "/uploads/check", to="/seen\\", files=asked)
    assert answer.status_code == 200, answer.text
    for item, (path, (_, state, why)) in zip(answer.json()["items"], files.items(), strict=True):
        assert item["state"] == state, item
        assert why is None or why in item["why"], (path, item)
    for path, size in (("a.mp4", 5), ("x/../b.mp4", 4)):
        assert post(lab, "/uploads/parts", to="seen", path=path, size=size).status_code in {
            409,
            422,
        }
    assert post(lab, "/uploads/check", to="../x", files=[]).status_code == 422
    rule = {"path": "posedrop.json", "size": 3, "content": "{,}"}
    (item,) = post(lab, "/uploads/check", to="r", files=[rule]).json()["items"]
    assert (item["state"], "not JSON" in item["why"]) == ("refused", True)


def test_a_part_is_what_its_checksum_says_or_it_is_none(lab: UploadLab) -> None:
    """A wrong part, wrong sums, missing parts and a key that is taken end in words, and no film."""
    body, other = b"the film", b"not film"
    sums = [f"{crc32(body):08x}"]
    ticket = post(lab, "/uploads/parts", to="sums", path="a.mp4", size=len(body)).json()
    of = {name: ticket[name] for name in ("key", "upload_id", "size", "part_bytes")}
    assert post(lab, "/uploads/parts/complete", **of, crc32=sums).json()["error"]["code"] == (
        "parts_missing"
    )
    part = {"number": 1, "crc32": sums[0]}
    (signed,) = post(lab, "/uploads/parts/sign", **of, parts=[part]).json()["items"]
    for content in (other, body + b"!", b""):
        wrong = {**signed["headers"], "Content-Length": str(len(content))}
        assert httpx.put(signed["url"], content=content, headers=wrong).status_code >= 400
    unsigned = {"Content-Length": str(len(body))}
    assert httpx.put(signed["url"], content=body, headers=unsigned).status_code >= 400
    assert httpx.put(signed["url"], content=body, headers=signed["headers"]).status_code == 200
    again = post(lab, "/uploads/parts", to="sums", path="a.mp4", size=len(body)).json()
    assert (again["state"], again["upload_id"]) == ("resumed", ticket["upload_id"])
    assert [each["crc32"] for each in again["parts"]] == sums
    taken = lab.store.s3("ROOT")
    taken.put_object(Bucket="videos", Key="sums/a.mp4", Body=other)
    assert (
        post(lab, "/uploads/parts/complete", **of, crc32=sums).json()["error"]["code"] == "exists"
    )
    taken.delete_object(Bucket="videos", Key="sums/a.mp4")
    for _ in range(2):  # the first answer may be lost
        assert post(lab, "/uploads/parts/complete", **of, crc32=sums).status_code == 200
    wrong_sums = [f"{crc32(other):08x}"]
    assert post(lab, "/uploads/parts/complete", **of, crc32=wrong_sums).status_code in {404, 409}
    ticket = post(lab, "/uploads/parts", to="sums", path="b.mp4", size=len(body)).json()
    of = {name: ticket[name] for name in ("key", "upload_id", "size", "part_bytes")}
    (signed,) = post(lab, "/uploads/parts/sign", **of, parts=[part]).json()["items"]
    httpx.put(signed["url"], content=body, headers=signed["headers"])
    answer = post(lab, "/uploads/parts/complete", **of, crc32=wrong_sums)
    assert answer.json()["error"]["code"] == "parts_differ"
    assert lab.unfinished("sums/b.mp4") == 0
    assert lab.keys("sums/") == {"sums/a.mp4"}
