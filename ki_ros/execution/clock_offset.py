"""How far one clock is ahead of another, better than a single look at both tells."""

from __future__ import annotations

_SHARE = 0.01
"""How much a new look counts against those before."""

_SET_NS = 2_000_000
"""A difference [ns] by which no clock drifts between two looks, so that it has been set."""

_SHORT_NS = 50_000
"""Half of the time that a look takes [ns]; one that takes longer was held up, and tells little."""


class ClockOffset:
    """How far a clock is ahead of the one that paces a loop.

    Between the looks at two clocks some time passes, now more, now less, and a process may be held up there. Moments of
    one motion that are dated by single looks are thus not as far apart as they are, and where the dates decide where an
    arm is led, that is a step in its way: at 1.5 rad/s and 1 kHz, ten microseconds are 15 rad/s^2.

    Attributes:
        nanoseconds: the offset [ns].
    """

    def __init__(self) -> None:
        # In whole numbers: a double has no nanoseconds of the years since 1970.
        self.nanoseconds = 0
        self._known = False

    def look(self, before_ns: int, other_ns: int, after_ns: int) -> None:
        """The other clock showed `other_ns` at a moment between two of the loop's."""
        half = (after_ns - before_ns) // 2
        difference = other_ns - before_ns - half - self.nanoseconds
        if not self._known or abs(difference) > half + _SET_NS:
            self.nanoseconds += difference
            self._known = True
        elif half <= _SHORT_NS:
            self.nanoseconds += round(_SHARE * difference)
