"""The walls around a child: a decoder that was taken over gets nothing, whoever runs the worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posedrop.doctor import machine
from posedrop.doctor.finding import FAIL, OK
from posedrop.settings import Settings
from tests.support import taken_over
from worker import limits
from worker.child import walls
from worker.child.handover import remove

NOBODY = 65534
PROGRAM = str(Path(taken_over.__file__))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls of Linux")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an ordinary user reaches, too."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    remove(folder)


def program(place: Path, *options: str, ordinary: bool = False) -> list[str]:
    """Return how to start the parent of a child that was taken over."""
    command = [sys.executable, PROGRAM, str(place), *options]
    if not ordinary or os.getuid() != 0:
        return command
    os.chown(place, NOBODY, NOBODY)
    become = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    shut = [each for each in Path(sys.base_prefix).parents if not each.stat().st_mode & 0o001]
    if not shut:
        return [*become.split(), *command]
    # Root's own interpreter, seen by everybody: in a namespace of mounts that nobody else has.
    kept = tempfile.mkdtemp()
    inside = Path(sys.base_prefix).relative_to(shut[-1])
    script = f"""set -e
umask 022
mount --bind {shut[-1]} {kept}
mount -t tmpfs -o mode=755 none {shut[-1]}
mkdir -p {sys.base_prefix}
mount --bind {kept}/{inside} {sys.base_prefix}
umount {kept}
exec {become} "$@"
"""
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


def play(place: Path, *options: str, ordinary: bool = False) -> dict[str, Any]:
    """Have a child taken over; return what it could do, and which walls stood."""
    command = program(place, *options, ordinary=ordinary)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    print(f"{len(told['got'])} of {told['tried']} attempts succeeded; stand: {told['stand']}")
    return told


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ordinary", [False, True], ids=["as_we_are", "as_an_ordinary_user"])
@pytest.mark.parametrize("options", [(), ("--refused",)], ids=["", "no_namespaces"])
def test_a_decoder_that_was_taken_over_gets_nothing(
    place: Path, options: tuple[str, ...], ordinary: bool
) -> None:
    """It reads no secret, changes no file, reaches no socket, gains no right, leaves nothing."""
    told = play(place, *options, ordinary=ordinary)
    assert told["got"] == {}
    assert told["tried"] > 200
    assert told["film"] == "film"
    assert (told["left"], told["still there"]) == (3, [])
    assert told["uid"] == (NOBODY if ordinary and os.getuid() == 0 else os.getuid())
    if set(told["stand"]) != set(walls.NAMES):  # what does not stand is said, with its reason
        assert set(told["lack"]) == set(walls.NAMES) - set(told["stand"])
        assert all(told["lack"].values())
    if options:
        assert {"network", "processes"} <= set(told["lack"])
    assert told["groups"] == []


@pytest.mark.timeout(300)
def test_what_takes_all_of_the_machine_is_ended(place: Path) -> None:
    """Memory, with a name or shared; processes, files, folders in folders: each has a bound."""
    told = play(place, "--eat")
    assert told["eaten"].pop("many processes") in {"too_many_processes", "out_of_memory"}
    assert told["eaten"] == {
        "shared memory": "out_of_memory",
        "memory without a name": "internal",  # denied
        "processes": "out_of_memory",
        "files without a name": "file_too_large",
        "folders": "file_too_large",
    }


@pytest.mark.parametrize("options", [(), ("--refused",)], ids=["", "no_namespaces"])
def test_nothing_outlives_a_parent_that_is_killed(place: Path, options: tuple[str, ...]) -> None:
    """Nor what the child forked away, with a namespace of its own or without."""
    parent = subprocess.Popen(
        program(place, "--orphan", *options), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    left = json.loads(parent.stdout.readline())["left"]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while taken_over.of(place) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == 3
    assert taken_over.of(place) == []


def test_rules_leave_out_what_is_hidden(tmp_path: Path) -> None:
    """A project's folder on the path gives what can be imported, and nothing else that is in it."""
    project, site = tmp_path / "project", tmp_path / "lib/site-packages"
    data = project / "plugin/data"
    for each in (data / "inner", project / "posedrop-data", project / "films", site / "torch"):
        each.mkdir(parents=True)
    for name in ("plugin/__init__.py", "plugin/code.py", "tool.py", ".env", "films/a.mp4"):
        (project / name).write_text("")
    plan = walls.Plan(
        str(tmp_path / "lib/child"),
        hidden=[str(data), str(tmp_path / "lib")],  # the data, with an interpreter among them
        reads=[str(tmp_path / "more")],
    )
    found = walls.rules(plan, [str(project), str(site)], [])
    ours = {
        Path(path).relative_to(tmp_path).as_posix(): rights
        for path, rights in found.items()
        if Path(path).is_relative_to(tmp_path)
    }
    assert ours == {
        "project": walls.READ_DIR,
        "project/plugin/__init__.py": walls.READ,
        "project/plugin/code.py": walls.READ,
        "project/tool.py": walls.READ,
        "lib/site-packages": walls.READ,
        "more": walls.READ,
        "lib/child/own": walls.WRITE,
        "lib/child/given": walls.READ_FILE | walls.READ_DIR,
    }


def test_no_rule_covers_a_home_or_the_root() -> None:
    """Of this very installation, nobody's home and no folder of everything may be read."""
    plan = walls.Plan("/nowhere/child", cards=True)
    found = walls.rules(plan, sys.path, list(sys.modules.values()))
    whole = {path for path, rights in found.items() if rights & walls.READ_FILE}
    for each in ("/", "/home", "/root", "/etc", "/tmp", "/var", "/usr", "/proc", "/sys", "/dev"):
        assert each not in whole
    assert str(Path.home()) not in whole


@pytest.mark.parametrize(
    ("depth", "name"), [(0, "d"), (9, "d"), (10, "d"), (11, "d"), (1200, "d"), (60, "d" * 100)]
)
def test_folders_go_however_deep_they_are(tmp_path: Path, depth: int, name: str) -> None:
    """Deeper than a path may be long, shut, or full of links: all of it goes, and no more."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(kept)
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.symlink(kept, "last", dir_fd=fd)
    os.mkdir("shut", 0, dir_fd=fd)
    os.close(fd)
    assert max(depth for _, depth in limits.contents(folder)) > min(depth, 30)
    remove(folder)
    assert not folder.exists()
    assert (kept / "file").read_text() == "kept"
    shutil.rmtree(kept)


#: What a card's driver does as it begins, in a child that may use a card.
DRIVER = """
import json, os, sys, threading
from pathlib import Path
from worker.child import walls

walls._has_cuda, walls.CARDS = lambda: True, ("null",)
if sys.argv[2] == "no_proc":
    walls.Kernel.see_own_processes_alone = lambda self: "Operation not permitted"
for part in (walls.OWN, walls.GIVEN):
    Path(sys.argv[1], part).mkdir()
put_up = walls.put_up(walls.Plan(sys.argv[1], cards=True), os.getppid(), ())
named, seen = [], []

def begin():
    comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    comm.write_text("cuda-EvtHandlr")
    named.append(comm.read_text().strip())

thread = threading.Thread(target=begin)
thread.start()
thread.join()
for process in Path("/proc").glob("[0-9]*"):
    try:
        seen.append((process / "environ").read_bytes() != b"")
    except OSError:
        pass
print(json.dumps({
    "named": named, "nameless": os.memfd_create("x") > 0, "lack": put_up.lack, "seen": len(seen),
}), flush=True)
os.kill(os.getpid(), 11)  # as some drivers end
"""


@pytest.mark.parametrize("case", ["", "no_proc", "no_namespaces"])
def test_a_cards_driver_names_its_threads(place: Path, case: str) -> None:
    """Wherever it runs: whether a /proc of its own can be mounted, or no namespace be entered."""
    refuse = "from tests.support.taken_over import refuse_namespaces; refuse_namespaces()"
    script = f"{refuse if case == 'no_namespaces' else ''}\n{DRIVER}"
    command = [sys.executable, "-c", script, str(place), case]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGSEGV, done.stderr  # doctor can tell of it
    told = json.loads(done.stdout)
    assert told["named"] == ["cuda-EvtHandlr"], done.stderr
    assert told["nameless"]
    assert told["seen"] <= 1  # no other process' secrets
    if case:
        assert "processes" in told["lack"]
    elif "network" not in told["lack"]:
        assert "mounted here" in told["lack"].get("processes", "mounted here")


@pytest.mark.parametrize("reached", [True, False])
def test_doctor_finds_a_card_that_children_can_not_reach(
    reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for who looks beside the walls, where nothing is computed."""
    there = {"cpu": "2 threads", "cuda:0": "NVIDIA T4, 15 GiB"}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        check, behind = command[3], "walls" in command[4:]
        devices = there if reached or not behind else {"cpu": "2 threads"}
        found: dict[str, Any] = {"version": "2", "devices": devices}
        if check == "walls":
            found = {"stand": list(walls.NAMES), "lack": {}, "by_leave": []}
        if check == "card":
            found = {"decode": "", "encode": ""}
        if check == "codecs":
            found = {"version": "1", "libx264": True, "h264": True}
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    monkeypatch.setattr(machine.subprocess, "run", run)
    [device] = [each for each in machine.worker(Settings()) if each.check == "device"]
    assert device.state == (OK if reached else FAIL)
    assert ("there is no cuda:0" in device.message) == (not reached)


#: A session whose leader is to go first, and a process of it that wants otherwise, or takes memory
#: that has no name.
GREEDY = """
import os, sys, time
from pathlib import Path

badness = Path("/proc/self/oom_score_adj")
badness.write_text(str(max(900, int(badness.read_text()))))
if os.fork() == 0:
    if sys.argv[1] == "stays":
        badness.write_text(str(int(badness.read_text()) - 1))
    elif sys.argv[1] == "nameless":
        os.write(os.memfd_create("x"), bytes(150 << 20))
    print("there", flush=True)
    time.sleep(60)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("case", "code"), [("good", None), ("stays", "out_of_memory"), ("nameless", "out_of_memory")]
)
def test_who_wants_to_outlive_others_or_has_nameless_memory_is_ended(
    place: Path, case: str, code: str | None
) -> None:
    """A card's child can have both, for its driver's sake."""
    with subprocess.Popen(
        [sys.executable, "-c", GREEDY, case],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as leader:  # fmt: skip
        assert leader.stdout is not None
        told = leader.stdout.readline()
        bound = limits.Limits(resident=100 << 20, disk=100 << 20)
        found = limits.exceeded(bound, leader.pid, place, place / "log")
        os.killpg(leader.pid, signal.SIGKILL)
    assert told == "there\n"
    assert (found and found[0]) == code
