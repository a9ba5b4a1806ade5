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
        following: the action after it as far as is known, (8,); None where the motion ends with this one.
    """

    action: np.ndarray = field(compare=False)
    action_space: ActionSpace
    observation_sequence: int
    row: int
    start_ns: int
    end_ns: int
    following: np.ndarray | None = field(default=None, compare=False)


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
    """Rows of a chunk one after the other, from row `first` on, each for `dt_ns`.

    Unless it `stops` at its end, the motion is taken to go on with the chunk's next row, or at its last one as in that.
    """

    chunk: ActionChunk
    first: int
    count: int
    start_ns: int
    dt_ns: int
    stops: bool = False

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
            chunk.actions[row],
            chunk.action_space,
            chunk.observation_sequence,
            row,
            start_ns,
            start_ns + self.dt_ns,
            None if self.stops and k == self.count - 1 else following(chunk, row),
        )


def following(chunk: ActionChunk, row: int) -> np.ndarray:
    """The action (8,) that comes after a row of a chunk; after the last one the motion is taken to go on as it does."""
    actions = chunk.actions
    if row + 1 < len(actions):
        return actions[row + 1]
    if chunk.action_space is ActionSpace.JOINT_VELOCITY or len(actions) == 1:
        return actions[row]
    return 2 * actions[row] - actions[row - 1]
