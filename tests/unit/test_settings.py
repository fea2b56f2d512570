"""Settings: a wrong one stops the start with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from posedrop import settings
from posedrop.errors import ConfigurationError


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POSEDROP_LEASE_SECONDS", "-1"),
        ("POSEDROP_MAX_FRAMES", "many"),
        ("POSEDROP_BROKER_URL", "http://redis"),
        ("POSEDROP_S3_ACCESS_KEY", "without-its-secret"),
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
