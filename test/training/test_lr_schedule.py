"""The schedule against values worked out by hand and the shape that it must have."""

from __future__ import annotations

import itertools
import math

import pytest

from ki_ros.training.schedule import learning_rate

SCHEDULE = {"peak": 2.5e-5, "end": 2.5e-6, "warmup_steps": 1000, "total_steps": 30_000}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2.5e-5 / 1001),
        (500, 2.5e-5 * (1 / 1001 + 1) / 2),
        (1000, 2.5e-5),
        (15_500, (2.5e-5 + 2.5e-6) / 2),
        (1000 + 29_000 / 3, 2.5e-6 + 0.75 * 2.25e-5),  # cos(pi / 3) is one half
        (30_000, 2.5e-6),
        (10**9, 2.5e-6),
    ],
)
def test_values(step, expected) -> None:
    assert learning_rate(step, **SCHEDULE) == pytest.approx(expected, rel=1e-9)


def test_rises_to_its_peak_then_falls_without_a_jump() -> None:
    short = {"peak": 1.0, "end": 0.1, "warmup_steps": 7, "total_steps": 40}
    rates = [learning_rate(step, **short) for step in range(50)]
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert all(change > 0 for change in steps[:7])
    assert all(change < 0 for change in steps[7:40])
    assert all(change == 0 for change in steps[40:])
    assert rates.index(max(rates)) == 7
    # The slope of the cosine is at most pi / 2 times its mean.
    assert max(-change for change in steps[7:]) <= 0.9 / 33 * math.pi / 2


def test_without_warm_up_it_begins_at_the_peak() -> None:
    assert learning_rate(0, peak=1e-3, end=0.0, warmup_steps=0, total_steps=10) == 1e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("peak", 0.0),
        ("peak", math.nan),
        ("peak", math.inf),
        ("end", 1.0),
        ("end", -1e-9),
        ("end", math.nan),
        ("warmup_steps", -1),
        ("total_steps", 1000),
    ],
)
def test_what_no_schedule_has_is_refused_by_name(name, value) -> None:
    arguments = {"step": 3, **SCHEDULE, name: value}
    with pytest.raises(ValueError, match=rf"^{name} is {value}"):
        learning_rate(**arguments)
