"""What infra/docker-compose.yml has, for tests that run the same by hand: the two can't drift."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
_SERVICES: dict[str, Any] = yaml.safe_load((INFRA / "docker-compose.yml").read_text())["services"]


def command(service: str) -> list[str]:
    """Return a service's command; where compose leaves it to the image, the Dockerfile's CMD."""
    given = _SERVICES[service].get("command")
    if given is None:
        dockerfile = (INFRA / "Dockerfile.handlers").read_text()
        found = re.search(r"^CMD (\[.*?\])$", dockerfile.replace("\\\n", ""), re.MULTILINE)
        assert found is not None
        given = json.loads(found.group(1))
    return [str(part) for part in given]


def environment(service: str, *prefixes: str) -> dict[str, str]:
    """Return the variables of a service whose names begin with one of ``prefixes``."""
    variables = _SERVICES[service]["environment"]
    return {name: str(value) for name, value in variables.items() if name.startswith(prefixes)}


def grace(service: str) -> str:
    """Return how long a service has to end before it is killed, as compose writes it."""
    return str(_SERVICES[service]["stop_grace_period"])
