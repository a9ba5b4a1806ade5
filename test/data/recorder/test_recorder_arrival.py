"""Simulated times of arrival, and messages that never arrived."""

from __future__ import annotations

import numpy as np

from ki_ros.data.recorder.arrival import SequenceGaps, SimulatedArrival


def test_a_message_arrives_at_the_time_that_was_announced_before_it():
    rng = np.random.default_rng(0)
    walls = np.cumsum(rng.integers(1, 1000, 200))
    times = np.cumsum(rng.integers(0, 50, 200)) + 7
    clock = SimulatedArrival()
    for wall, time in zip(walls, times, strict=True):
        clock.announce(int(wall), int(time))
    for wall in rng.integers(walls[0], walls[-1] + 500, 500):
        before = [time for w, time in zip(walls, times, strict=True) if w <= wall]
        assert clock.at(int(wall)) == before[-1]


def test_what_came_before_the_first_announcement_has_its_time():
    clock = SimulatedArrival()
    assert clock.at(123) == 0
    clock.announce(1000, 50)
    assert clock.at(999) == 50


def test_memory_is_bounded_and_the_newest_stays():
    clock = SimulatedArrival(keep=3)
    for i in range(10):
        clock.announce(100 * i, i)
    assert [clock.at(100 * i) for i in (0, 7, 8, 9)] == [7, 7, 8, 9]


def test_a_system_clock_that_is_set_back_begins_anew():
    clock = SimulatedArrival()
    clock.announce(5000, 100)
    clock.announce(1000, 101)
    clock.announce(2000, 102)
    assert [clock.at(1500), clock.at(2500), clock.at(6000)] == [101, 102, 102]


def test_gaps_are_counted_exactly():
    rng = np.random.default_rng(1)
    sent = range(40, 1040)
    arrived = [40, *sorted(rng.choice(sent[1:-1], 700, replace=False)), 1039]
    gaps = SequenceGaps()
    assert sum(gaps.lost(int(sequence)) for sequence in arrived) == len(sent) - len(arrived)


def test_a_publisher_that_starts_again_has_lost_nothing():
    gaps = SequenceGaps()
    assert [gaps.lost(s) for s in (10, 11, 1, 2, 4, None, 9)] == [0, 0, 0, 0, 1, 0, 0]
