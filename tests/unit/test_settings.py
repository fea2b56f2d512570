"""Settings: a wrong one stops the start with its name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from handlers.app import create_app
from posedrop import cli, settings
from posedrop.address import listen
from posedrop.doctor import machine
from posedrop.errors import ConfigurationError
from posedrop.transport import queue


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POSEDROP_LEASE_SECONDS", "-1"),
        ("POSEDROP_MAX_FRAMES", "many"),
        ("POSEDROP_BROKER_URL", "http://redis"),
        ("POSEDROP_S3_ACCESS_KEY", "without-its-secret"),
        ("POSEDROP_API_TOKEN", ""),
        ("POSEDROP_API_TOKEN", " \t"),
        ("POSEDROP_API_TOKEN", "two words"),
        ("POSEDROP_API_TOKEN", "line\nline"),
        ("POSEDROP_API_TOKEN", "\u202e"),
        ("POSEDROP_EVENTS_TOKEN", ""),
        ("POSEDROP_S3_SECRET_KEY", ""),
    ],
)
def test_a_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    """The error says which variable is wrong."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        settings.load(tmp_path)


def test_the_environment_goes_before_the_stacks_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `posedrop up` wrote counts, unless the environment says otherwise."""
    (tmp_path / settings.ENV_FILE).write_text("POSEDROP_URL=http://file\nPOSEDROP_DEVICE=cpu\n")
    monkeypatch.setenv("POSEDROP_URL", "http://environment")
    loaded = settings.load(tmp_path)
    assert (loaded.url, loaded.device) == ("http://environment", "cpu")


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    """A log line with the settings in it gives nothing away."""
    loaded = settings.load(tmp_path, {"events_token": "hush", "api_token": "quiet"})
    assert "hush" not in repr(loaded)
    assert "quiet" not in repr(loaded)


def test_what_is_listed_can_be_set(tmp_path: Path) -> None:
    """As a file of variables it gives the same settings again, but for secrets, which it hides."""
    ours = {
        "api_token": "hush",
        "broker_url": "redis://:hush@broker:6379/0",
        "notify_urls": {"lab": "mailto://me:hush@lab.example"},
        "default_analysis": "deeplabcut_2d",
        "default_args": {"model": "it's #1 \\ ü", "crop": [0, 1]},
        "child_reads": [Path("/opt/weights of mine's"), Path("/b")],
        "index_path": Path("C:\\lab's #2/index"),
        "retention_days": 1.5,
        "notify_allow_private": True,
    }
    listed = list(settings.as_env(settings.load(tmp_path, ours)))
    assert not [line for line in listed if "hush" in line]
    assert all(line.startswith(("#", "POSEDROP_")) for line in listed)
    assert len(listed) == 2 * len(settings.Settings.model_fields)
    assert "# None" not in listed  # each says what it is
    (tmp_path / settings.ENV_FILE).write_text("\n".join(listed), encoding="utf-8")
    again = settings.load(tmp_path)
    for name, value in ours.items():
        assert (getattr(again, name) == value) is ("hush" not in str(value)), name


def test_only_who_tells_needs_the_receivers_urls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """posedrop.env is for all sides, the URLs are a secret of the handlers."""
    monkeypatch.setenv("POSEDROP_NOTIFY", '["lab", "hook"]')
    told = {"notify_urls": {"lab": "mailto://me:hush@lab.example"}}
    for overrides in ({}, told):
        configured = settings.load(tmp_path, overrides)  # as each worker does
        with pytest.raises(ConfigurationError, match=r"POSEDROP_NOTIFY_URLS has no hook"):
            create_app(configured, queue.connect("stub://"))


def test_a_misspelt_variable_is_told_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By `posedrop doctor` and `posedrop up`; names of bootstrap's keys are no mistakes."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / settings.ENV_FILE).write_text("POSEDROP_DEVISE=cpu\n# POSEDROP_NO=1\nOTHER=1\n")
    monkeypatch.setenv("POSEDROP_RETENTION_DAY", "90")
    monkeypatch.setenv("POSEDROP_ROOT_ACCESS_KEY", "root")
    monkeypatch.setattr(machine, "worker", lambda _: iter(()))
    taken = listen("127.0.0.1", 0, "the API", "--port")
    port = str(taken.getsockname()[1])
    try:
        for words in (["up", "--port", port], ["doctor"]):
            said = CliRunner().invoke(cli.main, ["--data-dir", str(folder), *words]).output
            assert "POSEDROP_RETENTION_DAY (in the environment) sets nothing" in said
            assert "did you mean POSEDROP_RETENTION_DAYS?" in said
            assert f"POSEDROP_DEVISE (in {folder / settings.ENV_FILE}) sets nothing" in said
            assert "did you mean POSEDROP_DEVICE?" in said
            assert said.count(" sets nothing") == 2
    finally:
        taken.close()


def test_handlers_without_a_token_do_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On whatever address: other users of the machine reach its loopback."""
    monkeypatch.setenv("POSEDROP_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("POSEDROP_API_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="POSEDROP_API_TOKEN"):
        importlib.import_module("handlers.main")
