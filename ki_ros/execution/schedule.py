"""Which row of which chunk is in force at a time, and the path to its target. Times are nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ki_ros.chunk import ActionChunk

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Step:
    """One row of a chunk, in force from `start_ns` until just before `end_ns`."""

    chunk: ActionChunk
    row: int
    start_ns: int
    end_ns: int

    @property
    def action(self) -> np.ndarray:
        """(8,) float64, in the chunk's action space."""
        return self.chunk.actions[self.row]


class Schedule(Protocol):
    """Chunks in, steps out. One thread; the times given to it never go back without a `clear` between them."""

    def offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        """A chunk that was computed from an observation of `observed_ns`, newer than every one before it."""

    def advance(self, now_ns: int) -> Step | None:
        """The step in force at `now_ns`; None when there is nothing to execute. See `expired`."""

    def clear(self) -> None:
        """Forgets every chunk: after this nothing of what was offered before is ever executed."""

    @property
    def expired(self) -> bool:
        """Whether the last `advance` dropped a chunk because it had become too old to begin with."""


class OpenLoopSchedule:
    """Executes `open_loop_horizon` rows of a chunk, then goes on with the newest chunk there is.

    While a chunk is executed, newer ones replace each other in waiting. A chunk's row k is meant for observed + k * dt;
    with `skip_elapsed` a chunk therefore begins with the row whose time is nearest, because the rows before it are
    over: the arm has moved meanwhile, under the chunk before. Without it, it begins with row 0, which is right for a
    client that waits for each answer with the arm at rest. It never reaches beyond the chunk's rows. A chunk that
    follows another begins exactly where that one ended, so no time is lost to the caller's period.

    Args:
        open_loop_horizon: rows of a chunk to execute before the next one, at least 1.
        max_age_ns: a chunk whose observation is older than this when it is to begin is dropped.
        skip_elapsed: see above.
    """

    def __init__(self, open_loop_horizon: int, max_age_ns: int, skip_elapsed: bool = True) -> None:
        if open_loop_horizon < 1:
            raise ValueError(f"open_loop_horizon is {open_loop_horizon}; expected at least 1")
        self._rows = open_loop_horizon
        self._max_age_ns = max_age_ns
        self._skip_elapsed = skip_elapsed
        self.clear()

    def clear(self) -> None:
        self._waiting: tuple[ActionChunk, int] | None = None
        self._running: _Run | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        return self._expired

    def offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        self._waiting = (chunk, observed_ns)
        self._expired = False

    def advance(self, now_ns: int) -> Step | None:
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
        age_ns = start_ns - observed_ns
        first = max(0, round(age_ns / dt_ns)) if self._skip_elapsed else 0
        count = min(self._rows, chunk.horizon - first)
        if now_ns - observed_ns > self._max_age_ns or count < 1:
            self._expired = True
            return None
        self._running = _Run(chunk, first, count, start_ns, dt_ns)
        if now_ns >= self._running.end_ns:
            return None
        return self._running.step(now_ns)


@dataclass(frozen=True)
class _Run:
    chunk: ActionChunk
    first: int
    count: int
    start_ns: int
    dt_ns: int

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.count * self.dt_ns

    def step(self, now_ns: int) -> Step:
        k = (now_ns - self.start_ns) // self.dt_ns
        start_ns = self.start_ns + k * self.dt_ns
        return Step(self.chunk, self.first + k, start_ns, start_ns + self.dt_ns)


@dataclass(frozen=True)
class Segment:
    """A straight path in joint space: `start` (7,) [rad] at `start_ns`, `target` (7,) [rad] at `end_ns`."""

    start: np.ndarray
    target: np.ndarray
    start_ns: int
    end_ns: int

    def position(self, now_ns: int) -> np.ndarray:
        """Joint positions (7,) [rad] at a time; before and after the segment its ends."""
        share = (now_ns - self.start_ns) / (self.end_ns - self.start_ns)
        if share >= 1:
            return self.target.copy()
        return self.start + max(share, 0.0) * (self.target - self.start)
