"""What people install: a wheel, in an environment of its own, far from the checkout.

The examples are installed beside it, as a laboratory would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from posedrop.minio.bootstrap import POLICIES
from tests.support.lab import BIN, PROXY, clean_environment
from tests.support.minio_server import ROOT_ACCESS_KEY, ROOT_SECRET_KEY, MinioServer

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("posedrop", "handlers", "worker")
#: Frames of the demo's film: its keypoints are right from the first one on.
FRAMES = 12


class Installed:
    """posedrop in an environment that has the packages of this one, but not the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / "environment" / "bin"

    def install(self) -> None:
        """Build the wheel from a copy without what earlier builds left, and install it."""
        source = self.folder / "source"
        for name in SOURCES:
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=without)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        python = [sys.executable, "-m"]
        run([*python, "build", "--wheel", "--no-isolation", "--outdir", self.folder], source)
        (wheel,) = self.folder.glob("*.whl")
        environment = self.folder / "environment"
        venv.create(environment, symlinks=True)
        pip = [*python, "pip", "--python", str(self._bin / "python")]
        (site,) = environment.glob("lib/python*/site-packages")
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        (site / "borrowed.pth").write_text("\n".join(borrowed))
        plugin = shutil.copytree(ROOT / "examples" / "brightness", source / "brightness")
        offline = ["--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
        run([*pip, "install", *offline, wheel, plugin], self.folder)
        shutil.rmtree(source)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a person who has it on the PATH, and the store's program."""
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config")}
        path = f"{self._bin}:{BIN}:{os.environ['PATH']}"
        return clean_environment() | PROXY | home | {"PATH": path} | more

    def start(self, *args: str, **more: str) -> subprocess.Popen[str]:
        """Start a command, in a folder that is not the checkout."""
        return subprocess.Popen(
            [str(self._bin / "posedrop"), *args],
            cwd=self.folder,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def python(self, *args: str) -> str:
        """Return what a program prints."""
        command = [self._bin / "python", *args]
        return run(command, self.folder, self.environment()).strip()


def run(command: list[str | Path], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ended(process: subprocess.Popen[str]) -> str:
    """Return what a command said, which has ended well."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    posedrop = Installed(tmp_path_factory.mktemp("wheel"))
    posedrop.install()
    return posedrop


def test_nothing_of_it_is_the_checkouts(installed: Installed) -> None:
    """All three packages are those of the wheel, whose analyses are found by their entry points."""
    found = installed.python(
        "-c",
        "import handlers, posedrop, worker\n"
        "from posedrop import analyses\n"
        "print(handlers.__file__, posedrop.__file__, worker.__file__, *analyses.installed())",
    )
    *files, brightness, deeplabcut, dummy, outliers, superanimal = found.split()
    assert all(file.startswith(str(installed.folder)) for file in files)
    assert (deeplabcut, dummy, superanimal) == ("deeplabcut_2d", "dummy", "superanimal")
    assert outliers == "outliers"
    assert brightness == "brightness"
    assert Path(files[1]).with_name("py.typed").is_file()


def test_bootstrap_finds_its_policies(installed: Installed, tmp_path: Path) -> None:
    """A MinIO is made ready: one policy for each of the files, which are the package's own."""
    server = MinioServer(tmp_path / "minio", "http://127.0.0.1:9/events").start()
    try:
        said = ended(
            installed.start(
                "bootstrap",
                *("--write-env", str(tmp_path / "keys.env")),
                POSEDROP_S3_ENDPOINT=server.endpoint,
                POSEDROP_ROOT_ACCESS_KEY=ROOT_ACCESS_KEY,
                POSEDROP_ROOT_SECRET_KEY=ROOT_SECRET_KEY,
            )
        )
    finally:
        server.stop()
    assert all(policy.stem in said for policy in POLICIES.glob("*.json"))


def test_demo_up_and_examples(installed: Installed) -> None:
    """The demo tracks its mouse; `up` goes on with its folder, and runs the examples on its film.

    The plug-in is an analysis like posedrop's own, and the script's client finds the server.
    """
    said = ended(installed.start("demo", "--exit", "--frames", str(FRAMES)))
    assert ": right (" in said, said
    demo = installed.folder / "posedrop-demo" / "demo"
    where = ("--host", "0.0.0.0", "--port", "0", "--s3-port", "0")  # noqa: S104
    up = installed.start("up", "--data-dir", "posedrop-demo", *where)
    assert up.stdout is not None
    assert up.stdout.readline().startswith("posedrop is up: http://127.0.0.1:")
    page, elsewhere, store = (up.stdout.readline().split()[1] for _ in range(3))
    assert urlsplit(page).port == urlsplit(elsewhere).port
    assert urlsplit(page).fragment == urlsplit(elsewhere).fragment
    assert urlsplit(elsewhere).hostname == urlsplit(store).hostname != "127.0.0.1"
    httpx.get(elsewhere, trust_env=False).raise_for_status()
    script = ROOT / "examples" / "analyse_folder.py"
    installed.python(str(script), str(demo), "got", "brightness", "every=3")
    up.send_signal(signal.SIGTERM)
    assert "stopping" in ended(up)
    rows = (installed.folder / "got" / "mouse.mp4" / "brightness.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["frame", "0", "3", "6", "9"]
    assert all(0 < float(row.split(",")[2]) < 255 for row in rows[1:])
