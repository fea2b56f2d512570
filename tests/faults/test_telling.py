"""Telling: each end is told at least once under one id, whatever is killed, lost or away."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from handlers.runs import batch_steps, batches
from handlers.telling import teller
from handlers.upkeep import sweep
from handlers.upkeep.repairs import Repairs
from posedrop.api.batches import BatchStarted, RetryRequest
from posedrop.api.runs import AnalyseRequest
from posedrop.buckets.records.results import Result
from posedrop.buckets.records.telling import Told
from tests.support import labs
from tests.support.full_size import size
from tests.support.lab import Servers
from tests.support.memory_storage import RESULTS, VIDEOS, Crash, Gate
from tests.support.proxies import Toxiproxy
from tests.support.receivers import receiver
from tests.support.world import World

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="
HOOK = f"https://hooks.example/lab#{SECRET}"
RULE = {"analysis": "dummy", "args": {"seconds": 0}, "notify": ["hook", "lab"]}


class Told_(list[tuple[str, str, str]]):  # noqa: N801
    """A receiver that keeps what it was told, and refuses now and then."""

    def __init__(self, *, is_webhook: bool) -> None:
        self.is_webhook = is_webhook
        self.refuses = 0

    def send(self, notice_id: str, title: str, body: str) -> str | None:
        if self.refuses:
            self.refuses -= 1
            return "it answered 500"
        self.append((notice_id, title, body))
        return None


def world_at(folder: Path, films: int = 3, rule: dict[str, Any] | None = None) -> World:
    world = World(
        folder,
        default_analysis=None,
        notify_urls={"hook": HOOK, "lab": "json://lab.example"},
    )
    rule = RULE if rule is None else rule
    world.storage.put(VIDEOS, "day1/posedrop.json", json.dumps(rule).encode())
    for n in range(films):
        world.storage.put(VIDEOS, f"day1/{n}.mp4", b"film %d" % n)
    return world


def tell(world: World, hook: Told_, lab: Told_, gate: Gate | None = None) -> bool:
    """Tell all that is due, for an hour; return whether that was cut."""
    with world.storage.gate(gate):
        try:
            for _ in range(40):
                world.clock.pass_(90)
                teller.go_on(world.context, "hook", hook)
                teller.go_on(world.context, "lab", lab)
        except Crash:
            return True
    return False


def test_each_run_is_told_to_programs_and_a_folder_in_one_digest_to_people(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path)
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    hook.refuses = 2
    tell(world, hook, lab)
    said = [json.loads(body) for _, _, body in hook]
    assert {each["data"]["key"] for each in said} == {f"day1/{n}.mp4" for n in range(3)}
    assert {each["type"] for each in said} == {"run.over"}
    assert len({notice_id for notice_id, _, _ in hook}) == 3
    ((_, title, body),) = lab
    assert title == "posedrop: day1: 3 done"
    assert "day1/2.mp4 succeeded" in body
    # Anew, the index asks the bucket, which knows it all.
    world.lose_index()
    world.settle()
    tell(world, hook, lab)
    assert (len(hook), len(lab)) == (3, 1)


def test_a_run_of_which_only_the_end_is_heard_is_told_as_well(tmp_path: Path) -> None:
    """The event of its request is lost: who is to be told of it stands in that request alone."""
    world = world_at(tmp_path, films=1)
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    world.lose_index()
    world.tell(
        event
        for event in world.storage.events
        if event["s3"]["object"]["key"].endswith("result.json")
    )
    (row,) = world.context.index.analyses(limit=2).rows
    assert (row.asked_by, row.notify) == ("folder", ("hook", "lab"))
    tell(world, hook, lab)
    assert len(hook) == 1


def run_batch(world: World, seconds: float) -> BatchStarted:
    """Ask for a batch of the world's films, and have it done."""
    wanted = AnalyseRequest(prefix="day1/", analysis="dummy", args={"seconds": seconds})
    started = batches.analyse(world.context, wanted, ("hook", "lab"))
    assert isinstance(started, BatchStarted)
    for _ in range(3):
        while batch_steps.go_on(world.context):
            pass
        world.settle()
    return started


def test_a_batch_is_told_once_to_people_and_its_runs_are_not(tmp_path: Path) -> None:
    world = world_at(tmp_path, rule={"analysis": None})
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    started = run_batch(world, seconds=0)
    tell(world, hook, lab)
    assert (
        sorted(json.loads(body)["type"] for _, _, body in hook) == ["batch.over"] + ["run.over"] * 3
    )
    ((_, title, body),) = lab
    assert title == "posedrop: day1/: over"
    assert body.startswith("3 done\n")
    assert started.batch_id in body


def test_people_are_told_of_what_is_made_anew_by_a_batch_that_names_nobody(
    tmp_path: Path,
) -> None:
    """By the folder's rule, which has named them: once, of all three."""
    world = world_at(tmp_path)
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    tell(world, hook, lab)
    before = len(lab)
    bucket = world.storage.buckets[RESULTS]
    for key in [each for each in bucket if each.endswith("/result.json")]:
        result = Result.model_validate_json(bucket[key].data)
        failed = result.model_copy(update={"state": "failed"})
        world.storage.put(RESULTS, key, failed.to_json())
    world.lose_index()
    world.settle()
    world.clock.pass_(1)
    batches.retry(world.context, RetryRequest(prefix="day1/"), ())
    for _ in range(3):
        while batch_steps.go_on(world.context):
            pass
        world.settle()
    tell(world, hook, lab)
    assert [body.partition("\n")[0] for _, _, body in lab[before:]] == ["3 done"]


def test_what_is_killed_at_any_call_is_told_under_the_ids_that_it_had(tmp_path: Path) -> None:
    world = world_at(tmp_path)
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    kills = 0
    for at in range(1, 60):
        hook.refuses = lab.refuses = at % 3 == 0
        # The store is asked again at each start, so each time a little more is done.
        kills += tell(world, hook, lab, Gate(1 + at % 7, after=at % 2 == 0))
        if at % 5 == 0:
            world.lose_index()
            world.settle()
        else:
            world.close()
            world.open()
    tell(world, hook, lab)
    assert kills >= 20
    records = [
        Told.model_validate_json(stored.data)
        for key, stored in world.storage.buckets[RESULTS].items()
        if key.startswith("_posedrop/told/")
    ]
    assert {f"msg_{told.told_id}" for told in records if told.digest is None} == {
        notice_id for notice_id, _, _ in [*hook, *lab]
    }
    assert all(told.state == "sent" for told in records if told.digest is None)
    assert {json.loads(body)["data"]["key"] for _, _, body in hook} == {
        f"day1/{n}.mp4" for n in range(3)
    }
    assert len({notice_id for notice_id, _, _ in lab}) == 1
    for told in (hook, lab):  # the same id, the same words
        assert len({notice_id for notice_id, _, _ in told}) == len(
            {(notice_id, body) for notice_id, _, body in told}
        )


def test_what_can_not_be_told_is_given_up_and_said_and_sent_again_when_asked(
    tmp_path: Path,
) -> None:
    world = world_at(tmp_path, 1, {**RULE, "notify": ["hook", "gone"]})
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    hook.refuses = 1000
    for _ in range(teller.MAX_TRIES + 2):
        world.clock.pass_(6 * 3600)
        tell(world, hook, lab)
    teller.give_up_unknown(world.context)
    teller.note_given_up(world.context)
    assert hook.refuses == 1000 - teller.MAX_TRIES
    assert "it answered 500" in world.context.notices["notify hook"]
    assert "no such alias" in world.context.notices["notify gone"]
    world.lose_index()
    world.settle()
    tell(world, hook, lab)
    teller.note_given_up(world.context)
    assert "notify hook" in world.context.notices
    hook.refuses = 0
    assert world.context.index.tellings_again("hook", world.clock()) == 1
    tell(world, hook, lab)
    teller.note_given_up(world.context)
    assert len(hook) == 1
    assert "notify hook" not in world.context.notices


def test_old_records_go_with_nobody_told_again_and_no_batch_done_again(tmp_path: Path) -> None:
    """Killed at any call of the store in the sweep that removes them, with the index lost too."""
    for at in range(1, 400, 9):
        world = world_at(tmp_path / str(at))
        hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
        world.settle()
        run_batch(world, seconds=0.5)
        tell(world, hook, lab)
        told = len(hook), len(lab)
        assert told == (3 + 3 + 1, 2)
        kept = _records(world)
        world.clock.pass_(teller.TOLD_WITHIN.total_seconds())
        world.settle()
        assert _records(world) == kept, "a day early"
        world.clock.pass_(86400)
        with world.storage.gate(Gate(at)):
            try:
                world.settle()
            except Crash:
                is_cut = True
            else:
                is_cut = False
        if at % 2:
            world.lose_index()
        else:
            world.close()
            world.open()
        for _ in range(2):
            while batch_steps.go_on(world.context):
                pass
            world.settle()
            tell(world, hook, lab)
        assert _records(world) == set()
        assert (len(hook), len(lab)) == told
        assert batches.page(world.context, None, 10).items == []
        requests = [key for key in world.storage.buckets[RESULTS] if key.endswith("/request.json")]
        assert len(requests) == 6
        world.close()
        if not is_cut:
            return
    raise AssertionError("it was never cut behind its end")


@pytest.mark.parametrize("wrong", ["store", "handlers"])
def test_one_clock_ahead_forgets_nothing(tmp_path: Path, wrong: str) -> None:
    """With either clock a year ahead no record goes, and who is to be told is told."""
    world = world_at(tmp_path)
    hook, lab = Told_(is_webhook=True), Told_(is_webhook=False)
    world.settle()
    tell(world, hook, lab)
    run_batch(world, seconds=0.5)
    kept = _records(world)
    assert len(kept) > 5
    year = timedelta(days=365)
    if wrong == "store":
        world.clock.pass_(year.total_seconds())
        world.set_handlers_ahead(-year)
    else:
        world.set_handlers_ahead(year)
    before = len(hook), len(lab)
    world.reconciler.round()
    assert _records(world) == kept
    tell(world, hook, lab)
    assert (len(hook) - before[0], len(lab) - before[1]) == (4, 1)


def test_a_clock_that_is_set_back_while_a_sweep_goes_on_forgets_nothing(tmp_path: Path) -> None:
    """What looked old when it was seen is not removed unless it still does."""
    world = world_at(tmp_path)
    world.settle()
    tell(world, Told_(is_webhook=True), Told_(is_webhook=False))
    run_batch(world, seconds=0.5)
    kept, repairs = _records(world), Repairs()
    now = world.clock.time
    world.clock.time = now + timedelta(days=365)
    begun = sweep.Sweep(world.context)
    begun.go_on(repairs, len(world.storage.buckets[VIDEOS]) + len(world.storage.buckets[RESULTS]))
    world.clock.time = now
    assert begun.go_on(repairs, None)
    assert _records(world) == kept


def test_a_process_that_has_nothing_to_send_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its notices each alias keeps its process for a while only; another is started later."""
    monkeypatch.setattr(teller, "_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(teller, "_PAUSE_SECONDS", 0.05)
    world = world_at(tmp_path, films=1)
    with receiver() as server:
        hook = SecretStr(f"http://{server.address}/#{SECRET}")
        update = {"notify_urls": {"hook": hook}, "notify_allow_private": True}
        world.close()
        world.settings = world.settings.model_copy(update=update)
        world.open()
        telling = teller.Teller(world.context)
        child = telling._receivers["hook"]
        telling.start()
        try:
            world.settle()
            for told in (1, 2):
                _until(lambda told=told: len(server.got) == told)
                _until(lambda: child._process is None)
                world.storage.put(VIDEOS, "day1/more.mp4", b"another film")
                world.settle()
        finally:
            telling.stop()


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def _records(world: World) -> set[str]:
    own = ("_posedrop/told/", "_posedrop/digests/", "_posedrop/batches/")
    return {key for key in world.storage.buckets[RESULTS] if key.startswith(own)}


# -- real servers ----------------------------------------------------------------------------------

#: `make soak` has 20.
KILLS = size(2, 20)
#: What a bad network does: answers are cut, requests are cut, and both come late.
BAD: list[tuple[str, str, dict[str, int]]] = [
    ("limit_data", "downstream", {"bytes": 12}),
    ("limit_data", "upstream", {"bytes": 300}),
    ("reset_peer", "upstream", {"timeout": 20}),
    ("latency", "downstream", {"latency": 400}),
]


def test_each_end_is_told_though_handlers_are_killed_and_the_network_is_bad(
    servers: Servers, tmp_path: Path
) -> None:
    """kill -9 while runs end: each is told, none that is not over, under one id, and signed."""
    pick = random.Random(KILLS)
    with receiver() as server:
        proxy = Toxiproxy(tmp_path, server.port)
        urls = {
            "hook": f"http://127.0.0.1:{proxy.port}/T0KEN#{SECRET}",
            "lab": f"json://u:S3CRET@127.0.0.1:{proxy.port}/chat",
        }
        settings, environment = dict(servers.settings), dict(servers.environment)
        servers.settings |= {
            "POSEDROP_NOTIFY_URLS": json.dumps(urls),
            "POSEDROP_NOTIFY_ALLOW_PRIVATE": "true",
            "POSEDROP_NOTIFY_RETRY_SECONDS": "0.1",
        }
        servers.environment["NO_PROXY"] = "127.0.0.1"
        try:
            _kill_handlers(servers)
            _have_runs_end(servers, 2 * KILLS + 2)
            for kill in range(KILLS):
                kind, stream, how = BAD[kill % len(BAD)]
                seen = len(server.got)
                with proxy.toxic(kind, 0.7, stream, **how):
                    servers.until(lambda seen=seen: len(server.got) > seen, "something to be told")
                    time.sleep(pick.uniform(0, 0.3))
                    _kill_handlers(servers)
                print(f"kill {kill + 1} of {KILLS}: {len(server.got)} notices came", flush=True)
            ends = servers.until(lambda: _all_are_told(servers), "all to be told", 120)
        finally:
            servers.settings, servers.environment = settings, environment
            proxy.stop()
    _check_told(server.got, ends)
    kept = [
        *servers.data_dir.glob("handlers*.log"),
        *(servers.data_dir / "handlers").glob("index.sqlite*"),
    ]
    assert len(kept) >= 2
    for path in kept:  # neither errors nor what is tried again
        for secret in ("T0KEN", "S3CRET", SECRET[6:]):
            assert secret.encode() not in path.read_bytes(), (path, secret)


def _kill_handlers(lab: Servers) -> None:
    lab.kill("handlers")
    lab.start_handlers()


def _have_runs_end(lab: Servers, films: int) -> None:
    """Begin runs one after the other: some by a folder's rule, the others as a batch."""
    rule = {"analysis": "dummy", "args": {"seconds": 0.5}, "notify": ["hook"]}
    labs.put(lab, "told/day1/posedrop.json", body=json.dumps(rule).encode())
    keys = [f"told/day{day}/{number}.mp4" for number in range(films // 2) for day in (1, 2)]
    for key in keys:
        labs.put(lab, key)
    for key in keys:
        lab.file(key, "received", "ready")
    body = {"prefix": "told/day2/", "analysis": "dummy", "args": {"seconds": 0.5}}
    answer = lab.http.post("/analyse", json={**body, "notify": ["hook", "lab"]})
    assert answer.status_code == 202, answer.text


def _all_are_told(lab: Servers) -> dict[str, str] | None:
    """Return what each alias is to be told, by the ids of notices, once all of it was."""
    if lab.get("/batches")["items"][0]["status"] != "over":
        return None
    results = labs.records(lab, "told/", "result.json").values()
    runs = {each["analysis_id"] for each in results}
    s3 = lab.s3()
    keys = labs.objects(lab, "_posedrop/told/")
    records = [s3.get_object(Bucket="results", Key=key)["Body"].read() for key in keys]
    told = {record["told_id"]: record for record in map(json.loads, records)}
    if any(record["state"] != "sent" for record in told.values()):
        return None
    hooked = {each["subject"] for each in told.values() if each["alias"] == "hook"}
    if not runs or not runs < hooked:
        return None
    assert {each["subject"] for each in told.values() if each["event"] == "run.over"} == runs
    return {
        f"msg_{told_id}": f"{each['alias']} {each['subject']}" for told_id, each in told.items()
    }


def _check_told(got: list[tuple[dict[str, str], bytes]], ends: dict[str, str]) -> None:
    bodies: dict[str, set[bytes]] = {}
    subjects: dict[str, str] = {}
    mails = set()
    for headers, body in got:
        said = json.loads(body)
        if "webhook-id" not in headers:
            mails.add(said["message"])
            continue
        Webhook(SECRET).verify(body, headers)
        notice_id = headers["webhook-id"]
        bodies.setdefault(notice_id, set()).add(body)
        data = said["data"]
        subjects[notice_id] = f"hook {data.get('analysis_id') or data['batch_id']}"
    hooked = {key: end for key, end in ends.items() if end.startswith("hook ")}
    assert subjects == hooked
    assert all(len(each) == 1 for each in bodies.values()), "one id, two notices"
    assert len(ends) - len(hooked) == len(mails) == 1
    times = len(got)
    print(f"{KILLS} kills: {len(ends)} ends, told {times} times, {len(hooked)} by webhook")
