"""Go over to each chunk as it comes: right where a chunk agrees with the one before (real-time chunking)."""

from __future__ import annotations

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule.step import NANOSECONDS, Run, Step


class RealTime:
    """Executes a chunk to its end, but goes over to a newer one at the next row.

    A chunk begins with the row whose time is nearest, so the rows that the policy was told of as committed are those
    that the chunk before executes meanwhile.

    Args:
        max_age_ns: a chunk whose observation is older than this when it is to begin is dropped.
    """

    def __init__(self, max_age_ns: int) -> None:
        self._max_age_ns = max_age_ns
        self.clear()

    def clear(self) -> None:
        """See `Schedule`."""
        self._waiting: tuple[ActionChunk, int] | None = None
        self._running: Run | None = None
        self._step: Step | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """See `Schedule`."""
        return self._expired

    def offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        """See `Schedule`."""
        self._waiting = (chunk, observed_ns)
        self._expired = False

    def advance(self, now_ns: int) -> Step | None:
        """See `Schedule`."""
        if self._step is not None and now_ns < self._step.end_ns:
            return self._step
        self._go_over(now_ns)
        run = self._running
        if run is None or now_ns >= run.end_ns:
            self._running = self._step = None
            return None
        self._step = run.step(now_ns)
        return self._step

    def _go_over(self, now_ns: int) -> None:
        """Puts the chunk in waiting in the place of the one that is executed, where the last row of that is over."""
        if self._waiting is None:
            return
        chunk, observed_ns = self._waiting
        self._waiting = None
        dt_ns = round(chunk.dt * NANOSECONDS)
        # The seam is gapless only if the caller comes within a step of it; later than that the arm has been held.
        last = self._step
        start_ns = last.end_ns if last is not None and now_ns < last.end_ns + dt_ns else now_ns
        first = max(0, round((start_ns - observed_ns) / dt_ns))
        if now_ns - observed_ns > self._max_age_ns or first >= chunk.horizon:
            # What is left of the chunk before is no better.
            self._running, self._expired = None, True
            return
        self._running = Run(chunk, first, chunk.horizon - first, start_ns, dt_ns)
