"""The offset of two clocks, of which each look tells a little too much or too little."""

from __future__ import annotations

import numpy as np

from ki_ros.execution.clock_offset import ClockOffset

YEARS = 1_800_000_000_123_456_789
"""From a machine's start to a clock of the wall's zero [ns]."""

PERIOD = 10_000_000


def look(offset: ClockOffset, now: int, ahead: int, first: int, second: int) -> None:
    """A look that begins at `now`; `first` and `second` pass before and after the other clock is read [ns]."""
    offset.look(now, now + first + ahead, now + first + second)


def test_looks_that_are_held_up_do_not_move_it():
    random, offset = np.random.default_rng(0), ClockOffset()
    look(offset, 0, YEARS, 2000, 2000)
    seen = []
    for tick in range(1, 1000):
        first, second = (int(ns) for ns in random.choice([1500, 2500, 40_000, 3_000_000], 2))
        look(offset, tick * PERIOD, YEARS, first, second)
        seen.append(offset.nanoseconds)
    # Moments of one motion are as far apart as they are.
    assert np.abs(np.diff(seen)).max() <= 250
    assert abs(seen[-1] - YEARS) < 10_000


def test_a_clock_that_drifts_is_followed():
    offset, drift = ClockOffset(), 0.0
    for tick in range(3000):
        drift = 1e-4 * tick * PERIOD
        look(offset, tick * PERIOD, YEARS + round(drift), 2000, 2000)
    assert abs(offset.nanoseconds - YEARS - drift) < 150_000


def test_a_clock_that_is_set_is_followed_at_once():
    offset = ClockOffset()
    look(offset, 0, YEARS, 2000, 2000)
    look(offset, PERIOD, YEARS - 5_000_000, 2000, 2000)
    assert offset.nanoseconds == YEARS - 5_000_000
