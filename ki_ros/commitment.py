"""What an arm is committed to while its policy thinks: what real-time chunking makes the next chunk agree with.

The policy's and the executor's clock need not agree: rows are matched by the stamps of the observations that the chunks
answer, which come from one clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from ki_ros.chunk import ActionChunk

_NANOSECONDS = 1_000_000_000
_ROUNDING = 1e-6
"""Of a delay in rows: so much more than a whole number of them is that number."""


@dataclass(frozen=True)
class Commitment:
    """What the arm will do from an observation on.

    Attributes:
        actions: (R, 8) float64, R at least 1, in the action space of the chunk that they come from. Row k is for the
            observation's time + k * dt, as row k of the chunk that will answer it.
        rows: how many of them will be over when that chunk comes, 0 to R: these happen whatever it says.
    """

    actions: np.ndarray
    rows: int

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or not len(self.actions):
            raise ValueError(f"actions has shape {self.actions.shape}; expected (rows, values) with rows > 0")
        if not 0 <= self.rows <= len(self.actions):
            raise ValueError(f"rows is {self.rows}; expected 0 to {len(self.actions)}")


def commit(executing: ActionChunk, stamp: int, delay: float, shift: float = 0.0) -> Commitment | None:
    """What an arm that executes a chunk is committed to.

    Rows past the chunk's end are not made up: padding with zeros would mean the data's mean pose to a policy.

    Args:
        executing: the chunk that is in force until the answer comes.
        stamp: of the observation that will be answered [ns].
        delay: until the answer is expected [s].
        shift: how much later than meant the chunk is executed [s].

    Returns:
        None where nothing is left of the chunk, or where it is not older than the observation.

    Raises:
        ValueError: a delay or a shift that is negative or not finite.
    """
    for name, seconds in (("delay", delay), ("shift", shift)):
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{name} is {seconds} s; expected a finite time, 0 or more")
    over = round(((stamp - executing.stamp) / _NANOSECONDS - shift) / executing.dt)
    if stamp <= executing.stamp or over >= executing.horizon:
        return None
    left = executing.actions[max(0, over) :]
    # A row that has begun when the answer comes counts: it is not taken back.
    return Commitment(left, min(math.ceil(delay / executing.dt - _ROUNDING), len(left)))


class DelayEstimate:
    """How long the next answer will take: the longest of the last ones, since an answer that is late costs more than
    one that is early (Black et al. 2025, arXiv 2506.07339, section 4).

    What is learnt before the policy is warm is forgotten: the first delays do not count, and each one leaves the
    window.

    Args:
        window: answers that count, at least 1.
        warm_up: first ones that do not, 0 or more.
    """

    def __init__(self, window: int = 10, warm_up: int = 1) -> None:
        if window < 1 or warm_up < 0:
            raise ValueError(f"window is {window}, warm_up {warm_up}; expected at least 1, and 0 or more")
        self._warm_up = warm_up
        self._delays: deque[float] = deque(maxlen=window)

    @property
    def seconds(self) -> float | None:
        """The estimate [s]; None before there is one."""
        return max(self._delays) if self._delays else None

    def add(self, delay: float) -> None:
        """An answer came after that time [s]. Raises ValueError for one that is negative or not finite."""
        if not 0 <= delay < math.inf:
            raise ValueError(f"delay is {delay} s; expected a finite time, 0 or more")
        if self._warm_up:
            self._warm_up -= 1
            return
        self._delays.append(delay)
