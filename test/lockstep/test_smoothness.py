"""Smoothness of streams of commands whose answer is known."""

import numpy as np
import pytest

from ki_ros.execution.executor import Tick
from ki_ros.execution.state import Reason, State
from ki_ros.lockstep.smoothness import Smoothness

T = np.arange(0.0, 1.0, 0.01)


def listened(positions, chunks):
    smoothness = Smoothness()
    for index, (position, chunk) in enumerate(zip(positions, chunks, strict=True)):
        state = State.EXECUTING if chunk else State.HOLDING
        tick = Tick(state, Reason.NONE, 1, np.full(7, position), np.zeros(7), observation_sequence=chunk)
        smoothness.on_tick(index, tick)
    return smoothness


def test_the_jerk_of_a_sine_is_that_of_its_third_derivative():
    smoothness = listened(0.3 * np.sin(6.0 * T), [1] * len(T))
    assert smoothness.rms_jerk == pytest.approx(0.3 * 6.0**3 * np.sqrt(np.mean(np.cos(6.0 * T) ** 2)), rel=0.02)


@pytest.mark.parametrize("at", [30, 50])
def test_a_change_of_velocity_counts_where_chunks_meet(at):
    positions = np.where(np.arange(len(T)) < 50, 0.0, 0.2 * (T - T[49]))
    smoothness = listened(positions, [1] * at + [2] * (len(T) - at))
    assert smoothness.seam_steps == pytest.approx([0.2 if at == 50 else 0.0], abs=1e-9)


def test_a_beginning_and_a_hold_are_no_seams():
    positions = np.where(np.arange(len(T)) < 50, 0.0, 0.2 * (T - T[49]))
    assert len(listened(positions, [0] * 50 + [1] * 50).seam_steps) == 0
    assert len(listened(positions[:1], [1]).seam_steps) == listened(positions[:3], [1] * 3).rms_jerk == 0.0


def test_each_seam_counts():
    positions = np.where(np.arange(len(T)) < 50, 0.0, 0.2 * (T - T[49]))
    steps = listened(positions, [1] * 2 + [2] * 48 + [3] * (len(T) - 50)).seam_steps
    assert steps == pytest.approx([0.0, 0.2], abs=1e-9)
