"""What watches posedrop: alert rules, a dashboard, and a worker's own metrics."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml

from handlers.metrics import Metrics
from posedrop import metrics
from posedrop.index.index import Index
from posedrop.settings import Settings, load
from tests.support.tools import find_free_port, tool
from worker import exposed

INFRA = Path(__file__).resolve().parents[2] / "infra"
TOKEN = "of-prometheus"
#: Of the handlers' own threads and broker, which is asked when they run: tests/unit/test_health.py.
ASKED = {"posedrop_ready", "posedrop_messages_waiting", "posedrop_workers", "up"}


def asked_for(*files: Path) -> set[str]:
    """Return the metrics that rules ask for, as Prometheus reads them."""
    answer = subprocess.run(
        [tool("check-rules"), *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series that handlers and workers expose."""
    folder = tmp_path_factory.mktemp("index")
    index = Index(folder / "index.sqlite")
    text = Metrics(datetime.now(UTC)).render(index, datetime.now(UTC)).decode()
    index.close()
    found = set(ASKED)
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + end for end in ends}
    return found


def test_prometheus_takes_the_alert_rules(known: set[str], tmp_path: Path) -> None:
    """It reads them as they are, and each asks for what there is; a slip is refused."""
    rules = INFRA / "alerts.yml"
    assert asked_for(rules) <= known
    for right, wrong in (
        ("expr: posedrop_ready == 0", "expr: posedrop_ready == "),
        ("for:", "fro:"),
    ):
        slip = tmp_path / "alerts.yml"
        slip.write_text(rules.read_text().replace(right, wrong, 1))
        assert subprocess.run(
            [tool("check-rules"), slip], capture_output=True, check=False
        ).returncode


def test_the_dashboard_asks_for_what_there_is(known: set[str], tmp_path: Path) -> None:
    """Each query of Grafana's is one of Prometheus', and all that is measured is shown."""
    panels = json.loads((INFRA / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    rules = [{"record": "a", "expr": query.replace("$__rate_interval", "5m")} for query in queries]
    file = tmp_path / "rules.yml"
    for number, rule in enumerate(rules):
        rule["record"] = f"query{number}"
    file.write_text(yaml.safe_dump({"groups": [{"name": "grafana", "rules": rules}]}))
    asked = asked_for(file)
    assert asked <= known
    # What nobody is shown need not be measured.
    shown = asked | asked_for(INFRA / "alerts.yml")
    measured = {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    assert measured == {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))


@pytest.fixture
def port() -> int:
    return find_free_port()


@pytest.fixture(params=[None, TOKEN])
def served(request: pytest.FixtureRequest, tmp_path: Path, port: int) -> Iterator[Settings]:
    """A worker's settings, with its metrics served: without a token and with one."""
    settings = load(tmp_path, {"metrics_port": port, "metrics_token": request.param})
    stop = exposed.serve(settings)
    yield settings
    stop()


def test_a_worker_shows_its_metrics_to_whoever_may_see_them(served: Settings, port: int) -> None:
    """To the token's holder, at one path, by GET; without a token to its own machine alone."""
    with metrics.job("infer"), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        right = {"Authorization": f"Bearer {TOKEN}"}
        answer = client.get("/metrics", headers=right)
        assert 'posedrop_jobs_running{task="infer"} 1.0' in answer.text
        assert client.get("/", headers=right).status_code == 404
        assert client.post("/metrics", headers=right).status_code == 404
        for wrong in (b"", TOKEN.encode(), b"Bearer \xe9", b"Bearer"):
            status = client.get("/metrics", headers={b"Authorization": wrong}).status_code
            assert status == (200 if served.metrics_token is None else 401)


def test_two_workers_of_one_port_both_work(served: Settings) -> None:
    """The second has no metrics, and says so in its log; that is all."""
    exposed.serve(served)()
