"""The mean of what several chunks say about the same moment (Zhao et al. 2023, arXiv 2304.13705)."""

from __future__ import annotations

import math

import numpy as np

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule.step import NANOSECONDS, Step, following


class TemporalEnsemble:
    """At each step, the weighted mean of the rows that the last chunks have for that time.

    The i-th oldest chunk weighs exp(-decay * i), as in ACT: with a positive decay the oldest counts most, which is
    smooth and slow to react; with a negative one the newest does. Chunks whose rows are over are forgotten, and so are
    those whose observation is older than `max_age_ns`. A chunk of another action space than the newest one's plays no
    part: a mean over both would mean nothing.

    Args:
        decay: see above, finite.
        max_age_ns: see above.
    """

    def __init__(self, decay: float, max_age_ns: int) -> None:
        if not math.isfinite(decay):
            raise ValueError(f"decay is {decay}; expected a finite number")
        self._decay = decay
        self._max_age_ns = max_age_ns
        self.clear()

    def clear(self) -> None:
        """See `Schedule`."""
        self._chunks: list[tuple[ActionChunk, int]] = []
        self._step: Step | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """See `Schedule`."""
        return self._expired

    def offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        """See `Schedule`."""
        # So that they do not become ever more while nobody asks for steps.
        kept = [(old, at) for old, at in self._chunks if observed_ns - at <= 2 * self._max_age_ns]
        self._chunks = [*kept, (chunk, observed_ns)]
        self._expired = False

    def advance(self, now_ns: int) -> Step | None:
        """See `Schedule`."""
        last = self._step
        if last is not None and now_ns < last.end_ns:
            return last
        self._step = None
        if not self._chunks:
            return None
        newest = self._chunks[-1][0]
        dt_ns = round(newest.dt * NANOSECONDS)
        # The seam is gapless only if the caller comes within a step of it; later than that the arm has been held.
        start_ns = last.end_ns if last is not None and now_ns < last.end_ns + dt_ns else now_ns
        self._chunks = [
            (chunk, observed_ns)
            for chunk, observed_ns in self._chunks
            if _row(chunk, observed_ns, start_ns) < chunk.horizon
            and now_ns - observed_ns <= self._max_age_ns
            and chunk.action_space is newest.action_space
        ]
        if not self._chunks:
            self._expired = True
            return None
        numbers = [(chunk, _row(chunk, at, start_ns)) for chunk, at in self._chunks]
        exponents = -self._decay * np.arange(len(numbers))
        weights = np.exp(exponents - exponents.max())
        weights /= weights.sum()
        newest, observed_ns = self._chunks[-1]
        self._step = Step(
            weights @ np.stack([chunk.actions[row] for chunk, row in numbers]),
            newest.action_space,
            newest.observation_sequence,
            _row(newest, observed_ns, start_ns),
            start_ns,
            start_ns + dt_ns,
            weights @ np.stack([following(chunk, row) for chunk, row in numbers]),
        )
        return self._step


def _row(chunk: ActionChunk, observed_ns: int, time_ns: int) -> int:
    """The row whose time is nearest; the first one before it."""
    return max(0, round((time_ns - observed_ns) / round(chunk.dt * NANOSECONDS)))
