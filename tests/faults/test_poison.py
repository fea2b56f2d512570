"""What kills its worker, or its child, ends as failed with what is known; the next job runs."""

from __future__ import annotations

import pytest

from tests.e2e.lab import Servers
from tests.faults import labs


@pytest.mark.parametrize(
    ("how", "more", "attempts", "code", "words"),
    [
        ("segfault", {}, 3, "child_died", "SIGSEGV"),
        ("exit", {}, 3, "child_died", "exit code 7"),
        ("hang", {"wall_seconds": 1}, 3, "timeout", "no answer within 1 s"),
        ("memory", {}, 1, "out_of_memory", "MemoryError"),
        ("raise", {}, 1, "faulty", "never works"),
    ],
)
def test_a_child_that_fails_ends_its_run_and_no_other(
    servers: Servers, how: str, more: dict[str, float], attempts: int, code: str, words: str
) -> None:
    """The result says what happened, in which stage, and what the log said last."""
    labs.put(servers, f"poison/{how}.mp4", labs.asks(how, **more))
    labs.put(servers, f"poison/after-{how}.mp4", labs.asks())
    over = labs.result(servers, f"poison/{how}.mp4")
    assert (over["state"], over["attempts"], over["error"]["code"]) == ("failed", attempts, code)
    assert words in over["error"]["message"]
    assert over["error"]["stage"] == "infer"
    assert f"about to {how}" in over["error"]["log_tail"]
    assert labs.result(servers, f"poison/after-{how}.mp4")["state"] == "succeeded"


def test_a_run_that_kills_its_worker_is_given_up(servers: Servers) -> None:
    """A killed worker raises nothing: its silence is counted. Three, and the run has failed."""
    labs.put(servers, "poison/kills.mp4", labs.asks("kill_worker"))

    def over() -> bool:
        # As `restart: unless-stopped` does.
        for name in servers.names("worker-gpu"):
            if servers.gone(name):
                servers.start_worker("worker-gpu")
        return bool(labs.records(servers, "poison/kills.mp4/", "result.json"))

    servers.until(over, "the run to be given up", 180)
    result = labs.result(servers, "poison/kills.mp4")
    assert (result["state"], result["error"]["code"]) == ("failed", "worker_died")
    assert "given up after 3 attempts" in result["error"]["message"]
    assert len(labs.records(servers, "poison/kills.mp4/", "3.json")) == 1
    labs.put(servers, "poison/after-kills.mp4", labs.asks())
    assert labs.result(servers, "poison/after-kills.mp4")["state"] == "succeeded"
