"""How evenly a loop of equal periods goes, and how long its work takes."""

from __future__ import annotations

import numpy as np

LATE = 1.5
"""A turn that begins later than so many periods after the last one is an overrun."""

_KEPT = 1000
_NANOSECONDS = 1_000_000_000


class Pace:
    """Figures of the last turns; cheap to keep and to read, because the loop itself does both.

    Args:
        period: that the turns are meant to begin at [s].

    Attributes:
        overruns: turns that began later than `LATE` periods after the last one, or whose work took more than a period.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        # A row a turn: from the last turn to this one by the loop's clock and by the wall's, and the work [s].
        self._turns = np.zeros((_KEPT, 3))
        self._count = 0
        self._last: tuple[int, float] | None = None
        self.overruns = 0

    def turn(self, now_ns: int, began: float, ended: float) -> None:
        """A turn is over.

        Args:
            now_ns: when it began, by the clock that paces the loop [ns].
            began, ended: of its work, by a clock of the wall that is not set [s].
        """
        last, self._last = self._last, (now_ns, began)
        if last is None:
            return
        interval = (now_ns - last[0]) / _NANOSECONDS
        self._turns[self._count % _KEPT] = interval, began - last[1], ended - began
        self._count += 1
        self.overruns += interval > LATE * self._period or ended - began > self._period

    @property
    def rate(self) -> float:
        """Turns a second [Hz]; 0 before there are any, and where the clock stands still."""
        total = self._turns[: self._count, 0].sum()
        return min(self._count, _KEPT) / float(total) if total > 0 else 0.0

    def figures(self) -> dict[str, float]:
        """Jitter is the distance from the period. Simulated time comes in ticks, which hide what the operating system
        does; so it is also taken of the wall clock's intervals, from their median. Empty before the second turn."""
        if not self._count:
            return {}
        intervals, wall, work = 1e3 * self._turns[: self._count].T
        wall = np.sort(wall)
        jitter, work = np.sort(np.abs(intervals - 1e3 * self._period)), np.sort(work)
        wall_jitter = np.sort(np.abs(wall - _share(wall, 0.5)))
        return {
            "jitter_ms_p50": _share(jitter, 0.5),
            "jitter_ms_p99": _share(jitter, 0.99),
            "wall_jitter_ms_p99": _share(wall_jitter, 0.99),
            "work_ms_p50": _share(work, 0.5),
            "work_ms_p99": _share(work, 0.99),
        }


def _share(ordered: np.ndarray, share: float) -> float:
    """The value that a share of them does not exceed; np.percentile takes twenty times as long as the sorting."""
    return float(ordered[round(share * (len(ordered) - 1))])
