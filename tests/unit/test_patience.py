"""How long a child may take: for hung it is taken, for slow it is not."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from posedrop.buckets.records.attempts import Progress
from worker.child.patience import QUIET_SECONDS, Patience

DAY = 86400.0


def infer(done: int) -> Progress:
    """What a child says of its frames."""
    return Progress(stage="infer", done=done)


def test_a_small_film_of_many_frames_that_hangs_is_given_up_within_the_hour() -> None:
    """200,000 frames of 16x16: it has no first frame, or stops in the middle at 500 a second."""
    patience = Patience(200_000, 5.0)
    patience.heard(Progress(stage="load"), 1.0)
    assert QUIET_SECONDS < patience.seconds < 3600
    for done in range(0, 100_000, 100):
        patience.heard(infer(done), 10.0 + done / 500)
    assert 209 + QUIET_SECONDS < patience.seconds < 209 + 3600
    assert patience.wanted == "further frame"


@given(
    frames=st.integers(1, 3000),
    pace=st.floats(0.0001, 19.0),
    batch=st.sampled_from([1, 8, 64]),
    pauses=st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 150)), max_size=5),
)
@example(frames=1, pace=1.0, batch=1, pauses=[(0, 125.0)])
def test_one_that_goes_on_is_left_alone_however_slow(
    frames: int, pace: float, batch: int, pauses: list[tuple[int, float]]
) -> None:
    """Slower than any processor, in batches, with its accelerator taken away for minutes."""
    patience = Patience(frames, 5.0)
    worked = 1700.0  # until the first frame
    for done in range(0, frames + batch, batch):
        assert worked <= patience.seconds
        patience.heard(infer(min(done, frames)), worked)
        worked += min(batch, frames) * pace + sum(
            s for at, s in pauses if done <= at < done + batch
        )


@given(usual=st.floats(0.01, 10_000), slower=st.floats(1, 150))
def test_one_may_be_far_slower_than_the_model_was_before_and_not_without_end(
    usual: float, slower: float
) -> None:
    """It shares its accelerator, or its film has ten animals where that one had none."""
    frames = 2000
    patience = Patience(frames, 5.0, usual=usual)
    worked = min(slower * frames / usual, 10.0 * frames)
    patience.heard(infer(frames - 1), worked)
    assert worked <= patience.seconds
    patience.heard(infer(frames), 300 * frames / usual + 3 * DAY)
    assert patience.seconds <= 200 * frames / usual + 3600


def test_words_without_frames_keep_no_child_alive() -> None:
    """One that was taken over says what it likes: stages to and fro, frames beyond the last."""
    patience = Patience(10, 5.0)
    patience.heard(infer(10), 1.0)
    for second in range(2, 20_000):
        patience.heard(Progress(stage=f"stage {second % 30}", done=second), float(second))
    assert patience.seconds < 3 * QUIET_SECONDS


def test_a_stage_that_begins_anew_is_progress() -> None:
    """A card that can't encode a film after all: the processor draws it from its first frame on."""
    patience = Patience(10_000, 1.0)
    patience.heard(Progress(stage="render", done=9_000), 5000.0)
    patience.heard(Progress(stage="encode"), 5001.0)
    for done in range(1, 10_000):
        patience.heard(Progress(stage="render", done=done), 5001.0 + done)
        assert 5001.0 + done + 1 <= patience.seconds


def test_a_limit_known_beforehand_is_kept() -> None:
    """Whatever the child tells."""
    patience = Patience.of(1.0)
    patience.heard(infer(5), 0.9)
    assert (patience.seconds, patience.wanted) == (1.0, "answer")
