"""How long a child may take for a film, by the frames per second that were measured.

Pure: whoever calls the child tells of its progress, and asks. A limit made of the number of frames
alone would have to suit the slowest of processors, and let a film of 3 MB hang for eleven days.
"""

from __future__ import annotations

import math

from posedrop.buckets.records.attempts import Progress

#: Seconds that a child may always be silent: it loads a model, compiles, times its ways, finds out
#: about a film's first frames; or its accelerator is another program's for a while.
QUIET_SECONDS = 1800.0
#: Of so many frames a child may tell at once, where nobody asked for more in a batch.
USUAL_BATCH = 64
#: A frame may take so many times as long as those before it did.
FACTOR = 20.0
#: And so many times as long as this model took for such frames in another run.
USUAL_FACTOR = 200.0
#: However steadily it goes on, a frame takes no longer than so many times what the slowest does.
SLOWEST_FACTOR = 4.0
#: A child that goes from stage to stage for ever makes no progress.
_MAX_STAGES = 20


class Patience:
    """The limit of one call, in seconds of work: those that it waits for its permit do not count.

    A child is taken for hung when it tells of no further frame for long: longer than a slow
    processor takes for a batch, and than :data:`FACTOR` frames took so far. One that goes on,
    however slowly for reasons that lie outside of it, is left alone, unless it is far slower than
    the same model was before.
    """

    def __init__(
        self,
        frames: int,
        slowest_frame: float,
        *,
        batch: int | None = None,
        usual: float | None = None,
    ) -> None:
        """Begin.

        Args:
            frames: that it may tell of, at most.
            slowest_frame: seconds that a frame takes at most, on a processor.
            batch: frames that it may tell of at once; None: as many as are fastest.
            usual: frames per second that were measured before in the same case; None: none were.
        """
        self._frames = max(1, frames)
        at_once = min(self._frames, batch or USUAL_BATCH)
        self._quiet = QUIET_SECONDS + slowest_frame * at_once
        # Once it may be silent before its first frame, and as long again in all, later.
        self._at_most = 2 * self._quiet + SLOWEST_FACTOR * slowest_frame * self._frames
        if usual is not None and usual > 0:
            unusual = self._quiet + USUAL_FACTOR * self._frames / usual
            self._at_most = min(self._at_most, unusual)
        self._stages = 0
        self._stage: str | None = None
        self._done: dict[str, int] = {}
        self._heard = 0.0
        self._began: tuple[float, int] | None = None
        self._last: tuple[float, int] = (0.0, 0)

    @classmethod
    def of(cls, seconds: float) -> Patience:
        """Return a limit that is known beforehand, whatever the child tells."""
        fixed = cls(2**62, 0.0)
        fixed._at_most, fixed._quiet = seconds, math.inf
        return fixed

    @property
    def wanted(self) -> str:
        """What did not come in time."""
        return "answer" if self.seconds >= self._at_most else "further frame"

    def heard(self, progress: Progress, worked: float) -> None:
        """Note what a child tells after ``worked`` seconds; only news count."""
        stage, done = progress.stage, min(progress.done, self._frames)
        begins = stage != self._stage and self._stages < _MAX_STAGES
        if begins:
            self._stages += 1
        self._stage = stage
        if not begins and done <= self._done.get(stage, self._frames):
            return
        self._done[stage] = done
        self._heard = worked
        if stage == "infer":
            self._began = self._began or (worked, done)
            self._last = (worked, done)

    @property
    def measured(self) -> tuple[int, float]:
        """How many frames went through the network so far, and the seconds that this took."""
        if self._began is None:
            return 0, 0.0
        (began, first), (last, done) = self._began, self._last
        return done - first, last - began

    @property
    def seconds(self) -> float:
        """After how many seconds of work the child is taken for hung, by what is known so far."""
        frames, took = self.measured
        pace = took / frames if frames > 0 else 0.0
        return min(self._at_most, self._heard + self._quiet + FACTOR * pace)
