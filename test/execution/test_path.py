"""The path between two targets: where it passes, how it joins the next one, that it never overshoots."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import CubicHermiteSpline

from ki_ros.execution.path import Path, joining_velocity

MS = 1_000_000


def joints(most: float):
    return arrays(np.float64, 7, elements=st.floats(-most, most))


@given(joints(3), joints(3), joints(2), joints(2), st.floats(-0.5, 1.5))
def test_it_is_the_cubic_between_its_ends(start, target, first, last, share):
    path = Path(start, target, first, last, 100 * MS, 170 * MS)
    reference = CubicHermiteSpline([0.1, 0.17], [start, target], [first, last])
    time_ns = round((100 + 70 * share) * MS)
    seconds = min(max(time_ns / 1e9, 0.1), 0.17)
    np.testing.assert_allclose(path.position(time_ns), reference(seconds), atol=1e-9)
    np.testing.assert_allclose(path.velocity(time_ns), reference(seconds, 1), atol=1e-6)
    assert np.array_equal(path.position(170 * MS), target)


@given(arrays(np.float64, (5, 7), elements=st.floats(-1, 1)))
def test_a_row_of_steps_turns_round_at_targets_only(targets):
    """Between two targets the path stays between them, and its velocity is continuous over all of them."""
    duration = 0.07
    slopes = np.diff(targets, axis=0) / duration
    velocity = np.zeros(7)
    for k in range(len(slopes)):
        end = joining_velocity(slopes[k], slopes[k + 1]) if k + 1 < len(slopes) else np.zeros(7)
        path = Path(targets[k], targets[k + 1], velocity, end, 0, 70 * MS)
        along = np.array([path.position(ms * MS) for ms in range(71)])
        low, high = np.minimum(targets[k], targets[k + 1]), np.maximum(targets[k], targets[k + 1])
        assert np.all(along >= low - 1e-12)
        assert np.all(along <= high + 1e-12)
        np.testing.assert_allclose(path.velocity(0), velocity, atol=1e-9)
        velocity = path.velocity(70 * MS)
        np.testing.assert_allclose(velocity, end, atol=1e-9)
