"""How evenly a loop goes: figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ki_ros.execution.pace import Pace

PERIOD = 0.01


def ride(intervals, works) -> Pace:
    pace = Pace(PERIOD)
    now = 5.0
    pace.turn(round(now * 1e9), now, now + works[0])
    for interval, work in zip(intervals, works[1:], strict=True):
        now += interval
        pace.turn(round(now * 1e9), now, now + work)
    return pace


def test_nothing_is_said_before_there_are_two_turns():
    pace = Pace(PERIOD)
    pace.turn(1_000, 1.0, 1.001)
    assert pace.figures() == {}
    assert pace.rate == 0
    assert pace.overruns == 0


def test_late_turns_and_long_work_are_overruns_each_once():
    intervals = [0.01, 0.0149, 0.0151, 0.03, 0.005, 0.01]
    works = [0.001, 0.001, 0.001, 0.001, 0.02, 0.011, 0.0099]
    assert ride(intervals, works).overruns == 3


@pytest.mark.parametrize("count", [1, 7, 1000, 2600])
def test_figures_are_those_of_the_last_thousand(count):
    rng = np.random.default_rng(count)
    intervals, works = rng.uniform(0.008, 0.013, count), rng.uniform(0.0005, 0.003, count + 1)
    pace = ride(intervals, works)
    last, work = 1e3 * intervals[-1000:], 1e3 * works[1:][-1000:]
    figures = pace.figures()
    assert pace.rate == pytest.approx(1e3 / last.mean(), rel=1e-6)
    # Of a thousand values neighbours lie close together; of few, any definition of a quantile is as good as another.
    nearest = {"method": "nearest"}
    for name, values in (("jitter", np.abs(last - 10)), ("work", work)):
        assert figures[f"{name}_ms_p50"] == pytest.approx(np.percentile(values, 50, **nearest), abs=1e-4)
        assert figures[f"{name}_ms_p99"] == pytest.approx(np.percentile(values, 99, **nearest), abs=1e-4)


def test_a_clock_that_goes_back_or_stands_still_breaks_nothing():
    assert ride([0.01, -3.0, 0.01], [0.001] * 4).rate == 0
    assert ride([0.0, 0.0], [0.001] * 3).rate == 0
