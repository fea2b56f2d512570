"""Which films of a watched folder go up, and under which names, on any system."""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posedrop.api.uploads import PartsTicket
from posedrop.buckets import targets
from posedrop.client import Client, trees, watch
from posedrop.errors import PosedropError

LOOKS = st.dictionaries(
    st.sampled_from(["a.mp4", "b/ü.avi"]), st.tuples(st.integers(0, 2), st.integers(0, 2))
)


@given(st.lists(st.tuples(LOOKS, st.integers(0, 20)), max_size=12))
def test_a_film_is_settled_when_it_was_the_same_for_long_enough(
    rounds: list[tuple[dict[str, tuple[int, int]], int]],
) -> None:
    """Neither while it grows or is written to, nor empty, nor before the time since it is over."""
    settling, now, same = watch.Settling(10), 0.0, dict[str, tuple[tuple[int, int], float]]()
    for looks, passed in rounds:
        now += passed
        same = {
            name: same[name] if name in same and same[name][0] == look else (look, now)
            for name, look in looks.items()
        }
        expected = {n for n, (look, since) in same.items() if look[0] and now - since >= 10}
        assert set(settling.settled(looks, now)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_what_a_rule_says_is_told_whatever_its_encoding(tmp_path: Path, encoding: str) -> None:
    """The server has to read before it goes up what it will read once it is there."""
    text = '{"analysis": "dummy", "by": "Jürgen"}'
    (tmp_path / "posedrop.json").write_bytes(text.encode(encoding))
    (rule,) = trees.walk(tmp_path)
    assert rule.to_check().content == text


@pytest.mark.parametrize(
    ("path", "root"),
    [
        (PureWindowsPath(r"D:\Aufnahmen\Tag 1\maus+1%.avi"), PureWindowsPath(r"D:\Aufnahmen")),
        (PureWindowsPath(r"\\nas\lab\Tag 1\maus+1%.avi"), PureWindowsPath(r"\\nas\lab")),
        (PureWindowsPath(r"c:\rec\Tag 1\maus+1%.avi"), PureWindowsPath(r"C:\REC")),
        (PurePosixPath("/data/Tag 1/maus+1%.avi"), PurePosixPath("/data")),
    ],
)
def test_a_name_is_the_same_on_every_system(path: PurePath, root: PurePath) -> None:
    """A drive, a share and either slash leave no trace in the key."""
    name = trees.name_below(path, root)
    assert targets.key_in(targets.check_folder("cohort3\\"), name) == "cohort3/Tag 1/maus+1%.avi"


def test_the_memory_is_another_for_each_server_and_target() -> None:
    """Two recorders on one machine do not take each other's films for sent."""
    roots = (PureWindowsPath(r"D:\a"), PureWindowsPath(r"D:\b"))
    paths = {
        watch.memory_path(root, url, to, Path("home"))
        for root in roots
        for url in ("http://a", "http://b")
        for to in ("x", "y")
    }
    assert len(paths) == 8


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("mouse.MP4", True),
        ("a/b/film.h264", True),
        ("posedrop.json", True),
        ("day1/posedrop.json", True),
        ("._mouse.mp4", False),
        (".mp4", False),
        ("a/@eaDir/mouse.mp4", False),
        ("$RECYCLE.BIN/mouse.avi", False),
        ("mouse.mp4.part", False),
        ("mouse.csv", False),
        ("Thumbs.db", False),
    ],
)
def test_films_and_rules_go_up_and_nothing_else(name: str, goes: bool) -> None:
    """Neither tables nor what systems and downloads leave in a folder."""
    assert trees.is_wanted(name) is goes


def test_a_rule_that_can_not_be_read_is_asked_about_all_the_same(tmp_path: Path) -> None:
    """Its films are told of, and itself when it is to go up."""
    gone = trees.LocalFile(tmp_path / "posedrop.json", "posedrop.json", 3)
    assert gone.to_check().content is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"a": 3}', b'{"a": [1]}', b"\xff"])
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, damage: bytes) -> None:
    """All is asked about again; it is written anew, and read by the next start."""
    path = tmp_path / "of" / "watched.json"
    path.parent.mkdir()
    path.write_bytes(damage)
    memory = watch.Memory(path, print)
    assert not memory.has("a", (3, 4))
    memory.add("a", (3, 4))
    again = watch.Memory(path, print)
    assert again.has("a", (3, 4))
    assert not again.has("a", (3, 5))
    again.keep(["b"])
    assert not watch.Memory(path, print).has("a", (3, 4))


class Away(Client):
    """A server that is away, is there, or takes no film, in turns."""

    def __init__(self, turns: list[str], *, store: bool = True) -> None:
        super().__init__("http://127.0.0.1:9")
        self.store = store
        self.turns = turns
        self.asked: list[str] = []

    def upload_into(self, path: Path, to: str, name: str | None = None, **_: object) -> object:  # type: ignore[override]
        self.asked.append(str(name))
        code = self.turns.pop(0)
        if code:
            raise PosedropError("it is so", code=code)
        size = path.stat().st_size
        return PartsTicket(file_id="x", bucket="videos", key=f"{to}/{name}", size=size, state="new")

    def has_store(self) -> bool:
        return self.store


def test_each_film_goes_up_once_whatever_happens(tmp_path: Path) -> None:
    """Over restarts; a network that is away ends a round; a refused film waits for a change."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).write_bytes(b"film")
    said: list[str] = []
    asked: list[str] = []

    def look(*turns: str) -> watch.Round:
        with Away(list(turns)) as client:  # a new one each time: it was started anew
            memory = watch.Memory(tmp_path / "memory.json", said.append)
            watcher = watch.Watcher(client, folder, "to", settle=0, memory=memory, say=said.append)
            done = watcher.look()
            if done.away is None and "changes" not in turns:
                assert watcher.look() == watch.Round()  # neither sent nor refused again
            asked[:] = client.asked
            return done

    done = look("", "unreachable")
    assert (done.sent, done.away is not None, asked) == (1, True, ["a.mp4", "b.mp4"])
    done = look("", "exists")
    assert (done.sent, done.refused, asked) == (1, 1, ["b.mp4", "c.mp4"])
    assert "c.mp4 is not taken; again in 86400 s: it is so" in said  # it was read whole for that
    (folder / "a.mp4").write_bytes(b"another")
    done = look("changes", "")
    assert (done.sent, asked) == (1, ["a.mp4", "c.mp4"])
    done = look("")
    assert (done.sent, asked) == (1, ["a.mp4"])
    assert (look().sent, asked) == (0, [])
    assert {path.name for path in folder.iterdir()} == {"a.mp4", "b.mp4", "c.mp4"}


def test_what_is_sent_is_known_though_it_can_not_be_written_down(tmp_path: Path) -> None:
    """On a full disk; that is said once. Nor is it forgotten while the folder is not mounted."""
    (tmp_path / "no folder").write_bytes(b"")
    memory_path, folder = tmp_path / "memory.json", tmp_path / "films"
    folder.mkdir()
    for place in (tmp_path / "no folder" / "memory.json", memory_path):
        said: list[str] = []
        for name in ("a.mp4", "b.mp4"):
            (folder / name).write_bytes(b"film")
        with Away(["", ""]) as client:
            memory = watch.Memory(place, said.append)
            watcher = watch.Watcher(client, folder, "to", settle=0, memory=memory, say=said.append)
            assert watcher.look().sent == 2
            assert sum("asked about again" in line for line in said) == (place != memory_path)
            for each in folder.iterdir():
                each.rename(tmp_path / each.name)
            assert watcher.look() == watch.Round()
            for name in ("a.mp4", "b.mp4"):
                (tmp_path / name).rename(folder / name)
            assert watcher.look() == watch.Round()


def test_films_that_the_store_alone_refuses_hold_up_no_other(tmp_path: Path) -> None:
    """As those whose keys lie below an object's name; where the store is away, all wait."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"film")
    said: list[str] = []
    memory = watch.Memory(tmp_path / "memory.json", said.append)
    with Away(["storage", "storage", "", "storage", ""]) as client:
        watcher = watch.Watcher(client, tmp_path, "to", settle=0, memory=memory, say=said.append)
        done = watcher.look()
        assert (done.sent, done.refused, done.away) == (1, 2, None)
        assert said == [
            "a.mp4 is not taken; again in 60 s: it is so",
            "b.mp4 is not taken; again in 60 s: it is so",
            "c.mp4 is sent: to/c.mp4",
        ]
        for name in ("d.mp4", "e.mp4"):
            (tmp_path / name).write_bytes(b"film")
        client.store = False
        done = watcher.look()
        assert (done.sent, done.refused, done.away is None) == (0, 0, False)
        assert client.asked[3:] == ["d.mp4"]
