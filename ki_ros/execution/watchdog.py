"""Notices that chunks have stopped coming. Times are nanoseconds."""

from __future__ import annotations

import statistics
from collections import deque

_INTERVALS = 15
_ENOUGH_INTERVALS = 5


class ChunkWatchdog:
    """Whether the stream of chunks is alive.

    A chunk is executed open loop for longer than a fault may go unnoticed, so the stream itself is watched: it is dead
    when no chunk has come for `factor` times the usual interval (the median of the last ones), and in any case after
    `max_gap_ns`. A policy at 15 Hz is thus missed after 0.17 s, while a slow one is given the time it usually takes.

    Args:
        max_gap_ns: the longest gap that is ever tolerated.
        factor: tolerated gap in usual intervals; 0 tolerates `max_gap_ns` from the start and always.
        min_gap_ns: a gap shorter than this is always tolerated.
    """

    def __init__(self, max_gap_ns: int, factor: float, min_gap_ns: int = 100_000_000) -> None:
        self._max_gap_ns = max_gap_ns
        self._min_gap_ns = min(min_gap_ns, max_gap_ns)
        self._factor = factor
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)
        self._last_ns: int | None = None
        self._fed = False

    @property
    def fed(self) -> bool:
        """Whether a chunk has come since the last `restart`."""
        return self._fed

    @property
    def gap_ns(self) -> int:
        """The gap that is tolerated now."""
        if self._factor <= 0 or len(self._intervals) < _ENOUGH_INTERVALS:
            return self._max_gap_ns
        usual = statistics.median(self._intervals)
        return min(self._max_gap_ns, max(self._min_gap_ns, round(self._factor * usual)))

    @property
    def interval_ns(self) -> float | None:
        """The usual interval between two chunks; None before there were enough of them."""
        return statistics.median(self._intervals) if len(self._intervals) >= _ENOUGH_INTERVALS else None

    def feed(self, now_ns: int) -> None:
        """A good chunk has come."""
        if self._last_ns is not None:
            # Outages count too, as one interval each: a policy that has become slower must be able to say so. The cap
            # holds whatever the median is.
            self._intervals.append(now_ns - self._last_ns)
        self._last_ns, self._fed = now_ns, True

    def restart(self) -> None:
        """Waits for the first chunk again. What is known of the usual interval stays, and the wait counts as one."""
        self._fed = False

    def forget_time(self) -> None:
        """As `restart`, where the clock has been set: no interval is known of the wait."""
        self._last_ns, self._fed = None, False

    def alive(self, now_ns: int) -> bool:
        """Whether a chunk has come recently enough."""
        return self._fed and now_ns - self._last_ns <= self.gap_ns
