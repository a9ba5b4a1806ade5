"""What is known of a message beside its bytes: when it arrived, and whether those before it did."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque


class SimulatedArrival:
    """Times of arrival on a simulated clock, from the times of arrival of the clock's own messages.

    A message arrived at the simulated time that was last announced before it did. So the time is right however much
    later the message is looked at.
    """

    def __init__(self, keep: int = 4096) -> None:
        self._walls: deque[int] = deque(maxlen=keep)
        self._times: deque[int] = deque(maxlen=keep)

    def announce(self, wall_ns: int, time_ns: int) -> None:
        """The clock showed `time_ns` from the system time `wall_ns` on. Calls come in the order of `wall_ns`."""
        if self._walls and wall_ns < self._walls[-1]:
            # The system clock was set back: what was known belongs to another time.
            self._walls.clear()
            self._times.clear()
        self._walls.append(wall_ns)
        self._times.append(time_ns)

    def at(self, wall_ns: int) -> int:
        """The simulated time [ns] at a system time [ns]; 0 while the clock has shown nothing."""
        if not self._walls:
            return 0
        return self._times[max(bisect_right(self._walls, wall_ns) - 1, 0)]


class SequenceGaps:
    """Counts the messages of one publisher that never arrived, by the gaps in its sequence numbers."""

    def __init__(self) -> None:
        self._last: int | None = None

    def lost(self, sequence: int | None) -> int:
        """How many are missing between the message before and this one.

        A number that does not grow is another publisher's, or the same one's after a restart: nothing is known then.
        """
        last, self._last = self._last, sequence
        if sequence is None or last is None or sequence <= last:
            return 0
        return sequence - last - 1
