"""What a schedule gives to the executor, and what is asked of one. Times are nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ki_ros.chunk import ActionChunk
from ki_ros.rig import ActionSpace

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Step:
    """One action, in force from `start_ns` until just before `end_ns`.

    Attributes:
        action: (8,) float64, in `action_space`.
        action_space: meaning of its first seven values.
        observation_sequence, row: of the chunk that it is a row of, or of the newest one of several.
        start_ns, end_ns: when it is in force.
    """

    action: np.ndarray = field(compare=False)
    action_space: ActionSpace
    observation_sequence: int
    row: int
    start_ns: int
    end_ns: int


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


@dataclass(frozen=True)
class Run:
    """Rows of a chunk one after the other, from row `first` on, each for `dt_ns`."""

    chunk: ActionChunk
    first: int
    count: int
    start_ns: int
    dt_ns: int

    @property
    def end_ns(self) -> int:
        """When the last of them is over."""
        return self.start_ns + self.count * self.dt_ns

    def step(self, now_ns: int) -> Step:
        """The row in force at a time before `end_ns`."""
        k = (now_ns - self.start_ns) // self.dt_ns
        start_ns, row = self.start_ns + k * self.dt_ns, self.first + k
        chunk = self.chunk
        return Step(
            chunk.actions[row], chunk.action_space, chunk.observation_sequence, row, start_ns, start_ns + self.dt_ns
        )
