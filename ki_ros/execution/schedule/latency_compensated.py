"""Think while acting: a chunk begins with the row whose time has come."""

from __future__ import annotations

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule.step import NANOSECONDS, Run, Step


class LatencyCompensated:
    """Executes `open_loop_horizon` rows of a chunk, then goes on with the newest chunk there is.

    While a chunk is executed, newer ones replace each other in waiting. A chunk's row k is meant for observed + k * dt,
    so it begins with the row whose time is nearest: the rows before it are over, the arm has moved meanwhile, under the
    chunk before. Executing them nevertheless would make the arm jump back, also when nothing else is left to execute.
    It never reaches beyond the chunk's rows. A chunk that follows another begins exactly where that one ended, so no
    time is lost to the caller's period.

    Args:
        open_loop_horizon: rows of a chunk to execute before the next one, at least 1.
        max_age_ns: a chunk whose observation is older than this when it is to begin is dropped.
    """

    def __init__(self, open_loop_horizon: int, max_age_ns: int) -> None:
        if open_loop_horizon < 1:
            raise ValueError(f"open_loop_horizon is {open_loop_horizon}; expected at least 1")
        self._rows = open_loop_horizon
        self._max_age_ns = max_age_ns
        self.clear()

    def clear(self) -> None:
        """See `Schedule`."""
        self._waiting: tuple[ActionChunk, int] | None = None
        self._running: Run | None = None
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
        run = self._running
        if run is not None and now_ns < run.end_ns:
            return run.step(now_ns)
        self._running = None
        if self._waiting is None:
            return None
        chunk, observed_ns = self._waiting
        self._waiting = None
        dt_ns = round(chunk.dt * NANOSECONDS)
        # The seam is gapless only if the caller comes within a step of it; later than that the arm has been held.
        start_ns = run.end_ns if run is not None and now_ns < run.end_ns + dt_ns else now_ns
        first = max(0, round((start_ns - observed_ns) / dt_ns))
        count = min(self._rows, chunk.horizon - first)
        if now_ns - observed_ns > self._max_age_ns or count < 1:
            self._expired = True
            return None
        self._running = Run(chunk, first, count, start_ns, dt_ns)
        if now_ns >= self._running.end_ns:
            return None
        return self._running.step(now_ns)
