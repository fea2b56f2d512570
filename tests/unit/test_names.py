"""buckets.names: a run's files are called as DeepLabCut calls them, whatever its film is."""

from __future__ import annotations

from email.message import Message
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posedrop.buckets import names
from posedrop.buckets.names import Naming
from posedrop.buckets.presigned import content_disposition
from posedrop.buckets.records.runs import Artefact

SCORER = "DLC_Resnet18_openfieldOct30shuffle1_snapshot_010"
DLC_NAMES = sorted(name for name, role in names.ROLES.items() if role in names.DEEPLABCUTS)


def artefact(name: str, role: str | None = None) -> Artefact:
    return Artefact(name=name, size=1, sha256="0" * 64, content_type="x", role=role)


@pytest.mark.parametrize(
    ("key", "details", "plain", "expected"),
    [
        ("day1/m.mp4", {}, "poses.h5", f"m{SCORER}.h5"),
        ("day1/m.mp4", {}, "poses_filtered.csv", f"m{SCORER}_filtered.csv"),
        ("day1/m.mp4", {}, "meta.pickle", f"m{SCORER}_meta.pickle"),
        ("day1/m.mp4", {"pcutoff": 0.29}, "pose.mp4", f"m{SCORER}_p28_labeled.mp4"),
        ("a.b.mp4", {"track_method": "ellipse"}, "poses.h5", f"a.b{SCORER}_el.h5"),
        ("a.b.mp4", {"track_method": "box"}, "poses_filtered.h5", f"a.b{SCORER}_bx_filtered.h5"),
        (
            "m.mp4",
            {"track_method": "skeleton", "individuals": ["ada"]},
            "pose.mp4",
            f"m{SCORER}_sk_bp_p60_labeled.mp4",
        ),
        ("m.mp4", {"scorer": "superanimal_bird_x"}, "poses.h5", "m_superanimal_bird_x.h5"),
        ("-50 % Maus ü", {}, "poses.csv", f"-50 % Maus ü{SCORER}.csv"),
        (".mp4", {}, "poses.csv", f".mp4{SCORER}.csv"),
        ("m.mp4", {}, "predictions.npz", "predictions.npz"),
        # No name that is a path, that can't be seen, or that means something else.
        ("m.mp4", {"scorer": "DLC/../../x"}, "poses.h5", "poses.h5"),
        ("m.mp4", {"scorer": "DLC\n"}, "poses.h5", "poses.h5"),
        ("m.mp4", {"scorer": "DLC\ud800"}, "poses.h5", "poses.h5"),
        ("poses.mp4", {"scorer": "filtered"}, "poses.h5", "poses.h5"),
        ("m" * 240 + ".mp4", {}, "poses.h5", "poses.h5"),
    ],
)
def test_a_file_is_called_as_deeplabcut_calls_it(
    key: str, details: dict[str, object], plain: str, expected: str
) -> None:
    """Film, scorer, tracker, filter, cutoff; the plain name where that can't be."""
    naming = Naming.of(key, {"scorer": SCORER, **details})
    assert naming is not None
    assert naming.name(plain, "results/run") == expected


@given(
    key=st.text(min_size=1, max_size=1100),
    scorer=st.text(min_size=1, max_size=300),
    tracked=st.one_of(st.none(), st.text(max_size=9), st.sampled_from(["ellipse", "ctd"])),
    several=st.booleans(),
    pcutoff=st.floats(),
    run=st.text(st.characters(codec="utf-8"), min_size=1, max_size=1100),
)
@example("poses.mp4", "_filtered", None, False, 0.6, "run")
def test_names_have_bounds_and_lead_back(
    key: str, scorer: str, tracked: str | None, several: bool, pcutoff: float, run: str
) -> None:
    """Each file has a name of its own that any store takes, and is found by its plain one."""
    naming = Naming(key, scorer, tracked, several, pcutoff)
    files = [artefact(naming.name(plain, run), names.ROLES[plain]) for plain in names.ROLES]
    assert len({file.name for file in files}) == len(files)
    for plain, file in zip(names.ROLES, files, strict=True):
        assert names.find(files, plain) is file
        assert names.find(files, file.name) is file
        assert names.find([artefact(plain)], plain) is not None  # of an older posedrop
        if file.name != plain:
            assert PurePosixPath(file.name).name == file.name
            assert file.name.isprintable()
            assert len(file.name.encode()) <= 255
            assert len(f"{run}/attempts/1/{file.name}".encode()) <= 1024


@given(st.text(st.characters(exclude_characters="/\\"), min_size=1, max_size=255))
@example('a"b%41;ü.h5')
@example("naïve plan 50%.mp4")
def test_a_browser_saves_under_the_name(filename: str) -> None:
    """Content-Disposition is ASCII in one line, and says any name (RFC 6266)."""
    header = content_disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    message = Message()
    message["Content-Disposition"] = header
    if "filename*" in header:
        encoded = header.partition("filename*=UTF-8''")[2]
        from urllib.parse import unquote

        assert unquote(encoded) == filename.encode(errors="replace").decode()
    else:
        assert message.get_filename() == filename
