"""What a chunk refuses, and what its rows ask for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ki_ros import chunk
from ki_ros.chunk import ActionChunk, ChunkError, NonFiniteChunkError
from ki_ros.rig import ActionSpace


def make(**changes):
    fields = {"stamp": 1, "observation_sequence": 1, "epoch": 1, "dt": 1 / 15, "actions": np.zeros((15, 8))}
    return ActionChunk(**({"action_space": ActionSpace.JOINT_VELOCITY} | fields | changes))


def test_its_values_are_its_own():
    actions = np.zeros((3, 8))
    made = make(actions=actions)
    actions[:] = 7
    assert made.horizon == 3
    assert not made.actions.any()
    with pytest.raises(ValueError, match="read-only"):
        made.actions[0, 0] = 1


@pytest.mark.parametrize("shape", [(0, 8), (8,), (15, 7), (15, 32), (1, 15, 8)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ChunkError, match="actions has shape"):
        make(actions=np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(value):
    actions = np.zeros((15, 8))
    actions[3, 7] = value
    with pytest.raises(NonFiniteChunkError, match=rf"actions\[3, 7\] is {value} \(1 of 120"):
        make(actions=actions)


@pytest.mark.parametrize("dt", [0.0, -0.1, np.nan, np.inf, 66.7, 1e-9])
def test_a_dt_that_cannot_be_is_named(dt):
    with pytest.raises(ChunkError, match="dt is"):
        make(dt=dt)


def test_rows():
    values = np.arange(24.0)
    assert np.array_equal(chunk.rows(values, 3, 8), values.reshape(3, 8))
    for horizon, action_dim in ((2, 8), (3, 7), (0, 8)):
        with pytest.raises(ChunkError, match="24 values"):
            chunk.rows(values, horizon, action_dim)


@given(
    velocity=arrays(np.float64, 7, elements=st.floats(-100, 100)),
    measured=arrays(np.float64, 7, elements=st.floats(-3, 3)),
)
def test_joint_velocity_is_scaled_as_a_whole(velocity, measured):
    action = np.append(velocity, 1.0)
    delta = chunk.target_position(action, ActionSpace.JOINT_VELOCITY, measured) - measured
    # Joint by joint, as DROID's controller has it.
    largest = max(abs(v) for v in velocity)
    expected = [0.2 * (v / largest if largest > 1 else v) for v in velocity]
    np.testing.assert_allclose(delta, expected, atol=1e-12)


def test_joint_position_is_absolute():
    action = np.arange(8.0)
    target = chunk.target_position(action, ActionSpace.JOINT_POSITION, np.full(7, 9.0))
    assert np.array_equal(target, np.arange(7.0))
