"""Stop and think, as openpi's DROID client does."""

from __future__ import annotations

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule.step import NANOSECONDS, Run, Step


class Synchronous:
    """Executes `open_loop_horizon` rows of a chunk from row 0 on, then holds the arm until a chunk answers an
    observation that was made afterwards.

    Chunks that answer an observation from before the rows were over are not executed: their row 0 is meant for where
    the arm was then. So the arm stands still while the policy thinks, and row 0 is right however long that takes.

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
        self._rests_since_ns: int | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """See `Schedule`."""
        return self._expired

    def offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        """See `Schedule`."""
        moving_until = self._running.end_ns if self._running is not None else self._rests_since_ns
        if moving_until is None or observed_ns >= moving_until:
            self._waiting = (chunk, observed_ns)
            self._expired = False

    def advance(self, now_ns: int) -> Step | None:
        """See `Schedule`."""
        run = self._running
        if run is not None:
            if now_ns < run.end_ns:
                return run.step(now_ns)
            self._running, self._rests_since_ns = None, run.end_ns
        if self._waiting is None:
            return None
        chunk, observed_ns = self._waiting
        self._waiting = None
        if now_ns - observed_ns > self._max_age_ns:
            self._expired = True
            return None
        rows, dt_ns = min(self._rows, chunk.horizon), round(chunk.dt * NANOSECONDS)
        self._running = Run(chunk, 0, rows, now_ns, dt_ns, stops=True)
        return self._running.step(now_ns)
