"""What machines ask: /healthz, /readyz, /metrics, with a store and a broker that work or do not."""

from __future__ import annotations

import re
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from handlers.app import create_app
from handlers.metrics import Metrics
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.runs import RunError
from posedrop.buckets.records.videos import Refusal, VideoRecord, VideoRef
from posedrop.buckets.storage import Storage
from posedrop.errors import ConfigurationError
from posedrop.index.index import Index
from posedrop.metrics import Few
from posedrop.settings import Settings, load
from posedrop.transport import queue
from tests.support.index_rows import judged
from tests.support.serving import serving

NOW = datetime.now(UTC)
TOKENS = {"api_token": "of-the-api", "metrics_token": "of-prometheus"}
#: What the token is for, and what everybody may have.
OPEN = {("/metrics", "GET"), ("/session", "GET")}
VIDEO = VideoRef(file_id="a" * 16, bucket="videos", key="day1/a.mp4", etag="e", size=20)


class SilentServer:
    """Listens on a port, takes every connection, and says nothing until it hangs up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._taken.append(self._listener.accept()[0])

    def hang_up(self) -> None:
        """End it, and all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._taken:
            connection.close()


@contextmanager
def asked(settings: Settings, broker_url: str = "stub://") -> Iterator[httpx.Client]:
    """Serve the API; a client that waits for five seconds."""
    app = create_app(settings, queue.connect(broker_url))
    with serving(app) as url, httpx.Client(base_url=url, timeout=5) as client:
        yield client


@pytest.fixture
def working(settings: Settings) -> Settings:
    """Settings of a store that has its buckets, empty ones: the server is shared by many tests."""
    kinds = ("videos_bucket", "results_bucket", "models_bucket")
    own = settings.model_copy(update={kind: f"{kind[:-7]}-{uuid.uuid4().hex}" for kind in kinds})
    for kind in kinds:
        Storage(own).create_bucket(getattr(own, kind))
    return own


def values(text: str, name: str) -> dict[str, float]:
    """Return a metric's values by its labels, as they are written."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_whatever_works_is_ready(working: Settings) -> None:
    """All parts are ok, and the broker's queues are empty."""
    with asked(working) as api:
        # A machine with much to do may have a part answer late; none does so for long.
        ready = (api.get("/readyz") for _ in range(20))
        answer = next(each for each in ready if each.status_code == 200)
        text = api.get("/metrics").text
    parts = ("follower", "reconciler", "store", "broker", "disk")
    assert (answer.status_code, answer.json()["parts"]) == (200, dict.fromkeys(parts, "ok"))
    assert values(text, "posedrop_ready") == {f'part="{part}"': 1.0 for part in parts}
    assert values(text, "posedrop_messages_waiting") == {'queue="cpu"': 0, 'queue="gpu"': 0}
    assert values(text, "posedrop_workers") == {'queue="cpu"': 0, 'queue="gpu"': 0}
    assert values(text, "posedrop_disk_free_bytes")['disk="index"'] > 0


@pytest.mark.parametrize("part", ["store", "broker"])
def test_a_part_that_says_nothing_is_told_of_and_holds_up_nobody(
    working: Settings, part: str
) -> None:
    """/readyz blames it within its time, /metrics has the rest, and the process is alive."""
    server = SilentServer()
    at = f"127.0.0.1:{server.port}"
    hanging = {"s3_endpoint": f"http://{at}"} if part == "store" else {}
    url = f"redis://{at}" if part == "broker" else "stub://"
    with asked(working.model_copy(update=hanging), url) as api:
        answer = api.get("/readyz")
        text = api.get("/metrics").text
        alive = api.get("/healthz").status_code
        server.hang_up()
    said = answer.json()["parts"]
    blamed = {name for name, code in said.items() if code != "ok"}
    assert (answer.status_code, blamed, alive) == (503, {part}, 200)
    assert values(text, "posedrop_ready")[f'part="{part}"'] == 0
    assert bool(values(text, "posedrop_messages_waiting")) is (part == "store")
    assert values(text, "posedrop_oldest_seconds")


def test_a_bucket_that_is_gone_is_not_ready(settings: Settings) -> None:
    """A store that answers without our buckets can take no video."""
    lacking = settings.model_copy(update={"videos_bucket": "no-such-bucket"})
    with asked(lacking) as api:
        assert api.get("/readyz").json()["parts"]["store"] == "storage"


def test_what_was_received_and_is_gone_is_counted_no_more(working: Settings) -> None:
    """A state without rows is 0, not what it was; what waits has its age."""
    index = Index(working.index_file)
    with asked(working) as api:
        long_ago = NOW - timedelta(hours=2)
        index.file_received(working.videos_bucket, "a.mp4", "a" * 16, "e", 4, {}, long_ago)
        before = api.get("/metrics").text
        index.file_removed("a" * 16)
        after = api.get("/metrics").text
    index.close()
    rows = 'state="received",table="files"'
    assert values(before, "posedrop_index_rows")[rows] == 1
    assert values(before, "posedrop_oldest_seconds")['waiting="file"'] >= 7200
    assert values(after, "posedrop_index_rows")[rows] == 0
    assert values(after, "posedrop_oldest_seconds")['waiting="file"'] == 0


def test_the_metrics_token_reads_metrics_and_nothing_else(working: Settings) -> None:
    """Whatever else it is sent to, the token is that of a stranger; the API's reads metrics too."""
    with asked(
        working.model_copy(
            update=load(working.data_dir, TOKENS).model_dump(include={"api_token", "metrics_token"})
        )
    ) as api:
        given = {"Authorization": f"Bearer {TOKENS['metrics_token']}"}
        own = {"Authorization": f"Bearer {TOKENS['api_token']}"}
        assert api.get("/metrics").status_code == 401
        assert api.get("/metrics", headers=given).status_code == 200
        assert api.get("/metrics", headers=own).status_code == 200
        paths = api.get("/openapi.json", headers=own).json()["paths"]
        for path in [*paths, "/", "/openapi.json", "/metrics/", "//metrics", "/metrics/../files"]:
            for method in ("GET", "POST", "PUT", "DELETE"):
                if path in {"/healthz", "/readyz"} or (path, method) in OPEN:
                    continue
                answer = api.request(method, path, headers=given)
                assert answer.status_code == 401, f"{method} {path}"


@pytest.mark.parametrize("name", ["api_token", "events_token"])
def test_a_token_for_metrics_is_one_of_its_own(tmp_path: Path, name: str) -> None:
    """One that opens another door is a start error that names both variables."""
    with pytest.raises(ConfigurationError, match=f"METRICS_TOKEN.*{name.upper()}"):
        load(tmp_path, {name: "same", "metrics_token": "same"})


# -- what comes from outside -----------------------------------------------------------------------


VIDEO_RECORD = VideoRecord(video=VIDEO, last_modified=NOW, ingested_at=NOW)


def result(**more: Any) -> Result:
    fields = {
        "analysis_id": "b" * 16,
        "analysis": "dummy",
        "state": "failed",
        "video": VIDEO,
        "args": {},
        "created_at": NOW,
        "finished_at": NOW + timedelta(seconds=30),
    }
    return Result.model_validate({**fields, **more})


def test_a_run_is_counted_once_and_not_again_by_a_reindex(tmp_path: Path) -> None:
    """A result that is told twice is one run; one from before the start is none."""
    metrics, index = Metrics(NOW), Index(tmp_path / "index.sqlite")
    index.on_result = metrics.run_ended
    for each in (result(), result(), result(analysis_id="c" * 16, finished_at=NOW - timedelta(1))):
        index.analysis_finished(each, f"a.mp4/dummy-{each.analysis_id}")
    text = metrics.render(index, NOW).decode()
    index.close()
    assert sum(values(text, "posedrop_runs_total").values()) == 1
    assert values(text, "posedrop_run_seconds_sum") == {'analysis="dummy"': 30}
    assert not values(text, "posedrop_run_quality_sum")


def test_scores_are_counted_where_there_are_any() -> None:
    """By analysis; a run without one is not taken for one of 0."""
    metrics = Metrics(NOW)
    for score in (None, 61.3, 12):
        metrics.run_ended(judged(result(state="succeeded"), score))
    text = generate_latest(metrics.registry).decode()
    assert values(text, "posedrop_run_quality_sum") == {'analysis="dummy"': 73.3}
    assert values(text, "posedrop_run_quality_count") == {'analysis="dummy"': 2}


CODES = st.text() | st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True)


@settings(deadline=None)
@given(st.lists(CODES, max_size=200), st.integers(1, 5))
def test_codes_from_outside_make_few_labels(codes: list[str], most: int) -> None:
    """However many there are, so many have a name; what is no code has none."""
    few = Few(most)
    named = {few.of(code) for code in codes} - {"other"}
    assert len(named) <= most
    assert named <= set(codes)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(CODES, min_size=1, max_size=5),
    st.sampled_from(["dummy", "x" * 3000, "\ud800", ""]),
    st.integers(-(10**400), 10**400),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)),
)
def test_no_record_is_too_odd_to_be_counted(
    codes: list[str], analysis: str, attempts: int, moment: datetime
) -> None:
    """Whatever a bucket says, in whatever order and time zone, the metrics can be read."""
    metrics = Metrics(datetime(1, 1, 2, tzinfo=UTC))
    for code in codes:
        error = RunError(code=code, message="")
        changes = {"analysis": analysis, "attempts": attempts, "finished_at": moment}
        metrics.run_ended(result(error=error).model_copy(update=changes))
        refused = VIDEO_RECORD.model_copy(
            update={"ingested_at": moment, "refusal": Refusal(reason=code, message="")}
        )
        metrics.video_ingested(refused)

    class Nothing:
        def counts(self) -> dict[str, dict[str, int]]:
            return {n: {} for n in ("files", "analyses", "events", "pending", "dead_letters")}

        def oldest(self) -> dict[str, None]:
            return {}

    text = metrics.render(Nothing(), NOW).decode()  # type: ignore[arg-type]
    assert sum(values(text, "posedrop_runs_total").values()) == len(codes)
    assert sum(values(text, "posedrop_ingests_total").values()) == len(codes)
